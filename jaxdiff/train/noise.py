"""What is masked: a noise makes of each row of a batch one noisy canvas, or several, and says where there is a token to
learn. What is lost there is the objective's (`objectives/`).

A share is one of tokens, not a probability: k = ceil(t n) of n tokens are masked, as in LLaDA's likelihood estimate
(arXiv 2502.09992, equation 6). Every set of masks has the expected weight that independent draws give it, while no row
is left without a mask and no weight exceeds n: on answers of a few tokens the gradient varies far less. Prompts are
never masked, and the end-of-text padding is part of the answer unless a noise says otherwise (`meap`, for
autoregressive models, says otherwise of both).

`parse` reads a recipe's `name:k=v,...`; of several with ` + ` between them a row has the canvases of each.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.protocols import Model
from jaxdiff.pytree import InputError, choice, number, pytree
from jaxdiff.registry import Registry
from jaxdiff.train.data import NEVER_WRITTEN, Batch
from jaxdiff.train.network import Network
from jaxdiff.types import Count, Leaf

AHEAD = 8  # how far a left-to-right decode looks: the tokens beyond wait for those before them
TRAJECTORY = "trajectory"  # what a noise or an objective may need: `Batch.order`, of a teacher's decode
MOST = 2**20


@pytree
class View:
    """One noisy canvas of each row.

    Attributes:
        tokens: what the model is fed.
        learn: positions whose token is to be learned.
        at: the teacher's forward before which its canvas stood so; None for a noise that follows no trajectory.
    """

    tokens: Int[Array, "B T"]
    learn: Bool[Array, "B T"]
    at: Int[Array, " B"] | None = None


@runtime_checkable
class Noise(Protocol):
    """A frozen pytree. `needs`: TRAJECTORY, or nothing; `follows`: its views say `at` which forward they stand;
    `causal`: what is to be learned stands in its views, for models that read a token from those before it alone.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def follows(self) -> bool: ...

    @property
    def causal(self) -> bool: ...

    def check_model(self, model: Model) -> None:
        """Raises InputError for a model whose canvases it cannot make."""
        ...

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        """`network`: the model as it is trained so far, of which no gradient is taken here; `done`: the share of the
        run's steps that lie behind, 0 to 1.
        """
        ...


class _Noise:
    needs: ClassVar[frozenset[str]] = frozenset()
    follows: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    def check_model(self, model: Model) -> None:
        del model


@pytree
class SemiAr(_Noise):
    """A share of the rows noised as semi-autoregressive decoding sees them, the others with uniform masks.

    One block of the answer is active (drawn evenly from those that hold the answer and its first end-of-text), what
    lies before it is clean, what lies after it is all masked and not learned; in it, or elsewhere in the whole answer,
    a share t of the tokens is masked. t is stratified over the batch: the same expectation as independent draws, with
    less variance. Source: dParallel (arXiv 2509.26488), with LLaDA's t.

    A packed row (`answer_lengths` 0) has no blocks: that share of them is cut at one of its answers' tokens, which is
    masked together with all that follows it.

    Attributes:
        share: of the rows; 0 is LLaDA's fine-tuning noise.
        in_order: of those, the share that is masked from the right: the last k tokens of the block, as when it is
            decoded left to right, as worked answers mostly are. The first AHEAD of them are learned.
        block: in tokens.
    """

    share: Leaf = number(default=1.0, low=0.0, high=1.0)
    in_order: Leaf = number(default=0.0, low=0.0, high=1.0)
    block: Count = number(default=32, low=1, high=MOST, whole=True)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        rows, length = batch.tokens.shape
        level_key, mask_key, block_key, kind_key, order_key = jax.random.split(key, 5)
        column = jnp.arange(length)[None]
        as_decoded = jax.random.uniform(kind_key, (rows, 1)) < jnp.asarray(self.share)
        packed = _is_packed(batch)
        ordered = as_decoded & ~packed & (jax.random.uniform(order_key, (rows, 1)) < jnp.asarray(self.in_order))
        priority = jnp.where(batch.answers, jax.random.uniform(mask_key, (rows, length)), 2.0)  # lowest goes first

        block = jnp.asarray(self.block)
        first = _block_start(block_key, batch, block)
        cut = jnp.argmin(priority, axis=1, keepdims=True)
        last = jnp.where(packed, cut, first + block - 1)
        active = batch.answers & (~as_decoded | ((column <= last) & (packed | (column >= first))))
        later = as_decoded & (column > last)

        level = (jax.random.uniform(level_key) + jnp.arange(rows) / rows) % 1.0
        count = jnp.clip(jnp.ceil(level * jnp.sum(active, axis=1)), 1).astype(jnp.int32)[:, None]
        rank = _ranks(jnp.where(ordered, 1.0 - column / length, priority), active)
        drawn = active & (rank < count)
        looked_at = jnp.where(ordered, jnp.minimum(count, AHEAD), count)
        return (View(_masked(batch, drawn | later, network), drawn & (rank >= count - looked_at)),)


@pytree
class Uniform(_Noise):
    """A share t ~ U(0, 1) of the answer's tokens is masked (LLaDA's fine-tuning, arXiv 2502.09992)."""

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        return SemiAr(share=0.0).views(key, batch, network, done)


@pytree
class Complement(_Noise):
    """One block is active, before it clean, after it masked; a share of it is masked, and in a second view the rest.

    Source: czg1225/dParallel `LLaDA/llada_train.py`, where tokens are masked with probability 0.5 each. What differs on
    purpose: the count is exact, so that no view is without a mask by chance; the blocks are those of the answer through
    its first end-of-text, while there as many are drawn that hold padding alone. A packed row is one block.

    Attributes:
        block: in tokens.
        low, high: the share that the first view masks, drawn evenly between the two for each row. With all of it, as a
            decode sees a block first, the second view has nothing to learn.
    """

    block: Count = number(default=32, low=1, high=MOST, whole=True)
    low: Leaf = number(default=0.5, low=0.0, high=1.0)
    high: Leaf = number(default=0.5, low=0.0, high=1.0)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, mask_key, block_key = jax.random.split(key, 3)
        active, later = _one_block(block_key, batch, jnp.asarray(self.block))
        share = _between(share_key, self.low, self.high, active.shape[0])
        return _halves(batch, active, later, jax.random.uniform(mask_key, active.shape), share, network)


@pytree
class Trajectory(_Noise):
    """As `complement`, but the masks of the active block are those that the teacher's decode committed last.

    Both the block and the share grow over the run. Source: hao-ai-lab/d3LLM, where a stored state of a decode is looked
    up by its number. What differs on purpose: masked are exactly the share of the block's own tokens that the teacher
    wrote last (of one forward, the rightmost), while a state's number gives one mask more, and a share that is only
    near where the training's blocks do not line up with the teacher's.

    Attributes:
        window: tokens of a block at the run's beginning; `grown`: at its end.
        low, high: the share of masks is drawn evenly from low to high at the beginning, and is high at the end.
    """

    window: Count = number(default=16, low=1, high=MOST, whole=True)
    grown: Count = number(default=32, low=1, high=MOST, whole=True)
    low: Leaf = number(default=0.0, low=0.0, high=1.0)
    high: Leaf = number(default=0.8, low=0.0, high=1.0)

    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        assert batch.order is not None
        share_key, block_key = jax.random.split(key)
        window, grown = jnp.asarray(self.window), jnp.asarray(self.grown)
        block = jnp.round(window + (grown - window) * done).astype(jnp.int32)
        active, later = _one_block(block_key, batch, block)
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        share = _between(share_key, low + (high - low) * done, high, active.shape[0])
        column = jnp.broadcast_to(jnp.arange(active.shape[1])[None], active.shape)
        written_last = -_rank_of(jnp.lexsort((column, batch.order), axis=1)).astype(jnp.float32)
        return _halves(batch, active, later, written_last, share, network)


@pytree
class States(_Noise):
    """The teacher's canvas before one of its forwards, drawn evenly: masked is what that forward or a later one wrote.

    What lies behind the teacher's end, which it never wrote, is always masked. All masks are there to learn: an
    objective such as `near_far` tells them apart by when they were written. Source: BHmingyang/TAD `train_llada.py`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAJECTORY})
    follows: ClassVar[bool] = True

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        assert batch.order is not None
        written = batch.answers & (batch.order < NEVER_WRITTEN)
        forwards = 1 + jnp.max(jnp.where(written, batch.order, 0), axis=1)
        at = jnp.floor(jax.random.uniform(key, forwards.shape) * forwards).astype(jnp.int32)
        masks = batch.answers & (batch.order >= at[:, None])
        return (View(_masked(batch, masks, network), masks, at),)


KINDS = ("full", "left_to_right", "right_to_left", "blocks", "cloze", "random")


@pytree
class Mixture(_Noise):
    """MDiff4STR's six maskings of a text and its first end-of-text, each row with one of them (arXiv 2512.01422).

    full: all. left_to_right: all but a prefix. right_to_left: all but a suffix. blocks: the text is cut into 2 to 6
    blocks, and all but the first few are masked. cloze: one token. random: a share t ~ U(0, 1). What follows the first
    end-of-text is masked and not learned. Source: Topdu/OpenOCR `mdiff_label_encode.py`; the weight of a row's tokens
    is 1 / masks here, where the published length counts the end-of-text twice.

    Attributes:
        of: the masking of every row, or `all`: one of the six, drawn evenly for each.
    """

    of: str = choice(("all", *KINDS), default="all")

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        kind_key, cut_key, size_key, order_key = jax.random.split(key, 4)
        text, behind = _text(batch)
        rows, n = text.shape[0], jnp.sum(text, axis=1, keepdims=True)
        place = jnp.cumsum(text, axis=1) - 1  # of a token in its text

        def drawn(key: Key[Array, ""], least: Array, most: Array) -> Int[Array, "B 1"]:
            """A whole number for each row, at most `most`, from `least` on."""
            draw = jax.random.uniform(key, (rows, 1)) * (most - least + 1)
            return jnp.minimum(least + draw.astype(jnp.int32), jnp.maximum(most, least))

        cut = drawn(cut_key, jnp.ones_like(n), n - 1)
        size = jnp.maximum(n // drawn(size_key, jnp.full_like(n, 2), jnp.full_like(n, 6)), 1)
        kept = size * drawn(cut_key, jnp.ones_like(n), (n + size - 1) // size - 1)
        order = _ranks(jax.random.uniform(order_key, text.shape), text)
        some = jnp.clip(jnp.ceil(jax.random.uniform(cut_key, (rows, 1)) * n), 1)
        masks = jnp.stack([jnp.ones_like(text), place >= cut, place < cut, place >= kept, order < 1, order < some])
        alone = n < 2  # no cut to make
        if self.of == "all":
            kind = jax.random.randint(kind_key, (rows,), 0, len(KINDS))
        else:
            kind = jnp.full((rows,), KINDS.index(self.of))
        learn = text & (masks[kind, jnp.arange(rows)] | alone)
        return (View(_masked(batch, learn | behind, network), learn),)


@pytree
class Replace(_Noise):
    """No masks: a share t ~ U(0, 1) of a text's tokens gives way to random ones, and every token is to be learned.

    What follows the first end-of-text is masked and not learned. Source: MDiff4STR (arXiv 2512.01422), Topdu/OpenOCR
    `mdiff_label_encode.py`, where [MASK] may be the random token; not here.
    """

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, order_key, token_key = jax.random.split(key, 3)
        text, behind = _text(batch)
        n = jnp.sum(text, axis=1, keepdims=True)
        count = jnp.ceil(jax.random.uniform(share_key, n.shape) * n)
        gone = text & (_ranks(jax.random.uniform(order_key, text.shape), text) < count)
        config = network.model.config
        other = jax.random.randint(token_key, text.shape, 0, config.vocab_size - 1)
        other = other + (other >= config.mask_token_id)
        return (View(jnp.where(gone, other, _masked(batch, behind, network)).astype(jnp.int32), text),)


@pytree
class Mistakes(_Noise):
    """No masks in what is shown: a share of a text's tokens gives way to what the model itself might write there and is
    wrong, and every token that is shown is to be learned. So a model learns to doubt what it sees.

    A token is drawn from what the model, as it is trained, says of the text with the token masked, and with others, an
    even share between these alone and the whole text; the right token is left out. ELECTRA's generator (arXiv
    2003.10555), but that it is the model itself, and its mistakes are mended where ELECTRA finds them; with random
    tokens in their place it is `replace`. What follows what is shown is masked and not learned.

    Attributes:
        low, high: the share of tokens that are replaced is drawn evenly between the two for each row.
        share: of the rows; in these the text is shown through a block alone, drawn evenly from those that hold it, as
            semi-autoregressive decoding leaves that block, and the end-of-text padding in it is learned too. In the
            other rows, and in packed ones, the text is shown through its first end-of-text.
        block: in tokens.
    """

    low: Leaf = number(default=0.0, low=0.0, high=1.0)
    high: Leaf = number(default=0.2, low=0.0, high=1.0)
    share: Leaf = number(default=0.5, low=0.0, high=1.0)
    block: Count = number(default=32, low=1, high=MOST, whole=True)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        share_key, order_key, token_key, block_key, kind_key, mask_key = jax.random.split(key, 6)
        text, _ = _text(batch)
        block = jnp.asarray(self.block)
        last = _block_start(block_key, batch, block) + block - 1
        cut = ~_is_packed(batch) & (jax.random.uniform(kind_key, last.shape) < jnp.asarray(self.share))
        shown = jnp.where(cut, batch.answers & (jnp.arange(text.shape[1])[None] <= last), text)
        among, later = text & shown, batch.answers & ~shown
        n = jnp.sum(among, axis=1, keepdims=True)
        count = jnp.ceil(_between(share_key, self.low, self.high, len(n)) * n)
        asked = jnp.maximum(jnp.ceil(jax.random.uniform(mask_key, n.shape) * n), count)
        rank = _ranks(jax.random.uniform(order_key, text.shape), among)
        canvas = _masked(batch, (among & (rank < asked)) | later, network)
        gone = among & (rank < count)
        wrong = network.mistaken(token_key, canvas, batch.prompt_lengths, gone, batch.tokens)
        return (View(jnp.where(gone, wrong, _masked(batch, later, network)), shown),)


@pytree
class Meap(_Noise):
    """The text as it stands, for an autoregressive model; all of it is to be learned that an answer is, through its
    first end-of-text.

    With `masked` a share of what is read gives way to [MASK], prompts too: mask-enhanced autoregressive prediction
    (MEAP, arXiv 2502.07490). Of n tokens with something to learn behind them round(masked n) are masked. The published
    code draws the masks once for a batch; here each row has its own.

    Attributes:
        masked: 0, plain next-token prediction; 0.15 as published for pretraining. Above 0 the vocabulary has a [MASK].
    """

    masked: Leaf = number(default=0.0, low=0.0, high=1.0)

    causal: ClassVar[bool] = True

    def check_model(self, model: Model) -> None:
        if np.any(np.asarray(self.masked) > 0.0) and not model.config.has_mask:
            raise InputError(
                f"noise meap masked: found {self.masked} with a {type(model).__name__} without a [MASK] in its "
                "vocabulary, expected 0; leave masked out, or name the mask in config.json (mask_token_id)"
            )

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        del done
        text, _ = _text(batch)
        later = jnp.cumsum(text[:, ::-1], axis=1)[:, ::-1] - text  # how many learned tokens stand behind
        read = later > 0
        count = jnp.round(jnp.asarray(self.masked) * jnp.sum(read, axis=1, keepdims=True))
        masks = read & (_ranks(jax.random.uniform(key, text.shape), read) < count)
        return (View(_masked(batch, masks, network), text),)


@pytree
class Joined:
    """The views of several noises, each with draws of its own."""

    parts: tuple[Noise, ...]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    @property
    def follows(self) -> bool:
        return all(part.follows for part in self.parts)

    @property
    def causal(self) -> bool:
        return any(part.causal for part in self.parts)

    def check_model(self, model: Model) -> None:
        for part in self.parts:
            part.check_model(model)

    def views(self, key: Key[Array, ""], batch: Batch, network: Network, done: Float[Array, ""]) -> tuple[View, ...]:
        keys = (jax.random.fold_in(key, i) for i in range(len(self.parts)))
        each = (part.views(own, batch, network, done) for part, own in zip(self.parts, keys, strict=True))
        return tuple(view for views in each for view in views)


NOISES = Registry(
    "noise",
    {
        "uniform": Uniform,
        "semi_ar": SemiAr,
        "complement": Complement,
        "trajectory": Trajectory,
        "states": States,
        "mixture": Mixture,
        "replace": Replace,
        "meap": Meap,
        "mistakes": Mistakes,
    },
)


def parse(text: str) -> Noise:
    """The noise that `name:k=v,...` describes, or those between ` + `.

    Raises InputError for a name, an argument or a value that is not known, with those that are.
    """
    parts = tuple(NOISES.parse(part) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Joined(parts)


def _is_packed(batch: Batch) -> Bool[Array, "B 1"]:
    """Rows of several problems, which have no blocks."""
    return (batch.answer_lengths == 0)[:, None]


def _block_start(key: Key[Array, ""], batch: Batch, block: Int[Array, ""]) -> Int[Array, "B 1"]:
    """The first column of a block, drawn evenly from those that hold the answer and its first end-of-text."""
    blocks = (batch.answer_lengths + block - 1) // block
    chosen = jnp.floor(jax.random.uniform(key, blocks.shape) * blocks).astype(jnp.int32)
    return (batch.prompt_lengths + chosen * block)[:, None]


def _one_block(
    key: Key[Array, ""], batch: Batch, block: Int[Array, ""]
) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """The answer's tokens in a block drawn for each row, and those after it."""
    first, packed = _block_start(key, batch, block), _is_packed(batch)
    column = jnp.arange(batch.tokens.shape[1])[None]
    inside = (column >= first) & (column < first + block)
    return batch.answers & (packed | inside), batch.answers & ~packed & (column >= first + block)


def _halves(
    batch: Batch,
    active: Bool[Array, "B T"],
    later: Bool[Array, "B T"],
    priority: Float[Array, "B T"],
    share: Float[Array, "B 1"],
    network: Network,
) -> tuple[View, View]:
    """A share of the active tokens masked, lowest priority first and at least one, and all others of them."""
    count = jnp.clip(jnp.ceil(share * jnp.sum(active, axis=1, keepdims=True)), 1)
    first = active & (_ranks(priority, active) < count)
    one, other = (View(_masked(batch, half | later, network), half) for half in (first, active & ~first))
    return one, other


def _text(batch: Batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """The answer through its first end-of-text, and the answer's padding behind that."""
    end = (batch.prompt_lengths + batch.answer_lengths)[:, None]
    text = batch.answers & (_is_packed(batch) | (jnp.arange(batch.tokens.shape[1])[None] < end))
    return text, batch.answers & ~text


def _ranks(priority: Float[Array, "B T"], among: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """0 for the lowest priority among those marked; the others rank behind them."""
    return _rank_of(jnp.argsort(jnp.where(among, priority, 2.0), axis=1))


def _rank_of(order: Int[Array, "B T"]) -> Int[Array, "B T"]:
    return jnp.argsort(order, axis=1)


def _between(key: Key[Array, ""], low: Leaf, high: Leaf, rows: int) -> Float[Array, "B 1"]:
    """A number for each row, evenly from `low` to `high`."""
    low, high = jnp.asarray(low), jnp.asarray(high)
    return low + (high - low) * jax.random.uniform(key, (rows, 1))


def _masked(batch: Batch, masks: Bool[Array, "B T"], network: Network) -> Int[Array, "B T"]:
    return jnp.where(masks, network.model.config.mask_token_id, batch.tokens)
