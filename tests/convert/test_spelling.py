"""The bytes of tokens, for stop strings, against what the tokenizer's own decode gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

import jaxdiff
from jaxdiff import InputError, Tokenizer
from jaxdiff.convert.text import open_tokenizer
from tests.convert.test_text import SPECIAL, trained


@pytest.fixture(scope="module", params=["shipped", "published"])
def tokenizer(request, tmp_path_factory):
    """The one that ships, and one of transformers with added tokens that are no special ones."""
    if request.param == "shipped":
        return jaxdiff.load().tokenizer
    fast = open_tokenizer(trained(tmp_path_factory.mktemp("tokenizers") / "bare", SPECIAL))
    fast.add_tokens([AddedToken("<think>"), AddedToken("two words"), AddedToken("é"), AddedToken("漢字 ")])
    return Tokenizer(fast, 1, backend=fast.backend_tokenizer)


@settings(max_examples=40)
@given(data=st.data())
def test_the_bytes_of_tokens_are_the_text(data, tokenizer):
    """Of any tokens: cut characters, special ones and ids without a token among them."""
    known, ends = len(tokenizer.fast.get_vocab()), tokenizer.eos_ids
    ids = data.draw(st.lists(st.integers(0, known + 3).filter(lambda i: i not in ends), max_size=30))
    spelling = tokenizer.stop_strings().spelling
    letters, starts = bytes(memoryview(spelling.letters)), list(map(int, spelling.starts))
    last = len(starts) - 2
    text = b"".join(letters[starts[min(i, last)] : starts[min(i, last) + 1]] for i in ids)
    assert text.decode(errors="replace") == tokenizer.decode(ids)


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path):
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(InputError, match="whose decoder is NoneType, expected ByteLevel"):
        Tokenizer(fast, 1, backend=fast.backend_tokenizer).stop_strings(["a"])
    fast = open_tokenizer(trained(tmp_path / "cleans", SPECIAL))
    fast.clean_up_tokenization_spaces = True
    fast.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    fast.backend_tokenizer.add_tokens([" ,"])
    with pytest.raises(InputError, match="changes the text of tokens that follow each other"):
        Tokenizer(fast, 1, backend=fast.backend_tokenizer).stop_strings(["a"])
