"""A published folder's tokenizer: its own files, its own chat template; a fallback where it has none."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import reprlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdiff.convert.plain import open_plain
from jaxdiff.files import copy_present, first_line, read_object, refusing
from jaxdiff.types import InputError

TEMPLATE, NAMED_TEMPLATES = "chat_template.jinja", "additional_chat_templates"  # a file, a folder of others
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    TEMPLATE,
)
_NO_LIMIT = 10**30  # transformers' own word for none
_TEMPLATES = Path(__file__).parent / "templates"


def tokenizer_files(folder: Path) -> list[str]:
    """The names of a tokenizer's files that a folder holds, with the chat templates of its folder of others."""
    named = sorted(path.relative_to(folder).as_posix() for path in (folder / NAMED_TEMPLATES).glob("*.jinja"))
    return [name for name in (*FILES, *named) if (folder / name).is_file()]


def open_tokenizer(folder: Path, family: str | None = None) -> Any:
    """A transformers tokenizer from a folder's files, or one that does the same without (`plain`), or None where it has
    none; no code of the folder is run.

    A folder with `vocab.json` and `merges.txt` alone holds Qwen's byte-level BPE, as Dream and SDAR are published.
    Where the files give no chat template, it has the fallback of `family`.

    Raises InputError for damaged files.
    """
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    _check_template(folder)
    if (plain := open_plain(folder, tokenizer_files(folder))) is not None:
        return plain
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch: none is needed
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer  # slow to import, and not needed for ids

    kind: Any = PreTrainedTokenizerFast if whole else Qwen2Tokenizer
    with _unmarked(folder) as clean:
        try:
            fast = kind.from_pretrained(str(clean), trust_remote_code=False)
        except Exception as error:
            file = _damaged(clean) if whole else "vocab.json"
            raise InputError(f"{folder / file}: damaged ({first_line(error)}); restore the file") from error
    if not whole:
        _check_ids(folder, fast)
    fast.model_max_length = _NO_LIMIT  # whatever the file says, and of whatever type: lengths are checked here
    if fast.chat_template == {}:  # an empty list in the file
        fast.chat_template = None
    if fast.chat_template is None and family is not None:
        fast.chat_template = fallback_template(family, fast)
    return fast


def _damaged(folder: Path) -> str:
    """The name of the file that keeps a tokenizer.json from being opened: itself, or the config beside it."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:
        return "tokenizer.json"
    return "tokenizer_config.json"


@contextlib.contextmanager
def _unmarked(folder: Path) -> Iterator[Path]:
    """The folder, or a copy of its tokenizer files without their byte order marks, which the libraries do not take."""
    names = tokenizer_files(folder)
    if not any((folder / name).read_bytes()[:3] == codecs.BOM_UTF8 for name in names):
        yield folder
        return
    with tempfile.TemporaryDirectory() as home:
        for name in names:
            (Path(home) / name).parent.mkdir(exist_ok=True)
            (Path(home) / name).write_bytes((folder / name).read_bytes().removeprefix(codecs.BOM_UTF8))
        yield Path(home)


def _check_template(folder: Path) -> None:
    """Raises InputError, which names the file, for a chat template that is no text, nor some by name."""
    for file in (folder / name for name in tokenizer_files(folder) if name.endswith(".jinja")):
        with refusing(f"{file}: damaged", "restore the file", (OSError, ValueError)):
            file.read_text(encoding="utf-8")
    found = read_object(folder / "tokenizer_config.json", optional=True).get("chat_template")
    named = found if isinstance(found, list) else []
    texts = [part.get(key) for part in named if isinstance(part, dict) for key in ("name", "template")]
    whole = len(texts) == 2 * len(named) and all(isinstance(words, str) for words in texts)
    if not isinstance(found, str | list | None) or not whole:
        raise InputError(
            f"{folder / 'tokenizer_config.json'} chat_template: found {reprlib.repr(found)}, expected a text, or a "
            "list of objects with name and template; restore the file"
        )


def template_file(folder: Path) -> str:
    """Where a folder's chat template stands, for messages."""
    if (folder / TEMPLATE).is_file():
        return str(folder / TEMPLATE)
    if (folder / NAMED_TEMPLATES).is_dir():
        return str(folder / NAMED_TEMPLATES)
    if read_object(folder / "tokenizer_config.json", optional=True).get("chat_template") not in (None, []):
        return f"{folder / 'tokenizer_config.json'} chat_template"
    return f"{folder} (the family's chat template)"


def _check_ids(folder: Path, fast: Any) -> None:
    """A tokenizer made of vocab and merges numbers its added tokens anew: they must come out as they were published."""
    known = fast.get_vocab()
    config, added = (folder / name for name in ("tokenizer_config.json", "added_tokens.json"))
    for file in (config, added):
        with refusing(f"{file}: damaged", "restore the file"):
            listed = read_object(file, optional=True)
            if file == config:
                tokens = listed.get("added_tokens_decoder") or {}
                listed = {token.get("content"): number for number, token in tokens.items()}
            for content, number in listed.items():
                if (found := known.get(content)) != int(number):
                    raise InputError(
                        f"{file} {content}: found id {found} after {folder / 'vocab.json'}, expected {number}"
                    )


def fallback_template(family: str, fast: Any) -> str | None:
    """The family's chat template, unless the tokenizer lacks one of its special tokens (a base model's does)."""
    file = _TEMPLATES / f"{family}.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else ""
    return template if template and fast.get_vocab().keys() >= set(re.findall(r"<\|\w+\|>", template)) else None


def copy_tokenizer(fast: Any, source: Path, target: Path) -> None:
    """Copy the files of a tokenizer that `source` was opened as; what they lack is written beside them."""
    copy_present(tokenizer_files(source), source, target)
    if not (target / "tokenizer.json").is_file():
        fast.backend_tokenizer.save(str(target / "tokenizer.json"))
    if isinstance(fast.chat_template, str) and not (target / TEMPLATE).is_file():
        (target / TEMPLATE).write_text(fast.chat_template, encoding="utf-8")
