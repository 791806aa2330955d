"""Folders that hold no model that is read here, told by what lies in them: one line each, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.files import read_object
from jaxdiff.types import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins
_READ = (".json", ".jinja", ".txt", ".safetensors", ".bin")  # what files that are read end with
_WEIGHTS = ("*.safetensors", "*.bin", "params")
# Tensors that a layer of LoRA, or a packed matrix, has beside or in place of its weight.
_LORA = re.compile(r"\.?lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|weight_scale|weight_scale_inv|weight_packed|absmax|quant_map|SCB)$|\.quant_state\."
)
QUANTISED = "quantization_config"  # a key of config.json
_QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # older files of their own
_PLAIN = (
    "expected plain float32, bfloat16 or float16; get the model's unquantised weights (weights='int8' is made here)"
)


def check_kind(folder: Path) -> None:
    """Raises InputError for an adapter, a diffusers pipeline, GGUF files, and links or Git LFS pointers in place
    of files.
    """
    if (folder / "adapter_config.json").is_file():
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
        raise InputError(_adapter(folder, "adapter_config.json", base))
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: holds a diffusers pipeline (model_index.json), expected one language model; name its folder "
            "that holds config.json and the text model's weights"
        )
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    if gguf and not any(any(folder.glob(kind)) for kind in _WEIGHTS):
        raise InputError(
            f"{folder}: holds GGUF weights alone ({gguf[0]}), which llama.cpp reads, expected safetensors; get the "
            "model's safetensors"
        )
    broken = sorted(
        path for path in folder.iterdir() if path.suffix in _READ and path.is_symlink() and not path.exists()
    )
    if broken:
        there = ", ".join(path.name for path in broken[:3]) + (" ..." if len(broken) > 3 else "")
        raise InputError(f"{folder}: {there}: found a link to a file that is not there; get the files again")
    if pointers := sorted(str(path.relative_to(folder)) for path in _files(folder) if is_pointer(path)):
        raise InputError(
            f"{folder}: {', '.join(pointers[:3])}{' ...' if len(pointers) > 3 else ''}: found a Git LFS pointer in "
            f"place of the file; run `git lfs pull` in the folder, or download the file again"
        )


def check_plain(folder: Path, config: Mapping[str, Any], ignored: Iterable[str]) -> None:
    """Raises InputError for weights that a config.json, or a file beside it, calls quantised."""
    given = config.get(QUANTISED)
    if given and QUANTISED not in ignored:
        method = given.get("quant_method") or given.get("quant_algo") if isinstance(given, Mapping) else given
        raise InputError(
            f"{folder / 'config.json'} {QUANTISED}: found weights quantised by "
            f"{method or 'an unnamed method'}, {_PLAIN}"
        )
    for name in _QUANTISERS:
        if (folder / name).is_file():
            raise InputError(f"{folder / name}: found weights that are quantised, {_PLAIN}")


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Raises InputError where the tensors' names are those of an adapter, or of packed weights."""
    for name in names:
        if _LORA.search(name):
            raise InputError(_adapter(folder, f"tensor {name!r}", None))
        if _PACKED.search(name):
            raise InputError(f"{folder}: holds weights that are quantised (tensor {name!r}), {_PLAIN}")


def without_config(folder: Path) -> str:
    """What to say of a folder that holds no config.json."""
    inner = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/config.json"))
    inner += sorted(str(path.parent.relative_to(folder)) for path in folder.glob("snapshots/*/config.json"))
    if inner:
        some = ", ".join(inner[:5])
        return f"model: no config.json in {str(folder)!r}; name one of its folders that hold one: {some}"
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    return f"model: no config.json in {str(folder)!r}, which holds {held}; name a folder that holds a model"


def is_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer; one that cannot be read is refused by who needs it."""
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _files(folder: Path) -> Iterable[Path]:
    yield from (path for path in folder.iterdir() if path.is_file())
    yield from (path for path in (folder / "params").rglob("*") if path.is_file())


def _adapter(folder: Path, sign: str, base: Any) -> str:
    of = f" of {base}" if isinstance(base, str) else ""
    return (
        f"{folder}: holds a LoRA adapter{of} ({sign}), expected a whole model; merge it into its base model (peft's "
        "merge_and_unload), save that with its config.json, and name that folder"
    )
