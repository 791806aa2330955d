"""Networks that read token i at position i - 1, and the first token at its own (Dream, Fast-dLLM v2)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.models.stack import Transformer
from jaxdiff.types import Inputs, KVCache, Params, Span
from jaxdiff.windows import take


class Shifted(Transformer):
    """A `Transformer` whose rows are moved, so that row i predicts token i as in every family."""

    shifted = True

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As every family's: row i predicts token i. The shift is undone here, and never reads the padding."""
        assert inputs.beside is None  # the row before is none of their own
        length = inputs.tokens.shape[1]
        if at is not None and at.ndim == 2:
            own, kv = super().apply(params, inputs, kv, at)
            before = jnp.argmax(at[:, :, None] - 1 == at[:, None, :], axis=2)
            own = jnp.where(_first(inputs.positions), own, jnp.take_along_axis(own, before[..., None], axis=1))
            return (own if read is None else take(own, read.start, read.count)), kv
        if read is None:
            own, kv = super().apply(params, inputs, kv, at)
            return _unshifted(own, inputs.positions), kv
        count = min(read.count + 1, length)
        wider = Span(jnp.clip(read.start - 1, 0, length - count), count)
        own, kv = super().apply(params, inputs, kv, at, wider)
        own = _unshifted(own, take(inputs.positions, wider.start, count))
        return take(own, read.start - wider.start, read.count), kv

    def ahead(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """As `jaxdiff.protocols.Autoregressive.ahead`: the network as it is, without its shift undone."""
        return super().apply(params, inputs, kv, at, read)


def _unshifted(own: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Each token's features from the row before; a row's first token, and what is left of it, keep their own."""
    before = jnp.concatenate([own[:, :1], own[:, :-1]], axis=1)
    return jnp.where(_first(positions), own, before)


def _first(positions: Int[Array, "B T"]) -> Bool[Array, "B T 1"]:
    """Position 0 has nothing before it; padding is not read at all."""
    return (positions <= 0)[..., None]
