"""What `--constraint` says, and what predicates say of a text, against plain Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff import InputError
from jaxdiff.constraints import Named, NoRepeat, NotEmpty
from jaxdiff.types import HOLE
from tests import small
from tests.constraints.languages import ENDS

TEXTS = st.lists(st.sampled_from([HOLE, *ENDS, 5, 6, 9]), min_size=6, max_size=6)
BLANK = 9


@jax.jit
def fits(predicate, tokens):
    """What it says of each column's own token, as if that came last."""
    columns = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    return jax.vmap(lambda column: predicate.fits(tokens.at[column].set(HOLE), column, tokens[column]))(columns)


@given(tokens=TEXTS, n=st.integers(1, 4))
def test_no_run_comes_twice(tokens, n):
    """Where a column's token completes a run that stands elsewhere."""
    found = np.asarray(fits(NoRepeat(ENDS, n), jnp.asarray(tokens, jnp.int32)))
    runs = {start: tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)}
    runs = {start: run for start, run in runs.items() if not {HOLE, *ENDS} & set(run)}
    for column in (at for at, token in enumerate(tokens) if token != HOLE):
        twice = any(
            runs[a] == runs[b] and (a <= column < a + n or b <= column < b + n)
            for a, b in itertools.combinations(runs, 2)
        )
        assert found[column] == (not twice)


@given(tokens=TEXTS)
def test_something_stands_before_the_end(tokens):
    """Whether some filling of the holes does, by trying all."""
    found = np.asarray(fits(NotEmpty(ENDS, np.asarray([BLANK], np.int32)), jnp.asarray(tokens, jnp.int32)))
    options = [(5, BLANK, ENDS[0]) if token == HOLE else (token,) for token in tokens]
    able = any(
        any(token != BLANK for token in itertools.takewhile(lambda token: token not in ENDS, text))
        for text in itertools.product(*options)
    )
    for column in (at for at, token in enumerate(tokens) if token != HOLE):
        assert found[column] == able


def test_tokens_that_write_nothing_are_blank():
    words = list(small.WORDS)
    words[10], words[11] = b" \n", b" x"
    made = NotEmpty.of(small.spelling(words), ENDS)
    assert set(made.blank.tolist()) == {0, 3, 4, 10}  # special tokens; not the ends, nor what writes a letter


@pytest.mark.parametrize(
    ("text", "pattern", "estimator", "count", "told"),
    [
        ("regex:a+b", "a+b", None, 0, "a+b"),
        ("awrs+regex:a+regex:b", "a+regex:b", "recursive", 0, "awrs+regex:a+regex:b"),
        ("awrs:estimator=paper + not_empty", None, "paper", 1, "awrs:estimator=paper+not_empty"),
        ("not_empty+no_repeat:n=2+regex:x", "x", "recursive", 2, "not_empty+no_repeat:n=2+regex:x"),
        ("no_repeat", None, "recursive", 1, "no_repeat"),
    ],
)
def test_parts_are_joined(text, pattern, estimator, count, told):
    made = Named.parse(text)
    assert (made.pattern, made.estimator, len(made.predicates), made.text) == (pattern, estimator, count, told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found '', which says nothing of a text"),
        ("awrs", "found 'awrs', which says nothing of a text, expected regex:PATTERN, or json:"),
        ("awrs+", "found nothing behind the last + of 'awrs+'"),
        (
            "not_blank",
            "found 'not_blank', expected regex:PATTERN, or json: and a schema or its file, or awrs, not_empty",
        ),
        ("no_repeat+no_repeat", "found no_repeat twice"),
        ("no_repeat:n=0", "constraint no_repeat n: found 0"),
        ("no_repeat:n=9", "constraint no_repeat n: found 9"),
        ("no_repeat:m=1", "constraint no_repeat: found argument 'm=1', expected n="),
        ("awrs:estimator=best+regex:a", "constraint awrs estimator: found 'best', expected one of paper"),
        ("awrs+regex:", "found 'regex:', expected regex:PATTERN"),
    ],
)
def test_what_names_no_constraint_is_refused(text, message):
    with pytest.raises(InputError) as error:
        Named.parse(text)
    assert message in str(error.value)
