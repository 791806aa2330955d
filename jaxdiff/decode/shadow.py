"""The shadow of a block, which says of each committed token how likely it is without itself.

A [MASK] stands beside the canvas at each position of the row's block. It sees what a token at that position does, but
for the position's own column, and the others of the shadow inside the row's end; no token of the canvas sees it. So the
belief about the canvas is that of a pass without it.

Source: WINO's extra positions (arXiv 2507.18578, Feng-Hong/WINO-DLLM `LLaDA/decoding.py`).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.decode.layout import Setup
from jaxdiff.decode.passes import StepPasses
from jaxdiff.types import SHADOW, Inputs


def size(setup: Setup) -> int:
    """Tokens of it: a block's, or none where the policy does not ask."""
    return setup.layout.block_length if SHADOW in setup.decoder.policy.needs else 0


def added(passes: StepPasses, inputs: Inputs) -> Inputs:
    """The inputs of a pass, and behind them the block's shadow."""
    if not size(passes.setup):
        return inputs
    columns, inside = passes.columns(), passes.inside
    rows, window = columns.shape
    fed, seen = inputs.tokens.shape[1], jnp.arange(inputs.valid.shape[1], dtype=jnp.int32)[None, None]

    def wider(tokens: Array | None, more: int | bool | Array) -> Array | None:
        if tokens is None:
            return None
        return jnp.concatenate([tokens, jnp.broadcast_to(jnp.asarray(more, tokens.dtype), (rows, window))], axis=1)

    others = jnp.concatenate([jnp.ones((rows, fed, seen.shape[2]), bool), seen != columns[..., None]], axis=1)
    none = jnp.zeros((rows, fed, window), bool)
    beside = jnp.concatenate([none, jnp.broadcast_to(inside[:, None], (rows, window, window))], axis=1)
    return dataclasses.replace(
        inputs,
        tokens=wider(inputs.tokens, passes.setup.model.config.mask_token_id),
        positions=wider(inputs.positions, columns - inputs.origin[:, None]),
        fresh=wider(inputs.fresh, True),
        given=wider(inputs.given, False),
        sees=others,
        beside=beside,
    )


def parted(
    setup: Setup, features: Float[Array, "B r D"]
) -> tuple[Float[Array, "B _ D"], Float[Array, "B W D"] | None]:
    """Those of the canvas, and those of the shadow."""
    last = size(setup)
    return (features[:, :-last], features[:, -last:]) if last else (features, None)


def counted(passes: StepPasses, tokens: Int[Array, " B"]) -> Int[Array, " B"]:
    """The tokens that a row's pass needs, those of the shadow added: none past the row's end, and none in a pass that
    only stores keys and values.
    """
    if not size(passes.setup):
        return tokens
    stores = passes.setup.decoder.cache.stores(passes.place)
    return tokens + jnp.where(stores, 0, jnp.sum(passes.inside, axis=1, dtype=jnp.int32))
