"""Regular expressions for tests, drawn; and whether a text matches, by Python's own `re`."""

import re

from hypothesis import strategies as st

from jaxdiff import InputError
from jaxdiff.constraints import Regex
from tests import small

ENDS = (small.EOS, small.EOT)


def _joined(parts):
    return st.one_of(
        st.lists(parts, min_size=1, max_size=4).map("".join),
        st.lists(parts, min_size=1, max_size=3).map(lambda each: f"({'|'.join(each)})"),
        st.tuples(parts, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{4,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    )


PATTERNS = st.recursive(st.sampled_from(["a", "b", "c", "é", "ab", "ca", "[ab]", "[^a]", "."]), _joined, max_leaves=8)


def regex(pattern, words=small.WORDS, ends=ENDS, room=32):
    return Regex.of_pattern(pattern, small.spelling(words), ends, room=room)


def small_regex(pattern, **options):
    """With tables of one shape, so that all share a program; None for a pattern that takes larger ones, or none."""
    try:
        made = regex(pattern, **options)
    except InputError:
        return None
    return made if made.next.shape == (32, 32) else None


def matches(pattern, letters):
    """Whether these bytes are a text that matches."""
    try:
        return re.fullmatch(pattern, letters.decode()) is not None
    except UnicodeDecodeError:
        return False


def is_answer(pattern, tokens, words=small.WORDS, ends=ENDS):
    """Whether what stands before the first end matches, and nothing but ends stands behind it."""
    tokens = list(map(int, tokens))
    stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    if not set(tokens[stop:]) <= set(ends) or not all(words[token] for token in tokens[:stop]):
        return False
    return matches(pattern, b"".join(words[token] for token in tokens[:stop]))


def is_filling(pattern, tokens, words=small.WORDS, ends=ENDS):
    """Whether the tokens, none of them an end, are a text that matches."""
    return not set(map(int, tokens)) & set(ends) and is_answer(pattern, tokens, words, ends)
