"""A variable length and its push: what they do not go with. What they do is in `tests/parity/test_samplers.py`."""

import jaxtyping
import numpy as np
import pytest

from jaxdiff import EndThink, InputError, Refusal, Request, decode_stream, infill
from jaxdiff.caches import Dual
from tests import small

CANVAS = np.full((1, small.BLOCK), small.MASK)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"length": "long"}, "length: found 'long', expected one of fixed, var"),
        ({"length": "var", "cache": Dual()}, "length: found var with cache dual, expected none"),
        ({"length": "var", "model": small.SDAR}, "length: found var with a model that attends in blocks of 4"),
        ({"end_think": EndThink((5, small.VOCAB), 1.0)}, "end_think: found token 61, expected ids under 61"),
        ({"end_think": EndThink((small.MASK,), 1.0)}, "end_think: found token 3, expected ids under 61 without"),
        ({"end_think": EndThink((5,), np.ones(3))}, "boost: found 3 values, expected one, or 4: one for each row"),
    ],
)
def test_what_does_not_go_together_is_refused(parts, words):
    with pytest.raises(InputError, match=words):
        small.decode(**parts)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the annotations' own check, which users do not have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
def test_a_sequence_is_of_ids():
    for tokens in ((), 5, [5.0], "ab", None):
        with pytest.raises(InputError, match=r"end_think: found tokens .*, expected the ids of a sequence"):
            EndThink(tokens, 1.0)
    for tokens in ([5, 6], np.array([5, 6])):
        assert EndThink(tokens, 1.0).tokens == (5, 6)
    with pytest.raises(InputError, match=r"end_think: found \(5, 6\), expected a jaxdiff EndThink, or None"):
        small.decoder(end_think=(5, 6))
    with pytest.raises(InputError, match=r"stop_strings: found \['a'\], expected a jaxdiff StopStrings, or None"):
        small.decoder(stop_strings=["a"])


@pytest.mark.usefixtures("unchecked")
def test_lengths_are_whole_numbers():
    for model in (small.MODEL, small.FAST):
        with pytest.raises(InputError, match=r"block_length: found 4\.0, expected a whole number of tokens"):
            small.decode(model=model, block_length=4.0)
    with pytest.raises(InputError, match=r"gen_length: found 16\.0, expected a whole number of tokens"):
        small.decode(gen_length=16.0)


def test_a_canvas_has_a_length_of_its_own():
    decoder = small.decoder(length="var")
    with pytest.raises(InputError, match=r"length: found var for a canvas, whose length is given; leave it out"):
        infill(small.MODEL, small.params(), CANVAS, decoder)
    (refusal,) = decode_stream(
        small.MODEL, small.params(), [Request(CANVAS[0].tolist(), is_canvas=True)], decoder, gen_length=small.GEN
    )
    assert isinstance(refusal, Refusal)
    assert "length: found var for a canvas" in refusal.error
