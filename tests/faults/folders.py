"""A published folder with a tokenizer, for the tests of folders, and what they do to it."""

import json

import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert import convert
from tests.convert import published as hf

VOCAB = 280  # the tokenizer's 265 and some more
CONFIG = hf.LLADA_CONFIG | {"vocab_size": VOCAB, "embedding_size": VOCAB, "eos_token_id": 1, "mask_token_id": 0}


def tensors(config=CONFIG, rows=VOCAB):
    shapes = {
        key: (rows, *shape[1:]) if key.endswith((".wte.weight", "transformer.ff_out.weight")) else shape
        for key, shape in hf.llada_shapes().items()
    }
    return hf.tensors(shapes)


def edit(file, **changes):
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(found | changes))


def refusal(folder, **options):
    """The one line that `load` refuses a folder with; `convert` and `inspect` say the same."""
    lines = set()
    for call in (jaxdiff.load, jaxdiff.inspect, lambda path, **o: convert(path, folder.parent / "new", **o)):
        with pytest.raises(InputError) as caught:
            call(folder, **options)
        lines.add(str(caught.value))
    assert not (folder.parent / "new").exists()
    (line,) = lines
    assert "\n" not in line
    return line
