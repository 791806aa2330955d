"""A published folder: config.json and what stands beside it; tensors, which stay in their files until asked for.

No code of a checkpoint is run: `auto_map` and Python files are ignored, a pickle may hold tensors and nothing else.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.convert.engine import DTYPES, Spec
from jaxdiff.files import read_object, refusing
from jaxdiff.models import family_of
from jaxdiff.types import InputError

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
Read = Callable[[str, slice], np.ndarray]

_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # safetensors' words


def is_published(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder is as its family publishes it, and not one of ours."""
    return "family" not in config and not (folder / "params").is_dir()


def with_ids(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A folder's config.json, with the special ids it lacks from generation_config.json and tokenizer_config.json.

    The first end-of-text id that the files name is `eos_token_id`; another one is a turn's end, `eot_token_id`.

    Raises InputError for a config of no family that is known here, and for ids that are none.
    """
    try:
        family_of(config)  # before anything large is opened
    except InputError as error:
        raise InputError(f"{folder / CONFIG}: {str(error).removeprefix('config.json: ')}") from error
    generation, words = read_object(folder / GENERATION, optional=True), _token_ids(folder)
    ids = {}
    for name in ("mask_token", "eos_token", "pad_token"):
        key = f"{name}_id"
        files = {CONFIG: config.get(key), GENERATION: generation.get(key), TOKENIZER: words.get(name)}
        ids[key] = list(dict.fromkeys(i for file, found in files.items() for i in _ids(folder / file, key, found)))
    merged = dict(config) | {key: found[0] for key, found in ids.items() if found}
    if len(ids["eos_token_id"]) > 1 and config.get("eot_token_id") is None:
        merged["eot_token_id"] = ids["eos_token_id"][1]
    return merged


def _ids(file: Path, key: str, found: Any) -> list[int]:
    values = found if isinstance(found, list) else [] if found is None else [found]
    if wrong := [i for i in values if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise InputError(f"{file} {key}: found {wrong[0]!r}, expected a token id")
    return values


def _token_ids(folder: Path) -> dict[str, Any]:
    """The special tokens that tokenizer_config.json names, as ids: its own list tells them, or tokenizer.json's."""
    config = read_object(folder / TOKENIZER, optional=True)
    if not config:
        return {}
    added = config.get("added_tokens_decoder")
    listed = read_object(folder / "tokenizer.json", optional=True).get("added_tokens")
    known: dict[Any, Any] = {}
    if isinstance(added, dict):
        known = {t.get("content"): int(i) for i, t in added.items() if isinstance(t, dict) and i.isdecimal()}
    if isinstance(listed, list):
        known |= {t.get("content"): t.get("id") for t in listed if isinstance(t, dict)}
    words = {name: token.get("content") if isinstance(token, dict) else token for name, token in config.items()}
    return {name: known[word] for name, word in words.items() if isinstance(word, str) and word in known}


class Files:
    """The tensors of a folder, as `jaxdiff.convert.engine.Tensors`. Headers are read when it is made, and no number.

    Raises InputError for a folder without weights, a damaged file, and shards that are not those of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.specs: dict[str, Spec] = {}
        self._reads: dict[str, Read] = {}
        for name, opened in ((SAFETENSORS, _safetensors), (PICKLE, _pickle)):
            if (index := folder / f"{name}.index.json").is_file():
                self._open_shards(index, opened)
                return
            if (folder / name).is_file():
                self._add(*opened(folder / name))
                return
        raise InputError(f"{folder}: no weights; expected {SAFETENSORS} or {PICKLE}, or the index of one in shards")

    @property
    def dtype(self) -> str:
        """What to compute in: the dtype of most of the numbers; float32 for float16, whose numbers it holds exactly."""
        sizes: dict[str, int] = {}
        for spec in self.specs.values():
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + int(np.prod(spec.shape, dtype=np.int64))
        found = max(sizes, key=lambda name: sizes[name], default="none")
        if found not in DTYPES:
            raise InputError(f"{self.name}: found tensors of dtype {found}, expected {', '.join(DTYPES)}")
        return "float32" if found == "float16" else found

    def read(self, key: str, rows: slice) -> np.ndarray:
        with refusing(f"{self.specs[key].file} {key}: cannot be read", "get the file again"):
            return self._reads[key](key, rows)

    def _add(self, specs: dict[str, Spec], read: Read) -> None:
        self.specs |= specs
        self._reads |= dict.fromkeys(specs, read)

    def _open_shards(self, index: Path, opened: Callable[[Path], tuple[dict[str, Spec], Read]]) -> None:
        listed = read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(f, str) for f in listed.values()):
            raise InputError(f"{index} weight_map: expected an object, tensor to file; restore the file")
        folder, faults = index.parent, []
        for name in sorted(set(listed.values())):
            if Path(name).name != name:
                raise InputError(f"{index} weight_map: found {name!r}, expected the name of a file beside it")
            if not (folder / name).is_file():
                faults.append(f"{folder / name}: found no file, expected the shard that {index.name} lists")
                continue
            specs, read = opened(folder / name)
            faults += [f"{folder / name} {key!r}: not in {index.name}" for key in specs if listed.get(key) != name]
            faults += [
                f"{folder / name} {key!r}: found nothing, expected what {index.name} lists"
                for key, file in listed.items()
                if file == name and key not in specs
            ]
            self._add(specs, read)
        stem, suffix = index.name.removesuffix(".index.json").rsplit(".", 1)
        beside = {path.name for path in folder.glob(f"{stem}-*-of-*.{suffix}")} - set(listed.values())
        faults += [f"{folder / name}: found a shard that {index.name} does not list" for name in sorted(beside)]
        if faults:
            raise InputError("; ".join(faults))


def _safetensors(path: Path) -> tuple[dict[str, Spec], Read]:
    from safetensors import safe_open

    with refusing(f"{path}: damaged", "get the file again"):  # OSError, SafetensorError, and more for odd headers
        file = safe_open(path, framework="np")
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        specs = {
            key: Spec(tuple(one.get_shape()), _NAMES.get(one.get_dtype(), one.get_dtype()), str(path))
            for key, one in slices.items()
        }
    return specs, lambda key, rows: slices[key][rows]


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

    def read(key: str, rows: slice) -> np.ndarray:
        tensor = found[key][rows].contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has none of its own
            return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
        return tensor.numpy()

    specs = {
        key: Spec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), str(path))
        for key, tensor in found.items()
    }
    return specs, read
