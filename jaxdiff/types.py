"""The library's plain data: shape letters, what a forward is given, what a policy sees and answers.

Shape letters, used in every public docstring and annotation:

    B rows (requests)      P prompt length          L canvas length (prompt + generated)
    G generated length     W window (the block)     T tokens fed to the model
    C positions of a group D hidden size            V vocabulary
    N layers               H query heads            K key/value heads
    E head size            M columns of a KV cache  r tokens read of T
    b rows of a KV cache

Policies, fills, caches and stoppers import this module, `jaxdiff.protocols`, `jaxdiff.pytree` and helpers of their own
folder; `decode` knows them through the protocols alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxdiff.pytree import InputError as InputError
from jaxdiff.pytree import pytree, static
from jaxdiff.windows import take

NEAR_TIE = 1e-5  # log-odds: below this gap, float rounding decides
UNLIMITED = 2**20  # steps of a block: more than any has
NEVER = -1e30  # log-odds of what goes last: no mass, and finite, so that nothing becomes NaN
# Of a constraint's automaton: the states from which no text fits, behind an end, and before the first token; the
# classes of ids that fit nowhere, and of those that end an answer.
LOST, ENDED, BEGUN = 0, 1, 2
NOWHERE, ENDS = 0, 1
HOLE = -1  # what a predicate is shown where a token is still to be written
# What a policy or a fill may need, see `Policy.needs` and `Fill.needs`.
REFERENCE, SHADOW, KV, GUIDE, GREEDY = "reference", "shadow", "kv", "guide", "greedy"

Params = Any  # a pytree of arrays, or of arrays and `qwix.QArray`s (`weights.py`)
KVCache = Any  # keys and values of all columns: for each group of layers a pair of [N B K M E]
PartState = Any  # a policy's, fill's or stopper's own pytree, leaves lead with B; () when it keeps none
# One number for the batch, or one for each row; `number()` fields turn Python's into arrays.
Leaf = Float[Array, ""] | Float[Array, " B"] | float | int | np.ndarray | Sequence[float]
Count = Int[Array, ""] | Int[Array, " B"] | int | np.ndarray | Sequence[int]


def per_row(value: Leaf | Count) -> Shaped[Array, ...]:
    """`value` shaped to broadcast against [B, W]: a scalar stays, a [B] vector becomes [B, 1]."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value[:, None]


@pytree
class Span:
    """Some tokens of a pass: `count` of them from each row's `start` on (counted among the tokens that are fed), and
    the `last` ones.
    """

    start: Int[Array, " B"]
    count: int = static()
    last: int = static(default=0)

    def of(self, tokens: Shaped[Array, "B T ..."]) -> Shaped[Array, "B r ..."]:
        """What these tokens have."""
        some = take(tokens, self.start, self.count)
        return jnp.concatenate([some, tokens[:, -self.last :]], axis=1) if self.last else some


@pytree
class Inputs:
    """What one pass of a model is given.

    Attributes:
        tokens: ids of the tokens that are fed.
        positions: their absolute positions, column - origin; negative for padding.
        valid: of every column that may be attended to: False for padding, and past a row's end.
        origin: canvas column of position 0 of each row; column c holds position c - origin.
        fresh: the token's own keys and values are seen by this pass; else those of the KV cache are. None: all are.
        prompt_length: how many first positions do not see the others, in a model whose config says `prefix_lm`.
        given: the token is part of the prompt or of what infilling was given: what guidance masks.
        scale: classifier-free guidance, w in un + (w + 1) (cond - un); a model that is not guided ignores it.
        sees: visibility beyond the model's own rule; a token sees a column only where both allow it. None: no limit.
        instead: visibility of valid columns in the place of the model's own rule, for tokens whose columns are not
            where they stand in the text (a tree of drafts); `sees` and `prompt_length` then say nothing.
        beside: the last n tokens that are fed stand beside the canvas, and each token sees those of them that are
            marked. They see columns as any token at their positions does; their keys and values are of this pass
            alone, always fresh and never kept. None: there are none. Not for shifted models.
        rows: of the KV cache, the row of each row that is fed; None: the same.
        revealed: of every column, in which step its token was revealed: 0 for what was given, negative for a mask.
            None: the tokens are the whole canvas, and what is no mask was revealed at once. For models that encode
            (`jaxdiff.protocols.Encodes`); the others do not ask.
        store: the KV cache keeps the keys and values of fresh tokens. False: they are seen by this pass alone, and the
            cache is handed back as it came.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    valid: Bool[Array, "B L"]
    origin: Int[Array, " B"]
    fresh: Bool[Array, "B T"] | None = None
    prompt_length: Int[Array, " B"] | None = None
    given: Bool[Array, "B T"] | None = None
    scale: Float[Array, " B"] | None = None
    sees: Bool[Array, "B T L"] | None = None
    instead: Bool[Array, "B T L"] | None = None
    beside: Bool[Array, "B T n"] | None = None
    rows: Int[Array, " B"] | None = None
    revealed: Int[Array, "B L"] | None = None
    store: bool = static(default=True)

    @classmethod
    def whole(
        cls,
        tokens: Int[Array, "B L"],
        origin: Int[Array, " B"] | None = None,
        *,
        prompt_length: Int[Array, " B"] | None = None,
        revealed: Int[Array, "B L"] | None = None,
    ) -> Inputs:
        """A pass over whole canvases [B L], with padding left of each row's `origin` (default none)."""
        column = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        origin = jnp.zeros((tokens.shape[0],), jnp.int32) if origin is None else origin
        positions = column - origin[:, None]
        return cls(tokens, positions, positions >= 0, origin, prompt_length=prompt_length, revealed=revealed)


@pytree
class Belief:
    """What the head says of some positions, [B, C] each and float32 unless said.

    `token` is the candidate (the argmax, or the Gumbel sample at temperature > 0) and never [MASK]. `log_odds` = its
    logit minus the logsumexp of all others: RANK by it, since float32 probabilities near 1 tie; compare `prob` with
    thresholds. A field that nobody reads is removed by the compiler.

    Where the head gave what is no number (a NaN or +inf among the logits, or -inf for all that may be predicted),
    `log_prob` is NaN and the other fields say nothing; `token` may be predicted all the same.
    """

    token: Int[Array, "B C"]
    prob: Float[Array, "B C"]  # softmax(logits)[token]
    log_odds: Float[Array, "B C"]
    runner_up: Float[Array, "B C"]  # probability of the best token other than `token`
    entropy: Float[Array, "B C"]  # nats, of the whole distribution
    gap: Float[Array, "B C"]  # logits between the candidate and the next best: a tie-break under 1e-5
    log_prob: Float[Array, "B C"]  # log-softmax of `token` before temperature and cuts
    named: Float[Array, "B C n"]  # the same of tokens that were asked for by name

    @property
    def sharpness(self) -> Float[Array, "B C"]:
        """-log(entropy): the order of entropies, lowest first, on the scale of log-odds; last is what is put off."""
        nats = -jnp.log(jnp.maximum(self.entropy, jnp.finfo(jnp.float32).tiny))
        return jnp.where(self.entropy < 1e6, nats, -self.entropy)  # no vocabulary has so much


@pytree
class Guiding:
    """What a guide says of the block's draft, [B, W] each: its candidate where a mask stands, what stands elsewhere.

    Each position is read from what lies left of it, the draft included. The guide's distribution is softmax(logits)
    without the ids that the decode forbids. A NaN in `draft` says that the guide's scores were no numbers.
    """

    token: Int[Array, "B W"]  # the guide's argmax
    top: Float[Array, "B W"]  # its probability
    draft: Float[Array, "B W"]  # the draft token's probability
    rank: Int[Array, "B W"]  # tokens that the guide puts before the draft token; 0: it is the argmax
    gap: Float[Array, "B W"]  # logits between the argmax and the next best
    near: Float[Array, "B W"]  # logits between the draft token and the nearest other


@pytree
class Score(Belief):
    """What every policy sees: the model's belief at each position of the block, [B, W], and how the block stands.

    `named` is of the token that stands there (NEVER where that is [MASK]) and, where there is one, of the reference's.
    """

    hidden: Float[Array, "B W D"]  # the features that the head read, in the model's dtype
    masked: Bool[Array, "B W"]  # still [MASK]
    eligible: Bool[Array, "B W"]  # masked, in the row's block, before its end, in a live row: may be committed
    editable: Bool[Array, "B W"]  # committed by this decode, in the row's block: may be edited or remasked
    canvas: Int[Array, "B L"]
    start: Int[Array, " B"]  # canvas column of the block's first position
    origin: Int[Array, " B"]  # canvas column of the row's first token: absolute position = column - origin
    block_step: Int[Array, " B"]  # forwards this block has had before this one
    row_step: Int[Array, " B"]  # forwards this row has had before this one
    reference: Int[Array, "B W"] | None = None  # the answer that a policy `needs`
    alone: Float[Array, "B W"] | None = None  # `standing`, but with that token hidden: where a policy needs a SHADOW
    guide: Guiding | None = None  # where a policy needs a GUIDE

    @property
    def not_finite(self) -> Int[Array, " B"]:
        """Eligible positions of each row at which the belief, or what the guide says, is no number."""
        sound = jnp.isfinite(self.log_prob)
        sound = sound if self.guide is None else sound & jnp.isfinite(self.guide.draft)
        return jnp.sum(self.eligible & ~sound, axis=1, dtype=jnp.int32)

    @property
    def standing(self) -> Float[Array, "B W"]:
        """`log_prob` of the token that stands there; NEVER where that is [MASK]."""
        return self.named[..., 0]

    @property
    def margin(self) -> Float[Array, "B W"]:
        """Prob - runner_up. Compare it with thresholds; rank by `certainty`."""
        return self.prob - self.runner_up

    @property
    def certainty(self) -> Float[Array, "B W"]:
        """-log(1 - margin) without the cancellation near margin 1: the float32-safe order of margins."""
        return -jnp.log(jnp.maximum(jax.nn.sigmoid(-self.log_odds) + self.runner_up, 1e-30))

    @property
    def positions(self) -> Int[Array, "B W"]:
        """Absolute positions of the block."""
        column = self.start[:, None] + jnp.arange(self.masked.shape[1], dtype=jnp.int32)[None]
        return column - self.origin[:, None]

    @property
    def tokens(self) -> Int[Array, "B W"]:
        """What stands in the block, [MASK] included."""
        return jnp.take_along_axis(self.canvas, self.positions + self.origin[:, None], axis=1)

    def log_prob_of(self, token: Int[Array, "B W"]) -> Float[Array, "B W"]:
        """Log-softmax of a token that is the candidate or the reference's, before temperature and cuts; of one that is
        the guide's own, in what the guide says.
        """
        if self.reference is None and self.guide is None:
            return self.log_prob
        others = jnp.log(self.guide.top) if self.reference is None else self.named[..., 1]  # type: ignore[union-attr]
        return jnp.where(token == self.token, self.log_prob, others)


@pytree
class Proposal:
    """What a policy answers, [B, W] unless said.

    The loop commits `commit` (where eligible) and, in a row where that is empty, forces the position of highest
    `priority` unless the policy holds or `waits`. `edit` and `remask` count where `editable`, and with `hold` for no
    more steps of a block than the policy's `budget`.
    """

    commit: Bool[Array, "B W"]
    accepted: Bool[Array, "B W"]  # what the policy itself vouches for, before any quota
    close: Bool[Array, "B W"]  # a comparison with a number of the policy's own hung on less than NEAR_TIE
    priority: Float[Array, "B W"]
    token: Int[Array, "B W"]  # what is committed or edited in: `Score.token`, `Score.reference`, or the guide's
    remask: Bool[Array, "B W"]  # commits that are taken back
    edit: Bool[Array, "B W"]  # commits that are overwritten with `token`
    hold: Bool[Array, " B"]  # the row is not done with its block, though no mask may be left there


@pytree
class Written:
    """What a fill answers.

    Attributes:
        commit: a part of the commit that it was given, not empty where that is not: the rest is left for later.
        log_prob: of each written token, before temperature and cuts, at the pass that it was taken from.
        close: a choice of a token hung on less than NEAR_TIE.
        cheap: cheap passes that the row took part in; `work`: theirs, in forwards over the row's canvas.
        log_weight: what was drawn weighs so much more or less than a draw of the model; None: nothing was weighed.
        checks: how often a constraint was asked about a token; None: never.
    """

    token: Int[Array, "B W"]
    log_prob: Float[Array, "B W"]
    commit: Bool[Array, "B W"]
    close: Bool[Array, "B W"]
    cheap: Int[Array, " B"]
    work: Float[Array, " B"]
    log_weight: Float[Array, " B"] | None = None
    checks: Int[Array, " B"] | None = None


@pytree
class Place:
    """Where each row stands at a step, in canvas columns; steps count from 0.

    Blocks tile those that the model attends in, where it has them: `whole` and `whole_before` are of these, and the
    same as `start` and `before` elsewhere.
    """

    origin: Int[Array, " B"]
    first: Int[Array, " B"]  # where its blocks begin
    before: Int[Array, " B"]  # the block that it stood in at its last step; less than `first`: none
    start: Int[Array, " B"]  # the block that it stands in now
    begins_masked: Bool[Array, " B"]  # the first position of that is still to be committed
    still: Bool[Array, " B"]  # its last step changed no token: the pass of that step saw what stands there now
    block_step: Int[Array, " B"]
    row_step: Int[Array, " B"]
    block: int = static()  # its length
    attention_block: int = static()  # the length of a whole one, a multiple

    @property
    def whole(self) -> Int[Array, " B"]:
        """The attention block that the row stands in now."""
        return self._around(self.start)

    @property
    def whole_before(self) -> Int[Array, " B"]:
        """The attention block that it stood in at its last step; less than `first`: none."""
        return self._around(self.before)

    def _around(self, column: Int[Array, " B"]) -> Int[Array, " B"]:
        return self.first + (column - self.first) // self.attention_block * self.attention_block


@pytree
class Tail:
    """What a stopper that asks is told of the open positions that were fed: where the candidate ends a text, and how
    surely. Where the belief is no number it ends none.
    """

    ends: Bool[Array, "B L"]  # still masked before the commit, and the candidate is an id that ends a text
    log_odds: Float[Array, "B L"]  # of those; elsewhere NEVER


@pytree
class Progress:
    """What a stopper sees after a commit. `end` is one past the last position that a row still generates."""

    canvas: Int[Array, "B L"]
    end: Int[Array, " B"]
    live: Bool[Array, " B"]
    generated: Bool[Array, "B L"]  # the positions this call is to fill (False on the prompt and the padding)
    settled: Int[Array, " B"]  # first column that may still change: tokens left of it are final
    score: Score  # of the block, before the commit
    accepted: Bool[Array, "B W"]  # what the policy vouched for, among the eligible
    tail: Tail | None  # where the stopper `wants_tail`
    eos_ids: tuple[int, ...] = static()
    turn_ends: tuple[int, ...] = static(default=())  # those of `eos_ids` that end a turn, and never fill a canvas


def is_end(tokens: Int[Array, "B n"], eos_ids: tuple[int, ...]) -> Bool[Array, "B n"]:
    """Where an id stands that ends an answer."""
    found = jnp.zeros(tokens.shape, bool)
    for token in eos_ids:
        found |= tokens == token
    return found


def text_end_ids(ids: Progress | Any) -> tuple[int, ...]:
    """The ids that end a text and fill what follows, ascending; `ids` has `eos_ids` and `turn_ends`, as a config."""
    return tuple(sorted(set(ids.eos_ids) - set(ids.turn_ends)))


def is_text_end(tokens: Int[Array, "B n"], ids: Progress | Any) -> Bool[Array, "B n"]:
    """Where one of `text_end_ids` stands."""
    return is_end(tokens, text_end_ids(ids))


def first_end(tokens: Int[Array, "B L"], among: Bool[Array, "B L"], eos_ids: tuple[int, ...]) -> Int[Array, " B"]:
    """The first column `among` those marked that holds an id which ends an answer; L where there is none."""
    length = tokens.shape[1]
    return jnp.min(
        jnp.where(is_end(tokens, eos_ids) & among, jnp.arange(length, dtype=jnp.int32)[None], length), axis=1
    )
