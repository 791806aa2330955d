"""Particles: several weighed draws of each request, side by side as rows of one compiled decode (`resample.py`).

A particle's weight is the product of those of its tokens (`constraints.Awrs`). Where few particles carry most of it
(the effective sample size), they are drawn again by weight, between blocks: sequential Monte Carlo, as arXiv 2504.05410
has it. That keeps what is right on average: with the weights over all particles, E[mean of w f(text)] is the sum of
f(text) over the texts that are allowed, each by its probability without the constraint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode import api, arrays
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Call, Runs, direct
from jaxdiff.decode.resample import APART, Group, run
from jaxdiff.decode.result import Result
from jaxdiff.decode.state import fold
from jaxdiff.protocols import Model
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.types import InputError, Params

MOST = 2**16  # particles of a request
Weigh = Callable[[int, Int[np.ndarray, " n"]], float]


@dataclasses.dataclass(frozen=True)
class Particles:
    """What `particles` returns, of R requests.

    Attributes:
        result: of all rows, those of a request side by side: row i n + j is particle j of request i. Its `log_weight`
            is since the last time that the request's particles were drawn again, in units of log_normalizer.
        weights: of each particle, what the verifier said included; they add up to 1, or are 0 where all have died.
        log_normalizer: the log of an estimate, right on average, of the probability that a decode without the
            constraint gives a text that is allowed (times what the verifier says, on average); -inf where all died.
        ess: 1 / sum of the squared weights: how many equal ones they are worth.
        resampled: how often the particles were drawn again.
        best: the first particle of the text that weighs most, equal texts together.
        drawn: one drawn by weight, with the request's key.
    """

    result: Result
    weights: Float[np.ndarray, "R n"]
    log_normalizer: Float[np.ndarray, " R"]
    ess: Float[np.ndarray, " R"]
    resampled: Int[np.ndarray, " R"]
    best: Int[np.ndarray, " R"]
    drawn: Int[np.ndarray, " R"]

    def tokens(self, request: int, particle: int) -> Int[np.ndarray, " g"]:
        """What a particle generated, through its first end."""
        row, generated = request * self.weights.shape[1] + particle, self.result.commit_step.shape[1]
        return np.asarray(self.result.tokens)[row, -generated:][: int(self.result.lengths[row])]


def particles(
    model: Model,
    params: Params,
    prompts: Int[Array, "R P"] | np.ndarray,
    decoder: Decoder,
    *,
    n: int = 8,
    threshold: float = 0.5,
    weigh: Weigh | None = None,
    gen_length: int = 256,
    origin: Int[Array, " R"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " R"] | None = None,
    mesh: Mesh | None = None,
) -> Particles:
    """`n` weighed draws of each request, in one compiled program.

    Args:
        decoder: with a `constraints.Awrs`, or without a constraint where `weigh` tells the draws apart; its temperature
            is above 0.
        threshold: particles are drawn again after a block where their effective sample size is under this share of n.
        weigh: a verifier, asked on the host at the end: (request, the tokens that a particle generated through its
            first end) -> a factor of its weight, 0 or more.
        key: of each request, or one for all, as in `decode`. Particle j draws from its request's key folded with j, so
            that a request's particles do not hang on the others.
        mesh: its data devices divide the number of requests: particles of a request are on one of them.
        prompts, gen_length, origin: as in `decode`.

    Raises InputError before compilation as `decode`, and for a constraint that weighs nothing.
    """
    call = prepare_particles(
        *(model, params, prompts, decoder),
        n=n,
        threshold=threshold,
        gen_length=gen_length,
        origin=origin,
        key=key,
        mesh=mesh,
    )
    return call.run(weigh)


def prepare_particles(
    model: Model,
    params: Params,
    prompts: Int[Array, "R P"] | np.ndarray,
    decoder: Decoder,
    *,
    n: int = 8,
    threshold: float = 0.5,
    gen_length: int = 256,
    origin: Int[Array, " R"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " R"] | None = None,
    mesh: Mesh | None = None,
) -> ParticleCall:
    """What `particles` of the same arguments runs. Raises as that."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= MOST:
        raise InputError(f"particles: found {n!r:.40}, expected a whole number from 1 to {MOST}")
    check_particles(decoder)
    count, width = arrays.shape_of("prompts", prompts)
    if mesh is not None and count % mesh.shape.get("data", 1):
        raise InputError(
            f"particles: found {count} requests over {mesh.shape['data']} data devices, expected a multiple: the "
            "particles of a request are on one of them; give more, or take a mesh 1xM"
        )
    keys, each = arrays.checked_keys(key, count), np.repeat(np.arange(count), n)
    origin = arrays.checked_origin(origin, count, width)
    numbers = [leaf[each] if getattr(leaf, "ndim", 0) else leaf for leaf in numbers_of(decoder)]
    call = api.prepare(
        *(model, params, jnp.asarray(prompts)[each], with_numbers(decoder, numbers)),
        gen_length=gen_length,
        origin=origin[each],
        key=fold(keys[each], jnp.asarray(np.tile(np.arange(n, dtype=np.int32), count))),
        mesh=mesh,
    )
    return ParticleCall(call, Group(n, threshold), keys)


def check_particles(decoder: Decoder) -> None:
    """Raises InputError for a decoder whose rows weigh nothing, or are all the same."""
    if decoder.constraint is not None and decoder.constraint.estimator is None:
        raise InputError(
            "particles: found a constraint that writes what fits best, and weighs nothing; take one that draws by "
            "rejection (awrs+..., constraints.Awrs)"
        )
    cold = decoder.sampling.temperature
    if not isinstance(cold, jax.core.Tracer) and np.any(np.asarray(cold) <= 0.0):
        raise InputError("temperature: found 0 with particles, which would all be the same; take 1")


@dataclasses.dataclass(frozen=True)
class ParticleCall:
    """One call of `particles`, checked and laid out; `keys`: those of the requests."""

    call: Call
    group: Group
    keys: Key[Array, " R"]

    def run(self, weigh: Weigh | None = None, call: Runs = direct) -> Particles:
        result, times = jax.device_get(call(run, self.call.setup, self.call.rows, self.group))
        n = self.group.n
        log_weight = np.asarray(result.log_weight, np.float64).reshape(-1, n)
        tokens = result.tokens[:, -result.commit_step.shape[1] :].reshape(*log_weight.shape, -1)
        if weigh is not None:
            lengths = result.lengths.reshape(log_weight.shape)
            log_weight = log_weight + _verified(weigh, tokens, lengths, log_weight)
        top = np.max(log_weight, axis=1, keepdims=True)
        share = np.exp(log_weight - np.where(np.isneginf(top), 0.0, top))
        total = np.sum(share, axis=1, keepdims=True)
        weights = share / np.where(total > 0.0, total, 1.0)
        with np.errstate(divide="ignore"):
            log_normalizer = (top + np.log(total))[:, 0] - np.log(n)
        squares = np.sum(weights**2, axis=1)
        uniform = np.asarray(jax.vmap(jax.random.uniform)(fold(self.keys, APART - 1)), np.float64)
        return Particles(
            result=result,
            weights=weights,
            log_normalizer=log_normalizer,
            ess=np.where(squares > 0.0, 1.0 / np.where(squares > 0.0, squares, 1.0), 0.0),
            resampled=times[::n],
            best=np.asarray([_heaviest(*each) for each in zip(tokens, weights, strict=True)]),
            drawn=np.argmax(np.cumsum(weights, axis=1) > uniform[:, None] * (1.0 - 1e-9), axis=1),
        )


def _verified(
    weigh: Weigh, tokens: Int[np.ndarray, "R n G"], lengths: Int[np.ndarray, "R n"], before: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, "R n"]:
    """The logs of what the verifier says; what has died already is not shown to it."""
    found = np.zeros(before.shape)
    for request, particle in np.argwhere(~np.isneginf(before)):
        factor = float(weigh(int(request), tokens[request, particle, : lengths[request, particle]]))
        if not (0.0 <= factor < np.inf):
            raise InputError(f"weigh: found {factor} for particle {particle} of request {request}, expected 0 or more")
        found[request, particle] = np.log(factor) if factor else -np.inf
    return found


def _heaviest(tokens: Int[np.ndarray, "n G"], weights: Float[np.ndarray, " n"]) -> int:
    """The first particle of the text that weighs most."""
    _, first, which = np.unique(tokens, axis=0, return_index=True, return_inverse=True)
    return int(first[np.argmax(np.bincount(which.ravel(), weights))])
