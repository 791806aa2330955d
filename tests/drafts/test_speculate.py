"""A text is the target's own, whatever is guessed; what is accepted is what a plain loop accepts; what is refused."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import jaxdiff
from jaxdiff import Decoder, InputError, Sampling, drafts
from jaxdiff.caches import Seeded
from jaxdiff.drafts.api import check_draft
from jaxdiff.drafts.base import Proposed, Text, nothing
from jaxdiff.drafts.tree import Tree, grow
from jaxdiff.leaves import weights_met
from jaxdiff.models import Qwen3, Qwen3Config
from jaxdiff.pytree import pytree
from jaxdiff.stoppers import Eos
from jaxdiff.types import HOLE
from tests import guides, small
from tests.drafts import plain

QWEN = Qwen3(
    Qwen3Config(**{f.name: getattr(guides.MODEL.config, f.name) for f in dataclasses.fields(guides.MODEL.config)})
)
TARGETS = {"llama": guides.MODEL, "qwen3": QWEN}
DENOISER = drafts.Denoiser(small.MODEL, guides.params(3, small.MODEL), tokens="4")
DRAFTS = {"recycling": drafts.Recycling("8"), "ngram": drafts.Ngram("8"), "denoiser": DENOISER}
GEN = 12


def batch(rows):
    return jaxdiff.pad_prompts(rows, fill=small.EOS, multiple=6)


@functools.cache
def said(model, seed=0):
    """Logits behind a text, without what is never predicted."""
    tree = guides.params(seed, model)

    @functools.cache
    def of(text):
        tokens = np.zeros(40, np.int32)
        tokens[: len(text)] = text
        logits = np.array(small.logits(tree, tokens, model)[len(text)])
        logits[small.MASK] = -np.inf
        return logits

    return lambda text: of(tuple(text))


def speculate(model, rows, draft, temperature=0.0, **options):
    """With a temperature for each row, so that tests share programs."""
    prompts, origin = batch(rows)
    options = {"gen_length": GEN, "origin": origin, "key": small.keys(len(rows))} | options
    sampling = Sampling(np.full(len(rows), temperature))
    return jaxdiff.speculate(model, guides.params(0, model), prompts, draft, sampling=sampling, **options)


@pytest.mark.parametrize(("target", "draft"), [("qwen3", "recycling"), ("llama", "recycling"), ("llama", "denoiser")])
def test_the_text_is_the_target_s_own(target, draft):
    model, made = TARGETS[target], DRAFTS[draft]
    token = st.integers(4, small.VOCAB - 1)
    prompt = st.lists(token, min_size=1, max_size=6)

    @settings(max_examples=12)
    @given(st.lists(prompt, min_size=3, max_size=3), st.lists(st.sampled_from([0.0, 0.6, 1.5]), min_size=3, max_size=3))
    def check(rows, temperatures):
        prompts, origin = batch(rows)
        options = {"gen_length": GEN, "origin": origin, "key": small.keys(3, 5)}
        sampling = Sampling(np.asarray(temperatures), top_k=7 if target == "qwen3" else None)
        alone = Decoder(cache=Seeded(), stop=Eos(), sampling=sampling)
        expected = jaxdiff.decode(model, guides.params(0, model), prompts, alone, **options)
        found = jaxdiff.speculate(model, guides.params(0, model), prompts, made, sampling=sampling, **options)
        assert not np.any(found.near_ties)
        for name in ("tokens", "lengths", "reason", "not_finite"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-4)
        assert np.all(np.asarray(found.nfe) <= np.asarray(expected.nfe))
        if draft == "denoiser":
            np.testing.assert_array_equal(found.cheap, np.asarray(found.nfe) - 1)

    check()


@pytest.mark.parametrize("draft", ["recycling", "ngram", "denoiser"])
def test_a_row_costs_the_same_alone(draft):
    rows, made = small.PROMPTS[:3], DRAFTS[draft]
    keys = small.keys(3)
    together = speculate(guides.MODEL, rows, made, 0.5)
    for row in (0, 2):
        alone = speculate(guides.MODEL, rows[row : row + 1], made, 0.5, key=keys[row : row + 1])
        for name in ("tokens", "lengths", "nfe", "cheap", "work", "commit_step", "reason"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row], err_msg=name)


@pytest.mark.parametrize(("draft", "table"), [("recycling", plain.Matrix), ("ngram", plain.Counts)])
def test_what_is_accepted_is_what_a_plain_loop_accepts(draft, table):
    made, rows = DRAFTS[draft], [[5, 6, 7], [9, 8, 30, 31, 9, 8], [40]]
    found = speculate(guides.MODEL, rows, made)
    for row, prompt in enumerate(rows):
        answer, steps, passes = plain.speculate(
            said(guides.MODEL), made.tree, prompt, GEN, guides.MODEL.config.eos_ids, table()
        )
        count = len(answer)
        assert found.tokens[row, 6 : 6 + count].tolist() == answer
        assert (int(found.lengths[row]), int(found.nfe[row])) == (count, passes)
        assert found.commit_step[row].tolist() == [*steps, *[-1] * (GEN - count)]
    assert np.sum(found.nfe) < np.sum(found.lengths)


@pytree
class Knowing:
    """It guesses the text that it was given, as its parent's last candidate, behind wrong ones."""

    answer: jax.Array

    tree = Tree((-1, 0, 0, 0, 3, 3, 3, 6, 6, 6), (0, 0, 1, 2, 0, 1, 2, 0, 1, 2))
    likely = 0

    def check(self, target, longest):
        pass

    def empty(self, target, rows):
        return ()

    def begin(self, state, text):
        return state

    def propose(self, state, target, text, sampling):
        at, count = text.known - text.first, [0]

        def candidates(token, before):
            here = jnp.minimum(at + count[0], self.answer.shape[1] - 1)
            right = jnp.take_along_axis(self.answer, here[:, None], axis=1)[:, :, None]
            count[0] += 1
            wrong = jnp.full((1, 1, 3), small.MASK, jnp.int32)  # which no target says
            last = jnp.arange(3)[None, None] == 2
            return jnp.broadcast_to(jnp.where(last, right, wrong), (*token.shape, 3))

        root = text.at(text.known[:, None] - 1)[:, 0]
        return Proposed(grow(self.tree, root, root, candidates), **nothing(at.shape[0]))

    def update(self, state, seen):
        return state


def test_keys_and_values_of_the_path_are_kept_and_no_others():
    rows = small.PROMPTS[:3]
    expected = speculate(guides.MODEL, rows, DRAFTS["ngram"], 1.0)
    found = speculate(guides.MODEL, rows, Knowing(expected.tokens[:, 6:]), 1.0)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.log_prob, expected.log_prob, atol=1e-4)
    assert found.nfe.tolist() == [1 + -(-(length - 1) // 4) for length in expected.lengths.tolist()]


@pytest.mark.parametrize("draft", [drafts.Recycling("4"), dataclasses.replace(DENOISER, tokens="2")])
def test_draws_are_of_the_target_s_distribution(draft):
    """20,000 draws of two tokens against what the logits of plain forwards say; pairs that are rare go together."""
    model, prompt, n, ends = guides.MODEL, [5, 6, 7], 20_000, guides.MODEL.config.eos_ids

    def chances(text):
        logits = said(model)(text) / 0.8
        share = np.exp(logits - logits.max())
        return share / share.sum()

    pairs = {}
    for first, chance in enumerate(chances(prompt)):
        if first in ends:
            pairs[first, small.EOS] = chance
        elif chance > 1e-4:
            pairs |= {(first, token): chance * share for token, share in enumerate(chances([*prompt, first]))}
    often = {pair: n * chance for pair, chance in pairs.items() if n * chance >= 5}
    warm = draft.empty(model, 1)
    if draft.likely:
        warm = drafts.of_row(speculate(model, [prompt], draft, 1.0).draft, 0)
    prompts, origin = jaxdiff.pad_prompts([prompt] * n, fill=small.EOS)
    found = jaxdiff.speculate(
        *(model, guides.params(0, model), prompts, draft),
        sampling=Sampling(0.8),
        gen_length=2,
        origin=origin,
        key=small.keys(n, 11),
        warm=warm,
    )
    assert np.all(np.asarray(found.nfe) <= 2)  # one over the prompt, and one over guesses
    counts = collections.Counter(map(tuple, np.asarray(found.tokens)[:, 3:].tolist()))
    observed = [counts[pair] for pair in often]
    expected = [*often.values()]
    assert len(often) > 10
    assert n - sum(expected) >= 5
    observed, expected = ([*cells, n - sum(cells)] for cells in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("model", [small.MODEL, small.DREAM, small.SDAR])
def test_a_denoiser_guesses_what_it_puts_into_the_masks(model):
    tree, end, known = small.params(3, model), 14, [4, 8, 12]
    texts = np.random.default_rng(0).integers(4, small.VOCAB, (3, end + 5)).astype(np.int32)
    text = Text(jnp.asarray(texts), jnp.zeros(3, jnp.int32), jnp.asarray(known), small.keys(3), first=4, end=end)
    draft, target = drafts.Denoiser(model, tree, tokens="4"), (guides.MODEL, guides.params(0, guides.MODEL))
    found = jax.jit(lambda text: draft.propose((), target, text, Sampling()))(text)
    for row, place in enumerate(known):
        canvas = [*texts[row, :place], *[small.MASK] * (end - place)]
        logits = small.logits(tree, canvas, model)
        logits[:, small.MASK] = -np.inf
        guesses = logits[place : place + 4].argmax(axis=1).tolist()
        expected = [texts[row, place - 1], *guesses, *[HOLE] * (4 - len(guesses))]
        assert found.tokens[row].tolist() == expected
        share = weights_met(tree, model.config) / weights_met(target[1], target[0].config)
        np.testing.assert_allclose(found.fed[row], end * share, rtol=1e-6)


@pytree
class Frozen(drafts.Recycling):
    """A matrix that stays empty."""

    def update(self, state, seen):
        return state


def test_a_table_that_is_handed_on_saves_passes_and_changes_no_text():
    rows = small.PROMPTS[:3]
    empty = speculate(guides.MODEL, rows, Frozen("8"))
    assert empty.nfe.tolist() == empty.lengths.tolist()
    for draft in ("recycling", "ngram"):
        cold = speculate(guides.MODEL, rows, DRAFTS[draft])
        warm = speculate(guides.MODEL, rows, DRAFTS[draft], warm=cold.draft)
        one = speculate(guides.MODEL, rows, DRAFTS[draft], warm=drafts.of_row(cold.draft, 1))
        for found in (cold, warm, one):
            np.testing.assert_array_equal(found.tokens, empty.tokens)
        assert warm.nfe.sum() < cold.nfe.sum() < empty.nfe.sum()


def test_what_cannot_be_done_is_refused_in_one_line():
    model, wide = guides.MODEL, dataclasses.replace(small.CONFIG, vocab_size=64)
    other = drafts.Denoiser(type(small.MODEL)(wide), small.params(0), tokens="4")
    near = drafts.Denoiser(
        type(small.MODEL)(dataclasses.replace(small.CONFIG, max_sequence_length=16)), small.params(0)
    )
    short = type(model)(dataclasses.replace(model.config, max_sequence_length=24))
    prompts, origin = batch(small.PROMPTS[:3])
    cold = DRAFTS["recycling"].empty(QWEN, 2)
    for target, draft, options, words in (
        (small.MODEL, DRAFTS["ngram"], {}, "draft: found a Llada as its target, expected an autoregressive model"),
        (small.FAST, DRAFTS["ngram"], {}, "draft: found a FastDllmV2 as its target"),
        (model, other, {}, "draft: found a denoiser with a vocabulary of 64, expected the target's of 61"),
        (model, near, {}, "draft: found a denoiser with a context of 16, expected 18 or more"),
        (short, drafts.Recycling("32"), {}, "draft: found a tree of 32 nodes, expected at most the context of 24"),
        (model, DRAFTS["recycling"], {"warm": cold}, "warm: found [(2, 61, 8)], expected the state of this draft"),
        (model, DRAFTS["ngram"], {"warm": cold}, "warm: found"),
        (model, DRAFTS["ngram"], {"sampling": Sampling(cfg_scale=1.0)}, "cfg_scale: found it with a draft"),
        (model, DRAFTS["ngram"], {"gen_length": 0}, "gen_length: found 0"),
        (model, DRAFTS["ngram"], {"gen_length": 60}, "expected at most the context of 64"),
    ):
        given = {"gen_length": GEN, "origin": origin} | options
        with pytest.raises(InputError) as caught:
            jaxdiff.speculate(target, {}, prompts, draft, **given)  # no weights: nothing is compiled
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="draft: found 'ngram', expected a draft"):
        check_draft("ngram", model, 20)
    with pytest.raises(InputError, match="which fills no masks, expected a masked diffusion model"):
        drafts.Denoiser(guides.MODEL, {})
