"""A published folder's tokenizer: its own files, its own chat template; a fallback where it has none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from jaxdiff.files import copy_present, read_object, refusing
from jaxdiff.types import InputError

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_TEMPLATES = Path(__file__).parent / "templates"


def open_tokenizer(folder: Path, family: str | None = None) -> Any:
    """A transformers tokenizer from a folder's files, or None where it has none; no code of the folder is run.

    A folder with `vocab.json` and `merges.txt` alone holds Qwen's byte-level BPE, as Dream and SDAR are published.
    Where the files give no chat template, it has the fallback of `family`.

    Raises InputError for damaged files.
    """
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch: none is needed
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer  # slow to import, and not needed for ids

    kind: Any = PreTrainedTokenizerFast if whole else Qwen2Tokenizer
    with refusing(f"{folder / ('tokenizer.json' if whole else 'vocab.json')}: damaged", "restore the file"):
        fast = kind.from_pretrained(str(folder), trust_remote_code=False)
        if not whole:
            _check_ids(folder, fast)
    if fast.chat_template is None and family is not None:
        fast.chat_template = fallback_template(family, fast)
    return fast


def _check_ids(folder: Path, fast: Any) -> None:
    """A tokenizer made of vocab and merges numbers its added tokens anew: they must come out as they were published."""
    file = folder / "tokenizer_config.json"
    for number, token in read_object(file, optional=True).get("added_tokens_decoder", {}).items():
        content = token.get("content")
        if (found := fast.get_vocab().get(content)) != int(number):
            raise InputError(f"{file} {content}: found id {found} after {folder / 'vocab.json'}, expected {number}")


def fallback_template(family: str, fast: Any) -> str | None:
    """The family's chat template, unless the tokenizer lacks one of its special tokens (a base model's does)."""
    file = _TEMPLATES / f"{family}.jinja"
    template = file.read_text() if file.is_file() else ""
    return template if template and fast.get_vocab().keys() >= set(re.findall(r"<\|\w+\|>", template)) else None


def copy_tokenizer(fast: Any, source: Path, target: Path) -> None:
    """Copy the files of a tokenizer that `source` was opened as; what they lack is written beside them."""
    copy_present(FILES, source, target)
    if not (target / "tokenizer.json").is_file():
        fast.backend_tokenizer.save(str(target / "tokenizer.json"))
    if isinstance(fast.chat_template, str) and not (target / "chat_template.jinja").is_file():
        (target / "chat_template.jinja").write_text(fast.chat_template)
