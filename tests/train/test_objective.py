"""LLaDA's objective: what is masked, how it is weighted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.train.objective import AHEAD, corrupt, loss
from tests import small

ROWS, LENGTH, MASK = 512, 40, small.MASK
TOKENS = jnp.broadcast_to(jnp.arange(10, 10 + LENGTH), (ROWS, LENGTH))
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(1, 12, ROWS), jnp.int32)
ANSWERS = jnp.asarray(np.random.default_rng(1).integers(1, 28, ROWS), jnp.int32)
COLUMN = np.arange(LENGTH)[None]
IN_ANSWER = jnp.asarray(np.asarray(PROMPTS)[:, None] <= COLUMN)


def draw(semi_ar, seed=0, in_order=0.0, block_length=8):
    noisy, weight = corrupt(
        jax.random.key(seed),
        TOKENS,
        IN_ANSWER,
        PROMPTS,
        ANSWERS,
        mask_id=MASK,
        semi_ar=semi_ar,
        in_order=in_order,
        block_length=block_length,
    )
    return np.asarray(noisy), np.asarray(weight)


@pytest.mark.parametrize("semi_ar", [0.0, 0.5, 1.0])
def test_prompts_are_never_masked_and_the_rest_is_kept_or_masked(semi_ar):
    noisy, weight = draw(semi_ar)
    prompt = np.asarray(PROMPTS)[:, None] > COLUMN
    np.testing.assert_array_equal(noisy[prompt], np.asarray(TOKENS)[prompt])
    assert (weight[prompt] == 0).all()
    assert np.isin(noisy[noisy != np.asarray(TOKENS)], MASK).all()
    assert (noisy[weight > 0] == MASK).all()


@pytest.mark.parametrize("semi_ar", [0.0, 1.0])
def test_the_weights_sum_to_one_in_expectation(semi_ar):
    """Each row's weights sum to 1, and each answer token has its even share of them in expectation."""
    weights = np.stack([draw(semi_ar, seed)[1] for seed in range(40)])
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    if semi_ar == 0.0:
        answer = np.asarray(PROMPTS)[:, None] <= COLUMN
        share = np.where(answer, weights.mean(0) * answer.sum(1, keepdims=True), np.nan)
        assert np.abs(np.nanmean(share[:, 12:], axis=0) - 1.0).max() < 0.1  # no column is favoured


def test_every_set_of_masks_has_the_weight_that_independent_draws_give_it():
    """LLaDA's SFT loss draws t and masks each token with probability t, weight 1/t: integrated over t by quadrature."""
    rows, n = 60000, 3
    tokens = jnp.broadcast_to(jnp.arange(10, 14), (rows, 4))
    ones = jnp.ones((rows,), jnp.int32)
    noisy, weight = corrupt(
        jax.random.key(0),
        tokens,
        jnp.arange(4)[None] >= ones[:, None],
        ones,
        n * ones,
        mask_id=MASK,
        semi_ar=0.0,
        in_order=0.0,
        block_length=8,
    )
    masks = np.asarray(noisy)[:, 1:] == MASK
    weight = np.asarray(weight)[:, 1:]
    t = (np.arange(20000) + 0.5) / 20000
    for bits in range(1, 2**n):
        drawn = np.array([bits >> i & 1 for i in range(n)], bool)
        k = drawn.sum()
        expected = np.mean(t ** (k - 1) * (1 - t) ** (n - k)) / n  # E[1(this set) / t] / n
        found = np.where((masks == drawn).all(1)[:, None], weight, 0.0).mean(0)
        np.testing.assert_allclose(found[drawn], expected, rtol=0.05)
        assert (found[~drawn] == 0).all()


def test_levels_are_spread_evenly_over_a_batch():
    noisy, _ = draw(0.0)
    answer = np.asarray(PROMPTS)[:, None] <= COLUMN
    share = ((noisy == MASK) & answer).sum(1) / answer.sum(1)
    assert abs(share.mean() - 0.5) < 0.02
    assert np.histogram(share, 4, (0, 1))[0].min() > ROWS / 4 * 0.8


def test_end_of_text_padding_is_part_of_the_answer():
    noisy, weight = draw(0.0)
    padding = np.asarray(PROMPTS + ANSWERS)[:, None] <= COLUMN
    assert abs((noisy[padding] == MASK).mean() - 0.5) < 0.05
    assert (weight[padding] > 0).any()


def test_semi_autoregressive_rows_have_one_active_block():
    noisy, weight = draw(1.0)
    seen_blocks = set()
    for row in range(ROWS):
        start = int(PROMPTS[row])
        answer = noisy[row, start:]
        active = np.flatnonzero(weight[row, start:])
        if not active.size:
            continue
        block = active[0] // 8
        seen_blocks.add(int(block))
        assert (active // 8 == block).all()
        assert block * 8 < int(ANSWERS[row])  # a block that holds the answer or its first end-of-text
        assert (answer[: block * 8] != MASK).all()
        assert (answer[(block + 1) * 8 :] == MASK).all()
    assert len(seen_blocks) > 2


def test_rows_in_order_are_masked_from_the_right_and_learn_what_comes_next():
    block = 16
    noisy, weight = draw(1.0, in_order=1.0, block_length=block)
    np.testing.assert_allclose(weight.sum(1), 1.0, rtol=1e-6)
    cuts = set()
    for row in range(ROWS):
        answer, weights = noisy[row, int(PROMPTS[row]) :], weight[row, int(PROMPTS[row]) :]
        cut = int(np.argmax(answer == MASK))
        assert (answer[:cut] != MASK).all()
        assert (answer[cut:] == MASK).all()
        ahead = np.flatnonzero(weights)
        np.testing.assert_array_equal(ahead, np.arange(cut, min(cut + AHEAD, (cut // block + 1) * block, len(answer))))
        assert len(set(weights[ahead])) == 1
        cuts.add(cut)
    assert cuts >= set(range(block))
    np.testing.assert_array_equal(draw(0.0, in_order=1.0), draw(0.0))  # a share of the rows noised as decoded


@pytest.mark.parametrize("semi_ar", [0.0, 1.0])
def test_a_packed_row_masks_what_may_be_masked_and_may_be_cut(semi_ar):
    columns = [4, 5, 20, 21, 33]
    answers = jnp.asarray(np.isin(np.arange(LENGTH), columns))[None]
    nothing = jnp.zeros((ROWS,), jnp.int32)
    noisy, weight = corrupt(
        jax.random.key(0),
        TOKENS,
        jnp.broadcast_to(answers, TOKENS.shape),
        nothing,
        nothing,
        mask_id=MASK,
        semi_ar=semi_ar,
        in_order=1.0,  # of no account: a packed row has no order
        block_length=8,
    )
    masked, weight = np.asarray(noisy) == MASK, np.asarray(weight)
    np.testing.assert_allclose(weight.sum(1), 1.0, rtol=1e-6)
    assert not weight[:, ~np.asarray(answers)[0]].any()
    if not semi_ar:
        assert (masked == (weight > 0)).all()
        assert (np.bincount(masked.sum(1), minlength=6)[1:] > ROWS / 5 * 0.8).all()  # one to all five, evenly
        return
    cut = LENGTH - 1 - np.argmax(weight[:, ::-1] > 0, axis=1)  # the last token that carries loss
    assert set(cut) == set(columns)
    for row in range(ROWS):
        assert masked[row, cut[row] :].all()
        assert (masked[row, : cut[row]] == (weight[row, : cut[row]] > 0)).all()


def test_loss_is_the_weighted_cross_entropy():
    tree = small.params()
    tokens = jnp.asarray([[5, 6, 7, 8], [9, 10, 11, 12]])
    noisy = jnp.asarray([[5, MASK, 7, MASK], [9, 10, MASK, 12]])
    weight = jnp.asarray([[0.0, 2.0, 0.0, 0.5], [0.0, 0.0, 3.0, 0.0]])
    expected = 0.0
    for row in range(2):
        logits = small.logits(tree, noisy[row])
        nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), np.asarray(tokens[row])]
        expected += (nats * np.asarray(weight[row])).sum() / 2
    assert float(loss(small.MODEL, tree, noisy, tokens, weight)) == pytest.approx(expected, rel=1e-4)
