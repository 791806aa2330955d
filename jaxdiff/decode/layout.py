"""What stays as it is while rows are decoded: model, weights, decoder, and how canvases are laid out."""

from __future__ import annotations

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxdiff.decode import checks
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.guide import Guide
from jaxdiff.protocols import Cache, Model, is_encoding
from jaxdiff.pytree import pytree, static
from jaxdiff.types import Params

# Tokens of the shortest rung: one more would be run by the last block or two of an answer, and costs what each costs to
# compile, 0.6 s on a CPU for the model that ships.
SHORTEST = 64


@pytree
class Layout:
    """The columns of a canvas, all compiled into the program.

    Attributes:
        first: canvas column where what is generated begins.
        block_length: W.
        attention_block: the length of the blocks that the model attends in, a multiple of W; W where it has none.
        seeds: the cache commits the first position of each of these when it stores the one before.
        overhang: columns on the right that make each row's last block whole where blocks hang on positions; cut off.
        ladder: canvas lengths that a pass may be cut to once ends moved left, or until blocks are added.
        spans: lengths of a window over the KV cache that are compiled.
        mesh: the devices that rows and weights are spread over.
    """

    first: int = static()
    block_length: int = static()
    attention_block: int = static()
    seeds: bool = static(default=False)
    overhang: int = static(default=0)
    ladder: tuple[int, ...] = static(default=())
    spans: tuple[int, ...] = static(default=())
    mesh: Mesh | None = static(default=None)

    def first_block(self, origin: Int[Array, " B"]) -> Int[Array, " B"]:
        """Canvas column where each row's blocks begin.

        Where a model attends in blocks they align to its absolute positions, so that a row's own first block holds the
        rest of its prompt.
        """
        if not self.overhang:
            return jnp.full_like(origin, self.first)
        return origin + (self.first - origin) // self.attention_block * self.attention_block

    def whole_blocks(self, origin: Int[Array, " B"], last: Int[Array, " B"]) -> Int[Array, " B"]:
        """One past the end of the attention block that holds the last position asked for, column `last` - 1.

        Where that is a seed it is `last`: nothing else of its block is needed.
        """
        if not self.overhang:
            return last
        needed = last - origin - int(self.seeds)
        return jnp.maximum(last, origin + -(-needed // self.attention_block) * self.attention_block)


@pytree
class Setup:
    """What stays as it is while rows are decoded; with the rows, all that a decode is given."""

    model: Model = static()
    params: Params
    decoder: Decoder
    layout: Layout
    guide: Guide | None = None


def layout_of(
    model: Model,
    decoder: Decoder,
    *,
    first: int,
    generated: int,
    block: int,
    mesh: Mesh | None = None,
    overhang: int | None = None,
) -> Layout:
    """How canvases are laid out whose prompts end at column `first`; `overhang` default the model's own."""
    overhang = checks.overhang_of(model) if overhang is None else overhang
    whole = checks.whole_block(model, block)
    shorter = decoder.stop.cuts or decoder.length == "var" or decoder.cache.block_causal
    shorter &= not is_encoding(model)  # whose tokens go on seeing what stands right of an end that moved
    rungs = tuple(first + length for length in doublings(generated, whole)) if shorter else ()
    return Layout(
        first=first,
        block_length=block,
        attention_block=whole,
        seeds=decoder.cache.seeds,
        overhang=overhang,
        ladder=rungs,
        spans=spans(decoder.cache, generated + 2 * overhang, block, whole),
        mesh=mesh,
    )


def spans(cache: Cache, longest: int, block: int, whole: int) -> tuple[int, ...]:
    """The lengths of a cache's window that are compiled, for blocks inside `whole` ones that the model attends in."""
    if cache.window in ("canvas", "masks"):
        return ()
    if cache.window == "block":
        return (block, whole) if cache.narrows and block < whole else (whole,)
    return (*doublings(longest, whole), longest)


def doublings(generated: int, block: int) -> tuple[int, ...]:
    """1, 2, 4 ... blocks that are less than what is generated, and SHORTEST tokens at least: few programs, and none
    runs on twice what it needs unless that is little.
    """
    counts = (2**power for power in range((generated // block).bit_length()))
    return tuple(count * block for count in counts if SHORTEST <= count * block < generated)
