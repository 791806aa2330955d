"""AWRS: a token that a predicate allows, from few questions to it, and a weight that is right on average.

    Gumbel keys of a position -> its tokens, highest first, n at a time -> allowed? -> the first that is, and a weight

In this order each token is a draw from what is left of p, so that the first one allowed is a draw from p among the
allowed, and few are asked about where these have much of the mass. How much, Z, is not known without asking about all;
but the weight w that goes with the token v is an estimate of it: E[w] = Z, and E[w 1{v}] = p(v) for each allowed v. So
particles that are weighed by the product of their draws' weights stand for p under the constraint as a whole, and not
for its renormalisation step by step. Adaptive weighted rejection sampling, arXiv 2504.05410; the estimators `geometric`
and `recursive` are of `genlm-control`.

The weights hold where the position that is written was chosen without a look at what is drawn there: under a policy
that ranks by the candidate of a temperature above 0 they do not (`Policy.blind`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.pytree import InputError, pytree, static
from jaxdiff.types import NEAR_TIE, NEVER

ESTIMATORS = ("paper", "geometric", "recursive")
WIDTH = 8  # tokens of a position that are ranked, and asked about, at a time
Allowed = Callable[[Int[Array, "B C n"]], Bool[Array, "B C n"]]


@pytree
class Mark:
    """A place in the order of a position's tokens: those up to it, it included, are behind. Equal keys go by id."""

    key: Float[Array, "B C"]
    token: Int[Array, "B C"]

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> Mark:
        """Before the first."""
        return cls(jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32))

    def behind(self, keys: Float[Array, "B C n"], ids: Int[Array, "#B #C n"]) -> Bool[Array, "B C n"]:
        """Which of these tokens are."""
        key, token = self.key[..., None], self.token[..., None]
        return (keys > key) | ((keys == key) & (ids <= token))

    def moved(self, to: Bool[Array, "B C"], key: Float[Array, "B C"], token: Int[Array, "B C"]) -> Mark:
        """At that token, where `to`."""
        return Mark(jnp.where(to, key, self.key), jnp.where(to, token, self.token))


@pytree
class Ranked:
    """Tokens of each position, highest key first; a key of NEVER is none. `log_prob` is of the whole distribution p."""

    ids: Int[Array, "B C n"]
    keys: Float[Array, "B C n"]
    log_prob: Float[Array, "B C n"]


@runtime_checkable
class Source(Protocol):
    """What draws: noise of its own for each walk, each row and each position."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, C)."""
        ...

    def ranked(self, walk: int, after: Mark, without: Mark | None) -> Ranked:
        """The next n tokens of a walk, 0 or 1, `after` a mark; in walk 1 `without` those that walk 0 has behind one."""
        ...

    def uniform(self, number: Int[Array, "B C"]) -> Float[Array, "B C"]:
        """A number from (0, 1) for each position, and each of these numbers."""
        ...


@pytree
class Drawn:
    """A draw of each position.

    Attributes:
        token: the first that is allowed; where none is, the first of all.
        log_prob: its log-probability in p.
        log_weight: log w; -inf where no token is allowed.
        checks: tokens that were asked about, each once.
        close: the order of two tokens that were looked at one after the other hung on less than NEAR_TIE.
    """

    token: Int[Array, "B C"]
    log_prob: Float[Array, "B C"]
    log_weight: Float[Array, "B C"]
    checks: Int[Array, "B C"]
    close: Bool[Array, "B C"]


@pytree
class _Walk:
    """Of each position.

    Attributes:
        open: still looking for a token that is allowed.
        extra: one more is to be looked at, behind that token (`recursive`).
        after: the last token that was looked at; `refused`: the last that was refused.
        lost: the mass of what was refused; `refusals`: how often something was, phantoms among them.
        draws: tokens that were drawn, in both walks.
        also: what came behind the token is allowed too, or nothing came.
        close: as in `Drawn`.
    """

    open: Bool[Array, "B C"]
    extra: Bool[Array, "B C"]
    after: Mark
    refused: Mark
    lost: Float[Array, "B C"]
    refusals: Float[Array, "B C"]
    draws: Int[Array, "B C"]
    checks: Int[Array, "B C"]
    found: Bool[Array, "B C"]
    token: Int[Array, "B C"]
    log_prob: Float[Array, "B C"]
    also: Bool[Array, "B C"]
    close: Bool[Array, "B C"]


def draw(
    source: Source, allowed: Allowed, estimator: str = "recursive", *, among: Bool[Array, "B C"] | None = None
) -> Drawn:
    """A token of each position that is allowed, and its weight.

    Args:
        source: of the tokens in the order of their keys (`LogProbs`, or `decode.weighted.Tiled` of a head's tiles).
        allowed: a jittable function of ids [B C n], such as `table`. It is asked about n at a time; `checks` are those
            that the walk needed.
        estimator: `paper`: a second walk over all but what was refused, w = (1 - P0) / (r + 1), P0 being the mass that
            the first one refused, r the refusals of both. `geometric`: the same walks, with as many refusals more as
            draws with replacement would have had among what was refused before; w = 1 / (r + 1). `recursive`: one walk
            and one token more; w = 1 - P0 if that is allowed too, else the token's own probability. It asks least, and
            varies most.
        among: the positions that are drawn; of the others nothing is asked, and `Drawn` says nothing. None: all.

    Raises InputError for another estimator.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator: found {estimator!r:.40}, expected one of {', '.join(ESTIMATORS)}")
    among = jnp.ones(source.shape, bool) if among is None else among
    walk = _walked(source, allowed, _begun(among), 0, None, estimator)
    if estimator == "recursive":
        weight = jnp.where(walk.also, _log_left(walk), walk.log_prob)
    else:
        again = dataclasses.replace(walk, open=walk.found, after=Mark.start(source.shape))
        both = _walked(source, allowed, again, 1, walk.refused, estimator)
        weight = -jnp.log(both.refusals + 1.0)
        weight = weight + _log_left(walk) if estimator == "paper" else weight
        walk = dataclasses.replace(walk, checks=both.checks, close=both.close)
    return Drawn(walk.token, walk.log_prob, jnp.where(walk.found, weight, -jnp.inf), walk.checks, walk.close)


def table(allowed: Bool[Array, "B C V"] | Bool[Array, " V"]) -> Allowed:
    """The predicate of a table: one for all positions, such as a state's row of an automaton, or one for each."""

    def asked(ids: Int[Array, "B C n"]) -> Bool[Array, "B C n"]:
        return allowed[ids] if allowed.ndim == 1 else jnp.take_along_axis(allowed, ids, axis=-1)

    return asked


def _begun(among: Bool[Array, "B C"]) -> _Walk:
    no, zero, none = (jnp.zeros(among.shape, dtype) for dtype in (bool, jnp.int32, jnp.float32))
    start = Mark.start(among.shape)
    return _Walk(among, no, start, start, none, none, zero, zero, no, zero, none + NEVER, ~no, no)


def _log_left(walk: _Walk) -> Float[Array, "B C"]:
    """The log-mass of what was not refused: no less than that of the token, whatever rounding says."""
    return jnp.maximum(jnp.log(jnp.maximum(1.0 - walk.lost, 0.0)), walk.log_prob)


def _walked(source: Source, allowed: Allowed, walk: _Walk, number: int, without: Mark | None, estimator: str) -> _Walk:
    """The walk to its end: a token that is allowed, and what the estimator looks at behind it; or no token is left."""

    def some(walk: _Walk) -> _Walk:
        ranked = source.ranked(number, walk.after, without)
        ok = allowed(ranked.ids)

        def one(walk: _Walk, lane: Int[Array, ""]) -> tuple[_Walk, None]:
            token, key, log_prob, fits = (leaf[..., lane] for leaf in (ranked.ids, ranked.keys, ranked.log_prob, ok))
            return _looked(source, walk, token, key, log_prob, fits, estimator), None

        return jax.lax.scan(one, walk, jnp.arange(ranked.ids.shape[-1], dtype=jnp.int32))[0]

    return jax.lax.while_loop(lambda walk: jnp.any(walk.open | walk.extra), some, walk)


def _looked(
    source: Source,
    walk: _Walk,
    token: Int[Array, "B C"],
    key: Float[Array, "B C"],
    log_prob: Float[Array, "B C"],
    ok: Bool[Array, "B C"],
    estimator: str,
) -> _Walk:
    """The walk with one token more, where it is not at its end."""
    there, recursive = key > NEVER, estimator == "recursive"
    drawn, more = walk.open & there, walk.extra & there
    known = walk.found & (token == walk.token)  # a second walk may meet the token of the first again
    accepted, refused = drawn & (ok | known), drawn & ~(ok | known)
    refusals = walk.refusals + refused.astype(jnp.float32)
    if estimator == "geometric":
        # Draws with replacement meet what was refused k times in a row with probability lost^k.
        lost = jnp.clip(walk.lost, 1e-30, 1.0 - 1e-7)
        phantoms = jnp.floor(jnp.log(source.uniform(walk.draws)) / jnp.log(lost))
        refusals += jnp.where(drawn & (walk.lost > 0.0), phantoms, 0.0)
    first, nothing = accepted & ~walk.found, walk.open & ~there & (walk.draws == 0)
    keeps = first | (drawn & (walk.draws == 0)) | nothing  # the first of all stands in until one is allowed
    return _Walk(
        open=drawn & ~accepted,
        extra=first & recursive,
        after=walk.after.moved(drawn | more, key, token),
        refused=walk.refused.moved(refused, key, token),
        lost=walk.lost + jnp.where(refused, jnp.exp(log_prob), 0.0),
        refusals=refusals,
        draws=walk.draws + drawn.astype(jnp.int32),
        checks=walk.checks + ((drawn & ~known) | more).astype(jnp.int32),
        found=walk.found | accepted,
        token=jnp.where(keeps, token, walk.token),
        log_prob=jnp.where(keeps, log_prob, walk.log_prob),
        also=jnp.where(more, ok, walk.also),
        close=walk.close | ((drawn | more) & (walk.after.key - key < NEAR_TIE)),
    )


@pytree
class LogProbs:
    """Tokens of log-probabilities that are there as a whole: [B C V], normalised, NEVER for what has no mass.

    Attributes:
        keys: of each row; `positions`: absolute ones, which noise is keyed by too.
        width: n.
    """

    log_prob: Float[Array, "B C V"]
    keys: Key[Array, " B"]
    positions: Int[Array, "B C"]
    width: int = static(default=WIDTH)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.positions.shape

    def ranked(self, walk: int, after: Mark, without: Mark | None) -> Ranked:
        """As `Source.ranked`."""
        ids, keys = jnp.arange(self.log_prob.shape[-1], dtype=jnp.int32), self._keys(walk)
        gone = after.behind(keys, ids[None, None])
        gone = gone if without is None else gone | without.behind(self._keys(0), ids[None, None])
        best, at = jax.lax.top_k(jnp.where(gone, NEVER, keys), min(self.width, len(ids)))
        return Ranked(at.astype(jnp.int32), best, jnp.take_along_axis(self.log_prob, at, axis=-1))

    def uniform(self, number: Int[Array, "B C"]) -> Float[Array, "B C"]:
        """As `Source.uniform`."""
        each = jax.vmap(jax.vmap(jax.random.fold_in))(self._own(2), number)
        return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, minval=jnp.finfo(jnp.float32).tiny)))(each)

    def _own(self, number: int) -> Key[Array, "B C"]:
        rows = jax.vmap(jax.random.fold_in, (0, None))(self.keys, number)
        return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(rows, self.positions)

    def _keys(self, walk: int) -> Float[Array, "B C V"]:
        size = self.log_prob.shape[-1:]
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, size, mode="high")))(self._own(walk))
        return jnp.where(self.log_prob > NEVER, self.log_prob + noise, NEVER)
