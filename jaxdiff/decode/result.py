"""What a decode returns."""

from __future__ import annotations

import enum
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.caches import CACHES
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.layout import Setup
from jaxdiff.decode.state import State
from jaxdiff.decode.tiles import Vocabulary
from jaxdiff.fills import FILLS
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree, static
from jaxdiff.stoppers import STOPPERS
from jaxdiff.types import GREEDY, first_end


class Reason(enum.IntEnum):
    """Why a row ended."""

    FULL = 0  # no mask was left on the canvas
    STOPPED = 1  # the stopper moved its end left
    STRING = 2  # a stop string stands before its end


@pytree
class Trace:
    """What a decode wrote, before its result was cut at the rows' ends: what each of its passes saw follows from it.

    Attributes:
        tokens: from the first generated column on, the overhang included; [MASK] where none was committed.
        step: the row's forward at which each was committed; -1 for what was given, and for what was not.
        end: one past the last column that a row attended to.
        forbidden: ids that were never predicted.
        unfit: what of the decoder keeps its passes from being rebuilt; empty where nothing does.
    """

    tokens: Int[Array, "B F"]
    step: Int[Array, "B F"]
    end: Int[Array, " B"]
    forbidden: tuple[int, ...] = static()
    unfit: str = static(default="")


@pytree
class Result:
    """What a decode returns; all per row.

    Attributes:
        tokens: the canvas, prompt included; generated positions past a moved end hold end-of-text.
        origin: column of the row's first token; padding lies left of it.
        lengths: generated tokens through the first end-of-text (it included), the numerator of TPF; of a row that ended
            at a stop string, through the token that completes it.
        nfe: forwards of the model's stack that the row took part in while live, whatever their window; a guided one
            counts 2, one that only stores keys and values (caches `block`, `seeded`) counts too.
        cheap: cheap passes of the fill, which `nfe` does not count.
        guide_nfe: passes of the guide, which `nfe` does not count either; 0 where there is none.
        work: tokens fed times layers over all passes (of another network by its weights), in units of one forward over
            the row's canvas (prompt to the end of the canvas); it counts what the row itself needs, never padding or
            neighbours. The head is left out.
        commit_step: the row's forward (from 0, without those that only store) at which each generated position was last
            written; -1 for what was given, and past the end. One that stores and commits a seed is not left out.
        log_prob: log-softmax of each generated token at the pass that wrote it last (of a guide's own token, at the
            guide's), with [MASK] and forbidden ids left out, before temperature, top-p, top-k and the push of
            `end_think`. It is that and nothing more: not the likelihood of the text. 0 for what was given, and past the
            end; NaN where the scores were no numbers.
        log_weight: under a constraint that draws by rejection (`constraints.Awrs`) the log of what the row weighs: over
            many keys the mean of exp(log_weight) is the probability that a decode without the constraint gives a text
            that is allowed. -inf where nothing was allowed at some token: the text is not a draw of these. Else 0.
        checks: how often such a constraint was asked about a token.
        reason: a `Reason`.
        near_ties: decisions that hung on less than 1e-5: between the logits of a committed token and the next best
            one, between the priorities of the last position let in and the first left out (log-odds for a policy
            that ranks by them), or between a position's score and the policy's threshold.
        not_finite: of the positions that the row's full passes could commit, summed over them, those at which the
            model's scores were no numbers (NaN or +inf among the logits, or -inf for all); and the committed ones at
            which a cheap pass of the fill alone had none. Above 0 the tokens must not
            be trusted: the weights are damaged, or numbers overflow.
        policy: the policy's final state (a recorder's recording).
        trace: for `trajectory_log_prob`.
    """

    tokens: Int[Array, "B L"]
    origin: Int[Array, " B"]
    lengths: Int[Array, " B"]
    nfe: Int[Array, " B"]
    cheap: Int[Array, " B"]
    guide_nfe: Int[Array, " B"]
    work: Float[Array, " B"]
    commit_step: Int[Array, "B G"]
    log_prob: Float[Array, "B G"]
    log_weight: Float[Array, " B"]
    checks: Int[Array, " B"]
    reason: Int[Array, " B"]
    near_ties: Int[Array, " B"]
    not_finite: Int[Array, " B"]
    policy: Any
    trace: Trace


def finish(setup: Setup, state: State) -> Result:
    """The result of rows that are done; what overhangs is cut off."""
    layout, config = setup.layout, setup.model.config
    length = state.given.shape[1] - layout.overhang
    column = jnp.arange(length, dtype=jnp.int32)[None]
    generated = ~state.given[:, :length]
    last = jnp.minimum(state.end, state.rows.last)
    past = generated & (column >= last[:, None])
    tokens = jnp.where(past, config.eos_token_id, state.rows.canvas[:, :length])
    found = jnp.zeros_like(state.holds) if setup.decoder.stop_strings is None else state.text.found
    found &= state.end <= state.rows.last
    asked = generated & (column < jnp.where(found, state.end, state.rows.last)[:, None])
    stop = first_end(tokens, generated, config.eos_ids)
    ended = jnp.where(state.end < state.rows.last, Reason.STOPPED.value, Reason.FULL.value).astype(jnp.int32)
    return Result(
        tokens=tokens,
        origin=state.rows.origin,
        lengths=jnp.sum(asked & (column <= stop[:, None]), axis=1, dtype=jnp.int32),
        nfe=state.nfe,
        cheap=state.cheap,
        guide_nfe=state.guide_nfe,
        work=state.work,
        commit_step=jnp.where(past, -1, state.commit_step[:, :length])[:, layout.first :],
        log_prob=jnp.where(past, 0.0, state.log_prob[:, :length])[:, layout.first :],
        log_weight=state.log_weight,
        checks=state.checks,
        reason=jnp.where(found, Reason.STRING.value, ended),
        near_ties=state.near_ties,
        not_finite=state.not_finite,
        policy=state.policy,
        trace=Trace(
            tokens=state.rows.canvas[:, layout.first :],
            step=state.commit_step[:, layout.first :],
            end=layout.whole_blocks(state.rows.origin, state.rows.last),
            forbidden=Vocabulary.of(setup.model, setup.decoder.sampling).forbidden,
            unfit=unfit_of(setup.decoder, setup.model),
        ),
    )


def unfit_of(decoder: Decoder, model: Model) -> str:
    """What of a decoder keeps the canvas of each pass, or the belief on it, from being rebuilt from a trace."""
    fill, cache, stop = FILLS.name_of(decoder.fill), CACHES.name_of(decoder.cache), STOPPERS.name_of(decoder.stop)
    found = {
        f"fill {fill}": fill != "parallel",
        "a policy that takes commits back": decoder.policy.revises,
        f"cache {cache}": not decoder.cache.exact(
            block_causal=model.attention_block is not None, prefix_lm=model.config.prefix_lm
        ),
        f"stop {stop}": stop not in ("none", "eos"),
        "stop strings": decoder.stop_strings is not None,
        f"length {decoder.length}": decoder.length != "fixed",
        "guidance": decoder.sampling.cfg_scale is not None,
        "a guide that writes": GREEDY in decoder.policy.needs,
    }
    return next((name for name, unfit in found.items() if unfit), "")
