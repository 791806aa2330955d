"""The likelihood of given answers, against every set of masks run by a plain loop in numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, Inputs, log_likelihood, make_mesh
from jaxdiff.models import FastDllmV2
from tests import small

CASES, LENGTH = 100, 6  # 63 sets of masks each
SETS = 2**LENGTH - 1


@functools.cache
def _forward(model):
    def forward(tree, tokens, origin, end):
        column = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        places = column - origin[:, None]
        inputs = Inputs(tokens, places, (places >= 0) & (column < end[:, None]), origin)
        return model.apply(tree, inputs)[0] @ model.head(tree)

    return jax.jit(forward)


def log_softmax(logits):
    logits = np.array(logits, np.float64)
    logits[..., small.MASK] = -np.inf
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def enumerated(model, prompts, origin, answers, lengths, *, block, cfg_scale=None):
    """The estimate's expectation: each set of masks of each block, weighed by how often it is drawn."""
    first, own = prompts.shape[1], model.attention_block
    canvases, cases = [], []
    for row, (prompt, answer, length) in enumerate(zip(prompts, answers, lengths, strict=True)):
        begin = first if own is None else origin[row] + (first - origin[row]) // own * own
        for start in range(begin, first + length, block):
            inside = range(max(start, first), min(start + block, first + length))
            for bits in range(1, 2 ** len(inside)):
                masked = [at for place, at in enumerate(inside) if bits >> place & 1]
                canvas = np.full(first + answers.shape[1] + (own or 0), small.MASK, np.int32)
                canvas[:first], canvas[first : start + block] = prompt, small.MASK
                known = [at for at in range(first, min(start + block, first + length)) if at not in masked]
                canvas[known] = answer[np.asarray(known, int) - first]
                canvases.append(canvas)
                cases.append((row, masked, 1 / (len(masked) * math.comb(len(inside), len(masked)))))
    canvases, rows = np.stack(canvases), np.asarray([case[0] for case in cases])
    end = first + np.asarray(lengths) + (0 if own is None else own)  # what lies behind a block is not seen
    run = functools.partial(_forward(model), small.params(model=model))
    logits = np.asarray(run(canvases, origin[rows], end[rows].astype(np.int32)), np.float64)
    if cfg_scale is not None:
        blind = np.where(np.arange(canvases.shape[1])[None] < first, small.MASK, canvases)
        unseeing = np.asarray(run(blind, origin[rows], end[rows].astype(np.int32)), np.float64)
        logits = unseeing + (np.asarray(cfg_scale)[rows, None, None] + 1) * (logits - unseeing)
    found, total = log_softmax(logits), np.zeros(len(prompts))
    for log_probs, (row, masked, weight) in zip(found, cases, strict=True):
        total[row] += weight * sum(log_probs[at, answers[row][at - first]] for at in masked)
    return total


def given(rows, length, seed=0):
    prompts, origin = small.batch([small.PROMPTS[row % 4] for row in range(rows)])
    answers = np.random.default_rng(seed).integers(4, small.VOCAB, (rows, length)).astype(np.int32)
    return prompts, origin, answers


@pytest.fixture(scope="module")
def cases():
    prompts, origin, answers = given(CASES, LENGTH)
    lengths = np.full(CASES, LENGTH)
    return prompts, origin, answers, enumerated(small.MODEL, prompts, origin, answers, lengths, block=LENGTH)


def estimate(cases, order=None, **options):
    order = np.arange(CASES) if order is None else order
    prompts, origin, answers, _ = cases
    keys = small.keys(CASES, seed=5)[jnp.asarray(order)]
    return log_likelihood(
        small.MODEL, small.params(), prompts[order], answers[order], origin=origin[order], key=keys, **options
    )


def test_every_set_of_masks_gives_the_expectation(cases):
    found = estimate(cases, samples=SETS)
    np.testing.assert_allclose(found.value, cases[-1], rtol=1e-5)
    assert (found.error == 0).all()
    assert (found.nfe == SETS).all()


def test_estimates_are_unbiased_and_their_intervals_hold(cases):
    """One program, that of the test above, for 100 cases: fewer draws than sets, so that they are drawn."""
    found, exact = estimate(cases, samples=48), cases[-1]
    low, high = found.interval
    assert ((low <= exact) & (exact <= high)).sum() >= 90
    assert (found.error > 0).all()
    assert (found.nfe == 48).all()
    mean = np.mean(found.value - exact)
    assert abs(mean) < 3 * np.sqrt(np.mean(found.error**2) / CASES)
    # What intervals claim is what is seen: neither far too wide nor too narrow.
    assert 0.7 < np.sqrt(np.mean((found.value - exact) ** 2) / np.mean(found.error**2)) < 1.4


def test_a_row_does_not_hang_on_its_batch(cases):
    order = np.random.default_rng(1).permutation(CASES)
    np.testing.assert_allclose(estimate(cases, order, samples=48).value, estimate(cases, samples=48).value[order])


def test_blocks_of_a_model_that_attends_in_them_in_parts():
    """Logits shifted by one, keys and values of the clean answer kept, blocks of 16 taken in parts of 4."""
    prompts, origin, answers = given(4, 14)
    lengths = np.array([14, 9, 1, 12])
    options = dict(samples=15, block_length=4)
    model, params = small.FAST, small.params(model=small.FAST)
    found = log_likelihood(model, params, prompts, answers, origin=origin, lengths=lengths, **options)
    exact = enumerated(model, prompts, origin, answers, lengths, block=4)
    np.testing.assert_allclose(found.value, exact, rtol=1e-5)
    assert found.nfe[2] == 2  # one over the clean canvas


def test_the_value_of_a_causal_model_is_exact():
    """Blocks of one position, each read from the one before: what one plain pass over the whole text says."""
    model = FastDllmV2(dataclasses.replace(small.FAST.config, attention_block=1))
    prompts, answers = np.array([[5, 6, 7], [9, 8, 30]]), np.array([[11, 12, 40, 41, 1], [33, 7, 7, 50, 9]])
    found = log_likelihood(model, small.params(model=model), prompts, answers, samples=2)
    for row, text in enumerate(np.concatenate([prompts, answers], axis=1)):
        table = log_softmax(small.logits(small.params(model=model), text, model))
        exact = sum(table[3 + at, token] for at, token in enumerate(answers[row]))
        np.testing.assert_allclose(found.value[row], exact, rtol=1e-5)
    assert (found.error == 0).all()


def test_guided_blocks_over_a_mesh():
    prompts, origin, answers = given(4, 5)
    lengths, scale = np.array([5, 3, 1, 4]), [0.0, 0.5, 0.5, 1.0]
    options = dict(samples=3, block_length=2, cfg_scale=scale, mesh=make_mesh(2, 2))
    found = log_likelihood(small.MODEL, small.params(), prompts, answers, origin=origin, lengths=lengths, **options)
    exact = enumerated(small.MODEL, prompts, origin, answers, lengths, block=2, cfg_scale=scale)
    np.testing.assert_allclose(found.value, exact, rtol=1e-4)
    assert found.nfe.tolist() == [14, 8, 2, 12]


REFUSED = {
    "answers: found 3 of length 5 for 4 prompts of length 6": dict(answers=np.zeros((3, 5), np.int32)),
    "answer: row 0 holds [MASK] (id 3) in column 0": dict(answers=np.full((4, 5), small.MASK)),
    "row 0: found id 61, expected 0 to 60": dict(answers=np.full((4, 5), small.VOCAB)),
    "answers: found 76 tokens with the prompt, expected at most the context of 64": dict(answers=np.full((4, 70), 5)),
    "lengths: found [5, 0, 1, 1], expected 4 whole numbers from 1 to 5": dict(lengths=np.array([5, 0, 1, 1])),
    "samples: found 1, expected a whole number from 2 to 1048576": dict(samples=1),
    "block_length: found 0, expected at least 1": dict(block_length=0),
    "block_length: found 3, but this model attends in blocks of 4": dict(model=small.SDAR, block_length=3),
    "cfg_scale: found 3 values, expected one, or 4": dict(cfg_scale=[1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(line):
    prompts, origin = small.batch()
    options = dict(answers=np.full((4, 5), 7), origin=origin) | REFUSED[line]
    model, answers = options.pop("model", small.MODEL), options.pop("answers")
    with pytest.raises(InputError) as refused:
        log_likelihood(model, small.params(model=model), prompts, answers, **options)
    assert str(refused.value).removeprefix("sampling.").startswith(line)
    assert "\n" not in str(refused.value)
