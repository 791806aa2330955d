"""A variable length and its push: what they do not go with. What they do is in `tests/parity/test_samplers.py`."""

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


def test_a_sequence_is_of_ids():
    with pytest.raises(InputError, match=r"end_think: found tokens \(\), expected the ids of a sequence, one or more"):
        EndThink((), 1.0)
    assert EndThink([5, 6], 1.0).tokens == (5, 6)


def test_a_canvas_has_a_length_of_its_own():
    decoder = small.decoder(length="var")
    with pytest.raises(InputError, match=r"length: found var for a canvas, whose length is given; leave it out"):
        infill(small.MODEL, small.params(), CANVAS, decoder)
    (refusal,) = decode_stream(
        small.MODEL, small.params(), [Request(CANVAS[0].tolist(), is_canvas=True)], decoder, gen_length=small.GEN
    )
    assert isinstance(refusal, Refusal)
    assert "length: found var for a canvas" in refusal.error
