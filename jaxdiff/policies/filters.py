"""Learned filters: how likely is each position's candidate to be the final one already?

A filter is a tiny MLP, a pytree whose weights are traced leaves. `BlockFilter` is the published one (Learn2PD): all
confidences of a block at once, so that it is tied to one block length. `LocalFilter` looks at each position and its
neighbours through more of the score, and serves any block length; `ConfidenceFilter` looks at their confidences alone.

    Evidence [B W] each -> inputs [B W] or [B W F] -> MLP -> logit of "already final" [B W]
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.pytree import InputError, pytree, static
from jaxdiff.types import Score

CERTAIN = 20.0  # log-odds beyond which a float32 probability says no more
PER_NEIGHBOUR = 6  # inputs that `LocalFilter` has of each position in reach


@pytree
class Evidence:
    """What a filter sees of a block; also what a replay records, so that fitting and decoding read the same."""

    log_odds: Float[Array, "B W"]
    runner_up: Float[Array, "B W"]
    entropy: Float[Array, "B W"]
    masked: Bool[Array, "B W"]
    block_step: Int[Array, " B"]
    hidden: Float[Array, "B W D"]  # the model's features; a replay that keeps none has D = 0

    @property
    def prob(self) -> Float[Array, "B W"]:
        return jax.nn.sigmoid(self.log_odds)


def evidence_of(score: Score) -> Evidence:
    """Visible positions carry the model's own belief at their place, as in the official code."""
    return Evidence(score.log_odds, score.runner_up, score.entropy, score.masked, score.block_step, score.hidden)


@pytree
class Linear:
    """x @ kernel + bias."""

    kernel: Float[Array, "i o"]
    bias: Float[Array, " o"]


Layers = tuple[Linear, ...]


def mlp(layers: Layers, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """Linear layers with ReLU between them."""
    for index, layer in enumerate(layers):
        flat = jnp.matmul(x, layer.kernel) + jnp.expand_dims(layer.bias, range(x.ndim - 1))
        x = jax.nn.relu(flat) if index + 1 < len(layers) else flat
    return x


def init_layers(key: Array, widths: tuple[int, ...]) -> Layers:
    """Fresh layers from widths[0] inputs to widths[-1] outputs, uniform within 1 / sqrt(fan in) as PyTorch's Linear."""
    layers = []
    for index, (i, o) in enumerate(itertools.pairwise(widths)):
        kernel_key, bias_key = jax.random.split(jax.random.fold_in(key, index))
        bound = i**-0.5
        kernel = jax.random.uniform(kernel_key, (i, o), minval=-bound, maxval=bound)
        layers.append(Linear(kernel, jax.random.uniform(bias_key, (o,), minval=-bound, maxval=bound)))
    return tuple(layers)


@runtime_checkable
class Filter(Protocol):
    """A pytree that judges a block."""

    @property
    def layers(self) -> Layers: ...

    def check(self, window: int) -> None:
        """Raises InputError for a block length that it cannot judge."""
        ...

    def __call__(self, seen: Evidence) -> Float[Array, "B W"]:
        """Logits of "the candidate is final already"."""
        ...


@pytree
class BlockFilter:
    """Learn2PD's filter: the block's top-1 probabilities, raw, through an MLP of its own width.

    Source: ims-kdks/Learning-to-Parallel-Decoding `small_model.py`; two 32 x 32 layers are its 2,112 parameters.
    """

    layers: Layers

    @property
    def width(self) -> int:
        return self.layers[0].kernel.shape[0]

    def check(self, window: int) -> None:
        if window != self.width:
            raise InputError(
                f"learned: found block_length {window}, but this filter judges blocks of {self.width}; "
                f"decode in blocks of {self.width} or name another filter"
            )

    def __call__(self, seen: Evidence) -> Float[Array, "B W"]:
        return mlp(self.layers, seen.prob)


def block_from_linears(state: Mapping[str, Any]) -> BlockFilter:
    """A `BlockFilter` from the official weights: `linear1.weight` [out, in], `linear1.bias`, `linear2.weight` ...

    Raises InputError for other keys, and for layers that do not fit each other.
    """
    count = len(state) // 2
    wanted = [f"linear{i + 1}.{part}" for i in range(count) for part in ("weight", "bias")]
    if not count or sorted(state) != sorted(wanted):
        raise InputError(
            f"filter: found {', '.join(sorted(state)) or 'nothing'}, expected linear1.weight, linear1.bias ..."
        )
    arrays = {name: np.asarray(state[name], np.float32) for name in wanted}
    width = arrays["linear1.weight"].shape[-1]
    for name, array in arrays.items():
        shape = (width, width) if name.endswith("weight") else (width,)
        if array.shape != shape:
            raise InputError(f"filter {name}: found shape {array.shape}, expected {shape}")
    return BlockFilter(
        tuple(
            Linear(jnp.asarray(arrays[f"linear{i + 1}.weight"].T), jnp.asarray(arrays[f"linear{i + 1}.bias"]))
            for i in range(count)
        )
    )


@pytree
class LocalFilter:
    """Each position by its own score and its neighbours', for any block length.

    Inputs of a position: log-odds, probability, margin, entropy, and whether it is masked, of itself and of `reach`
    neighbours on each side (zeros, and a mark, beyond the block); the distance to the next visible position on each
    side; the share of the block that is masked; the block's step; and, with `features`, the position's own hidden ones.
    """

    layers: Layers
    reach: int = static(default=3)
    features: int = static(default=0)

    def check(self, window: int) -> None:
        del window

    @property
    def width(self) -> int:
        """Inputs of a position."""
        return local_width(self.reach, self.features)

    def inputs(self, seen: Evidence) -> Float[Array, "B W F"]:
        """Raises InputError for hidden features of another width, before compilation."""
        if self.features and seen.hidden.shape[-1] != self.features:
            raise InputError(
                f"learned: found hidden features of width {seen.hidden.shape[-1]}, but this filter reads "
                f"{self.features}; it belongs to another model"
            )
        return local_inputs(seen, self.reach, self.features)

    def widened(self, reach: int) -> LocalFilter:
        """The same judgements by a filter that sees more neighbours, which weigh nothing yet.

        Raises InputError for fewer.
        """
        return LocalFilter(_widened(self.layers, self.reach, reach, PER_NEIGHBOUR), reach, self.features)

    def __call__(self, seen: Evidence) -> Float[Array, "B W"]:
        return mlp(self.layers, self.inputs(seen))[..., 0]


@pytree
class ConfidenceFilter:
    """Each position by its own confidence and its neighbours', for any block length: what the learned policies that see
    confidences alone are given (arXiv 2512.09106), so that filters can be compared by what they see.

    Inputs of a position: its probability, the same as log-odds, and whether it is masked, of itself and of `reach`
    neighbours on each side (zeros, and a mark, beyond the block).
    """

    layers: Layers
    reach: int = static(default=3)
    features = 0

    def check(self, window: int) -> None:
        del window

    @property
    def width(self) -> int:
        """Inputs of a position."""
        return 4 * (2 * self.reach + 1)

    def widened(self, reach: int) -> ConfidenceFilter:
        """As `LocalFilter.widened`."""
        return ConfidenceFilter(_widened(self.layers, self.reach, reach, 4), reach)

    def inputs(self, seen: Evidence) -> Float[Array, "B W F"]:
        return neighbourhood([_clipped(seen), seen.prob, seen.masked.astype(jnp.float32)], self.reach)

    def __call__(self, seen: Evidence) -> Float[Array, "B W"]:
        return mlp(self.layers, self.inputs(seen))[..., 0]


def local_width(reach: int, features: int) -> int:
    """The number of inputs that `LocalFilter` has for each position."""
    return PER_NEIGHBOUR * (2 * reach + 1) + 4 + features


def local_inputs(seen: Evidence, reach: int, features: int) -> Float[Array, "B W F"]:
    """`LocalFilter`'s inputs, each of about unit size."""
    masked = seen.masked.astype(jnp.float32)
    entropy, window = jnp.minimum(seen.entropy, CERTAIN), masked.shape[1]
    around = neighbourhood([_clipped(seen), seen.prob, seen.prob - seen.runner_up, entropy, masked], reach)
    column = jnp.arange(window, dtype=jnp.int32)[None]
    last_left = jax.lax.cummax(jnp.where(seen.masked, -1, column), axis=1)  # what lies before the block is visible
    next_right = jax.lax.cummin(jnp.where(seen.masked, window, column), axis=1, reverse=True)
    share = jnp.broadcast_to(jnp.mean(masked, axis=1, keepdims=True), masked.shape)
    step = jnp.broadcast_to(jnp.log1p(seen.block_step.astype(jnp.float32))[:, None], masked.shape)
    distances = [jnp.log1p((d).astype(jnp.float32)) for d in (column - last_left, next_right - column)]
    context = jnp.stack([*distances, share, step], axis=-1)
    return jnp.concatenate([around, context, seen.hidden[..., :features].astype(jnp.float32)], axis=-1)


def neighbourhood(own: Sequence[Float[Array, "B W"]], reach: int) -> Float[Array, "B W F"]:
    """These numbers of each position and of `reach` neighbours on each side, from left to right, with a 1 for each that
    lies inside the block; zeros beyond it.
    """
    each = jnp.stack([*own, jnp.ones_like(own[0])], axis=-1)
    padded = jnp.pad(each, ((0, 0), (reach, reach), (0, 0)))
    return jnp.concatenate([padded[:, shift : shift + each.shape[1]] for shift in range(2 * reach + 1)], axis=-1)


def _widened(layers: Layers, reach: int, wider: int, each: int) -> Layers:
    """Layers whose first inputs are a `neighbourhood` of `each` numbers, for one of more neighbours."""
    if wider < reach:
        raise InputError(
            f"reach: found {wider}, but the filter sees {reach} neighbours on each side already; take more"
        )
    more = (wider - reach) * each
    kernel, last = layers[0].kernel, (2 * reach + 1) * each
    new = jnp.zeros((more, kernel.shape[1]), kernel.dtype)
    return (Linear(jnp.concatenate([new, kernel[:last], new, kernel[last:]]), layers[0].bias), *layers[1:])


def _clipped(seen: Evidence) -> Float[Array, "B W"]:
    return jnp.clip(seen.log_odds, -CERTAIN, CERTAIN) / 8.0
