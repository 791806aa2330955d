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
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.api import guided
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.forced import force, forcing
from jaxdiff.decode.layout import Setup, layout_of
from jaxdiff.decode.likelihood import SAMPLES, check_samples, estimate
from jaxdiff.decode.pairs import Pairs, pairs_of
from jaxdiff.decode.program import Call, Runs, direct
from jaxdiff.decode.result import Result
from jaxdiff.decode.state import Rows
from jaxdiff.parallel.mesh import check_axes, everywhere
from jaxdiff.parallel.rules import place
from jaxdiff.protocols import Model, is_causal
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
        nfe, work: of each choice, as a decode counts them; without those of the text around.
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
    work: Float[np.ndarray, "B C"]
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
    policy that takes commits back or needs a reference, and a constraint; and as `decode` and `infill`.
    """
    return prepare_choose(
        *(model, params, prompts, choices, decoder),
        **dict(method=method, slot=slot, gen_length=gen_length, origin=origin, samples=samples, key=key, mesh=mesh),
    ).run()


def prepare_choose(
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
) -> Asking:
    """What `choose` of the same arguments runs. Raises as `choose`."""
    decoder = Decoder() if decoder is None else decoder
    if method not in METHODS:
        raise InputError(f"method: found {method!r:.40}, expected one of {', '.join(METHODS)}")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (prompts, origin)):
        raise InputError("choose: found traced arrays, expected known ones; call it outside jax.jit")
    check_samples(samples)
    if is_causal(model):
        raise InputError(
            f"choices: found an autoregressive model ({type(model).__name__}), expected a masked diffusion model; "
            "compare the log_likelihood of each, which is exact there"
        )
    if decoder.length != "fixed":
        raise InputError(f"length: found {decoder.length} with choices, whose lengths are given; leave it out")
    checks.check_no_strings(decoder, "choices")
    decoder = dataclasses.replace(decoder, stop_strings=None)
    if decoder.constraint is not None:
        raise InputError("constraint: found one with choices, which say what the text may be; leave one of the two out")
    asked = forcing(decoder)
    count, _ = arrays.shape_of("prompts", prompts)
    checks.check_decoder(decoder, model, count, None)
    decoder.policy.check(model, params)
    decoder.fill.check(model, params)
    if checks.block_of(model, decoder.block_length) < 1:
        raise InputError(f"block_length: found {decoder.block_length}, expected at least 1")
    pairs = pairs_of(model, decoder, np.asarray(prompts), choices, slot, gen_length, origin)
    generated = pairs.length - pairs.first
    block = checks.block_of(model, decoder.block_length, default=generated)
    checks.check_block(decoder, block)
    layout = layout_of(model, asked, first=pairs.first, generated=generated, block=block, mesh=mesh)
    numbers = [leaf[pairs.row] if getattr(leaf, "ndim", 0) else leaf for leaf in numbers_of(asked)]
    setup = Setup(model, params, with_numbers(asked, numbers), layout)
    return Asking(setup, decoder, pairs, arrays.checked_keys(key, count), method, samples)


@dataclasses.dataclass(frozen=True)
class Asking:
    """One call of `choose`, checked and laid out.

    Attributes:
        setup: that compares the pairs; the model is not guided yet, nor are params laid over the mesh.
        decoder: of the text around.
    """

    setup: Setup
    decoder: Decoder
    pairs: Pairs
    keys: Key[Array, " B"]
    method: str
    samples: int

    def run(self, call: Runs = direct) -> Choices:
        pairs, count = self.pairs, len(self.pairs.origin)
        found = (self._ordered if self.method == "order" else self._likelihood)(self.keys[pairs.row], call)
        log_prob = np.full(pairs.shape, -np.inf)
        log_prob[pairs.row, pairs.choice] = found.log_prob
        best = np.argmax(np.where(np.isnan(log_prob), -np.inf, log_prob), axis=1).astype(np.int32)
        behind = log_prob[np.arange(count), best][:, None] - log_prob
        with np.errstate(invalid="ignore"):  # a row without a finite one has no probabilities
            tie = np.sum(behind < NEAR_TIE, axis=1) > 1
            share = np.exp(-behind)
        tokens, around = self._around(best, call)
        return Choices(
            prob=share / np.sum(share, axis=1, keepdims=True),
            log_prob=log_prob,
            error=pairs.table(found.error),
            best=best,
            tokens=tokens,
            origin=pairs.origin,
            ends=pairs.of(best).last,
            nfe=pairs.table(found.nfe),
            work=pairs.table(found.work),
            near_ties=np.sum(pairs.table(found.near_ties), axis=1) + tie,
            not_finite=np.sum(pairs.table(found.not_finite), axis=1),
            around=around,
        )

    def _ordered(self, keys: Key[Array, " n"], call: Runs) -> Found:
        setup = dataclasses.replace(self.setup, model=guided(self.setup.model, self.setup.decoder))
        forced = jax.device_get(call(force, *_laid(setup, self.pairs.rows(setup.model, keys, answered=False))))
        error = np.zeros(len(self.pairs.row))
        return Found(forced.log_prob, error, forced.nfe, forced.work, forced.near_ties, forced.not_finite)

    def _likelihood(self, keys: Key[Array, " n"], call: Runs) -> Found:
        rows = self.pairs.rows(self.setup.model, keys, answered=True)
        found, none = estimate(self.setup, rows, self.samples, call), np.zeros(len(self.pairs.row), np.int32)
        return Found(found.value, found.error, found.nfe, found.work, none, np.isnan(found.value).astype(np.int32))

    def _around(self, best: Int[np.ndarray, " B"], call: Runs) -> tuple[Int[np.ndarray, "B L"], Result | None]:
        """The rows with their best choices, what else is [MASK] decoded; and that decode."""
        model, length, some = self.setup.model, self.pairs.length, self.pairs.of(best)
        rows = dataclasses.replace(some.rows(model, self.keys, answered=True), reference=None)
        canvas, past = np.asarray(rows.canvas)[:, :length], np.arange(length)[None] >= some.last[:, None]
        if not np.any((canvas == model.config.mask_token_id) & ~past):
            return np.where(past, model.config.eos_token_id, canvas), None
        block, mesh = self.setup.layout.block_length, self.setup.layout.mesh
        # Of canvases alone: the same columns, with the stopper's shorter forwards.
        layout = layout_of(model, self.decoder, first=0, generated=length, block=block, mesh=mesh)
        setup = Setup(guided(model, self.decoder), self.setup.params, self.decoder, layout)
        result = Call(*_laid(setup, rows)).run(call)
        return np.where(past, model.config.eos_token_id, np.asarray(result.tokens)), result


class Found(NamedTuple):
    """Of each pair."""

    log_prob: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    nfe: Int[np.ndarray, " n"]
    work: Float[np.ndarray, " n"]
    near_ties: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]


def _laid(setup: Setup, rows: Rows) -> tuple[Setup, Rows]:
    """Over the layout's mesh."""
    mesh = setup.layout.mesh
    if mesh is None:
        return setup, rows
    check_axes(mesh)
    setup = dataclasses.replace(setup, params=place(setup.model.config, setup.params, mesh))
    rows, decoder = everywhere((rows, setup.decoder), mesh)
    return dataclasses.replace(setup, decoder=decoder), rows
