"""Which keys and values a decode reuses. One small frozen pytree for each published cache.

A cache is two static choices: which window of the canvas a forward recomputes (`window`), and when the keys and values
of all else are rebuilt by a forward over the whole canvas (`due`). It knows no policy and no stopper.

    canvas [B L] --(rows that are due: a forward over all)--> memory [N B K L E]
                 --(the other live rows: a forward over the window)--> features of the block

A rebuild is a forward like any other: it counts and it commits. Rows are due at different steps; in a step where some
are, the others take their ordinary one. In every cached forward a column left of a row's padding or right of its end is
seen by nobody, also where the end has just moved: the published dual cache goes on attending to what it cut.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxdiff.types import (
    Count,
    InputError,
    Model,
    Remembering,
    Stopper,
    fields_of,
    number,
    parse_fields,
    pytree,
    static,
)

NEVER = 2**20  # a decode has fewer forwards


@pytree
class Place:
    """Where each row stands at a step, in canvas columns; steps count from 0."""

    origin: Int[Array, " B"]
    first: Int[Array, " B"]  # where its blocks begin
    before: Int[Array, " B"]  # the block that it stood in at its last step; less than `first`: none
    start: Int[Array, " B"]  # the block that it stands in now
    block_step: Int[Array, " B"]
    row_step: Int[Array, " B"]
    block: int = static()  # its length


class Cache:
    """What `decode` asks of a cache.

    Attributes:
        window: `canvas` (nothing is reused), `suffix` (from `reach` to the end) or `block` (a block from `reach` on).
        keeps: a window's keys and values must be kept, because a later window will not reach them.
    """

    window: ClassVar[str]

    @property
    def keeps(self) -> bool:
        return False

    def check(self) -> None:
        """Raises InputError for a static value that is not known."""

    def due(self, place: Place) -> Bool[Array, " B"]:
        """Which rows rebuild the whole memory in this step."""
        raise NotImplementedError

    def stores(self, place: Place) -> Bool[Array, " B"]:
        """Which rows spend this step on keys and values alone: it counts, and commits nothing."""
        return jnp.zeros(place.start.shape, bool)

    def reach(self, place: Place) -> Int[Array, " B"]:
        """The first column of each row's window."""
        return place.start


@pytree
class NoCache(Cache):
    """Every forward runs over the whole canvas. Exact: nothing can be stale."""

    window: ClassVar[str] = "canvas"


@pytree
class Rebuilt(Cache):
    """The memory is rebuilt when a row enters a block, and every `refresh` of its steps there."""

    refresh: Count = number(default=NEVER, low=1, high=NEVER, whole=True)

    def due(self, place: Place) -> Bool[Array, " B"]:
        return place.block_step % jnp.asarray(self.refresh) == 0


@pytree
class Prefix(Rebuilt):
    """Fast-dLLM's prefix cache (arXiv 2505.22618): the window is the block and all right of it; rebuilt at each block.

    Exactness: approximate on a bidirectional model, where what stands left of the block would change with it; exact
    with refresh=1, and where attention is block-causal.
    """

    window: ClassVar[str] = "suffix"


@pytree
class Dual(Rebuilt):
    """Fast-dLLM's dual cache (arXiv 2505.22618): the window is the block alone; all else is rebuilt at each block.

    Exactness: approximate: prompt, finished blocks and the masks to come stay as the block's first step saw them;
    exact with refresh=1.
    """

    window: ClassVar[str] = "block"


@pytree
class Frozen(Cache):
    """FreeCache (arXiv 2505.21467): what is finished is frozen, the window is the block and all right of it.

    The first forward is over the whole canvas; the prompt's keys and values are frozen then, a block's when it is done.

    Exactness: approximate on a bidirectional model; exact with refresh=1, with freeze=prompt under a mask that hides
    the answer from the prompt (`prefix_lm` in a model's config), and, but for freeze=commit, where attention is
    block-causal. Small models bear freeze=commit badly.

    Attributes:
        refresh: all is rebuilt every so many steps of the row.
        freeze: `clean`: a block takes part once more, without a mask, in the first forward of the next one, and is
            frozen as that sees it: no forward more. `commit`, as the published code has it: as the forward saw it
            that committed its last tokens, masks among them. `prompt`: nothing but the prompt is ever frozen.
    """

    refresh: Count = number(default=NEVER, low=1, high=NEVER, whole=True)
    freeze: str = static(default="clean")

    window: ClassVar[str] = "suffix"

    def check(self) -> None:
        if self.freeze not in FREEZES:
            raise InputError(f"cache frozen freeze: found {self.freeze!r}, expected one of {', '.join(FREEZES)}")

    @property
    def keeps(self) -> bool:
        return self.freeze != "prompt"

    def due(self, place: Place) -> Bool[Array, " B"]:
        return place.row_step % jnp.asarray(self.refresh) == 0

    def reach(self, place: Place) -> Int[Array, " B"]:
        if self.freeze == "clean":
            return _last(place)
        return place.start if self.freeze == "commit" else place.first


@pytree
class BlockCausal(Cache):
    """The cache of models that attend in blocks (LLaDA2, SDAR): a block's keys and values are kept when it is done.

    The window is the block. A pass without commits stores the prompt's whole blocks, and one each finished block; after
    a row's last block there is none. Source: JetAstra/SDAR `generate.py` (`store_kv`).

    Exactness: exact: nothing that is kept could see what changes later. The tokens are those of no cache; NFE is
    greater by the passes that store.
    """

    window: ClassVar[str] = "block"

    @property
    def keeps(self) -> bool:
        return True

    def stores(self, place: Place) -> Bool[Array, " B"]:
        return (place.before != place.start) & (place.start > place.origin)

    def due(self, place: Place) -> Bool[Array, " B"]:
        """The prompt, and where blocks without a hole are passed over: more than one block is to be stored."""
        apart = place.start - place.before
        return self.stores(place) & ((place.before < place.first) | (apart > place.block))

    def reach(self, place: Place) -> Int[Array, " B"]:
        return _last(place)


def _last(place: Place) -> Int[Array, " B"]:
    """The block that the row stood in at its last step: inside a block the same, at the first step of all its first."""
    return jnp.where(place.before < place.first, place.start, place.before)


FREEZES = ("clean", "commit", "prompt")
CACHES: dict[str, type] = {"none": NoCache, "prefix": Prefix, "dual": Dual, "frozen": Frozen, "block": BlockCausal}


def parse_cache(text: str) -> Cache:
    """The cache that `text` names: none, prefix, dual:refresh=8, frozen:refresh=8,freeze=clean|commit|prompt, block.

    Raises InputError with what is known.
    """
    name, _, rest = text.partition(":")
    if name not in CACHES:
        raise InputError(f"cache: found {name!r}, expected one of {', '.join(CACHES)}")
    return CACHES[name](**parse_fields(f"cache {name}", fields_of(CACHES[name]), rest))


def spans(cache: Cache, longest: int, block: int) -> tuple[int, ...]:
    """The lengths of window that are compiled."""
    if cache.window == "block":
        return (block,)
    return (*doublings(longest, block), longest)


def doublings(generated: int, block: int) -> tuple[int, ...]:
    """1, 2, 4 ... blocks that are less than what is generated: few programs, and none runs on twice what it needs."""
    counts = (2**power for power in range((generated // block).bit_length()))
    return tuple(count * block for count in counts if count * block < generated)


def check_cache(cache: Cache, stop: Stopper, model: Model | None = None) -> None:
    """Raises InputError, before compilation, for what is not known of a cache, and for a stopper or model that it does
    not go with.
    """
    cache.check()
    if cache.window != "canvas" and model is not None and not isinstance(model, Remembering):
        raise InputError(f"cache: found a {type(model).__name__}, which keeps no keys and values; take cache none")
    if isinstance(cache, BlockCausal) and model is not None and model.attention_block is None:
        raise InputError(
            "cache: found block with a model whose positions all see each other, expected one that attends in blocks; "
            "take cache prefix, dual or frozen"
        )
    if cache.window == "block" and stop.wants_tail:
        raise InputError(
            f"cache: found {_name(cache)} with a stopper that asks for end-of-text on the whole canvas, expected one "
            "that asks for the block alone; take stop eos or eotp:way=block, or cache prefix or frozen"
        )


def _name(cache: Cache) -> str:
    return next((name for name, kind in CACHES.items() if type(cache) is kind), type(cache).__name__)
