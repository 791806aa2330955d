"""What `log_likelihood` runs: sets of masks, drawn or all of them, and one pass for each.

    rows -> blocks -> Masks [n C], a few numbers each -> canvases [C T] -> features of the blocks [C W D] -> head

Which tokens a set masks is drawn in the program, from the row's key, the block's position, the draw and the token's
place; so it is the same in whatever batch.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.layout import Layout, Setup
from jaxdiff.decode.pieces import together
from jaxdiff.decode.score import Draws, Vocabulary, log_marginal
from jaxdiff.decode.state import Rows, fold
from jaxdiff.parallel.mesh import WHOLE, over_data
from jaxdiff.parallel.rules import DATA
from jaxdiff.pytree import pytree
from jaxdiff.types import Inputs, KVCache, Span
from jaxdiff.windows import take

MOST = 2**20  # draws of a block


@pytree
class Masks:
    """Sets of masks to run, each one pass of one row: n pieces of C; what fills up the last repeats one.

    Attributes:
        rows: whose.
        start: the canvas column of its block.
        whole: of the block that the model attends in.
        draw: its number among those of the block, from 0.
        of: how many these are.
        weight: where they are all that there are, that of this one, whose bits are those of `draw` + 1; else 0.
    """

    rows: Int[Any, "n C"]
    start: Int[Any, "n C"]
    whole: Int[Any, "n C"]
    draw: Int[Any, "n C"]
    of: Int[Any, "n C"]
    weight: Float[Any, "n C"]


def keeps_kv(setup: Setup) -> bool:
    """Whether one pass over the clean canvas serves all draws: where no block sees what lies behind it."""
    blocks = setup.model.attention_block is not None
    return blocks and bool(jax.tree.leaves(jax.eval_shape(lambda: setup.model.empty_kv(1, 1))))


def window(setup: Setup, columns: int) -> int:
    """Columns that a draw's pass feeds."""
    around = setup.layout.attention_block + int(setup.model.shifted)
    return min(around, columns) if keeps_kv(setup) else columns


def masks_of(
    layout: Layout,
    blocks: Int[np.ndarray, " B"],
    first: Int[np.ndarray, " B"],
    last: Int[np.ndarray, " B"],
    samples: int,
    tokens: int,
) -> tuple[Masks, int]:
    """The draws of all rows, in pieces that feed so many tokens each draw; and how many draws there are.

    `blocks`: the column where each row's blocks begin; `first`, `last`: its answer's first column, and one past its
    last. The pieces are of even size, and their number hangs on the next power of two: few programs, and what lies
    behind the last draw is not run.
    """
    block, whole = layout.block_length, layout.attention_block
    before = (first - blocks) // block
    row, place = _counted((last - 1 - blocks) // block - before + 1)
    start = blocks[row] + (before[row] + place) * block
    size = np.minimum(start + block, last[row]) - np.maximum(start, first[row])
    sets = 2 ** np.minimum(size, MOST.bit_length()) - 1
    of = np.minimum(sets, samples)
    at, draw = _counted(of)
    marked = np.bitwise_count(draw + 1)
    ways = np.asarray([[math.comb(n, k) for k in range(MOST.bit_length() + 1)] for n in range(MOST.bit_length() + 1)])
    weight = of[at] / (marked * ways[np.minimum(size, MOST.bit_length())[at], marked])
    devices = 1 if layout.mesh is None else layout.mesh.shape[DATA]
    padded = 1 << (len(at) - 1).bit_length()
    each = devices * together(-(-padded // devices), tokens)

    def laid(values: Any, dtype: Any = np.int32) -> np.ndarray:
        return np.pad(values, (0, -(-padded // each) * each - len(at)), mode="edge").astype(dtype).reshape(-1, each)

    drawn = Masks(
        rows=laid(row[at]),
        start=laid(start[at]),
        whole=laid((blocks[row] + (start - blocks[row]) // whole * whole)[at]),
        draw=laid(draw),
        of=laid(of[at]),
        weight=laid(np.where((sets <= samples)[at], weight, 0.0), np.float32),
    )
    return drawn, len(at)


def _counted(counts: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " total"], Int[np.ndarray, " total"]]:
    """Entry i as often as it counts, and which time it is, from 0."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


@jax.jit
def run(setup: Setup, rows: Rows, masks: Masks, pieces: Int[Array, ""] | int) -> Float[Array, "n C"]:
    """The estimate of each draw of the first so many pieces.

    The rows' canvases hold their answers; `reference` is [MASK] but where these stand, `last` one past the last column
    that a row attends to.
    """
    if setup.layout.mesh is None:
        return _estimates(setup, rows, masks, pieces)
    drawn = PartitionSpec(None, DATA)
    # Rows are whole on each data shard, their numbers too: the draws are what is spread.
    spread = over_data(_estimates, setup.layout.mesh, (WHOLE, WHOLE, drawn, WHOLE), drawn)
    return spread(setup, rows, masks, pieces)


def _estimates(setup: Setup, rows: Rows, masks: Masks, pieces: Int[Array, ""] | int) -> Float[Array, "n C"]:
    kv = _clean(setup, rows) if keeps_kv(setup) else None

    def piece(number: Int[Array, ""], found: Float[Array, "n C"]) -> Float[Array, "n C"]:
        return found.at[number].set(_piece(setup, rows, jax.tree.map(lambda leaf: leaf[number], masks), kv))

    return jax.lax.fori_loop(0, pieces, piece, jnp.zeros(masks.rows.shape, jnp.float32))


def _clean(setup: Setup, rows: Rows) -> KVCache:
    """Keys and values of all rows' clean canvases, from passes of a few rows each."""
    count, columns = rows.canvas.shape
    size = together(count, columns)

    def some(number: Int[Array, ""], kv: KVCache) -> KVCache:
        at = jnp.minimum(number * size + jnp.arange(size, dtype=jnp.int32), count - 1)
        inputs = _inputs(setup, rows, at, rows.canvas[at], None, columns)
        return setup.model.apply(setup.params, inputs, kv, None, Span(jnp.zeros_like(at), 1))[1]

    return jax.lax.fori_loop(0, -(-count // size), some, setup.model.empty_kv(count, columns))


def _piece(setup: Setup, rows: Rows, some: Any, kv: KVCache | None) -> Float[Array, " C"]:
    """One pass: n / l times the sum of the log-probabilities of the l tokens that each draw masks."""
    layout, model, block = setup.layout, setup.model, setup.layout.block_length
    canvas, keys = rows.canvas[some.rows], rows.keys[some.rows]
    answer = _answers(setup, rows)[some.rows]
    at = some.start[:, None] + jnp.arange(block, dtype=jnp.int32)[None]
    own = fold(keys, some.start - rows.origin[some.rows])
    masked, weight = _masked(own, some, take(answer, some.start, block))

    columns, count = canvas.shape[1], window(setup, canvas.shape[1])
    first = jnp.clip(some.whole - int(model.shifted), 0, columns - count)
    fed = first[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
    inside = jnp.clip(fed - some.start[:, None], 0, block - 1)
    hidden = jnp.take_along_axis(masked, inside, axis=1) & (fed - some.start[:, None] == inside)
    hidden |= (fed >= some.start[:, None] + block) & take(answer, first, count)
    tokens = jnp.where(hidden, model.config.mask_token_id, take(canvas, first, count))
    inputs = _inputs(setup, rows, some.rows, tokens, None if kv is None else first, columns)
    read = Span(some.start - first, block)
    features, _ = model.apply(setup.params, inputs, kv, None if kv is None else first, read)
    draws = Draws(keys, jnp.zeros_like(first), jnp.int32(0), at)  # none is made: the temperature is 0
    sampling, ids = Sampling(), Vocabulary.of(model, setup.decoder.sampling)
    own = take(canvas, some.start, block)
    head = model.head(setup.params)
    found = log_marginal(features, head, ids, sampling, draws, own, mesh=layout.mesh)
    return weight * jnp.sum(jnp.where(masked, found, 0.0), axis=1)


def _answers(setup: Setup, rows: Rows) -> Bool[Array, "B L"]:
    """Where the rows' answers stand."""
    assert rows.reference is not None
    return rows.reference != setup.model.config.mask_token_id


def _masked(
    keys: Key[Array, " C"], some: Any, answer: Bool[Array, "C W"]
) -> tuple[Bool[Array, "C W"], Float[Array, " C"]]:
    """The tokens of the block that each draw masks, and what the sum of their log-probabilities is multiplied with."""
    place = jnp.cumsum(answer, axis=1, dtype=jnp.int32) - 1
    size = place[:, -1] + 1
    start = jax.vmap(jax.random.uniform)(fold(keys, 0))  # the block's own, for all its draws
    share = (some.draw.astype(jnp.float32) + start) / some.of.astype(jnp.float32)
    most = jnp.clip((share * size.astype(jnp.float32)).astype(jnp.int32) + 1, 1, size)
    own = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(fold(keys, some.draw + 1), place)
    noise = jnp.where(answer, jax.vmap(jax.vmap(jax.random.uniform))(own), 2.0)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1).astype(jnp.int32)
    bit = (some.draw[:, None] + 1) >> jnp.clip(place, 0, 31) & 1
    listed = some.weight > 0.0
    masked = jnp.where(listed[:, None], bit > 0, rank < most[:, None]) & answer
    return masked, jnp.where(listed, some.weight, size.astype(jnp.float32) / most.astype(jnp.float32))


def _inputs(
    setup: Setup,
    rows: Rows,
    at: Int[Array, " C"],
    tokens: Int[Array, "C T"],
    first: Int[Array, " C"] | None,
    columns: int,
) -> Inputs:
    """Those of a pass of the rows `at`, of tokens from each one's column `first` on."""
    layout, scale, origin = setup.layout, setup.decoder.sampling.cfg_scale, rows.origin[at]
    fed = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] + (0 if first is None else first[:, None])
    column = jnp.arange(columns, dtype=jnp.int32)[None]
    # A model that attends in blocks fills up its last one.
    end = rows.last[at][:, None] + layout.overhang
    fed = jnp.broadcast_to(fed, tokens.shape)
    return Inputs(
        tokens=tokens,
        positions=fed - origin[:, None],
        valid=(column >= origin[:, None]) & (column < end),
        origin=origin,
        prompt_length=layout.first - origin,
        given=None if scale is None else ~jnp.take_along_axis(_answers(setup, rows)[at], fed, axis=1),
        scale=None if scale is None else jnp.broadcast_to(jnp.asarray(scale), rows.origin.shape)[at],
        rows=at,
        store=first is None,
    )
