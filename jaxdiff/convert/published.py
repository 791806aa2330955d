"""A published folder: config.json and what stands beside it; tensors, which stay in their files until asked for.

No code of a checkpoint is run: `auto_map` and Python files are ignored, a pickle may hold tensors and nothing else.
"""

from __future__ import annotations

import functools
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxdiff.convert.engine import DTYPES, Spec
from jaxdiff.files import parse_json, read_object, refusing
from jaxdiff.models import family_of
from jaxdiff.types import InputError

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
Read = Callable[[str, slice], np.ndarray]
Open = Callable[[Path], tuple[dict[str, Spec], Read]]

_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": FLOAT8.name}  # safetensors' words


def is_published(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder is as its family publishes it, and not one of ours."""
    return "family" not in config and not (folder / "params").is_dir()


def with_ids(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A folder's config.json, with the special ids of generation_config.json and the tokenizer's files; and notes.

    The first mask that the files name is it. All that they name as end-of-text, one id or a list of any length, and the
    tokenizer's, end an answer: `eos_token_id` becomes the list of them.

    Raises InputError for a config of no family that is known here, and for ids that are none, lie outside the
    vocabulary, or are both the mask and an end.
    """
    try:
        family_of(config)  # before anything large is opened
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {str(error).removeprefix('config.json: ')}") from error
    generation, words, specials = read_object(folder / GENERATION, optional=True), *_token_ids(folder)
    size = config.get("vocab_size")
    named: dict[str, dict[int, str]] = {}  # key -> id -> where it is named first
    for key, word in (("mask_token_id", "mask_token"), ("eos_token_id", "eos_token"), ("eot_token_id", "eot_token")):
        named[key] = {}
        places = (
            (CONFIG, key, config),
            (GENERATION, key, generation),
            (TOKENIZER, word, words),
            (SPECIAL, word, specials),
        )
        for file, name, values in places:
            where = f"{folder / file} {name}"
            ids = _ids(where, values.get(name), size)
            if key == "mask_token_id" and len(ids) > 1:
                raise InputError(f"{where}: found {ids}, expected one token id")
            for i in ids:
                named[key].setdefault(i, where)
    masks, ends, turns = named.values()
    first, others = list(masks.items())[:1], list(masks.items())[1:]
    for mask, where in first:
        if end := (ends | turns).get(mask):
            raise InputError(
                f"{end}: found {mask}, which {where} names as the mask, expected another: [MASK] is never predicted, "
                "so no answer would end; correct the wrong one"
            )
    merged = dict(config) | ({"mask_token_id": first[0][0]} if first else {})
    merged |= {key: list(found) for key, found in (("eos_token_id", ends), ("eot_token_id", turns)) if found}
    return merged, [f"{where} names the mask {mask} too, which is passed over" for mask, where in others]


def _ids(where: str, found: Any, size: Any) -> list[int]:
    values = found if isinstance(found, list) else [] if found is None else [found]
    if wrong := [i for i in values if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise InputError(f"{where}: found {wrong[0]!r}, expected a token id")
    if outside := [i for i in values if type(size) is int and i >= size]:
        raise InputError(f"{where}: found {outside[0]}, expected an id under vocab_size {size}")
    return values


def _token_ids(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The special tokens that tokenizer_config.json and special_tokens_map.json name, as ids."""
    config, specials = (read_object(folder / name, optional=True) for name in (TOKENIZER, SPECIAL))
    if not config and not specials:
        return {}, {}
    known = _ids_of_tokens(folder, config)

    def ids(named: Mapping[str, Any]) -> dict[str, int]:
        words = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
        return {name: known[word] for name, word in words.items() if isinstance(word, str) and word in known}

    return ids(config), ids(specials)


def _ids_of_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Text to id, as a tokenizer's files list its tokens; one that was added comes before a word of the vocabulary."""
    whole = read_object(folder / "tokenizer.json", optional=True)
    if whole:
        vocabularies = [whole["model"].get("vocab")] if isinstance(whole.get("model"), dict) else []
    else:
        vocabularies = [read_object(folder / name, optional=True) for name in ("vocab.json", "added_tokens.json")]
    tokens = [(i, text) for words in vocabularies if isinstance(words, dict) for text, i in words.items()]
    added, listed = config.get("added_tokens_decoder"), whole.get("added_tokens")
    objects = list(added.items()) if isinstance(added, dict) else []
    objects += [(t.get("id"), t) for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    tokens += [(i, t.get("content")) for i, t in objects if isinstance(t, dict)]
    return {str(text): int(i) for i, text in tokens if str(i).isdecimal()}


class Files:
    """The tensors of a folder, as `jaxdiff.convert.engine.Tensors`. Headers are read when it is made, and no number.

    One file comes before shards, as transformers reads them. Of a folder in shards, the index says which files hold
    the model; what they hold is what their headers say.

    `names`: of the files that may hold them: safetensors, PyTorch's pickle. `beyond`: how files are opened that are not
    in the folder, by their names.

    Raises InputError for a folder without weights, a damaged file, a shard that is not there, and a tensor in two
    shards of which the index names neither.
    """

    def __init__(
        self,
        folder: Path,
        names: tuple[str, str] = (SAFETENSORS, PICKLE),
        *,
        beyond: Mapping[str, Open] | None = None,
    ) -> None:
        self.name = str(folder)
        self._beyond = beyond or {}
        self.notes: list[str] = []  # what lies there as well and is not read; where an index is not as the shards are
        self.specs: dict[str, Spec] = {}
        self._reads: dict[str, Read] = {}
        ways = tuple(zip(names, (_safetensors, _pickle), strict=True))
        there = [
            (path, opened)
            for name, opened in ways
            for path in (folder / name, folder / f"{name}.index.json")  # as transformers
            if self._is_there(path)
        ]
        numbered = [(shards, opened) for name, opened in ways if (shards := _numbered(folder, name))]
        if there:
            (path, opened), *others = there
            self.notes += [f"{other.name} is not read, for {path.name} is there" for other, _ in others]
            if path.suffix == ".json":
                self._open_shards(path, opened)
            else:
                self._add(*self._beyond.get(path.name, opened)(path))
        elif numbered:
            self._open_numbered(*numbered[0])
        else:
            found = sorted(
                path.name for kind in ("*.safetensors", "*.bin", "*.pt*", "*.h5") for path in folder.glob(kind)
            )
            beside = f", found {', '.join(found[:3])}" if found else ""
            raise InputError(
                f"{folder}: no weights; expected {names[0]} or {names[1]}, or the index of one in shards{beside}"
            )
        if not self.specs:
            where = there[0][0] if there else folder
            raise InputError(f"{where}: found no tensors in it, expected the model's weights; get the file again")

    def read(self, key: str, rows: slice) -> np.ndarray:
        with refusing(f"{self.specs[key].file} {key}: cannot be read", "get the file again"):
            return self._reads[key](key, rows)

    def _is_there(self, path: Path) -> bool:
        return path.is_file() or path.name in self._beyond

    def _add(self, specs: Mapping[str, Spec], read: Read) -> None:
        self.specs |= specs
        self._reads |= dict.fromkeys(specs, read)

    def _open_shards(self, index: Path, opened: Open) -> None:
        listed = read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(f, str) for f in listed.values()):
            raise InputError(f"{index} weight_map: expected an object, tensor to file; restore the file")
        folder, faults, twice = index.parent, [], []
        for name in sorted(set(listed.values())):
            if Path(name).name != name:
                raise InputError(f"{index} weight_map: found {name!r}, expected the name of a file beside it")
            if not self._is_there(folder / name):
                faults.append(f"{folder / name}: found no file, expected the shard that {index.name} lists")
                continue
            specs, read = self._beyond.get(name, opened)(folder / name)
            # A tensor that two shards hold is the one that the index names.
            held = {key: spec for key, spec in specs.items() if key not in self.specs or listed.get(key) == name}
            twice += [key for key in specs if key in self.specs and listed.get(key) not in (name, self.shard(key))]
            self._add(held, read)
        faults += [
            f"{self.specs[key].file} {key!r}: found in another shard too; {index.name} names none" for key in twice
        ]
        stem, suffix = index.name.removesuffix(".index.json").rsplit(".", 1)
        beside = {path.name for path in folder.glob(f"{stem}-*-of-*.{suffix}")} - set(listed.values())
        if faults:
            raise InputError(
                "; ".join([*faults, *(f"found {name}, which it does not list" for name in sorted(beside))])
            )
        unlisted = [key for key in self.specs if key not in listed]
        moved = [key for key in self.specs if listed.get(key, self.shard(key)) != self.shard(key)]
        self.notes += [
            f"{index.name} {words}: {_some(keys)}"
            for words, keys in (
                ("lists tensors that no shard holds", sorted(listed.keys() - self.specs.keys())),
                ("does not list tensors that its shards hold", unlisted),
                ("names another shard for", moved),
                ("does not list files beside it, which are not read", sorted(beside)),
            )
            if keys
        ]

    def _open_numbered(self, shards: list[Path], opened: Callable[[Path], tuple[dict[str, Spec], Read]]) -> None:
        """All shards of a set that has no index."""
        for path in shards:
            specs, read = opened(path)
            if twice := sorted(specs.keys() & self.specs.keys()):
                raise InputError(
                    f"{path} {twice[0]!r}: found in another shard too, and no index names one; get it again"
                )
            self._add(specs, read)
        self.notes.append(f"no index lists the {len(shards)} shards ({shards[0].name} ...), which are all there")

    def shard(self, key: str) -> str:
        """The name of the file that holds a tensor."""
        return Path(self.specs[key].file).name


def _numbered(folder: Path, name: str) -> list[Path]:
    """The shards of a file of this name, in order, where all are there and of one set; else none."""
    stem, suffix = name.rsplit(".", 1)
    found = {
        path: (int(match[1]), int(match[2]))
        for path in sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if (match := re.fullmatch(rf"{stem}-(\d{{1,6}})-of-(\d{{1,6}})\.{suffix}", path.name))
    }
    return list(found) if [*found.values()] == [(i + 1, len(found)) for i in range(len(found))] else []


def _some(names: list[str]) -> str:
    shown = ", ".join(ascii(name)[1:-1] for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _safetensors(path: Path) -> tuple[dict[str, Spec], Read]:
    from safetensors import safe_open

    with refusing(f"{path}: damaged", "get the file again"):  # OSError, SafetensorError, and more for odd headers
        file = safe_open(path, framework="np")
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        specs = {
            key: Spec(tuple(one.get_shape()), _NAMES.get(one.get_dtype(), one.get_dtype()), str(path))
            for key, one in slices.items()
        }

    places = functools.cache(lambda: _places(path))

    def read(key: str, rows: slice) -> np.ndarray:
        shape = specs[key].shape
        if specs[key].dtype == FLOAT8.name:  # numpy has none of its own, and safetensors gives none
            return np.memmap(path, np.uint8, "r", places()[key], (math.prod(shape),)).view(FLOAT8).reshape(shape)[rows]
        return slices[key][rows] if shape else file.get_tensor(key)

    return specs, read


def _places(path: Path) -> dict[str, int]:
    """Where in a safetensors file each tensor begins."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(start - 8).decode())
    return {key: start + entry["data_offsets"][0] for key, entry in header.items() if key != "__metadata__"}


def announced(
    path: Path, header: Iterable[tuple[str, str, tuple[int, ...]]], fetch: Callable[[], object]
) -> tuple[dict[str, Spec], Read]:
    """The tensors of a safetensors file that is not there, by its header (name, dtype, shape): `fetch` is to put it
    there when a number is asked for.
    """

    @functools.cache
    def opened() -> Read:
        fetch()
        return _safetensors(path)[1]

    specs = {key: Spec(tuple(shape), _NAMES.get(dtype, dtype), str(path)) for key, dtype, shape in header}
    return specs, lambda key, rows: opened()(key, rows)


def _pickle(path: Path) -> tuple[dict[str, Spec], Read]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading it needs PyTorch; pip install torch, or get the safetensors files"
        ) from error
    with refusing(f"{path}: refused, for it holds more than tensors or is damaged", "get the safetensors"):
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(found, dict) or not all(isinstance(k, str) and torch.is_tensor(t) for k, t in found.items()):
        raise InputError(f"{path}: found no tensors by name, expected a state dict; get the safetensors")

    for key, tensor in found.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "no numbers (device meta)" if tensor.is_meta else f"a tensor of layout {tensor.layout}"
            raise InputError(f"{path} {key!a}: found {kind}, expected a dense tensor; get the safetensors")

    def read(key: str, rows: slice) -> np.ndarray:
        whole = found[key].detach()  # a parameter, saved as one, has no numpy view
        tensor = (whole[rows] if whole.ndim else whole).contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has none of its own
            return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
        if tensor.dtype == torch.float8_e4m3fn:
            return tensor.view(torch.uint8).numpy().view(FLOAT8)
        return tensor.numpy()

    specs = {
        key: Spec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), str(path))
        for key, tensor in found.items()
    }
    return specs, read


OPEN: dict[str, Open] = {".safetensors": _safetensors, ".bin": _pickle}  # by a file's suffix
