"""Some rows of a batch, taken out of it a few at a time: what is done with them costs what these rows cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.parallel.mesh import platform

# Tokens that go through the layers together, by platform: fewer do not use the machine, more leave a CPU's cache.
TOGETHER, ELSEWHERE = {"cpu": 768}, 4096
NOBODY = 2**30  # sorts behind every length
Carry = TypeVar("Carry")


def together(rows: int, tokens: int) -> int:
    """How many of so many rows go together whose passes are of so many tokens each, in pieces as even as may be."""
    pieces = -(-rows // max(1, TOGETHER.get(platform(), ELSEWHERE) // tokens))
    return -(-rows // pieces)


def in_pieces(
    rows: Bool[Array, " B"],
    lengths: Int[Array, " B"],
    size: int,
    piece: Callable[[Int[Array, " C"], Carry], Carry],
    carry: Carry,
) -> Carry:
    """`piece(their numbers, carry)` over the marked rows, `size` at a time, the shortest first.

    The last piece is filled up with its own last row: what is written of a row may be written twice alike.
    """
    order = jnp.argsort(jnp.where(rows, lengths, NOBODY)).astype(jnp.int32)
    total = jnp.sum(rows, dtype=jnp.int32)

    def one(state: tuple[Int[Array, ""], Carry]) -> tuple[Int[Array, ""], Carry]:
        done, carry = state
        at = order[jnp.minimum(done + jnp.arange(size, dtype=jnp.int32), total - 1)]
        return done + size, piece(at, carry)

    return jax.lax.while_loop(lambda state: state[0] < total, one, (jnp.int32(0), carry))[1]


def pick(tree: Any, at: Int[Array, " C"]) -> Any:
    """These rows of every leaf; one without an axis serves all rows, and stays."""
    return jax.tree.map(lambda leaf: leaf[at] if leaf.ndim else leaf, tree)


def put_back(tree: Any, part: Any, at: Int[Array, " C"]) -> Any:
    """`tree` with these rows of every leaf replaced."""
    return jax.tree.map(lambda whole, rows: whole.at[at].set(rows), tree, part)


def most(lengths: Int[Array, " B"], rows: Bool[Array, " B"] | None) -> Int[Array, ""]:
    """The greatest of these rows, or of all."""
    return jnp.max(lengths if rows is None else jnp.where(rows, lengths, 0))


def shortest(on: Callable[[int], Callable[[], Carry]], lengths: tuple[int, ...], needed: Int[Array, ""]) -> Carry:
    """On the shortest of the lengths that holds what is needed; each is compiled, in a scope that names it."""

    def named(length: int) -> Callable[[], Carry]:
        return jax.named_scope(f"{length}_columns")(on(length))

    if len(lengths) == 1:
        return named(lengths[0])()
    rung = sum((needed > length).astype(jnp.int32) for length in lengths[:-1])
    return jax.lax.switch(rung, [named(length) for length in lengths])
