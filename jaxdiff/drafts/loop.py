"""The loop: one compiled `while_loop` that Python never steps.

    begin    one pass of the target over the prompts: their keys and values, and the first token
    propose  the draft: a tree of guesses behind the last token
    verify   one pass of the target over the tree: what follows each node
    accept   the longest path that agrees, and the target's own next token
    gather   the path's keys and values move to where its tokens stand in the text; the other nodes' are written over
    update   what the draft learns from the pass

What follows a node is fixed before guesses are compared with it: the argmax, or, at a temperature, the draw with the
noise of its position, which is that of `jaxdiff.decode`. So the text is the target's own, whatever is guessed, for the
same key the same that it decodes alone. That is sampling by rejection where a draft guesses a token outright: one with
probability p is taken with probability p, and else the draw is of the others. In the literature it is the coupling of
drafter-invariant speculative decoding (arXiv 2408.07978).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff import kvcache
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.result import Reason
from jaxdiff.decode.running import Running, merge
from jaxdiff.decode.running import finish as belief_of
from jaxdiff.decode.score import summary
from jaxdiff.decode.tiles import Asked, Draws, Tile, over_tiles
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.drafts.base import Draft, Seen, Text
from jaxdiff.drafts.noise import one_by_one
from jaxdiff.drafts.tree import agreed
from jaxdiff.protocols import Autoregressive, Model
from jaxdiff.pytree import pytree, static
from jaxdiff.types import HOLE, NEAR_TIE, Belief, Inputs, KVCache, Params, PartState, Span, first_end, is_end
from jaxdiff.windows import put, take


@pytree
class Setup:
    """What stays while rows are decoded.

    Attributes:
        model, params: the target's.
        room: G, tokens that are generated at most.
        warm: the draft's state at the start.
    """

    model: Model = static()
    params: Params
    draft: Draft
    sampling: Sampling
    warm: PartState
    room: int = static()


@pytree
class Prompts:
    """What each row is given, padded on the left up to `origin`."""

    tokens: Int[Array, "B P"]
    origin: Int[Array, " B"]
    keys: Key[Array, " B"]


@pytree
class State:
    """Everything that a step changes."""

    text: Text
    live: Bool[Array, " B"]
    nfe: Int[Array, " B"]
    cheap: Int[Array, " B"]
    work: Float[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]
    commit_step: Int[Array, "B M"]
    log_prob: Float[Array, "B M"]
    draft: PartState
    kv: KVCache  # right in all columns left of the last token's


@pytree
class Speculated:
    """What `speculate` returns; all per row.

    Attributes:
        tokens: prompt and answer; past the row's end stands end-of-text.
        origin: column of the row's first token.
        lengths: generated tokens through the first end-of-text: by `nfe` the tokens of a pass.
        nfe: passes of the target, that over the prompt among them.
        cheap: passes of a network of the draft's own.
        work: tokens fed in all passes, those of the draft's network by its weights, in units of one forward of the
            target over the row's canvas (prompt to the end of the canvas). Nodes without a guess are left out.
        commit_step: the row's pass, from 0, that committed each generated token; -1 past the end.
        log_prob: log-softmax of each, without [MASK] and forbidden ids, before temperature and cuts; 0 past the end.
        reason: `Reason.STOPPED` at an end-of-text before the last column, else `Reason.FULL`.
        near_ties: committed tokens that were less than 1e-5 ahead of the next best.
        not_finite: committed tokens at which the scores were no numbers; above 0 they must not be trusted.
        draft: the draft's last state: what a later call may begin with (`warm`).
    """

    tokens: Int[Array, "B L"]
    origin: Int[Array, " B"]
    lengths: Int[Array, " B"]
    nfe: Int[Array, " B"]
    cheap: Int[Array, " B"]
    work: Float[Array, " B"]
    commit_step: Int[Array, "B G"]
    log_prob: Float[Array, "B G"]
    reason: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]
    draft: PartState


def begin(setup: Setup, prompts: Prompts) -> State:
    """The state after the target's pass over the prompts, which says the first token."""
    rows, width = prompts.tokens.shape
    model, zero = setup.model, jnp.zeros((rows,), jnp.int32)
    assert isinstance(model, Autoregressive)
    columns = width + setup.room + setup.draft.tree.nodes  # a tree at the end of an answer has room behind it
    inputs = Inputs.whole(prompts.tokens, prompts.origin)
    last = None if setup.draft.likely else Span(zero + width - 1, 1)
    features, kv = model.ahead(setup.params, inputs, model.empty_kv(rows, columns), None, last)
    canvas = jnp.pad(prompts.tokens, ((0, 0), (0, columns - width)))
    text = Text(canvas, prompts.origin, zero + width, prompts.keys, first=width, end=width + setup.room)
    first, likely = said(setup, text, features[:, -1:], text.known[:, None])
    if setup.draft.likely:
        likely = jax.lax.map(lambda row: likely_of(setup, row, prompts.keys[:1]), features)
    draft = setup.draft.begin(setup.warm, text)
    state = State(
        text=text,
        live=jnp.ones((rows,), bool),
        nfe=zero,
        cheap=zero,
        work=zero.astype(jnp.float32),
        near_ties=zero,
        not_finite=zero,
        commit_step=jnp.full((rows, columns), -1, jnp.int32),
        log_prob=jnp.zeros((rows, columns), jnp.float32),
        draft=draft,
        kv=kv,
    )
    state, new = committed(setup, state, first, jnp.zeros((rows, 1), jnp.int32), zero + 1)
    fed = jnp.where(inputs.positions >= 0, prompts.tokens, HOLE)[:, -likely.shape[1] :]
    seen = Seen(tokens=fed, on=fed != HOLE, likely=likely, text=state.text, new=new, live=jnp.ones((rows,), bool))
    work = (width - prompts.origin).astype(jnp.float32) / canvas_of(text)
    return dataclasses.replace(state, work=work, draft=setup.draft.update(draft, seen))


def step(setup: Setup, state: State) -> State:
    """One pass of the target over the whole batch; rows that are done are left as they are."""
    model, draft, text, before = setup.model, setup.draft, state.text, state
    assert isinstance(model, Autoregressive)
    tree = draft.tree
    proposed = draft.propose(state.draft, (model, setup.params), text, setup.sampling)
    root, depths = text.known - 1, jnp.asarray(tree.depths)[None]
    # Behind the last column of an answer nothing is guessed.
    tokens = jnp.where(root[:, None] + depths < text.end, proposed.tokens, HOLE)

    column = jnp.arange(text.canvas.shape[1], dtype=jnp.int32)[None]
    sees = jnp.broadcast_to((column < root[:, None])[:, None], (*tokens.shape, column.shape[1]))
    own = jnp.broadcast_to(jnp.asarray(tree.sees)[None], (tokens.shape[0], *tree.sees.shape))
    inputs = Inputs(
        tokens=jnp.maximum(tokens, 0),
        positions=root[:, None] + depths - text.origin[:, None],
        valid=column >= text.origin[:, None],
        origin=text.origin,
        instead=put(sees, own, root, axis=2),
    )
    features, kv = model.ahead(setup.params, inputs, state.kv, root)
    belief, likely = said(setup, text, features, text.known[:, None] + depths)
    on, path = agreed(tree, tokens, belief.token)
    state, new = committed(setup, state, belief, path, jnp.sum(on, axis=1, dtype=jnp.int32))
    kv = kv if tree.is_chain else kvcache.gathered(kv, root, tree.nodes, path)
    seen = Seen(tokens=tokens, on=on, likely=likely, text=state.text, new=new, live=before.live)
    fed = jnp.sum(tokens != HOLE, axis=1).astype(jnp.float32) + proposed.fed
    return dataclasses.replace(
        state,
        cheap=state.cheap + jnp.where(before.live, proposed.cheap, 0),
        work=state.work + jnp.where(before.live, fed / canvas_of(text), 0.0),
        draft=draft.update(state.draft, seen),
        kv=kv,
    )


def said(
    setup: Setup, text: Text, features: Float[Array, "B n D"], columns: Int[Array, "B n"]
) -> tuple[Belief, Int[Array, "B n k"]]:
    """What the target says in these columns: its token in each, and its most likely ones."""
    rows, count = columns.shape
    flat, sampling, draws = one_by_one(features, columns, text, setup.sampling)
    vocabulary = Vocabulary.of(setup.model, sampling)
    asked = Asked.of(flat, vocabulary, sampling, draws)

    def of(tile: Tile) -> tuple[Running, Best]:
        return summary(tile), best_of(tile, setup.draft.likely)

    def both(a: tuple[Running, Best], b: tuple[Running, Best]) -> tuple[Running, Best]:
        return merge(a[0], b[0]), better(a[1], b[1])

    running, (_, ids) = over_tiles(asked, setup.model.head(setup.params), of, both, None)
    belief = belief_of(running, (), vocabulary.stand_in)
    return jax.tree.map(lambda x: x.reshape(rows, count, *x.shape[2:]), (belief, ids))


Best = tuple[Float[Array, "B n k"], Int[Array, "B n k"]]  # the highest logits, and whose they are


def best_of(tile: Tile, count: int) -> Best:
    """Of a tile, before temperature and cuts; filled up with HOLE where it has no more."""
    values, at = jax.lax.top_k(tile.plain, min(count, tile.plain.shape[-1]))
    short = ((0, 0), (0, 0), (0, count - values.shape[-1]))
    ids = jnp.pad(tile.ids[at], short, constant_values=HOLE)
    return jnp.pad(values, short, constant_values=-jnp.inf), ids


def better(a: Best, b: Best) -> Best:
    """Of two parts of the vocabulary, the first that of the lower ids."""
    values, ids = (jnp.concatenate(pair, axis=-1) for pair in zip(a, b, strict=True))
    values, at = jax.lax.top_k(values, a[0].shape[-1])
    return values, jnp.take_along_axis(ids, at, axis=-1)


def likely_of(setup: Setup, features: Float[Array, "P D"], key: Key[Array, " 1"]) -> Int[Array, "P k"]:
    """The most likely tokens behind each of a row's: of one row, so that no more of a tile is held than of a step."""
    where = jnp.zeros((1, features.shape[0]), jnp.int32)
    draws = Draws(key, where[:, 0], jnp.int32(0), where)  # nothing is drawn
    asked = Asked.of(features[None], Vocabulary.of(setup.model, setup.sampling), Sampling(), draws)
    head, count = setup.model.head(setup.params), setup.draft.likely
    return over_tiles(asked, head, lambda tile: best_of(tile, count), better, None)[1][0]


def committed(
    setup: Setup, state: State, belief: Belief, path: Int[Array, "B d"], count: Int[Array, " B"]
) -> tuple[State, Int[Array, " B"]]:
    """The state with what the first `count` nodes of a path say, up to an end of the text and to the last column; and
    how many tokens that is.
    """
    text, depth = state.text, path.shape[1]
    number = jnp.arange(depth, dtype=jnp.int32)[None]

    def along(x: Array) -> Array:
        return jnp.take_along_axis(x, path, axis=1)

    tokens = along(belief.token)
    ends = setup.model.config.eos_ids
    most = jnp.minimum(count, text.end - text.known)
    stop = first_end(tokens, number < most[:, None], ends)
    new = jnp.where(state.live, jnp.minimum(most, stop + 1), 0)
    written = number < new[:, None]

    def onto(old: Array, values: Array) -> Array:
        return put(old, jnp.where(written, values, take(old, text.known, depth)), text.known)

    sound = jnp.isfinite(along(belief.log_prob))
    known = text.known + new
    return dataclasses.replace(
        state,
        text=dataclasses.replace(text, canvas=onto(text.canvas, tokens), known=known),
        live=state.live & (stop >= most) & (known < text.end),
        nfe=state.nfe + state.live.astype(jnp.int32),
        near_ties=state.near_ties + jnp.sum(written & (along(belief.gap) < NEAR_TIE), axis=1, dtype=jnp.int32),
        not_finite=state.not_finite + jnp.sum(written & ~sound, axis=1, dtype=jnp.int32),
        commit_step=onto(state.commit_step, jnp.broadcast_to(state.nfe[:, None], tokens.shape)),
        log_prob=onto(state.log_prob, along(belief.log_prob)),
    ), new


def canvas_of(text: Text) -> Float[Array, " B"]:
    """Tokens of each row's canvas, prompt to the end."""
    return (text.end - text.origin).astype(jnp.float32)


def finish(setup: Setup, prompts: Prompts, state: State) -> Speculated:
    """The texts, cut at the rows' ends."""
    text, config = state.text, setup.model.config
    column = jnp.arange(text.end, dtype=jnp.int32)[None]
    past = column >= text.known[:, None]
    last = jnp.take_along_axis(text.canvas, text.known[:, None] - 1, axis=1)
    ended = is_end(last, config.eos_ids)[:, 0] & (text.known < text.end)
    return Speculated(
        tokens=jnp.where(past, config.eos_token_id, text.canvas[:, : text.end]),
        origin=prompts.origin,
        lengths=text.known - text.first,
        nfe=state.nfe,
        cheap=state.cheap,
        work=state.work,
        commit_step=state.commit_step[:, text.first : text.end],
        log_prob=state.log_prob[:, text.first : text.end],
        reason=jnp.where(ended, Reason.STOPPED.value, Reason.FULL.value).astype(jnp.int32),
        near_ties=state.near_ties,
        not_finite=state.not_finite,
        draft=state.draft,
    )


@jax.jit
def run(setup: Setup, prompts: Prompts) -> Speculated:
    """`begin`, `step` until no row is live, `finish`: one program. A step of a live row commits at least one token."""
    state = jax.lax.while_loop(
        lambda state: jnp.any(state.live), lambda state: step(setup, state), begin(setup, prompts)
    )
    return finish(setup, prompts, state)
