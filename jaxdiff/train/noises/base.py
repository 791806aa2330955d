"""What the noises share: views, the protocol, and where a row's text, blocks and shares lie."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.types import Leaf

MOST = 2**20  # of a whole number
TRAJECTORY = "trajectory"  # what a noise or an objective may need: `Batch.order`, of a teacher's decode


@pytree
class View:
    """One noisy canvas of each row.

    Attributes:
        tokens: what the model is fed.
        learn: positions whose token is to be learned.
        at: the teacher's forward before which its canvas stood so; None for a noise that follows no trajectory.
        revealed: as in `Inputs`; None for a noise that does not say.
    """

    tokens: Int[Array, "B T"]
    learn: Bool[Array, "B T"]
    at: Int[Array, " B"] | None = None
    revealed: Int[Array, "B T"] | None = None


@runtime_checkable
class Noise(Protocol):
    """A frozen pytree. `needs`: TRAJECTORY, or nothing; `follows`: its views say `at` which forward they stand;
    `causal`: what is to be learned stands in its views, for models that read a token from those before it alone;
    `drops`: what is to be learned is no part of its canvases, for models that insert it; `reveals`: its views say in
    which steps the rest was `revealed`, for models that encode.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def follows(self) -> bool: ...

    @property
    def causal(self) -> bool: ...

    @property
    def drops(self) -> bool: ...

    @property
    def reveals(self) -> bool: ...

    def check_model(self, model: Model) -> None:
        """Raises InputError for a model whose canvases it cannot make."""
        ...

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        """`network`: the model as it is trained so far, of which no gradient is taken here; `done`: the share of the
        run's steps that lie behind, 0 to 1.
        """
        ...


class NoiseBase:
    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    drops: ClassVar[bool] = False
    reveals: ClassVar[bool] = False

    def check_model(self, model: Model) -> None:
        del model


def is_packed(batch: Batch) -> Bool[Array, "B 1"]:
    """Rows of several problems, which have no blocks."""
    return (batch.answer_lengths == 0)[:, None]


def block_start(key: Key[Array, ""], batch: Batch, block: Int[Array, ""]) -> Int[Array, "B 1"]:
    """The first column of a block, drawn evenly from those that hold the answer and its first end-of-text."""
    blocks = (batch.answer_lengths + block - 1) // block
    chosen = jnp.floor(jax.random.uniform(key, blocks.shape) * blocks).astype(jnp.int32)
    return (batch.prompt_lengths + chosen * block)[:, None]


def one_block(
    key: Key[Array, ""], batch: Batch, block: Int[Array, ""]
) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """The answer's tokens in a block drawn for each row, and those after it."""
    first, packed = block_start(key, batch, block), is_packed(batch)
    column = jnp.arange(batch.tokens.shape[1])[None]
    inside = (column >= first) & (column < first + block)
    return batch.answers & (packed | inside), batch.answers & ~packed & (column >= first + block)


def halves(
    batch: Batch,
    active: Bool[Array, "B T"],
    later: Bool[Array, "B T"],
    priority: Float[Array, "B T"],
    share: Float[Array, "B 1"],
    network: Network,
) -> tuple[View, View]:
    """A share of the active tokens masked, lowest priority first and at least one, and all others of them."""
    count = jnp.clip(jnp.ceil(share * jnp.sum(active, axis=1, keepdims=True)), 1)
    first = active & (ranks(priority, active) < count)
    one, other = (View(masked(batch, half | later, network), half) for half in (first, active & ~first))
    return one, other


def text_of(batch: Batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """The answer through its first end-of-text, and the answer's padding behind that."""
    end = (batch.prompt_lengths + batch.answer_lengths)[:, None]
    text = batch.answers & (is_packed(batch) | (jnp.arange(batch.tokens.shape[1])[None] < end))
    return text, batch.answers & ~text


def ranks(priority: Float[Array, "B T"], among: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """0 for the lowest priority among those marked; the others rank behind them."""
    return rank_of(jnp.argsort(jnp.where(among, priority, 2.0), axis=1))


def rank_of(order: Int[Array, "B T"]) -> Int[Array, "B T"]:
    return jnp.argsort(order, axis=1)


def between(key: Key[Array, ""], low: Leaf, high: Leaf, rows: int) -> Float[Array, "B 1"]:
    """A number for each row, evenly from `low` to `high`."""
    low, high = jnp.asarray(low), jnp.asarray(high)
    return low + (high - low) * jax.random.uniform(key, (rows, 1))


def masked(batch: Batch, masks: Bool[Array, "B T"], network: Network) -> Int[Array, "B T"]:
    return jnp.where(masks, network.model.config.mask_token_id, batch.tokens)
