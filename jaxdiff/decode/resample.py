"""The compiled part of `particles`: a decode whose rows wait for each other after a block, and are drawn again there.

begin -> [ every row to the end of its block -> weights -> do few of them count? -> drawn again ] -> Result
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff import kvcache
from jaxdiff.decode.layout import Setup
from jaxdiff.decode.loop import begin, next_place, step
from jaxdiff.decode.result import Result, finish
from jaxdiff.decode.state import Rows, State, fold, holes, keep, live
from jaxdiff.parallel.mesh import ROWS, WHOLE, over_data, specs_of
from jaxdiff.pytree import number, pytree, static
from jaxdiff.types import Leaf

APART = 2**30  # more steps than a row has: what is folded into its key beside them
ONE = 1.0 - 2.0**-24  # the highest float32 below 1


@pytree
class Group:
    """The rows of a request: `n` side by side, drawn again where the effective sample size is under `threshold` n."""

    n: int = static()
    threshold: Leaf = number(default=0.5, low=0.0, high=1.0)


@jax.jit
def run(setup: Setup, rows: Rows, group: Group) -> tuple[Result, Int[Array, " B"]]:
    """The result of all rows, and of each how often its request's particles were drawn again."""

    def program(setup: Setup, rows: Rows, group: Group) -> tuple[Result, Int[Array, " B"]]:
        def block(carry: _Carry) -> _Carry:
            state, number, times = carry
            stop = setup.layout.first_block(rows.origin) + (number + 1) * setup.layout.block_length
            state = jax.lax.while_loop(
                lambda state: jnp.any(_before(setup, state, stop)),
                lambda state: _step(setup, state, _before(setup, state, stop)),
                state,
            )
            state, again = resampled(setup, state, group, number)
            return state, number + 1, times + again.astype(jnp.int32)

        begun = (begin(setup, rows), jnp.int32(0), jnp.zeros(rows.origin.shape, jnp.int32))
        state, _, times = jax.lax.while_loop(lambda carry: jnp.any(live(setup.model, carry[0])), block, begun)
        return finish(setup, state), times

    if (mesh := setup.layout.mesh) is not None:
        program = over_data(program, mesh, (specs_of(setup), ROWS, WHOLE), ROWS)
    return program(setup, rows, group)


_Carry = tuple[State, Int[Array, ""], Int[Array, " B"]]


def _before(setup: Setup, state: State, stop: Int[Array, " B"]) -> Bool[Array, " B"]:
    """The rows that are not done with what lies left of `stop`."""
    place = next_place(setup.layout, state, holes(setup.model, state))
    return live(setup.model, state) & (place.start < stop)


def _step(setup: Setup, state: State, among: Bool[Array, " B"]) -> State:
    """A step of these rows; the others wait as they are: to the step their text ends with their prompt."""
    end = jnp.where(among, state.end, jnp.minimum(state.end, setup.layout.first))
    after = step(setup, dataclasses.replace(state, end=end, holds=state.holds & among))
    kept = keep(among, *(dataclasses.replace(each, kv=None, numbers=()) for each in (after, state)))
    return dataclasses.replace(kept, kv=after.kv, numbers=state.numbers)


def resampled(setup: Setup, state: State, group: Group, number: Int[Array, ""]) -> tuple[State, Bool[Array, " B"]]:
    """The state with the particles of some requests drawn again by weight, each as often as that says, but for less
    than one (systematically); and the rows of these requests. `number`: of the block, for the noise.

    They all weigh the mean of before. Each row keeps a key of its own, another one than before, so that what is left to
    draw is drawn anew.
    """
    n = group.n
    log_weight = state.log_weight.reshape(-1, n)
    top = jnp.max(log_weight, axis=1, keepdims=True)
    share = jnp.exp(log_weight - jnp.where(jnp.isneginf(top), 0.0, top))
    total = jnp.sum(share, axis=1)
    ess = total**2 / jnp.maximum(jnp.sum(share**2, axis=1), jnp.finfo(jnp.float32).tiny)
    going = jnp.any(live(setup.model, state).reshape(-1, n), axis=1)
    few = going & (total > 0.0) & (ess < jnp.asarray(group.threshold) * n)

    reach = jnp.cumsum(share, axis=1)
    reach = reach / jnp.maximum(reach[:, -1:], jnp.finfo(jnp.float32).tiny)
    shift = jax.vmap(jax.random.uniform)(fold(state.rows.keys[::n], APART + 2 * number))
    marks = jnp.minimum((jnp.arange(n, dtype=jnp.float32)[None] + shift[:, None]) / n, ONE)
    chosen = jnp.sum(reach[:, None] <= marks[..., None], axis=2, dtype=jnp.int32)
    own = jnp.arange(n, dtype=jnp.int32)[None]
    chosen = jnp.where(few[:, None], jnp.minimum(chosen, n - 1), own)
    at = (jnp.arange(chosen.shape[0], dtype=jnp.int32)[:, None] * n + chosen).reshape(-1)

    again = jnp.repeat(few, n)
    mean = jnp.repeat((top[:, 0] + jnp.log(total)) - jnp.log(jnp.float32(n)), n)
    state = dataclasses.replace(state, log_weight=jnp.where(again, mean, state.log_weight))
    moved = jax.lax.cond(jnp.any(few), lambda: _picked(state, at), lambda: state)
    keys = jnp.where(again, fold(state.rows.keys, APART + 2 * number + 1), state.rows.keys)
    return dataclasses.replace(moved, rows=dataclasses.replace(moved.rows, keys=keys)), again


def _picked(state: State, at: Int[Array, " B"]) -> State:
    """The state with row i that of row at[i]; numbers are those of the request, which all its rows share."""
    rows: Any = jax.tree.map(lambda leaf: leaf[at], dataclasses.replace(state, kv=None, numbers=()))
    return dataclasses.replace(rows, kv=kvcache.picked(state.kv, at), numbers=state.numbers)
