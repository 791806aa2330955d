"""How likely given tokens are when a decode writes them: its policy says where at each step, they say what.

    rows with a reference [B L] -> the decode's own loop, whose tokens are forced -> sum of their log-probabilities [B]

Where a policy looks at the model's belief alone, its order hangs on what is written and not on what will be. So these
probabilities add up to one over all texts of one length, whatever the policy.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.caches import BlockCausal
from jaxdiff.decode.decoder import Decoder, Sampling
from jaxdiff.decode.layout import Setup
from jaxdiff.decode.loop import begin, step
from jaxdiff.decode.state import Rows, State, live
from jaxdiff.fills import Parallel
from jaxdiff.parallel.mesh import over_rows
from jaxdiff.protocols import Model, Policy
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import NoStop
from jaxdiff.types import InputError, Params, PartState, Proposal, Score


@pytree
class Forced:
    """A policy whose positions are written with the reference's tokens."""

    policy: Policy

    @property
    def blind(self) -> bool:
        return self.policy.blind

    @property
    def waits(self) -> bool:
        return self.policy.waits

    @property
    def revises(self) -> bool:
        return self.policy.revises

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def check(self, model: Model, params: Params) -> None:
        self.policy.check(model, params)

    def budget(self, rows: int, window: int) -> Int[Array, " B"]:
        return self.policy.budget(rows, window)

    def init(self, rows: int, window: int) -> PartState:
        return self.policy.init(rows, window)

    def select(self, state: PartState, score: Score, key: Key[Array, " B"]) -> tuple[Proposal, PartState]:
        assert score.reference is not None
        proposal, state = self.policy.select(state, score, key)
        return dataclasses.replace(proposal, token=score.reference), state


@pytree
class Forcing:
    """What forcing gave, for each row.

    Attributes:
        log_prob: the sum over the reference's tokens, each at the pass that it was written from, as in
            `Result.log_prob`.
        nfe, work, near_ties, not_finite: as in `Result`.
    """

    log_prob: Float[Array, " B"]
    nfe: Int[Array, " B"]
    work: Float[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]


def forcing(decoder: Decoder) -> Decoder:
    """The decoder that forces: the policy, cache and guidance of this one; greedy, each token as the full pass has it,
    without a stopper or a push. A cache that seeds, which writes the model's candidate, gives way to the one that keeps
    the same keys and values without.

    Raises InputError for a policy that takes commits back, or decodes towards an answer of its own.
    """
    policy = decoder.policy
    if policy.revises or policy.needs:
        why = "takes commits back" if policy.revises else "decodes towards an answer of its own"
        raise InputError(
            f"policy: found one that {why}, expected one that only commits: what it writes first says nothing of what "
            "it leaves; take fixed, threshold or another that commits for good"
        )
    sampling = Sampling(cfg_scale=decoder.sampling.cfg_scale, defer_eos=decoder.sampling.defer_eos)
    cache = BlockCausal() if decoder.cache.seeds else decoder.cache
    parts = {"cache": cache, "fill": Parallel(), "stop": NoStop(), "stop_strings": None, "sampling": sampling}
    return dataclasses.replace(decoder, policy=Forced(policy), **parts)


@jax.jit
def force(setup: Setup, rows: Rows) -> Forcing:
    """Write each row's reference where that is not [MASK]; the canvas is [MASK] there. All else stays as it stands, and
    a [MASK] elsewhere is seen as one.
    """
    mask = setup.model.config.mask_token_id

    def program(setup: Setup, rows: Rows) -> Forcing:
        assert rows.reference is not None
        asked = rows.reference != mask
        start: State = dataclasses.replace(begin(setup, rows), given=~asked)
        state = jax.lax.while_loop(
            lambda state: jnp.any(live(setup.model, state)), lambda state: step(setup, state), start
        )
        return Forcing(
            log_prob=jnp.sum(jnp.where(asked, state.log_prob, 0.0), axis=1),
            nfe=state.nfe,
            work=state.work,
            near_ties=state.near_ties,
            not_finite=state.not_finite,
        )

    if setup.layout.mesh is None:
        return program(setup, rows)
    return over_rows(program, setup.layout.mesh, setup, rows, dead=setup.model.config.eos_token_id)
