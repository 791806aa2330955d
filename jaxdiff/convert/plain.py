"""A tokenizer that needs nothing of transformers, which takes half a second to import: `tokenizers` and jinja2 alone.

It stands in for a `PreTrainedTokenizerFast` where that would add nothing to tokenizer.json, as for all that
`jaxdiff train` writes. Whatever else a folder says is left to transformers (`text.open_tokenizer`).
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.files import read_object

NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
SILENT = ("backend", "tokenizer_class", "model_max_length", "is_local", "local_files_only", "padding_side")
CLASSES = (None, "TokenizersBackend", "PreTrainedTokenizerFast")
VARIABLES = {"messages", "add_generation_prompt", *NAMED}  # that a template may ask for
MOST_TOKENS = 100_000  # transformers mends the pre-tokenizers of some larger vocabularies


class PlainTokenizer:
    """What is used here of a `PreTrainedTokenizerFast`, with the same results (`tests/convert/test_plain.py`).

    Attributes:
        chat_template: a jinja template, or None.
        backend_tokenizer: the tokenizers.Tokenizer.
    """

    def __init__(self, backend: Any, chat_template: str, named: dict[str, str]) -> None:
        """`named`: the special tokens by their names in tokenizer_config.json."""
        self.backend_tokenizer, self._named = backend, named
        self.chat_template: str | None = chat_template

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def mask_token_id(self) -> int | None:
        return self._id("mask_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = False) -> str:
        return self.backend_tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
    ) -> Any:
        """The ids of the template's text, or the text; never a dict. Raises whatever the template does."""
        rendered = _template(self.chat_template or "").render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._named
        )
        return self.encode(rendered, add_special_tokens=False) if tokenize else rendered

    def _id(self, name: str) -> int | None:
        return self.backend_tokenizer.token_to_id(self._named[name]) if name in self._named else None


def open_plain(folder: Path, names: list[str]) -> PlainTokenizer | None:
    """The tokenizer of a folder that has these files, or None for one that transformers may understand otherwise.

    What is damaged is among those: transformers has the words for it.
    """
    if set(names) != {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}:
        return None
    if any((folder / name).read_bytes()[:3] == codecs.BOM_UTF8 for name in names):
        return None
    config = read_object(folder / "tokenizer_config.json")
    named = {name: value for name, value in config.items() if name in NAMED and isinstance(value, str)}
    if config.keys() - named.keys() - set(SILENT) or config.get("tokenizer_class") not in CLASSES:
        return None
    from tokenizers import Tokenizer

    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the library raises a bare one
        return None
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    whole = backend.truncation is None and backend.padding is None and backend.post_processor is not None
    if not whole or set(named.values()) - added or backend.get_vocab_size() > MOST_TOKENS or not _is_plain(template):
        return None
    return PlainTokenizer(backend, template, named)


def _is_plain(template: str) -> bool:
    """Whether a template asks for nothing but the messages: none of what transformers puts beside jinja's own."""
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _environment().parse(template)
    except TemplateError:
        return False
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    return meta.find_undeclared_variables(tree) <= VARIABLES and "tojson" not in filters


@functools.cache
def _environment() -> Any:
    """As transformers has it, without any name of its own."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.globals.clear()  # some are others there; a template that asks for one is not plain
    return made


@functools.lru_cache
def _template(text: str) -> Any:
    return _environment().from_string(text)
