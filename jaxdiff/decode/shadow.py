"""The shadow of a block, which says of each committed token how likely it is without itself.

A [MASK] stands beside the canvas at each position of the row's block. It sees what a token at that position does, but
for the position's own column, and the others of the shadow inside the row's end; no token of the canvas sees it. So the
belief about the canvas is that of a pass without it.

Source: WINO's extra positions (arXiv 2507.18578, Feng-Hong/WINO-DLLM `LLaDA/decoding.py`).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

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
    columns, rows, window = passes.columns(), inputs.tokens.shape[0], passes.setup.layout.block_length
    fed, seen = inputs.tokens.shape[1], jnp.arange(inputs.valid.shape[1], dtype=jnp.int32)

    def with_own(tokens: Shaped[Array, "B T"], own: int | bool | Int[Array, "B W"]) -> Shaped[Array, "B _"]:
        own = jnp.broadcast_to(jnp.asarray(own, tokens.dtype), (rows, window))
        return jnp.concatenate([tokens, own], axis=1)

    others = seen[None, None] != columns[..., None]
    beside = jnp.broadcast_to(passes.inside[:, None], (rows, window, window))
    return dataclasses.replace(
        inputs,
        tokens=with_own(inputs.tokens, passes.setup.model.config.mask_token_id),
        positions=with_own(inputs.positions, columns - inputs.origin[:, None]),
        fresh=None if inputs.fresh is None else with_own(inputs.fresh, True),
        given=None if inputs.given is None else with_own(inputs.given, False),
        sees=jnp.concatenate([jnp.ones((rows, fed, seen.shape[0]), bool), others], axis=1),
        beside=jnp.concatenate([jnp.zeros((rows, fed, window), bool), beside], axis=1),
    )


def parted(setup: Setup, features: Float[Array, "B r D"]) -> tuple[Float[Array, "B _ D"], Float[Array, "B W D"] | None]:
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
