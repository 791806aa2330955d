"""How likely given answers are to a masked diffusion model: LLaDA's Monte Carlo estimate, block by block.

    answers -> blocks -> (row, block, draw) triples, C at a time -> canvases -> features of the block [C W D] -> head

Of a block of n answer tokens l ~ uniform{1..n} are masked, any l of them alike; n / l times the sum of their
log-probabilities has the estimate's expectation (arXiv 2502.09992, equation 6). The answer is one block, or each block
is estimated behind the ones before it, which are clean, and before those behind it, which are masked: as a decode meets
them. What is estimated is the model's any-order lower bound of log p(answer | prompt); in blocks of one token it is
that itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.api import guided
from jaxdiff.decode.causal import check_causal
from jaxdiff.decode.decoder import Decoder, Sampling
from jaxdiff.decode.estimates import MOST, keeps_kv, masks_of, run, window
from jaxdiff.decode.layout import Layout, Setup
from jaxdiff.decode.program import Runs, direct
from jaxdiff.decode.state import Rows
from jaxdiff.parallel.mesh import check_axes, everywhere
from jaxdiff.parallel.rules import place
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Leaf, Params

SAMPLES = 128  # LLaDA's `get_log_likelihood.py`
NORMAL = 1.96  # standard errors to each side of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Estimates for each row, in nats.

    Attributes:
        value: of log p(answer | prompt); NaN where the model's scores are no numbers.
        error: its standard error; 0 where every set of masks was run, so that the value is the expectation itself.
        nfe: forwards that the row took part in, as a decode counts them: 2 for a guided one.
        work: the same in forwards over the row's canvas; less where a draw feeds its block alone.
    """

    value: Float[np.ndarray, " B"]
    error: Float[np.ndarray, " B"]
    nfe: Int[np.ndarray, " B"]
    work: Float[np.ndarray, " B"]

    @property
    def interval(self) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
        """The ends of each row's 95 % interval."""
        return self.value - NORMAL * self.error, self.value + NORMAL * self.error


def log_likelihood(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    answers: Int[Array, "B A"] | np.ndarray,
    *,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    lengths: Int[Array, " B"] | np.ndarray | None = None,
    samples: int = SAMPLES,
    block_length: int | None = None,
    cfg_scale: Leaf | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
) -> Likelihood:
    """The log-likelihood of each answer after its prompt, estimated from random masks (LLaDA `get_log_likelihood.py`).

    The draws of a block take its l in turn over {1..n} from one random start, as the published code's do over a batch:
    without bias, and with less variance; the standard error is that of successive draws. A block that has no more sets
    of masks than `samples` is not estimated: each set is run once, a single token costs one pass.

    Where a model attends in blocks, keys and values of the clean answer are kept from one pass, and a draw costs a pass
    over its block alone; elsewhere one over the canvas.

    Args:
        prompts, origin: as of `decode`.
        answers: token ids [B A], filled up on the right.
        lengths: tokens of each answer, [B], 1 to A; default A.
        samples: draws of masks for each block, 2 at least, so that there is an interval.
        block_length: default the model's own blocks, which are counted from the row's first token, and of which it may
            be a divisor; of a model without them the whole answer. The last one is filled up with masks where the model
            attends in blocks, and ends with the answer elsewhere.
        cfg_scale: classifier-free guidance, as of `Sampling`.
        key: as of `decode`; a row's estimate depends on its own, and not on the batch.
        mesh: as of `decode`: draws are spread over its data devices.

    Raises InputError before compilation for arrays that do not fit each other, ids that are none of the vocabulary's or
    [MASK], an answer that the context does not hold, a block that does not fit the model, and too few samples.
    """
    count, first = arrays.shape_of("prompts", prompts)
    rows, width = arrays.shape_of("answers", answers)
    if rows != count or min(first, width) < 1:
        raise InputError(
            f"answers: found {rows} of length {width} for {count} prompts of length {first}, expected one for each, "
            "and a token at least in both"
        )
    if any(isinstance(array, jax.core.Tracer) for array in (prompts, answers, origin, lengths)):
        raise InputError("log_likelihood: found traced arrays, expected known ones; call it outside jax.jit")
    check_samples(samples)
    block = checks.block_of(model, block_length, default=width)
    if block < 1:
        raise InputError(f"block_length: found {block}, expected at least 1")
    lengths = _checked_lengths(lengths, count, width)
    real = np.arange(width)[None] < lengths[:, None]
    answers = np.where(real, np.asarray(answers), model.config.eos_token_id)
    begin = np.asarray(arrays.checked_origin(origin, count, first))
    arrays.check_ids(model, prompts, begin, masks_allowed=False)
    arrays.check_ids(model, answers, np.zeros(count, np.int32), masks_allowed=False, what="answer")
    if (longest := int(np.max(first - begin + lengths))) > (context := model.config.max_sequence_length):
        raise InputError(
            f"answers: found {longest} tokens with the prompt, expected at most the context of {context}; cut the "
            "prompt at its left"
        )
    decoder = Decoder(sampling=Sampling(cfg_scale=cfg_scale), block_length=block)
    checks.check_numbers(decoder, count)
    check_causal(decoder, model)
    overhang, whole = checks.overhang_of(model), checks.whole_block(model, block)
    layout = Layout(first=first, block_length=block, attention_block=whole, overhang=overhang, mesh=mesh)
    reference = np.full((count, first + width + (overhang or -width % block)), model.config.mask_token_id, np.int32)
    reference[:, first : first + width][real] = answers[real]
    clean = reference.copy()
    clean[:, :first] = np.asarray(prompts)
    canvas, origins, ends, answer = jax.device_put((clean, begin, (first + lengths).astype(np.int32), reference))
    rows = Rows(canvas, origins, ends, arrays.checked_keys(key, count), answer)
    return estimate(Setup(model, params, decoder, layout), rows, samples)


def estimate(setup: Setup, rows: Rows, samples: int, call: Runs = direct) -> Likelihood:
    """The log-likelihood of what each row's reference holds beside [MASK], in one piece, and the canvas at the same
    columns; what stands around it is as a canvas has it, up to the row's `last`. `samples` as of `log_likelihood`.

    The model is not guided yet, nor laid over the layout's mesh. `call` runs the program.
    """
    answer = np.asarray(rows.reference) != setup.model.config.mask_token_id
    count, columns = answer.shape
    first = np.argmax(answer, axis=1).astype(np.int32)
    blocks = np.asarray(setup.layout.first_block(rows.origin))
    model, mesh = guided(setup.model, setup.decoder), setup.layout.mesh
    setup = dataclasses.replace(setup, model=model)
    if mesh is not None:
        check_axes(mesh)
        setup, rows = everywhere(
            (dataclasses.replace(setup, params=place(model.config, setup.params, mesh)), rows), mesh
        )
    tokens = model.copies * window(setup, columns)
    last = first + np.sum(answer, axis=1, dtype=np.int32)
    masks, total = masks_of(setup.layout, blocks, first, last, samples, tokens)
    found = call(run, setup, rows, masks, np.int32(-(-total // masks.rows.shape[1])))
    drawn = jax.tree.map(lambda leaf: leaf.reshape(-1)[:total], masks)
    each = np.asarray(found, np.float64).reshape(-1)[:total] / drawn.of
    # Of draws whose l ascends, half the mean square of what separates two neighbours is a draw's variance.
    near = (np.diff(drawn.rows) == 0) & (np.diff(drawn.start) == 0) & (drawn.weight[1:] == 0.0)
    variance = np.where(near, np.diff(each) ** 2 * drawn.of[1:] / np.maximum(2 * drawn.of[1:] - 2, 1), 0.0)
    draws, clean = np.bincount(drawn.rows, minlength=count), int(keeps_kv(setup))
    own = np.asarray(setup.layout.whole_blocks(rows.origin, rows.last) - rows.origin)
    share = np.minimum(window(setup, columns) / own, 1.0) if clean else 1.0
    return Likelihood(
        value=np.bincount(drawn.rows, each, count),
        error=np.sqrt(np.bincount(drawn.rows[1:], variance, count)),
        nfe=(draws + clean) * model.copies,
        work=(draws * share + clean) * model.copies,
    )


def check_samples(samples: Any) -> None:
    """Raises InputError for a number of draws that leaves no interval, or that is none."""
    if not isinstance(samples, int | np.integer) or not 2 <= samples <= MOST:
        raise InputError(f"samples: found {samples!r:.20}, expected a whole number from 2 to {MOST}")


def _checked_lengths(lengths: Any, rows: int, width: int) -> Int[np.ndarray, " B"]:
    """Tokens of each answer. Raises InputError where they are not 1 to `width` for each row."""
    if lengths is None:
        return np.full(rows, width, np.int32)
    found = np.asarray(lengths)
    if found.shape != (rows,) or found.dtype.kind not in "iu" or found.min() < 1 or found.max() > width:
        raise InputError(f"lengths: found {found.tolist()!r:.80}, expected {rows} whole numbers from 1 to {width}")
    return found.astype(np.int32)
