"""The probabilities of given choices against plain loops in numpy, and what is decoded around the best one."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Decoder, InputError, choose, log_likelihood, make_mesh
from jaxdiff.caches import BlockCausal, Dual, Seeded
from jaxdiff.models import Sdar
from jaxdiff.policies import Fixed, Oracle, RemdmCap, Threshold
from tests import small
from tests.constraints.languages import regex

M, EOS = small.MASK, small.EOS
CHOICES = [[5], [6, 7], [8, 9, 10]]
PROMPTS = [small.PROMPTS[0], small.PROMPTS[1]]
CANVAS = np.array([[5, 6, M, M, M, 9, M, M], [M, M, M, 30, 31, 12, 13, M]])


def log_softmax(logits):
    logits[..., M] = -np.inf
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def beliefs(canvas):
    return log_softmax(small.logits(small.params(), canvas))


def by_confidence(canvas, answer):
    """Log-probability of `answer` {column: token}, where the model is most confident first; a plain loop."""
    canvas, left, total = np.array(canvas), dict(answer), 0.0
    while left:
        table = beliefs(canvas)
        column = max(left, key=lambda at: table[at].max())
        total += table[column, left[column]]
        canvas[column] = left.pop(column)
    return total


def by_every_set(canvas, answer):
    """The expectation of the Monte Carlo estimate: every set of masks, weighed by how often it is drawn."""
    total, columns = 0.0, list(answer)
    for count in range(1, len(columns) + 1):
        for masked in itertools.combinations(columns, count):
            shown = np.array(canvas)
            for at in set(columns) - set(masked):
                shown[at] = answer[at]
            table = beliefs(shown)
            total += sum(table[at, answer[at]] for at in masked) / (count * math.comb(len(columns), count))
    return total


def opened(row, start, stop, choice):
    """A canvas whose slot is as long as the choice, and the choice by column."""
    canvas = [*row[:start], *[M] * len(choice), *row[stop:]]
    return canvas, {start + place: token for place, token in enumerate(choice)}


def shares(log_prob):
    share = np.exp(log_prob - np.max(log_prob, axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def behind_prompts():
    prompts, origin = small.batch(PROMPTS)
    return choose(small.MODEL, small.params(), prompts, CHOICES, origin=origin)


def test_a_choice_behind_a_prompt_is_filled_up_with_end_of_text(behind_prompts):
    expected = [
        [by_confidence(*opened([*prompt, M], len(prompt), len(prompt) + 1, [*choice, *[EOS] * (4 - len(choice))]))
         for choice in CHOICES]
        for prompt in PROMPTS
    ]  # fmt: skip
    np.testing.assert_allclose(behind_prompts.log_prob, expected, atol=2e-4)
    np.testing.assert_allclose(behind_prompts.prob, shares(np.array(expected)), atol=1e-5)
    assert behind_prompts.best.tolist() == np.argmax(expected, axis=1).tolist()
    assert (behind_prompts.nfe == 4).all()
    for row, prompt in enumerate(PROMPTS):
        best = CHOICES[behind_prompts.best[row]]
        text = behind_prompts.tokens[row, behind_prompts.origin[row] :]
        assert text.tolist() == [*prompt, *best, *[EOS] * (4 - len(best))]


@pytest.mark.parametrize(("method", "way"), [("order", by_confidence), ("likelihood", by_every_set)])
def test_a_choice_in_a_canvas_makes_its_length(method, way):
    """Slots in other places of each row; what else is masked stays so until the best choice stands."""
    found = choose(small.MODEL, small.params(), CANVAS, CHOICES, method=method)
    slots = ((2, 5), (0, 3))
    expected = [
        [way(*opened(row, *slot, choice)) for choice in CHOICES] for row, slot in zip(CANVAS, slots, strict=True)
    ]
    np.testing.assert_allclose(found.log_prob, expected, atol=2e-4)
    np.testing.assert_allclose(found.prob, shares(np.array(expected)), atol=1e-5)
    assert (found.error == 0).all()  # so few tokens have no more sets of masks than there are samples
    for row, slot in enumerate(slots):
        canvas, answer = opened(CANVAS[row], *slot, CHOICES[found.best[row]])
        assert found.ends[row] == len(canvas)
        canvas = np.array(canvas)
        canvas[list(answer)] = list(answer.values())
        alone = jaxdiff.infill(small.MODEL, small.params(), canvas[None])
        assert found.tokens[row, : len(canvas)].tolist() == alone.tokens[0].tolist()
        assert (found.tokens[row, len(canvas) :] == EOS).all()


def test_a_slot_is_named_and_a_row_does_not_hang_on_its_batch():
    """Each row its own choices, of another count; the free text left of the slot is decoded after."""
    canvas = np.array([[M, 6, M, M, 9, 11], [M, 8, M, M, 9, 12]])
    each = [[[5], [6, 7], [8]], [[9, 9], [10]]]
    both = choose(small.MODEL, small.params(), canvas, each, slot=(2, 4))
    assert both.prob[1, 2] == 0.0
    assert both.log_prob[1, 2] == -np.inf
    assert not np.any(both.tokens == M)
    alone = choose(small.MODEL, small.params(), canvas[[1]], each[1], slot=(2, 4))
    np.testing.assert_allclose(alone.log_prob[0], both.log_prob[1, :2], rtol=1e-5)
    assert alone.tokens[0].tolist() == both.tokens[1].tolist()


BLOCKS = dataclasses.replace(small.SDAR.config, vocab_size=7)


def test_all_texts_of_a_slot_share_one():
    """Of a model that attends in blocks too, at thresholds that write one token at a time, both, or what is sure: the
    order does not look at what is to be written. One program.
    """
    texts = [[one, two] for one in range(7) for two in range(7) if M not in (one, two)]
    model, prompts = Sdar(BLOCKS), np.array([[5, 6, 5, 6]] * 3)
    decoder = Decoder(policy=Threshold([1.0, 0.0, 0.4]))
    found = choose(model, small.params(model=model), prompts, texts, decoder, gen_length=2)
    np.testing.assert_allclose(np.exp(found.log_prob).sum(axis=1), 1.0, atol=1e-5)
    assert found.nfe[1].tolist() == [1] * len(texts)
    assert found.nfe[0].max() == 2


def test_a_cache_that_seeds_writes_no_candidate_of_its_own():
    texts = [[one] for one in range(small.VOCAB) if one != M]
    prompts, decoder = np.arange(5, 21)[None], Decoder(cache=Seeded())
    found = choose(small.FAST, small.params(model=small.FAST), prompts, texts, decoder, gen_length=1)
    np.testing.assert_allclose(np.exp(found.log_prob).sum(), 1.0, atol=1e-5)


# Prompts of whole blocks of FAST: else a decode also writes what fills up its last block.
WHOLE = [list(range(5, 21)), list(range(30, 46)), list(range(16, 32))]
WAYS = {
    "dream, guided": dict(model=small.DREAM, policy=Fixed(steps=4), cfg_scale=0.5),
    "in blocks": dict(model=small.FAST, cache=BlockCausal(), policy=Threshold(0.5)),
    "cached, over a mesh": dict(cache=Dual(), policy=Threshold(0.5), mesh=make_mesh(2, 2)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_decode_writes_has_its_log_probability(way):
    """A decode's own text as one of two choices: the sum of `Result.log_prob`, over the same passes."""
    options = dict(WAYS[way])
    model, mesh = options.pop("model", small.MODEL), options.pop("mesh", None)
    ids, origin = small.batch(WHOLE)
    written = small.decode(model=model, prompts=WHOLE, order=range(3), **options)
    texts = [[row.tolist(), [5] * small.GEN] for row in np.asarray(written.tokens)[:, -small.GEN :]]
    decoder, options = small.decoder(**options), dict(origin=origin, gen_length=small.GEN, mesh=mesh)
    found = choose(model, small.params(model=model), ids, texts, decoder, **options)
    np.testing.assert_allclose(found.log_prob[:, 0], np.sum(written.log_prob, axis=1), rtol=1e-4)
    np.testing.assert_array_equal(found.nfe[:, 0], written.nfe)
    np.testing.assert_allclose(found.work[:, 0], written.work, rtol=1e-6)
    assert found.best.tolist() == [0] * 3


def test_the_estimate_behind_a_prompt_is_that_of_the_likelihood():
    """Drawn masks, with an error: the keys of the rows are those of `log_likelihood`."""
    prompts, origin = small.batch(PROMPTS)
    long = [[7, 8, 9, 10, 11, 12], [20, 21, 22, 23, 24, 25]]
    options = dict(samples=8, key=small.keys(2, seed=3))
    found = choose(small.MODEL, small.params(), prompts, long, origin=origin, method="likelihood", **options)
    for choice, tokens in enumerate(long):
        answers = np.array([[*tokens, EOS]] * 2)
        alone = log_likelihood(small.MODEL, small.params(), prompts, answers, origin=origin, **options)
        np.testing.assert_allclose(found.log_prob[:, choice], alone.value, rtol=1e-5)
        np.testing.assert_allclose(found.error[:, choice], alone.error, rtol=1e-5)
    assert (found.error > 0).all()


def test_scores_that_are_no_numbers_are_told(behind_prompts):
    prompts, origin = small.batch(PROMPTS)
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), small.params())
    found = choose(small.MODEL, broken, prompts, CHOICES, origin=origin)
    assert np.isnan(found.prob).all()
    assert (found.not_finite > 0).all()
    assert (behind_prompts.not_finite == 0).all()


REFUSED = {
    "choices: found none, expected one at least": dict(choices=[]),
    "choices: found none for row 1, expected one at least": dict(choices=[[[5]], []]),
    "choices: found lists for 3 rows, expected 2": dict(choices=[[[5]]] * 3),
    "choices: found 'yes', expected a list of choices": dict(choices="yes"),
    "choices: found ['yes', 'no'], expected a list of choices": dict(choices=["yes", "no"]),
    "choices: found one (row 0, choice 1) without tokens": dict(choices=[[5], []]),
    "choices: found the same tokens twice (row 0, choices 0 and 2)": dict(choices=[[5], [6], [5]]),
    "choices: found the same tokens twice (row 0, choices 0 and 1)": dict(choices=[[5], [5, EOS]]),
    "choices: found one (row 0, choice 1) of 3 tokens, expected at most 2": dict(
        choices=[[5], [6, 7, 8]], gen_length=2
    ),
    "choices: found one (row 0, choice 0) of 4 tokens, expected at most 3": dict(canvas=CANVAS, choices=[[5, 6, 7, 8]]),
    "choices: found one (row 0, choice 0) that holds [MASK] (id 3)": dict(choices=[[5, M]]),
    "choices: found one (row 0, choice 0) with id 61, expected 0 to 60": dict(choices=[[small.VOCAB]]),
    "slot: found (2, 3) in prompts": dict(slot=(2, 3)),
    "slot: found (4, 9), expected its first column": dict(canvas=CANVAS, slot=(4, 9)),
    "slot: found a token in row 1, column 3, expected [MASK] from 2 to 4": dict(canvas=CANVAS, slot=(2, 5)),
    "row 1: found no [MASK], but there is in other rows": dict(canvas=np.array([[5, M], [5, 6]])),
    "gen_length: found 4 for canvases": dict(canvas=CANVAS, gen_length=4),
    "origin: found padding in canvases": dict(canvas=CANVAS, origin=np.array([1, 0])),
    "prompt: found 6 tokens + gen_length 70 = 76": dict(gen_length=70),
    "method: found 'both', expected one of order, likelihood": dict(method="both"),
    "samples: found 1, expected a whole number": dict(samples=1),
    "policy: found one that takes commits back": dict(decoder=Decoder(policy=RemdmCap())),
    "policy: found one that decodes towards an answer": dict(decoder=Decoder(policy=Oracle())),
    "block_length: found 0, expected at least 1": dict(decoder=Decoder(block_length=0)),
    "length: found var with choices": dict(decoder=Decoder(length="var")),
    "constraint: found one with choices": dict(decoder=Decoder(constraint=regex("a"))),
    "gen_length: found 6 with block_length 4": dict(decoder=Decoder(block_length=4), gen_length=6),
    "tau: found 3 values, expected one, or 2": dict(decoder=Decoder(policy=Threshold([0.1, 0.2, 0.3]))),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(line):
    options = {"choices": CHOICES} | REFUSED[line]
    prompts, origin = small.batch(PROMPTS)
    prompts, origin = (options.pop("canvas"), None) if "canvas" in options else (prompts, origin)
    choices = options.pop("choices")
    with pytest.raises(InputError) as refused:
        choose(small.MODEL, small.params(), prompts, choices, **{"origin": origin} | options)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
