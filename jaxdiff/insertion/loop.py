"""The loop: one compiled `while_loop` that Python never steps.

    ask     one forward over all that stands -> what is missing behind each token, and whether anything is
    choose  `ways`: into which gaps
    write   the tokens go to the end of the buffer; who stands behind a gap moves on by one

A buffer holds the prompt's columns, then room for what is inserted, in the order in which it is written. Where a token
stands in the text is its position, which the model is given beside it: so nothing is ever moved, and shapes are static.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.result import Reason
from jaxdiff.decode.tiles import Draws
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.insertion.score import Candidates, candidates
from jaxdiff.insertion.ways import Way
from jaxdiff.protocols import Completes, Model
from jaxdiff.pytree import pytree, static
from jaxdiff.types import NEAR_TIE, NEVER, Inputs, Params, text_end_ids


@pytree
class Setup:
    """What stays while rows are written."""

    model: Model = static()
    params: Params
    way: Way
    sampling: Sampling
    room: int = static()  # G: tokens that are inserted at most

    @property
    def vocabulary(self) -> Vocabulary:
        """[MASK] and end-of-text are never inserted: the stop head says where a text ends."""
        config = self.model.config
        return Vocabulary(config.vocab_size, (config.mask_token_id, *text_end_ids(config)))


@pytree
class Texts:
    """What each row is given; S0 gaps at most.

    Attributes:
        tokens: padded on the left up to `origin`.
        gaps: the columns behind which something may be missing, -1 for none.
    """

    tokens: Int[Array, "B P"]
    origin: Int[Array, " B"]
    gaps: Int[Array, "B S0"]
    keys: Key[Array, " B"]


@pytree
class State:
    """Everything that a step changes; L = P + G columns, the last G in the order in which they are written."""

    tokens: Int[Array, "B L"]
    position: Int[Array, "B L"]  # in the text; -1 where nothing stands
    count: Int[Array, " B"]  # tokens inserted
    live: Bool[Array, " B"]
    stopped: Bool[Array, " B"]  # the model said that the text is whole
    nfe: Int[Array, " B"]
    work: Float[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]
    commit_step: Int[Array, "B L"]
    log_prob: Float[Array, "B L"]


@pytree
class Inserted:
    """What `insert` returns; all per row.

    Attributes:
        tokens: the texts, from `origin` on; end-of-text fills what is left of the columns.
        origin: column of the row's first token.
        ends: one past the column of its last.
        generated: which of the tokens were inserted.
        lengths: how many.
        nfe: forwards that the row took part in, the last one too, which says that nothing is missing.
        work: tokens fed in all of them, in units of one forward over the prompt and all that could be inserted.
        commit_step: the row's forward, from 0, that inserted each token; -1 for what was given.
        log_prob: of each inserted pair of gap and token among all, before temperature and cuts; 0 for what was given.
        reason: `Reason.STOPPED` where the model said that the text is whole; `Reason.FULL` where all room was taken
            and it did not.
        near_ties: decisions that hung on less than 1e-5: between two gaps, between a token and the next best, between
            a candidate and the threshold of `Parallel`, and between stopping and going on.
        not_finite: forwards in which the model's scores were no numbers; above 0 the tokens must not be trusted.
    """

    tokens: Int[Array, "B L"]
    origin: Int[Array, " B"]
    ends: Int[Array, " B"]
    generated: Bool[Array, "B L"]
    lengths: Int[Array, " B"]
    nfe: Int[Array, " B"]
    work: Float[Array, " B"]
    commit_step: Int[Array, "B L"]
    log_prob: Float[Array, "B L"]
    reason: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]


def begin(setup: Setup, texts: Texts) -> State:
    """The state before the first forward."""
    rows, width = texts.tokens.shape
    zero, shape = jnp.zeros((rows,), jnp.int32), (rows, width + setup.room)
    column = jnp.arange(width, dtype=jnp.int32)[None]
    position = jnp.maximum(column - texts.origin[:, None], -1)
    beyond = ((0, 0), (0, setup.room))
    return State(
        tokens=jnp.pad(texts.tokens, beyond, constant_values=setup.model.config.eos_token_id),
        position=jnp.pad(position, beyond, constant_values=-1),
        count=zero,
        live=jnp.ones((rows,), bool),
        stopped=jnp.zeros((rows,), bool),
        nfe=zero,
        work=jnp.zeros((rows,), jnp.float32),
        near_ties=zero,
        not_finite=zero,
        commit_step=jnp.full(shape, -1, jnp.int32),
        log_prob=jnp.zeros(shape, jnp.float32),
    )


def step(setup: Setup, texts: Texts, state: State) -> State:
    """One forward of the whole batch; rows that are done are left as they are."""
    model, room, width = setup.model, setup.room, texts.tokens.shape[1]
    assert isinstance(model, Completes)
    rows, new = texts.tokens.shape[0], jnp.arange(room, dtype=jnp.int32)[None]
    stands = state.position >= 0
    inputs = Inputs(state.tokens, state.position, stands, jnp.zeros_like(texts.origin))
    features, _ = model.apply(setup.params, inputs)
    whole = model.whole(setup.params, jnp.take_along_axis(features, texts.origin[:, None, None], axis=1)[:, 0])

    column = jnp.concatenate([jnp.maximum(texts.gaps, 0), jnp.broadcast_to(width + new, (rows, room))], axis=1)
    is_open = jnp.concatenate([texts.gaps >= 0, new < state.count[:, None]], axis=1)
    at = jnp.take_along_axis(state.position, column, axis=1)
    draws = Draws(texts.keys, state.nfe, jnp.int32(0), at)
    slots = jnp.take_along_axis(features, column[..., None], axis=1)
    found = candidates(slots, model.head(setup.params), is_open, setup.vocabulary, setup.sampling, draws)

    bound = jnp.asarray(setup.way.stop)
    slack = whole - (jnp.log(bound) - jnp.log1p(-bound))
    stops = state.live & (slack >= 0.0)
    acts = state.live & ~stops & (state.count < room)
    chosen, close, sound = choose(setup, found, is_open, room - state.count)
    chosen &= acts[:, None]
    ties = jnp.sum((chosen & (found.gap < NEAR_TIE)) | close, axis=1, dtype=jnp.int32)
    unsure = (state.live & (jnp.abs(slack) < NEAR_TIE)).astype(jnp.int32)
    unsound = state.live & ~(jnp.isfinite(whole) & (sound | ~acts))

    total = jax.nn.logsumexp(found.mass, axis=1, keepdims=True)
    real = jnp.sum(stands, axis=1, dtype=jnp.int32)
    asked = (real + room - state.count).astype(jnp.float32)
    written = _write(state, chosen, at, found.token, found.logit - total, width)
    return dataclasses.replace(
        written,
        live=acts,
        stopped=state.stopped | stops,
        nfe=state.nfe + state.live.astype(jnp.int32),
        work=state.work + jnp.where(state.live, real.astype(jnp.float32) / asked, 0.0),
        near_ties=state.near_ties + jnp.where(acts, ties, 0) + unsure,
        not_finite=state.not_finite + unsound.astype(jnp.int32),
    )


def choose(
    setup: Setup, found: Candidates, is_open: Bool[Array, "B S"], left: Int[Array, " B"]
) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"], Bool[Array, " B"]]:
    """The gaps that get their candidate: one at least, at most as many as there is room `left` for, the surest first,
    and each token once: two gaps that want the same token are often one missing token that may stand in either.

    Also where that hung on less than NEAR_TIE, and the rows in which the best one's scores are numbers.
    """
    hot = jnp.broadcast_to(jnp.asarray(setup.sampling.temperature) > 0.0, left.shape)[:, None]
    rank_by = jnp.where(is_open, jnp.where(hot, found.key, found.mass), -jnp.inf)
    best = jnp.argmax(rank_by, axis=1, keepdims=True)
    is_best = jnp.arange(is_open.shape[1])[None] == best
    top = jnp.take_along_axis(rank_by, best, axis=1)
    second = jnp.max(jnp.where(is_best, -jnp.inf, rank_by), axis=1, keepdims=True)
    fits = is_open & (found.key > NEVER)
    likeliest = jnp.max(jnp.where(fits, found.logit, NEVER), axis=1, keepdims=True)
    more, close = setup.way.beside(found.logit, likeliest)
    more &= fits
    order = jnp.argsort(jnp.where(is_best, jnp.inf, jnp.where(more, found.logit, -jnp.inf)), axis=1, descending=True)
    rank = jnp.argsort(order, axis=1)
    wanted, size = is_best | more, is_open.shape[1]
    row, vocabulary = jnp.arange(order.shape[0])[:, None], setup.model.config.vocab_size
    surest = jnp.full((order.shape[0], vocabulary), size).at[row, found.token].min(jnp.where(wanted, rank, size))
    first = jnp.minimum(jnp.take_along_axis(surest, found.token, axis=1), size - 1)  # of those that want a gap's token
    again = wanted & (rank > first)
    ahead = jnp.take_along_axis(jnp.take_along_axis(found.logit, order, axis=1), first, axis=1) - found.logit
    kept = jnp.take_along_axis(wanted & ~again, order, axis=1)
    kept &= jnp.cumsum(kept, axis=1) <= left[:, None]
    chosen = jnp.take_along_axis(kept, rank, axis=1)
    close |= again & (first > 0) & (ahead < NEAR_TIE)
    close = (close & fits & ~is_best) | (is_best & (top - second < NEAR_TIE))
    sound = jnp.isfinite(jnp.take_along_axis(found.logit, best, axis=1)) & (top > NEVER)
    return chosen, close, sound[:, 0]


def _write(
    state: State,
    chosen: Bool[Array, "B S"],
    at: Int[Array, "B S"],
    token: Int[Array, "B S"],
    log_prob: Float[Array, "B S"],
    width: int,
) -> State:
    """The state with each chosen token behind the position that its gap is `at`."""
    rows, length = state.tokens.shape
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    added = jnp.cumsum(chosen, axis=1, dtype=jnp.int32)
    target = jnp.where(chosen, width + state.count[:, None] + added - 1, length)  # of the others: dropped
    marks = jnp.zeros((rows, length), jnp.int32).at[row, jnp.where(chosen, at, length)].add(1, mode="drop")
    before = jnp.cumsum(marks, axis=1) - marks  # of each position, how many are inserted before it

    def moved(position: Int[Array, "B n"]) -> Int[Array, "B n"]:
        return position + jnp.take_along_axis(before, jnp.maximum(position, 0), axis=1)

    position = jnp.where(state.position >= 0, moved(state.position), -1)

    def put(old: Array, new: Array) -> Array:
        return old.at[row, target].set(new, mode="drop")

    return dataclasses.replace(
        state,
        tokens=put(state.tokens, token),
        position=put(position, moved(at) + 1),
        count=state.count + added[:, -1],
        commit_step=put(state.commit_step, jnp.broadcast_to(state.nfe[:, None], target.shape)),
        log_prob=put(state.log_prob, log_prob),
    )


def finish(setup: Setup, texts: Texts, state: State) -> Inserted:
    """The texts in their order."""
    rows, length = state.tokens.shape
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    stands = state.position >= 0
    target = jnp.where(stands, texts.origin[:, None] + state.position, length)

    def in_order(values: Array, empty: int | float | bool) -> Array:
        return jnp.full(values.shape, empty, values.dtype).at[row, target].set(values, mode="drop")

    generated = stands & (jnp.arange(length)[None] >= texts.tokens.shape[1])
    return Inserted(
        tokens=in_order(state.tokens, setup.model.config.eos_token_id),
        origin=texts.origin,
        ends=texts.origin + jnp.sum(stands, axis=1, dtype=jnp.int32),
        generated=in_order(generated, False),
        lengths=state.count,
        nfe=state.nfe,
        work=state.work,
        commit_step=in_order(state.commit_step, -1),
        log_prob=in_order(state.log_prob, 0.0),
        reason=jnp.where(state.stopped, Reason.STOPPED.value, Reason.FULL.value).astype(jnp.int32),
        near_ties=state.near_ties,
        not_finite=state.not_finite,
    )


@jax.jit
def run(setup: Setup, texts: Texts) -> Inserted:
    """`begin`, `step` until no row is live, `finish`: one program.

    A step of a live row inserts at least one token, or ends it: so there are at most G + 1 of them.
    """
    state = jax.lax.while_loop(
        lambda state: jnp.any(state.live), lambda state: step(setup, texts, state), begin(setup, texts)
    )
    return finish(setup, texts, state)
