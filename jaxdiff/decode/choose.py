"""Which of a few answers: the probability of each in a slot of a text, the best one, and the text around it.

    prompts | canvases -> (row, choice) pairs -> canvases with the slot open [B L] -> log-probabilities, one program
    best choices -> canvases -> `infill` of what else is [MASK]

Of a prompt the slot is what follows it, up to the end of the text: a choice is followed by end-of-text, which counts as
the model's own would. All choices share one canvas, so that their probabilities are those of one distribution over what
stands in the slot, divided by their sum. In a canvas the slot is a run of [MASK]s with a text on both sides, which a
choice takes the place of: what lies right of it moves left, and the canvas is as long as the choice makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.api import guided
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.forced import force, forcing
from jaxdiff.decode.layout import Layout, Setup, layout_of
from jaxdiff.decode.likelihood import SAMPLES, check_samples, estimate
from jaxdiff.decode.pairs import Pairs, pairs_of
from jaxdiff.decode.program import Call
from jaxdiff.decode.result import Result
from jaxdiff.decode.state import Rows
from jaxdiff.parallel.mesh import check_axes, everywhere
from jaxdiff.parallel.rules import place
from jaxdiff.protocols import Model
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.types import NEAR_TIE, InputError, Params

METHODS = ("order", "likelihood")


@dataclasses.dataclass(frozen=True)
class Choices:
    """What `choose` returns, as numpy. A row with fewer choices than C has probability 0, -inf in nats, for the rest.

    Attributes:
        prob: of each choice, among the choices of its row; NaN where the model's scores are no numbers.
        log_prob: of each choice in its slot, in nats, before it is divided by their sum.
        error: the standard error of `log_prob`; 0 where nothing was drawn.
        best: the most probable choice of each row; of those that tie, the first.
        tokens: each row with its best choice, and the text around it; end-of-text past its end.
        origin: column of each row's first token; padding lies left of it.
        ends: one past each row's last column.
        nfe: forwards that each choice took, as a decode counts them.
        near_ties: decisions of a row that hung on less than 1e-5: which position was next, and which choice is best.
        not_finite: positions of a row's choices at which the model's scores were no numbers; above 0 nothing of it may
            be trusted.
        around: the decode of the text around; None where there was none to fill.
    """

    prob: Float[np.ndarray, "B C"]
    log_prob: Float[np.ndarray, "B C"]
    error: Float[np.ndarray, "B C"]
    best: Int[np.ndarray, " B"]
    tokens: Int[np.ndarray, "B L"]
    origin: Int[np.ndarray, " B"]
    ends: Int[np.ndarray, " B"]
    nfe: Int[np.ndarray, "B C"]
    near_ties: Int[np.ndarray, " B"]
    not_finite: Int[np.ndarray, " B"]
    around: Result | None


def choose(
    model: Model,
    params: Params,
    prompts: Int[Array, "B L"] | np.ndarray,
    choices: Sequence[Any] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    method: str = "order",
    slot: tuple[int, int] | None = None,
    gen_length: int | None = None,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    samples: int = SAMPLES,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
) -> Choices:
    """The probability of each choice, the best one, and the text around it.

    Args:
        prompts: prompts as of `decode`, or canvases as of `infill`, which is what they are where [MASK] stands in them.
        choices: each a sequence of token ids, of any lengths: the same for all rows, or a list of them for each row.
        decoder: how. `order` asks its policy where to write next, its cache and guidance; the text around is decoded by
            all of it. A prompt's slot is one block unless it has a `block_length`; the slot is then a multiple of that.
        method: of a choice's probability. `order`: the decode writes it, position by position as the policy would from
            the model's belief at each step, and the log-probabilities of its tokens are added up; exact for the order
            that this policy decodes in. `likelihood`: the Monte Carlo estimate of `log_likelihood`, of all orders, with
            an error.
        slot: the first column of a canvas' slot, and one past its last; default each row's first run of [MASK]. No
            choice has more tokens.
        gen_length: tokens of a prompt's slot; default those of the row's longest choice and one more, so that each is
            seen to end.
        origin, key, mesh: as of `decode`. All choices of a row share its key: a random order is the same for each.
        samples: as of `log_likelihood`, of each choice.

    While choices are compared nothing is drawn: temperature, top-p, top-k, `forbid_eos`, `end_think`, fill and stopper
    are of the text around alone, which is masked until the best choice stands.

    Raises InputError before compilation for no choices, an empty one, two of the same tokens, one that the slot or the
    context does not hold, that has [MASK] or ids outside the vocabulary; for a slot that is not all [MASK]; for a
    policy that takes commits back or needs a reference; and as `decode` and `infill`.
    """
    decoder = Decoder() if decoder is None else decoder
    if method not in METHODS:
        raise InputError(f"method: found {method!r:.40}, expected one of {', '.join(METHODS)}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (prompts, origin)):
        raise InputError("choose: found traced arrays, expected known ones; call it outside jax.jit")
    check_samples(samples)
    checks.check_canvas(decoder)
    checks.check_no_strings(decoder)
    asked = forcing(decoder)
    count, _ = arrays.shape_of("prompts", prompts)
    checks.check_decoder(decoder, model, count, None)
    decoder.policy.check(model, params)
    decoder.fill.check(model, params)
    pairs = pairs_of(model, decoder, np.asarray(prompts), choices, slot, gen_length, origin)
    keys = arrays.checked_keys(key, count)
    layout = _layout(model, decoder, pairs, mesh)
    numbers = [leaf[pairs.row] if getattr(leaf, "ndim", 0) else leaf for leaf in numbers_of(asked)]
    setup = Setup(model, params, with_numbers(asked, numbers), layout)
    checks.check_block(setup.decoder, layout.block_length)
    log_prob, error, nfe, near_ties, not_finite = (_ordered if method == "order" else _likelihood)(
        setup, pairs, keys[pairs.row], samples
    )
    table = np.full(pairs.shape, -np.inf)
    table[pairs.row, pairs.choice] = log_prob
    best = np.argmax(np.where(np.isnan(table), -np.inf, table), axis=1).astype(np.int32)
    highest = table[np.arange(count), best]
    with np.errstate(invalid="ignore"):  # a row without a finite one has no probabilities
        share = np.exp(table - highest[:, None])
        prob = share / np.sum(share, axis=1, keepdims=True)
        tie = np.sum(highest[:, None] - table < NEAR_TIE, axis=1) > 1
    tokens, around = _around(model, params, decoder, pairs, best, keys, mesh)
    return Choices(
        prob=prob,
        log_prob=table,
        error=pairs.table(error),
        best=best,
        tokens=tokens,
        origin=pairs.origin,
        ends=pairs.of(best).last,
        nfe=pairs.table(nfe),
        near_ties=np.sum(pairs.table(near_ties), axis=1) + tie,
        not_finite=np.sum(pairs.table(not_finite), axis=1),
        around=around,
    )


def _layout(model: Model, decoder: Decoder, pairs: Pairs, mesh: Mesh | None) -> Layout:
    """Of canvases with an open slot: as of `decode` behind prompts, else as of `infill`, but that a last block of a
    model that attends in blocks need not be whole.
    """
    generated = pairs.length - pairs.first
    block = checks.block_of(model, decoder.block_length, default=generated)
    return layout_of(model, forcing(decoder), first=pairs.first, generated=generated, block=block, mesh=mesh)


def _laid(setup: Setup, rows: Rows) -> tuple[Setup, Rows]:
    """Over the layout's mesh."""
    mesh = setup.layout.mesh
    if mesh is None:
        return setup, rows
    check_axes(mesh)
    setup = dataclasses.replace(setup, params=place(setup.model.config, setup.params, mesh))
    rows, decoder = everywhere((rows, setup.decoder), mesh)
    return dataclasses.replace(setup, decoder=decoder), rows


Found = tuple[Any, Any, Any, Any, Any]  # of each pair: log-probability, its error, NFE, near-ties, not finite


def _ordered(setup: Setup, pairs: Pairs, keys: Key[Array, " n"], samples: int) -> Found:
    del samples
    setup = dataclasses.replace(setup, model=guided(setup.model, setup.decoder))
    setup, rows = _laid(setup, pairs.rows(setup.model, keys, answered=False))
    with jax.enable_x64(False):
        found = jax.device_get(force(setup, rows))
    none = np.zeros(len(pairs.row))
    return found.log_prob.astype(np.float64), none, found.nfe, found.near_ties, found.not_finite


def _likelihood(setup: Setup, pairs: Pairs, keys: Key[Array, " n"], samples: int) -> Found:
    found = estimate(setup, pairs.rows(setup.model, keys, answered=True), samples)
    none = np.zeros(len(pairs.row), np.int32)
    return found.value, found.error, found.nfe, none, np.isnan(found.value).astype(np.int32)


def _around(
    model: Model,
    params: Params,
    decoder: Decoder,
    pairs: Pairs,
    best: Int[np.ndarray, " B"],
    keys: Key[Array, " B"],
    mesh: Mesh | None,
) -> tuple[Int[np.ndarray, "B L"], Result | None]:
    """The rows with their best choices, what else is [MASK] decoded; and that decode."""
    some, mask = pairs.of(best), model.config.mask_token_id
    answered = some.rows(model, keys, answered=True)
    canvas = np.asarray(answered.canvas)[:, : pairs.length]
    past = np.arange(pairs.length)[None] >= some.last[:, None]
    if not np.any((canvas == mask) & ~past):
        return np.where(past, model.config.eos_token_id, canvas), None
    block = checks.block_of(model, decoder.block_length, default=pairs.length)
    layout = layout_of(model, decoder, first=0, generated=pairs.length, block=block, mesh=mesh)
    checks.check_block(decoder, block)
    setup = Setup(guided(model, decoder), params, decoder, layout)
    result = Call(*_laid(setup, dataclasses.replace(answered, reference=None))).run()
    return np.where(past, model.config.eos_token_id, np.asarray(result.tokens)), result
