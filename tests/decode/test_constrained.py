"""Constraints in the compiled decode: every text matches, and what fits is what it would have been without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError, Request, make_mesh
from jaxdiff import policies as p
from jaxdiff.caches import Dual, Seeded, SeededDual
from jaxdiff.constraints import Regex
from jaxdiff.decode.completion import check_answer
from jaxdiff.fills import Recap
from jaxdiff.models import Llada
from jaxdiff.stoppers import Eos, SafeEotp
from jaxdiff.types import BEGUN, ENDS, NOWHERE
from tests import drafters, small
from tests.conformance.each_row import PARTS, WHICH
from tests.conformance.each_row import decode as decode_each
from tests.constraints.languages import ENDS as END_IDS
from tests.constraints.languages import PATTERNS, is_answer, is_filling, regex, small_regex

pytestmark = pytest.mark.usefixtures("strict")
STEADY = np.asarray([not PARTS[which].revises for which in WHICH])  # what these commit they never take back


def generated(result):
    return np.asarray(result.tokens)[:, -small.GEN :]


def anything():
    """A constraint that every sequence of tokens is a text of, so that nothing is ruled out."""
    states, classes = 32, 32
    following = np.full((classes, states), BEGUN, np.int32)
    following[NOWHERE] = 0
    hole = np.zeros((states, states), np.float32)
    hole[:, BEGUN] = 1.0
    of = np.full(small.VOCAB + 1, ENDS + 1, np.int32)
    of[list(END_IDS)], of[[small.MASK, small.VOCAB]] = ENDS, NOWHERE
    return Regex(*jax.device_put((of, following, np.ones(states, bool), hole, np.full(classes, 5, np.int32))))


def fitting(pattern, decode):
    """A decode under this pattern; none where its tables are of another shape, or no text is short enough."""
    made = small_regex(pattern)
    assume(made is not None)
    try:
        return jax.device_get(decode(made))
    except InputError as error:
        if "no text that matches is of at most" not in str(error):
            raise
        assume(False)


def test_every_policy_writes_a_text_that_matches():
    """And the same one as without a constraint where that matches anyway, and where nothing is ruled out."""
    parts = dict(fill=Recap(3), temperature=0.7)  # the program without a constraint is that of `test_pairs`
    plain = jax.device_get(decode_each(**parts))
    idle = jax.device_get(decode_each(constraint=anything(), **parts))
    clear = plain.near_ties + idle.near_ties == 0
    assert clear.sum() > len(WHICH) // 2
    for field in ("tokens", "commit_step", "nfe", "cheap"):
        np.testing.assert_array_equal(getattr(idle, field)[clear], getattr(plain, field)[clear])

    @settings(max_examples=5)
    @given(pattern=PATTERNS, seed=st.integers(0, 3))
    def check(pattern, seed):
        found = fitting(pattern, lambda made: decode_each(constraint=made, seed=seed, model_seed=seed, **parts))
        free = jax.device_get(decode_each(seed=seed, model_seed=seed, **parts))
        clear = STEADY & (found.near_ties + free.near_ties == 0)
        for row, (tokens, before) in enumerate(zip(generated(found), generated(free), strict=True)):
            assert is_answer(pattern, tokens), (row, tokens)
            if clear[row] and is_answer(pattern, before):
                np.testing.assert_array_equal(tokens, before)
        assert np.isfinite(found.log_prob).all()
        assert (found.nfe <= 2 * small.GEN + 16).all()

    check()


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (
            small.MODEL,
            dict(policy=p.Threshold(0.3), cache=Dual(), stop=Eos(), top_k=3, fill=drafters.fill("adjust", k=4)),
        ),
        (small.DREAM, dict(policy=p.Edit(0.3, 0.2), cfg_scale=1.0, top_p=0.9, forbid_eos=True)),
        (small.FAST, dict(policy=p.Threshold(0.3), cache=SeededDual(), stop=Eos())),
        (small.LLAMA, dict(cache=Seeded(), stop=Eos())),
    ],
    ids=["llada-dual-adjust", "dream-guided", "fast-seeded", "llama-seeded"],
)
def test_families_caches_and_fills_writes_a_text_that_matches(model, parts):
    @settings(max_examples=4)
    @given(pattern=PATTERNS, temperature=st.sampled_from([0.0, 1.0]))
    def check(pattern, temperature):
        def decode(made):
            return small.decode(model=model, constraint=made, temperature=temperature, **parts)

        assert all(is_answer(pattern, tokens) for tokens in generated(fitting(pattern, decode)))

    check()


TEXTS = ["abcab", "acab", "cacaca", "bbbbbbbbbbbb", "abababababababab", "ééa", "c" * 21]


def completable(tokens):
    """Whether one of TEXTS can stand there, by trying each: the reference knows of no automaton."""

    def after(text, place, token):
        """Where the text may be behind one more token; None is behind its end."""
        if place is None or place == len(text):
            yield from [None] * (token in (*END_IDS, small.MASK))
        if place is not None:
            words = small.WORDS if token == small.MASK else [small.WORDS[token]]
            yield from (place + len(word) for word in {*words} - {b""} if text.startswith(word, place))

    def fits(text):
        places = {0}
        for token in tokens:
            places = {new for place in places for new in after(text, place, token)}
        return bool(places & {None, len(text)})

    return any(fits(text.encode()) for text in TEXTS)


def test_a_plain_loop_writes_the_same():
    """Two tokens a step, the most confident first: of each the best that fits, and the second only with the first."""
    made = regex("|".join(TEXTS), room=64)
    result = jax.device_get(small.decode(constraint=made, policy=p.Fixed(steps=small.BLOCK // 2)))
    assert result.near_ties.sum() == 0
    mended = left_out = 0
    for row, prompt in enumerate(small.PROMPTS):
        canvas = np.asarray([*prompt, *[small.MASK] * small.GEN])
        said = canvas[len(prompt) :]  # a view
        log_prob, written, step = np.zeros(small.GEN), np.zeros(small.GEN, int), 0
        while (holes := said == small.MASK).any():
            holes &= np.arange(small.GEN) // small.BLOCK == np.flatnonzero(holes)[0] // small.BLOCK
            logits = small.logits(small.params(), canvas)[len(prompt) :]
            logits[:, small.MASK] = -np.inf
            plain = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            order = sorted(np.flatnonzero(holes), key=lambda at: -plain[at].max())[:2]
            before, best = said.copy(), plain.argmax(axis=1)
            said[order] = best[order]
            if not completable(said):
                alone = np.tile(before, (len(order), 1))
                for one, at in zip(alone, order, strict=True):
                    for token in np.argsort(-plain[at]):
                        one[at] = token
                        if token != small.MASK and completable(one):
                            break
                    mended += one[at] != best[at]
                said[:] = before
                for one, at in zip(alone, order, strict=True):
                    said[at] = one[at]
                    if not completable(said):
                        said[at], left_out = small.MASK, left_out + 1
            new = said != before
            log_prob[new], written[new] = plain[new, said[new]], step
            step += 1
        np.testing.assert_array_equal(generated(result)[row], said)
        np.testing.assert_array_equal(result.commit_step[row], written)
        np.testing.assert_allclose(result.log_prob[row], log_prob, atol=1e-4)
    assert mended
    assert left_out


def test_edits_that_do_not_fit_are_not_tried_again():
    """A forward whose edits are all refused changes nothing, and ends the block as one without edits does."""
    result = small.decode(constraint=regex("a{9,32}", room=64), policy=p.Edit(0.0, 0.0, 100))
    assert all(is_answer("a{9,32}", tokens) for tokens in generated(result))
    assert (result.nfe < 50).all()


@settings(max_examples=6)
@given(data=st.data(), pattern=PATTERNS)
def test_a_canvas_is_filled_from_its_first_hole_to_its_last(data, pattern):
    """What is given between belongs to the text; where nothing fits, the row is named before anything is compiled."""
    made = small_regex(pattern)
    assume(made is not None)
    fitted, canvases = [], []
    for _ in range(3):  # a text that matches, some of it hidden
        state, tokens = BEGUN, []
        for _ in range(data.draw(st.integers(1, 12))):
            after = [token for token in range(4, small.VOCAB) if made.next[made.of[token], state] > 0]
            if not after:
                break
            tokens.append(data.draw(st.sampled_from(after)))
            state = int(made.next[made.of[tokens[-1]], state])
        hidden = [place in (0, len(tokens) - 1) or data.draw(st.booleans()) for place in range(len(tokens))]
        row = [40, 41, *(small.MASK if hide else token for token, hide in zip(tokens, hidden, strict=True)), 42, 43]
        canvases.append(row + [44] * (16 - len(row)))
        fitted.append(bool(tokens) and bool(made.accepts[state]))
    canvas = np.asarray(canvases, np.int32)
    options = dict(decoder=small.decoder(block_length=None, constraint=made, policy=p.Threshold(0.3)))
    try:
        result = np.asarray(jaxdiff.infill(small.MODEL, small.params(), canvas, **options).tokens)
    except InputError as error:
        number = int(str(error).split("row ")[1].split(":")[0])
        assert not fitted[number]
        return
    np.testing.assert_array_equal(result[canvas != small.MASK], canvas[canvas != small.MASK])
    for tokens, given_ in zip(result, canvas, strict=True):
        holes = np.flatnonzero(given_ == small.MASK)
        if holes.size:
            assert is_filling(pattern, tokens[holes[0] : holes[-1] + 1])


def test_rows_are_the_same_in_slots_and_over_a_mesh():
    """Prompts of several lengths, of several answers' lengths, and canvases, through slots that are refilled."""
    pattern = "(ab|ca|cc)*a?"
    parts = dict(constraint=regex(pattern, room=32), policy=p.Threshold(0.3), temperature=0.7)
    canvas, keys = [50, small.MASK, 5, small.MASK, small.MASK, *[51] * 11], small.keys(4)
    requests = [Request(prompt, key=keys[row]) for row, prompt in enumerate(small.PROMPTS)]
    requests += [Request(small.PROMPTS[0], max_tokens=6), Request([5] * 40), Request(canvas, is_canvas=True)]
    requests += [Request([50, *[small.MASK] * 3, *[0] * 12], is_canvas=True)]
    model, decoder = (small.MODEL, small.params()), small.decoder(**parts)
    stream = jaxdiff.decode_stream(*model, requests, decoder, slots=2, gen_length=small.GEN, most=3)
    answers = {answer.request.number: answer for answer in stream}
    assert is_answer(pattern, answers[4].tokens[:6])
    assert is_answer(pattern, answers[5].tokens)
    assert is_filling(pattern, answers[6].tokens[1:5])
    assert is_filling(pattern, answers[7].tokens[1:4])

    order = [2, 0, 3, 1]
    found = jax.device_get(small.decode(mesh=make_mesh(2, 2), order=order, **parts))
    assert found.near_ties.sum() + sum(answers[row].near_ties for row in order) == 0
    for row, tokens in zip(order, generated(found), strict=True):
        np.testing.assert_array_equal(answers[row].tokens, tokens)
        assert is_answer(pattern, tokens)


@pytest.mark.parametrize(
    ("pattern", "parts", "message"),
    [
        ("[ab]{40}", {}, "no text that matches is of at most 16 tokens"),
        ("a*", dict(stop=SafeEotp()), "constraint: found one with stop eotp"),
        ("a*", dict(stop_strings=small.stop_strings(["ab"])), "constraint: found one with stop strings"),
    ],
)
def test_what_cannot_be_met_is_refused(pattern, parts, message):
    with pytest.raises(InputError, match=message):
        small.decode(constraint=regex(pattern), **parts)


def test_a_canvas_or_a_request_that_no_text_fits_is_refused():
    decoder = small.decoder(block_length=None, constraint=regex("(ab)*"))
    canvas = np.asarray([[small.MASK, 4, small.MASK, 5], [small.MASK, 60, small.MASK, 5]], np.int32)
    with pytest.raises(InputError, match="row 0: no text that matches fills the 3 columns from 0 to 2"):
        jaxdiff.infill(small.MODEL, small.params(), canvas, decoder)
    requests = [Request(canvas[0].tolist(), is_canvas=True), Request([5], max_tokens=2, stop_strings=["a"])]
    refused = list(jaxdiff.decode_stream(small.MODEL, small.params(), requests, decoder, slots=2, gen_length=32))
    assert "constraint: no text that matches fills the 3 columns" in refused[0].error
    assert "stop_strings: found 1 with a constraint" in refused[1].error


def test_without_end_of_text_a_text_takes_all_of_the_length():
    model = Llada(dataclasses.replace(small.CONFIG, eot_token_id=None))
    for pattern, fits in {"[ab]{9}": False, "[ab]{3}": False, "[ab]{4,9}": True}.items():
        decoder = small.decoder(constraint=regex(pattern, ends=(small.EOS,)), forbid_eos=True)
        if fits:
            check_answer(decoder, model, 4)
            continue
        with pytest.raises(InputError, match="exactly 4, as end-of-text is forbidden"):
            check_answer(decoder, model, 4)


def test_a_broken_head_still_ends_in_a_text_that_matches():
    tree = small.params()
    broken = tree | {"head": jnp.full_like(tree["head"], jnp.nan)}
    ids, origin = small.batch()
    decoder = dataclasses.replace(small.decoder(policy=p.Threshold(0.3)), constraint=regex("(ab|ca)*b"))
    found = jaxdiff.decode(small.MODEL, broken, ids, decoder, gen_length=small.GEN, origin=origin)
    assert all(is_answer("(ab|ca)*b", row) for row in generated(found))
    assert (np.asarray(found.not_finite) > 0).all()
