"""What each noise masks, and what of it is to be learned."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.train.data import NEVER_WRITTEN, Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises import Complement, Mixture, SemiAr, States, Trajectory, Uniform, parse
from jaxdiff.train.noises.mixture import KINDS
from jaxdiff.train.noises.semi_ar import AHEAD
from tests import small

ROWS, LENGTH, MASK = 512, 40, small.MASK
TOKENS = jnp.broadcast_to(jnp.arange(10, 10 + LENGTH), (ROWS, LENGTH))
PROMPTS = jnp.asarray(np.random.default_rng(0).integers(1, 12, ROWS), jnp.int32)
ANSWERS = jnp.asarray(np.random.default_rng(1).integers(1, 28, ROWS), jnp.int32)
COLUMN = np.arange(LENGTH)[None]
IN_ANSWER = jnp.asarray(np.asarray(PROMPTS)[:, None] <= COLUMN)


BATCH = Batch(TOKENS, IN_ANSWER, PROMPTS, ANSWERS)
NETWORK = Network(small.params(), small.MODEL)

# Numbers are traced: one program for each noise.
_views = jax.jit(lambda noise, key, batch, done: noise.views(key, batch, NETWORK, done))


def views(noise, batch=BATCH, seed=0, done=0.0):
    return _views(noise, jax.random.key(seed), batch, jnp.float32(done))


def weighed(view):
    """Noisy tokens, and the share of each position in its row's loss."""
    learn = np.asarray(view.learn)
    return np.asarray(view.tokens), learn / np.maximum(learn.sum(1, keepdims=True), 1)


def draw(semi_ar, seed=0, in_order=0.0, block_length=8):
    (view,) = views(SemiAr(share=semi_ar, in_order=in_order, block=block_length), seed=seed)
    return weighed(view)


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
    (view,) = views(Uniform(), Batch(tokens, jnp.arange(4)[None] >= ones[:, None], ones, n * ones))
    noisy, weight = weighed(view)
    masks, weight = noisy[:, 1:] == MASK, weight[:, 1:]
    t = (np.arange(20000) + 0.5) / 20000
    for bits in range(1, 2**n):
        drawn = np.array([bits >> i & 1 for i in range(n)], bool)
        k = drawn.sum()
        expected = np.mean(t ** (k - 1) * (1 - t) ** (n - k)) / n  # E[1(this set) / t] / n
        found = np.where((masks == drawn).all(1)[:, None], weight, 0.0).mean(0)
        np.testing.assert_allclose(found[drawn], expected, rtol=0.05)
        assert (found[~drawn] == 0).all()


@pytest.mark.parametrize("masked", [0.0, 0.25, 1.0])
def test_meap_masks_what_is_read_and_learns_every_token_of_the_text(masked):
    """Prompts too, but nothing that no learned token comes after; the padding behind the text is not learned."""
    (view,) = views(parse(f"meap:masked={masked}"))
    end = np.asarray(PROMPTS + ANSWERS)[:, None]
    np.testing.assert_array_equal(view.learn, IN_ANSWER & (end > COLUMN))
    masks = np.asarray(view.tokens) != np.asarray(TOKENS)
    assert (np.asarray(view.tokens)[masks] == MASK).all()
    assert not masks[end - 1 <= COLUMN].any()
    np.testing.assert_array_equal(masks.sum(1), np.round(masked * (end[:, 0] - 1)))
    packed = dataclasses.replace(BATCH, answer_lengths=jnp.zeros_like(ANSWERS), answers=IN_ANSWER & (COLUMN % 5 < 3))
    np.testing.assert_array_equal(views(parse(f"meap:masked={masked}"), packed)[0].learn, packed.answers)


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
    packed = Batch(TOKENS, jnp.broadcast_to(answers, TOKENS.shape), nothing, nothing)
    (view,) = views(SemiAr(share=semi_ar, in_order=1.0, block=8), packed)  # a packed row has no order
    noisy, weight = weighed(view)
    masked = noisy == MASK
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


def recorded_batch():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(4, small.VOCAB, (12, LENGTH)), jnp.int32)
    prompts, lengths = (jnp.asarray(rng.integers(1, most, 12), jnp.int32) for most in (12, 28))
    nothing = jnp.zeros_like(prompts)
    whole = Batch(tokens, jnp.asarray(np.asarray(prompts)[:, None] <= COLUMN), prompts, lengths)
    return whole, Batch(tokens, jnp.asarray(rng.random((12, LENGTH)) < 0.3), nothing, nothing)


RECORDED = {  # before the noise had a name: noisy tokens and what carries loss, of whole rows and of packed ones
    "semi_ar:share=0.75,in_order=0.5,block=32": ("8ff7ed7791248320", "d7d3f327ef1e5ad6"),
    "semi_ar:share=0.75,in_order=0.5,block=8": ("c3d04e085df4c4a6", "d7d3f327ef1e5ad6"),
    "semi_ar:share=0.0,in_order=0.0,block=16": ("c398f1dbae60b844", "e6e3f72f58766c8f"),
    "uniform": ("c398f1dbae60b844", "e6e3f72f58766c8f"),
}


@pytest.mark.parametrize("text", RECORDED)
def test_the_noise_of_earlier_recipes_draws_what_it_drew(text):
    key = jax.random.fold_in(jax.random.key(7), 3)
    for batch, expected in zip(recorded_batch(), RECORDED[text], strict=True):
        (view,) = _views(parse(text), key, batch, jnp.float32(0.5))
        found = np.asarray(view.tokens, np.int32).tobytes() + np.asarray(view.learn).tobytes()
        assert hashlib.sha256(found).hexdigest()[:16] == expected


def halves(noise, batch=BATCH, **options):
    """Of the two views: active block of each row, masks of the first and of the second, checked to complement."""
    one, other = views(noise, batch, **options)
    first, second = np.asarray(one.learn), np.asarray(other.learn)
    assert not (first & second).any()
    active, prompts = first | second, np.asarray(batch.prompt_lengths)[:, None]
    start = np.argmax(active, axis=1)[:, None]
    behind = (prompts <= COLUMN) & (start < COLUMN) & ~active
    for view in (one, other):
        masks = np.asarray(view.learn) | behind
        np.testing.assert_array_equal(np.asarray(view.tokens), np.where(masks, MASK, np.asarray(batch.tokens)))
    return active, first, second


def test_complementary_views_mask_one_block_half_and_half():
    active, first, second = halves(Complement(block=8))
    n = active.sum(1)
    np.testing.assert_array_equal(first.sum(1), np.ceil(n / 2))
    offset = np.argmax(active, axis=1) - np.asarray(PROMPTS)
    assert (offset % 8 == 0).all()
    assert (offset < np.asarray(ANSWERS)).all()  # never a block of padding alone
    np.testing.assert_array_equal(n, np.minimum(8, LENGTH - np.asarray(PROMPTS) - offset))
    assert len(set(offset)) == 4
    drawn = first[n == 8][active[n == 8]].reshape(-1, 8)  # each token of a block as often as another
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.1
    _, first, second = halves(Complement(block=8, low=1.0, high=1.0))
    np.testing.assert_array_equal(first, active)
    assert not second.any()
    shares = halves(Complement(block=8, low=0.25, high=0.75))[1].sum(1)[n == 8]
    assert set(shares) == {3, 4, 5, 6}


def followed():
    """A batch with a teacher's order: several tokens in a forward, what lies four past the answer never written."""
    order = np.random.default_rng(5).integers(0, 9, (ROWS, LENGTH)).astype(np.int32)
    order[np.asarray(PROMPTS + ANSWERS)[:, None] + 4 <= COLUMN] = NEVER_WRITTEN
    return Batch(TOKENS, IN_ANSWER, PROMPTS, ANSWERS, jnp.asarray(order)), order


@pytest.mark.parametrize(("done", "window", "low"), [(0.0, 4, 0.25), (0.5, 7, 0.5), (1.0, 10, 0.75)])
def test_trajectory_masks_what_the_teacher_wrote_last(done, window, low):
    batch, order = followed()
    active, first, _ = halves(Trajectory(window=4, grown=10, low=0.25, high=0.75), batch, done=done)
    shares = []
    for row in range(ROWS):
        inside = np.flatnonzero(active[row])
        assert (inside[0] - int(PROMPTS[row])) % window == 0
        assert len(inside) == min(window, LENGTH - inside[0])
        count = int(first[row].sum())
        by_time = sorted(inside, key=lambda at: (order[row, at], at))
        assert set(np.flatnonzero(first[row])) == set(by_time[len(inside) - count :])
        shares += [count / window] * (len(inside) == window)
    assert low <= min(shares)
    assert max(shares) < 0.75 + 1 / window


def test_states_are_the_teachers_canvases():
    batch, order = followed()
    (view,) = views(States(), batch)
    at = np.asarray(view.at)
    masks = np.asarray(IN_ANSWER) & (order >= at[:, None])
    np.testing.assert_array_equal(np.asarray(view.learn), masks)
    np.testing.assert_array_equal(np.asarray(view.tokens), np.where(masks, MASK, np.asarray(TOKENS)))
    last = np.where(np.asarray(IN_ANSWER) & (order < NEVER_WRITTEN), order, 0).max(1)
    assert (at <= last).all()
    assert (np.bincount(at, minlength=9) > 0).all()


@pytest.fixture(scope="module")
def six():
    """A view of each masking, out of one program."""
    ask = jax.jit(lambda key, done: [Mixture(of=kind).views(key, BATCH, NETWORK, done)[0] for kind in KINDS])
    return dict(zip(KINDS, ask(jax.random.key(0), jnp.float32(0)), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_six_maskings(kind, six):
    view = six[kind]
    learn, tokens, found = np.asarray(view.learn), np.asarray(view.tokens), set()
    for row in range(ROWS):
        start, n = int(PROMPTS[row]), int(ANSWERS[row])
        assert not learn[row, :start].any()
        assert not learn[row, start + n :].any()
        assert (tokens[row, start + n :] == MASK).all()  # what follows the text says nothing of its length
        text = learn[row, start : start + n]
        np.testing.assert_array_equal(tokens[row, start : start + n] == MASK, text)
        if n == 1:
            assert text.all()
            continue
        masks, cut = int(text.sum()), int(np.argmax(text))
        allowed = {
            "full": masks == n,
            "left_to_right": cut > 0 and text[cut:].all(),
            "right_to_left": cut == 0 and masks < n and text[:masks].all(),
            "blocks": text[cut:].all() and cut in {j * max(n // k, 1) for k in range(2, 7) for j in range(1, n)},
            "cloze": masks == 1,
            "random": 1 <= masks <= n,
        }
        assert allowed[kind], (row, text)
        found.add((masks, cut))
    assert kind == "full" or len(found) > 15


def test_a_mixture_has_all_six_and_joined_noises_have_views_of_each():
    mixed, replaced = views(parse("mixture + replace"))
    learn = np.asarray(mixed.learn)
    long = np.asarray(ANSWERS) > 12
    masks = learn.sum(1)[long]
    assert min((masks == 1).mean(), (masks == np.asarray(ANSWERS)[long]).mean()) > 0.1  # cloze, full
    text = np.asarray(IN_ANSWER) & (np.asarray(PROMPTS + ANSWERS)[:, None] > COLUMN)
    np.testing.assert_array_equal(np.asarray(replaced.learn), text)
    tokens = np.asarray(replaced.tokens)
    assert (tokens[text] != MASK).all()
    assert (tokens[~text] == np.where(np.asarray(IN_ANSWER), MASK, np.asarray(TOKENS))[~text]).all()
    share = ((tokens != np.asarray(TOKENS)) & text).sum(1) / text.sum(1)
    assert abs(share[long].mean() - 0.5) < 0.05
    assert np.histogram(share[long], 4, (0, 1))[0].min() > long.sum() / 4 * 0.6
    assert set(range(small.VOCAB)) - set(tokens[text].tolist()) == {MASK}


def test_mistakes_are_the_models_own_and_never_right():
    """In half of the rows a block is shown, in the others the text; what is replaced is likely, wrong, and no mask."""
    (view,) = views(parse("mistakes:low=0.1,high=0.5,share=0.5,block=8"))
    tokens, learn, right = np.asarray(view.tokens), np.asarray(view.learn), np.asarray(TOKENS)
    shares, blocks = [], 0
    for row in range(ROWS):
        start, n = int(PROMPTS[row]), int(ANSWERS[row])
        shown = int(learn[row].sum())
        assert learn[row, start : start + shown].all()  # from the answer's first token on, without a gap
        assert (tokens[row, start + shown :] == MASK).all()
        assert (tokens[row, :start] == right[row, :start]).all()
        blocks += shown != n
        assert shown == n or (shown % 8 == 0 and shown - 8 < n) or start + shown == LENGTH
        replaced = (tokens[row] != right[row]) & learn[row]
        assert not replaced[start + n :].any()  # the padding of a block is shown as it is
        here = min(n, shown)
        assert np.ceil(0.1 * here) <= replaced.sum() <= np.ceil(0.5 * here)
        assert (tokens[row, learn[row]] != MASK).all()
        shares.append(replaced.sum() / here)
    assert 0.3 < blocks / ROWS < 0.6  # a block may end with the text
    assert abs(np.mean(np.asarray(shares)[np.asarray(ANSWERS) > 12]) - 0.3) < 0.05


def test_a_mistake_is_drawn_from_what_the_model_says():
    """On one canvas with one mask: the frequencies are softmax(logits) without the right token and [MASK]."""
    draws, at = 4000, 6
    canvas = jnp.asarray([*range(10, 16), MASK, *range(17, 20)])[None]
    logits = np.asarray(small.logits(small.params(), canvas[0]))[at].astype(np.float64)
    right = int(logits.argmax())
    answer = canvas.at[0, at].set(right)
    draw = jax.jit(jax.vmap(lambda key: NETWORK.mistaken(key, canvas, PROMPTS[:1], canvas == MASK, answer)[0, at]))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), draws)))
    weight = np.exp(logits - logits.max())
    weight[[right, MASK]] = 0.0
    expected = weight / weight.sum()
    found = np.bincount(drawn, minlength=small.VOCAB) / draws
    assert np.abs(found - expected).max() < 4 * np.sqrt(expected.max() * (1 - expected.max()) / draws)
    assert found[right] == found[MASK] == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("half", "noise: found 'half', expected one of uniform, semi_ar, complement"),
        ("complement:share=0.5", "noise complement: found argument 'share=0.5', expected block=, low=, high="),
        ("semi_ar:share=2", "noise semi_ar share: found 2.0, expected a number from 0 to 1"),
        ("mixture:of=seven", "noise mixture of: found 'seven', expected one of all, full"),
        ("mixture + ", "noise: found '', expected"),
    ],
)
def test_a_noise_that_is_not_known(text, words):
    with pytest.raises(InputError, match=words):
        parse(text)
