"""The log-probabilities of a recorded decode's tokens under any parameters, on the canvas of each one's commit.

    Result.trace -> (row, forward) pairs, C at a time -> canvases [C L] -> features of the commits [C K D] -> head

What reinforcement learning needs of a rollout: the sum of a row's is the log-probability of its tokens, given where
and when the policy committed them. Each pair is one pass over a whole canvas, and no more of them than `nfe` counts.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.decode.pieces import together
from jaxdiff.decode.result import Result, Trace
from jaxdiff.decode.score import log_prob_of
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.types import InputError, Inputs, Params


@pytree
class _Passes:
    """Passes in n pieces of C; what fills up the last has the step -1, and no column.

    `columns`: where each commits, counted from the first generated column; F for none.
    """

    rows: Int[Any, "n C"]
    steps: Int[Any, "n C"]
    columns: Int[Any, "n C K"]


def trajectory_log_prob(model: Model, params: Params, result: Result) -> Float[Array, "B G"]:
    """Log-softmax of each generated token, as `Result.log_prob` has it, under these parameters: on the canvas as it was
    when the token was committed, with [MASK] and forbidden ids left out, before temperature, top-p and top-k.

    Differentiable in `params`; memory is that of one piece of passes, whatever the length of the decode.

    Args:
        params: of the model, with an adapter beside them or not (`models.lora`).
        result: of `decode` or `infill`, its arrays known (not traced: what is compiled hangs on its steps). Its decoder
            has no cache, or one that is exact for the model whatever its numbers (`Cache.exact`; `refresh=1` is not
            looked at); fill `parallel`; no policy that takes commits back; stop `none` or `eos`; no stop strings,
            variable length or guidance.

    Returns [B, G]: 0 for what was given, and past a row's end.

    Raises InputError for a result of another decoder, by what is other, and for one that is traced.
    """
    trace = result.trace
    if trace.unfit:
        raise InputError(
            f"trajectory_log_prob: found a result of {trace.unfit}, expected fill parallel, a policy that takes "
            "nothing back, stop none or eos and no cache or an exact one; decode without it"
        )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((result.commit_step, trace))):
        raise InputError("trajectory_log_prob: found a traced result, expected a known one; call it outside jax.jit")
    length = result.tokens.shape[1] - result.commit_step.shape[1] + trace.step.shape[1]
    passes = _passes_of(np.asarray(result.commit_step), trace.step.shape[1], length)
    prompt = result.tokens[:, : length - trace.step.shape[1]]
    found = _log_probs(model, params, prompt, result.origin, trace, passes)
    return found[:, : result.commit_step.shape[1]]


def _passes_of(commit_step: Int[np.ndarray, "B G"], none: int, length: int) -> _Passes:
    """The passes that committed what is left of each row, in pieces of even size."""
    rows, columns = np.nonzero(commit_step >= 0)
    pairs, which = np.unique(np.stack([rows, commit_step[rows, columns]], axis=1), axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    counts = np.bincount(which, minlength=len(pairs))
    size = together(max(len(pairs), 1), length)
    pieces = _rounded(-(-max(len(pairs), 1) // size))
    wide = np.full((pieces * size, _rounded(int(max(counts, default=1)))), none, np.int32)
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide[which[order], place] = columns[order]
    padded = np.full((pieces * size, 2), (0, -1), np.int32)
    padded[: len(pairs)] = pairs
    shape = (pieces, size)
    return _Passes(*(x.reshape(*shape, *x.shape[1:]) for x in (padded[:, 0], padded[:, 1], wide)))


def _rounded(count: int) -> int:
    """The next number of three leading bits: few programs, and none with a quarter more than it needs."""
    unit = 1 << max(count.bit_length() - 3, 0)
    return -(-count // unit) * unit


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(
    model: Model,
    params: Params,
    prompt: Int[Array, "B P"],
    origin: Int[Array, " B"],
    trace: Trace,
    passes: _Passes,
) -> Float[Array, "B F"]:
    config, first = model.config, prompt.shape[1]

    @jax.checkpoint
    def piece(params: Params, some: _Passes) -> Float[Array, "C K"]:
        tokens, step = trace.tokens[some.rows], trace.step[some.rows]
        before = step < some.steps[:, None]
        canvas = jnp.where(before, tokens, config.mask_token_id)
        canvas = jnp.concatenate([prompt[some.rows], canvas], axis=1)
        revealed = jnp.where(before, step + 1, -1)
        starts, column = origin[some.rows], jnp.arange(canvas.shape[1], dtype=jnp.int32)[None]
        inputs = Inputs(
            tokens=canvas,
            positions=column - starts[:, None],
            valid=(column >= starts[:, None]) & (column < trace.end[some.rows][:, None]),
            origin=starts,
            prompt_length=jnp.maximum(first - starts, 0),
            revealed=jnp.pad(revealed, ((0, 0), (first, 0))),  # the prompt at 0
        )
        features, _ = model.apply(params, inputs)
        at = jnp.minimum(some.columns, tokens.shape[1] - 1)
        committed = jnp.take_along_axis(features, first + at[..., None], axis=1)
        own = jnp.take_along_axis(tokens, at, axis=1)
        head = model.head(params)
        return log_prob_of(committed, head, own, size=config.vocab_size, forbidden=trace.forbidden)

    def step(found: Float[Array, "B F"], some: _Passes) -> tuple[Float[Array, "B F"], None]:
        values: Any = piece(params, some)
        return found.at[some.rows[:, None], some.columns].add(values, mode="drop"), None

    return jax.lax.scan(step, jnp.zeros(trace.step.shape, jnp.float32), passes)[0]
