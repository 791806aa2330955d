"""Which bytes each token of a tokenizer writes, for stop strings and constraints; byte-level tokenizers alone are made
of bytes.
"""

from __future__ import annotations

from typing import Any

from jaxdiff.stoppers.strings import UNREADABLE, Spelling
from jaxdiff.types import InputError


def spelling_of(fast: Any, backend: Any) -> Spelling:
    """Of each id, the bytes that `fast.decode(skip_special_tokens=True)` puts into a text.

    Args:
        fast: a transformers.PreTrainedTokenizerFast, or one that does the same.
        backend: the tokenizers.Tokenizer that it is made of, or None.

    Raises InputError for a tokenizer that is not byte-level, or that changes the text of its tokens when they follow
    each other: what stands in a text could not be told from tokens alone.
    """
    kind = type(getattr(backend, "decoder", None)).__name__
    if kind != "ByteLevel":
        raise InputError(f"found a tokenizer whose decoder is {kind}, expected ByteLevel, whose tokens are bytes")
    alphabet = _alphabet()
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    named = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [UNREADABLE.encode()] * (max(named, default=-1) + 2)
    for i, token in named.items():
        # What is not spelled in the alphabet (an added token with a space) is its own text.
        known = alphabet.keys() >= set(token)
        tokens[i] = bytes(map(alphabet.__getitem__, token)) if known else token.encode()
        if i in special:
            tokens[i] = b""
    ids = sorted(named)
    if fast.decode(ids, skip_special_tokens=True) != b"".join(tokens[i] for i in ids).decode(errors="replace"):
        raise InputError(
            "found a tokenizer that changes the text of tokens that follow each other (such as "
            "clean_up_tokenization_spaces), expected one that does not"
        )
    return Spelling.of(tokens)


def _alphabet() -> dict[str, int]:
    """The byte that each character stands for, of GPT-2's byte-level BPE (openai/gpt-2 encoder.py, bytes_to_unicode):
    what can be seen stands for itself, the other bytes in their order for the characters from 256 on.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + place): byte for place, byte in enumerate(unseen)}
