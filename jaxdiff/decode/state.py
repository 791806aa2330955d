"""What one decode is compiled for, and everything that a step of it changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.decode.cache import Cache
from jaxdiff.types import Count, Leaf, Memory, Model, Policy, Stopper, each_row, pytree, static


@pytree
class Settings:
    """How one decode goes: what it is compiled for (static), and the numbers and weights that it traces."""

    policy: Policy
    stop: Stopper
    cache: Cache
    temperature: Leaf = each_row()
    guidance: Leaf | None = each_row()  # classifier-free guidance scale; None compiles the single forward
    top_p: Leaf | None = each_row()  # None of the two compiles no cut
    top_k: Count | None = each_row()
    block_length: int = static()
    first: int = static()  # canvas column where what is generated begins
    overhang: int = static(default=0)  # columns on the right that make each row's last block whole, and are cut off
    ladder: tuple[int, ...] = static(default=())  # canvas lengths a forward may be cut to, once ends moved left
    spans: tuple[int, ...] = static(default=())  # lengths of a window over a memory
    forbid_eos: bool = static(default=False)
    defer_eos: bool = static(default=False)
    mesh: Mesh | None = static(default=None)  # the devices that rows and weights are spread over

    @property
    def copies(self) -> int:
        """Forwards of a step, each with keys and values of its own: two with guidance."""
        return 1 if self.guidance is None else 2


@pytree
class State:
    """Everything that a step changes, and what a row was given. A slot can be refilled between steps."""

    canvas: Int[Array, "B L"]
    given: Bool[Array, "B L"]  # not to be generated: prompt, known part of an infilling canvas
    origin: Int[Array, " B"]  # column of the row's first token; padding lies left of it
    end: Int[Array, " B"]
    keys: Key[Array, " B"]  # the request's own seed
    start: Int[Array, " B"]  # column of the block that the row stood in at its last step
    block_step: Int[Array, " B"]
    row_step: Int[Array, " B"]
    nfe: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    commit_step: Int[Array, "B L"]
    policy: Any
    stop: Any
    memory: Memory | None  # keys and values of all columns, rows x copies; None without a cache


def first_block(settings: Settings, origin: Int[Array, " B"]) -> int | Int[Array, " B"]:
    """Canvas column where blocks begin.

    Where a model attends in blocks they align to its absolute positions, so that each row's own first block holds the
    rest of its prompt.
    """
    if not settings.overhang:
        return settings.first
    block = settings.block_length
    return origin + (settings.first - origin) // block * block


def holes(model: Model, state: State) -> Bool[Array, "B L"]:
    """Positions still to be committed. A row is live while it has one."""
    column = jnp.arange(state.canvas.shape[1], dtype=jnp.int32)[None]
    return (state.canvas == model.config.mask_token_id) & ~state.given & (column < state.end[:, None])


def fold(keys: Key[Array, " B"], data: int | Int[Array, " B"]) -> Key[Array, " B"]:
    """Each row's key, folded with one number or with its own."""
    return jax.vmap(jax.random.fold_in, (0, None if isinstance(data, int) else 0))(keys, data)
