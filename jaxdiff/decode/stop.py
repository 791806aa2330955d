"""When a row's end moves left. One small frozen pytree for each rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxdiff.types import Count, InputError, Leaf, Progress, State, Stopper, number, per_row, pytree, static


@pytree
class NoStop:
    """Decode the whole canvas."""

    wants_tail = cuts = False

    def init(self, rows: int) -> State:
        del rows
        return ()

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        return progress.end, state


@pytree
class EosStop:
    """End a row once an end-of-text stands with no mask left of it.

    Committed tokens never change and blocks go left to right, so the text through its first end-of-text is, token for
    token, what decoding the whole canvas gives: this stopper costs no quality under any policy.
    """

    wants_tail = cuts = False

    def init(self, rows: int) -> State:
        del rows
        return ()

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        column = jnp.arange(progress.canvas.shape[1], dtype=jnp.int32)[None]
        length = jnp.int32(progress.canvas.shape[1])
        is_end = jnp.zeros(progress.canvas.shape, bool)
        for token in progress.eos_ids:
            is_end |= progress.canvas == token
        first_end = jnp.min(jnp.where(is_end & progress.generated, column, length), axis=1)
        holes = progress.generated & (progress.canvas == progress.mask_id)
        first_hole = jnp.min(jnp.where(holes, column, length), axis=1)
        return jnp.where(first_end < first_hole, first_end + 1, progress.end), state


@pytree
class EotpStop:
    """End-of-text prediction (Learn2PD): move the end left to where an end-of-text is foreseen, before it is committed.

    The kept position may still be masked and is decoded later; what lies past the end is attended to by nobody, and
    forwards run on a canvas that was cut. Source: ims-kdks/Learning-to-Parallel-Decoding `generate_l2p_eot`.

    Attributes:
        way: `official`: the leftmost end-of-text that the policy itself accepts in the block, else the most confident
            candidate of end-of-text anywhere on the canvas, however unsure. `block`: the same with the block alone in
            place of the canvas, as the published cached loops have it. `safe`, our own: `EosStop`, and a canvas that is
            cut behind the first `keep` positions in a row that are all foreseen as end-of-text with probability `tau`,
            or hold it. What is foreseen beyond them does not count: of a long canvas some stray position always is
            unsure. What was cut off is no longer attended to, so that a text may still change; the more is kept, the
            fewer do (`experiments/ends.py`).
        tau, keep: of `safe`.
    """

    way: str = static(default="safe")
    tau: Leaf = number(default=0.9, low=0.0, high=1.0)
    keep: Count = number(default=128, low=1, high=2**20, whole=True)

    cuts = True

    @property
    def wants_tail(self) -> bool:
        return self.way != "block"

    def init(self, rows: int) -> State:
        """Raises InputError for a way that is not known."""
        del rows
        if self.way not in WAYS:
            raise InputError(f"stop eotp way: found {self.way!r}, expected one of {', '.join(WAYS)}")
        return ()

    def update(self, state: State, progress: Progress) -> tuple[Int[Array, " B"], State]:
        return (self._safe(progress) if self.way == "safe" else self._published(progress)), state

    def _published(self, progress: Progress) -> Int[Array, " B"]:
        score = progress.score
        in_block = (score.token == progress.eos_ids[0]) & score.eligible
        at = score.start[:, None] + jnp.arange(in_block.shape[1], dtype=jnp.int32)[None]
        vouched = in_block & progress.accepted
        leftmost = jnp.min(jnp.where(vouched, at, progress.end[:, None]), axis=1)
        if progress.tail is None:
            surest = jnp.argmax(jnp.where(in_block, score.log_odds, -jnp.inf), axis=1).astype(jnp.int32) + score.start
            found = jnp.any(in_block, axis=1)
        else:
            surest = jnp.argmax(progress.tail.log_odds, axis=1).astype(jnp.int32)
            found = jnp.any(progress.tail.ends, axis=1)
        other = jnp.where(found, surest + 1, progress.end)
        return jnp.where(jnp.any(vouched, axis=1), leftmost + 1, other)

    def _safe(self, progress: Progress) -> Int[Array, " B"]:
        assert progress.tail is not None
        column = jnp.arange(progress.canvas.shape[1], dtype=jnp.int32)[None]
        tau = per_row(self.tau)
        sure = progress.tail.ends & (progress.tail.log_odds >= jnp.log(tau) - jnp.log1p(-tau))
        settled = (sure | (progress.canvas == progress.eos_ids[0])) & progress.generated
        other = jax.lax.cummax(jnp.where(settled & (column < progress.end[:, None]), -1, column), axis=1)
        enough = column - other >= jnp.reshape(jnp.asarray(self.keep), (-1, 1))
        behind = jnp.where(jnp.any(enough, axis=1), jnp.argmax(enough, axis=1).astype(jnp.int32) + 1, progress.end)
        ended, _ = EosStop().update((), progress)
        return jnp.minimum(ended, behind)


WAYS = ("official", "block", "safe")
STOPPERS: dict[str, type[Stopper]] = {"none": NoStop, "eos": EosStop, "eotp": EotpStop}


def parse_stopper(text: str) -> Stopper:
    """The stopper that `text` names: none, eos, eotp, or eotp:way=official|block|safe.

    Raises InputError with what is known.
    """
    name, _, rest = text.partition(":")
    if name not in STOPPERS:
        raise InputError(f"stop: found {name!r}, expected one of {', '.join(STOPPERS)}")
    key, _, value = rest.partition("=")
    if rest and (name != "eotp" or key != "way"):
        raise InputError(f"stop {name}: found argument {rest!r}, expected {'way=' if name == 'eotp' else 'none'}")
    stopper = EotpStop(way=value) if rest else STOPPERS[name]()
    stopper.init(1)
    return stopper
