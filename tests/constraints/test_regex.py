"""Tables of regular expressions against Python's `re`, and the sets of states against every completion of the holes."""

import importlib.util
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxdiff import InputError
from jaxdiff.constraints import letters_of, pattern_of, schema_pattern
from jaxdiff.decode import sets
from jaxdiff.types import BEGUN
from tests import small
from tests.constraints.languages import ENDS, PATTERNS, is_answer, is_filling, regex, small_regex

MASK, WORDS = 3, [b"", b"", b"", b"", b"a", b"b", b"ca", b"\xc3", b"\xa9", b"bb"]
TOKENS = range(len(WORDS))
COLUMNS = 4


def accepts(made, tokens):
    state = BEGUN
    for token in tokens:
        state = int(made.next[made.of[token], state])
    return bool(made.accepts[state])


@settings(max_examples=60)
@given(pattern=PATTERNS)
def test_the_tables_accept_what_matches(pattern):
    made = small_regex(pattern, words=WORDS)
    assume(made is not None)
    made = jax.device_get(made)
    for tokens in itertools.chain.from_iterable(itertools.product(TOKENS, repeat=n) for n in range(4)):
        assert accepts(made, tokens) == is_answer(pattern, tokens, WORDS), tokens


@jax.jit
def kinds(made, tokens, inside, ends):
    """What `sets` says of each column of a whole text, and whether it can be completed at all."""
    strip = sets.Strip.of(made, tokens, MASK, inside, ends)
    last = jnp.broadcast_to(made.accepts, (tokens.shape[0], made.accepts.shape[0]))
    first = sets.single(jnp.full(ends.shape, BEGUN, jnp.int32), made.accepts.shape[0])
    before, behind = sets.backwards(made, strip, last)
    admitted = sets.admitted(made, strip, sets.forwards(made, strip, first), behind)
    return admitted[..., made.of], before[:, BEGUN]


@settings(max_examples=40)
@given(data=st.data(), pattern=PATTERNS)
def test_a_hole_may_be_what_some_completion_has_there(data, pattern):
    """By trying all tokens in all holes; what stands outside the text counts for nothing."""
    made = small_regex(pattern, words=WORDS)
    assume(made is not None)
    row = st.lists(st.sampled_from([MASK, MASK, *TOKENS]), min_size=COLUMNS, max_size=COLUMNS)
    rows = np.asarray(data.draw(st.lists(row, min_size=3, max_size=3)), np.int32)
    lengths = [COLUMNS, COLUMNS, COLUMNS - 1]
    ends = np.asarray([True, False, True])
    inside = np.arange(COLUMNS)[None] < np.asarray(lengths)[:, None]
    found, completes = map(np.asarray, kinds(made, rows, inside, ends))
    usable = [token for token in TOKENS if token != MASK]
    for number, (tokens, length) in enumerate(zip(rows, lengths, strict=True)):
        fits = is_answer if ends[number] else is_filling
        choices = [usable if token == MASK else [token] for token in tokens[:length]]
        texts = [text for text in itertools.product(*choices) if MASK not in text and fits(pattern, text, WORDS)]
        assert completes[number] == bool(texts)
        for column in range(length):
            if tokens[column] == MASK:
                expected = {text[column] for text in texts}
                assert set(np.flatnonzero(found[number, column, : len(WORDS)])) == expected


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "of": {"enum": ["a", "b"]}},
    "required": ["n", "of"],
}


@pytest.mark.parametrize("text", ['{"n": 12, "of": "a"}', '{"n":-1,"of":"b"}', '{ "n": 0 , "of": "b" }'])
def test_a_schema_is_the_expression_of_its_texts(text, tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    pattern = pattern_of(f"json:{file}")
    assert pattern == pattern_of("json:" + json.dumps(SCHEMA)) == schema_pattern(SCHEMA)
    words = [b"", b"", b"", b"", *(bytes([byte]) for byte in range(32, 127))]
    made = jax.device_get(regex(pattern, words))

    def ids(text):
        return [4 + byte - 32 for byte in text.encode()]

    assert accepts(made, ids(text))
    assert accepts(made, [*ids(text), *ENDS])
    for wrong in (text.replace("n", "m"), text[:-1], text.replace('"of"', '"if"'), text + "}"):
        assert not accepts(made, ids(wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[0-9]+", "expected regex:PATTERN, or json: and a schema or its file"),
        ("regex:", "expected regex:PATTERN"),
        ("schema:{}", "expected regex:PATTERN"),
        ("json:{", "the schema is not JSON"),
        ("json:nowhere.json", "nowhere.json"),
        ('json:{"type": "color"}', "outlines-core makes no regular expression of"),
        ('json:{"$ref": "#"}', "refers to itself"),
        ('json:{"$defs":{"t":{"type":"array","items":{"$ref":"#/$defs/t"}}},"$ref":"#/$defs/t"}', "refers to itself"),
    ],
)
def test_a_constraint_that_cannot_be_read_is_refused(text, message):
    with pytest.raises((InputError, OSError), match=message):
        pattern_of(text)


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", r"(a)\1", "^a$", "\ud800"])
def test_what_is_no_regular_expression_is_refused(pattern):
    with pytest.raises(InputError, match=r"constraint: found .* reads as no regular expression"):
        letters_of(pattern)


def test_what_tokens_cannot_spell_and_what_is_too_large_is_refused():
    with pytest.raises(InputError, match="'x', which no text of this tokenizer's tokens matches"):
        regex("x")
    with pytest.raises(InputError, match="takes more than 1024 states, expected at most"):
        regex("(a|b)*a(a|b){11}")
    with pytest.raises(InputError, match="takes 2048 states"):
        regex("a{1022}")


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"properties": {"minimum": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"anyOf": [{"allOf": [{"type": "null"}, {"type": "null"}]}]}, "allOf of several parts"),
    ],
)
def test_a_keyword_that_would_not_be_heeded_is_refused(schema, word):
    with pytest.raises(InputError, match=f"constraint: found {word} in the schema"):
        schema_pattern(schema)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs outlines-core, which is not installed; pip install 'jaxdiff"):
        schema_pattern(SCHEMA)


def test_a_model_whose_ids_are_others_is_refused():
    with pytest.raises(InputError, match=r"ends with ids \[1\], expected those of the model, \[1, 2\]"):
        small.decode(constraint=regex("a*", ends=(small.EOS,)))
    with pytest.raises(InputError, match="found a text for id 3, which the model never writes"):
        small.decode(constraint=regex("a*", words=[b"", b"", b"", b"a", b"a"]))
    with pytest.raises(InputError, match="found a text for id 61, which the model never writes"):
        small.decode(constraint=regex("a*", words=[*small.WORDS, b"a"]))
