"""Stop strings: the text is that of the whole decode, cut; the row ends at the step at which that is certain."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError, Reason, decode, decode_stream, infill, pad_prompts, policies
from jaxdiff.stoppers import Eos, NoStop, OfficialEotp, SafeEotp, StopStrings
from jaxdiff.stoppers.strings import AT_ONCE, cut, encoded
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.types import Progress, Score
from tests import small

pytestmark = pytest.mark.usefixtures("strict")
ROWS, LENGTH, GIVEN = 3, 40, 4
# Tokens that end within a character, write nothing, or more than is read at a time.
LONG = b"ab" * AT_ONCE + b"c"
PIECES = [b"", b"a", b"b", b"ab", b"ba\xc3", b"\xa9b", b"\xc3", b"aab", LONG, "\ufffd".encode()]
WORDS = [PIECES[i % len(PIECES)] if i > small.MASK else b"" for i in range(small.VOCAB)]
STRINGS = ["ab", "abab", "é", "béb", "bac", "aabé", "ca", "zzz", "a" * 8]


def completed(tokens, strings):
    """The place behind the token in which the first string is complete, found in bytes; None where none is."""
    text, needles = b"", [string.encode() for string in strings]
    for place, token in enumerate(tokens):
        if token in (small.EOS, small.EOT):
            return None
        text += WORDS[token]
        if any(needle in text for needle in needles):
            return place + 1
    return None


def score(origin):
    """A score of which the stopper reads the origin alone."""
    row, wide = jnp.zeros((ROWS,), jnp.int32), jnp.zeros((ROWS, 1))
    places, flags = wide.astype(jnp.int32), wide > 0
    belief = [places, *[wide] * 6, jnp.zeros((ROWS, 1, 1))]
    return Score(*belief, jnp.zeros((ROWS, 1, 1)), flags, flags, flags, places, row, origin, row, row)


@jax.jit
def update(strings, reading, canvas, settled, end, origin, live):
    column = jnp.arange(LENGTH, dtype=jnp.int32)[None]
    where = (canvas, end, live, column >= (origin + GIVEN)[:, None], settled, score(origin), score(origin).masked, None)
    return strings.update(reading, Progress(*where, (small.EOS, small.EOT)))


@settings(max_examples=60)
@given(data=st.data())
def test_it_is_found_when_the_token_that_completes_it_is_settled(data):
    """Whatever the tokens, the steps in which they settle, and a canvas that is repadded between."""
    spelling = small.spelling(WORDS)
    tokens = np.asarray(
        data.draw(st.lists(st.lists(st.integers(4, 60), min_size=30, max_size=30), min_size=ROWS, max_size=ROWS))
    )
    for row in range(ROWS):
        if data.draw(st.booleans()):
            tokens[row, data.draw(st.integers(0, 29))] = small.EOS
    own = [data.draw(st.lists(st.sampled_from(STRINGS), max_size=3)) for _ in range(ROWS)]
    room = StopStrings.of(spelling, most=4, longest=8)
    strings = dataclasses.replace(room, strings=jnp.asarray(np.stack([room.lines(texts) for texts in own])))
    settled = np.zeros(ROWS, np.int32)
    reading, ends = strings.init(ROWS), np.full(ROWS, 99)
    for _ in range(5):
        settled = np.minimum(settled + data.draw(st.integers(0, 20)) * np.asarray([1, 2, 0]), 30)
        by = data.draw(st.integers(0, 10 - GIVEN))
        canvas = np.full((ROWS, LENGTH), small.MASK)
        canvas[:, by : by + GIVEN], canvas[:, by + GIVEN : by + GIVEN + 30] = 5, tokens
        origin = jnp.full((ROWS,), by, jnp.int32)
        first = by + GIVEN
        live = jnp.asarray(ends == 99)
        end, after = update(
            strings,
            reading,
            jnp.asarray(canvas, jnp.int32),
            jnp.asarray(settled + first, jnp.int32),
            jnp.full((ROWS,), LENGTH, jnp.int32),
            origin,
            live,
        )
        reading = after
        for row in range(ROWS):
            expected = completed(tokens[row, : settled[row]], own[row])
            assert bool(after.found[row]) == (expected is not None)
            if expected is not None and ends[row] == 99:
                ends[row] = int(end[row]) - first
                assert ends[row] == expected
            elif expected is None:
                assert end[row] == LENGTH


def test_the_string_that_is_complete_first_cuts():
    assert cut("xabcd", ["abcd", "c"]) == "xab"
    assert cut("xabcd", ["cd", "bcd", "d"]) == "xa"  # of those that end together the longest
    assert cut("xabab", ["ab"]) == "x"
    assert cut("x", ["y"]) == cut("x", []) == "x"


ROOM = small.stop_strings(most=4, longest=32)
CASES = {
    "remdm": dict(policy=policies.RemdmCap(steps=6, cap=0.4), stop=NoStop()),
    "eotp": dict(policy=policies.Threshold(0.5), stop=SafeEotp(tau=0.3, keep=4)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_that_of_the_whole_decode_cut(case):
    """Its tokens are those of the whole decode as far as it goes, and it takes no forward more."""
    saved, seen = 0, set()
    for seed in range(2):
        options = dict(CASES[case], seed=seed, model_seed=seed % 2, temperature=0.7)
        whole = small.decode(**options, stop_strings=ROOM)
        if case == "remdm" and not seed:
            plain = small.decode(**options)
            for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(whole), strict=True):
                np.testing.assert_array_equal(left, right)  # strings that never occur change nothing
        texts = [small.text(row) for row in np.asarray(whole.tokens)[:, -small.GEN :]]
        for place in (0, 2, 5):
            strings = [texts[place % 4][place : place + 5], texts[3 - place % 4][place : place + 7]]
            strings = [string for string in strings if string and "\ufffd" not in string] or ["zzz"]
            lines = dataclasses.replace(ROOM, strings=ROOM.lines(strings))
            stopped = small.decode(**options, stop_strings=lines)
            assert lines.texts == tuple(dict.fromkeys(strings))
            for row, text in enumerate(texts):
                tokens = np.asarray(stopped.tokens)[row, -small.GEN :]
                assert cut(small.text(tokens), strings) == cut(text, strings)
                found = cut(text, strings) != text
                assert (stopped.reason[row] == Reason.STRING) == found
                assert stopped.nfe[row] <= whole.nfe[row]
                end = int(stopped.lengths[row])
                if not found:
                    end = small.GEN
                    assert stopped.nfe[row] == whole.nfe[row]
                else:
                    assert any(string in small.text(tokens[:end]) for string in strings)
                    assert not any(string in small.text(tokens[: end - 1]) for string in strings)
                    assert (tokens[end:] == small.EOS).all()
                    assert (np.asarray(stopped.commit_step)[row, end:] == -1).all()
                np.testing.assert_array_equal(tokens[:end], np.asarray(whole.tokens)[row, -small.GEN :][:end])
                np.testing.assert_array_equal(stopped.commit_step[row, :end], whole.commit_step[row, :end])
                seen.add(found)
            saved += int((whole.nfe - stopped.nfe).sum())
    assert saved > 0
    assert seen == {True, False}


def test_what_can_be_no_stop_string_is_refused():
    for texts, words in {
        "text": "found str, expected a list",
        (5,): "found 5, expected a text",
        ("",): "found '', expected a text of at least one",
        ("\ud800",): "UTF-8",
        ("a\ufffd",): r"found U\+FFFD",
        ("a" * 1025,): "found one of 1025 bytes",
        tuple(map(str, range(65))): "found 65, expected at most 64",
    }.items():
        with pytest.raises(InputError, match=words):
            encoded(texts)
    with pytest.raises(InputError, match="found 5, the longest of 1 bytes, expected at most 4 of 32; make room"):
        ROOM.lines(list("abcde"))
    grown = small.stop_strings(list("abcde"), longest=33)
    assert grown.strings.shape == (8, 64)
    one = small.stop_strings(["a"])
    each = dataclasses.replace(one, strings=np.stack([one.lines(["a"]), one.lines(["b"])]))
    canvas = np.full((2, 8), small.MASK)
    for strings, count in ((one, 1), (each, 2)):
        with pytest.raises(InputError, match=f"found {count} for a canvas, expected none"):
            infill(small.MODEL, small.params(), canvas, small.decoder(stop_strings=strings))
    with pytest.raises(InputError, match="found 2 sets, expected one, or 4: one for each row"):
        small.decode(stop_strings=each)
    with pytest.raises(InputError, match="found some for each row, expected the same for all; a stream has slots"):
        decode_stream(small.MODEL, small.params(), [[5]], small.decoder(stop_strings=each), gen_length=small.GEN)
    with pytest.raises(InputError, match="found those of 2 rows, expected the same for all"):
        _ = each.texts


def test_the_model_that_ships_saves_forwards():
    """Its tokens' bytes are its tokenizer's text; a line's end ends the row, in one program with no strings at all."""
    checkpoint = jaxdiff.load()
    tokenizer = checkpoint.tokenizer
    problems = list(itertools.islice(gsm_symbolic.problems("test", 0), 4))
    prompts, origin = pad_prompts([tokenizer.prompt(p.question) for p in problems], fill=tokenizer.eos_id)
    decoder = jaxdiff.Decoder(policy=policies.Threshold(0.9), stop=Eos(), stop_strings=tokenizer.stop_strings())
    options = dict(origin=origin, gen_length=128)
    whole = decode(checkpoint.model, checkpoint.params, prompts, decoder, **options)
    lines = dataclasses.replace(decoder, stop_strings=tokenizer.stop_strings(["\n"]))
    stopped = decode(checkpoint.model, checkpoint.params, prompts, lines, **options)
    assert int(stopped.nfe.sum()) < int(whole.nfe.sum())
    assert (np.asarray(stopped.reason) == Reason.STRING).all()
    for long, short in zip(whole.tokens, stopped.tokens, strict=True):
        text = tokenizer.decode(long[prompts.shape[1] :])
        assert "\n" in text
        assert tokenizer.decode(short[prompts.shape[1] :], stop_strings=["\n"]) == text.partition("\n")[0]


def test_a_string_behind_the_end_that_the_same_step_sets_is_none():
    """The oracle commits what is not the candidate, so that a string may stand behind a foreseen end of the text."""
    strings = ["cb", "ba", "aaa"]
    rng = np.random.default_rng(1)
    answers = [rng.integers(9, 60, (4, small.GEN)) for _ in range(40)][39]  # rows 0 and 1 end so
    ids, origin = small.batch()
    decoder = small.decoder(policy=policies.Oracle(), stop=OfficialEotp(), stop_strings=small.stop_strings(strings))
    reference = np.concatenate([ids, answers], axis=1).astype(np.int32)
    options = dict(gen_length=small.GEN, origin=origin, reference=reference)
    result = decode(small.MODEL, small.params(3), ids, decoder, **options)
    for row in range(4):
        text = small.text(np.asarray(result.tokens)[row, -small.GEN :][: int(result.lengths[row])])
        assert (result.reason[row] == Reason.STRING) == any(string in text for string in strings)
