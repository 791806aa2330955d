"""Folders that hold no model that is read here, told by what lies in them: one line each, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdiff.convert import fp8
from jaxdiff.files import read_object
from jaxdiff.types import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"  # how a Git LFS pointer begins
_READ = (".json", ".jinja", ".txt", ".safetensors", ".bin")  # what files that are read end with
_WEIGHTS = ("*.safetensors", "*.bin", "params")
# Tensors that a layer of LoRA, or a packed matrix, has beside or in place of its weight.
_LORA = re.compile(r"\.?lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
# Tensors of matrices that are packed, and what packs them so. float8 with scales is read (`fp8`).
_PACKED = {
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)$",
    "bitsandbytes": r"\.(absmax|quant_map|nested_absmax|SCB|weight_format)$|\.quant_state\.",
    "compressed-tensors": r"\.(weight_packed|weight_zero_point|weight_g_idx)$",
    "modelopt": r"\.weight_scale_2$",
    "EETQ": r"\.weight_scales$",
    "HQQ": r"\.W_q$",
    "AQLM": r"\.(codebooks|codes)$",
    "quanto": r"\.weight\._(data|scale)$",
    "QuIP#": r"\.(Qidxs|SU|SV)$",
    "MLX": r"\.(scales|biases)$",
}
QUANTISED = "quantization_config"  # a key of config.json
_QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # older files of their own
_PLAIN = (
    "expected plain float32, bfloat16 or float16, or float8 (e4m3) with scales; get the weights that these were made "
    "from (load(weights='int8') or --weights int8 halves bfloat16's memory)"
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
    for key in (QUANTISED, "quantization"):
        given = config.get(key)
        if given and key not in ignored and not fp8.is_float8(given):
            raise InputError(
                f"{folder / 'config.json'} {key}: found weights quantised by {_method(key, given)}, {_PLAIN}"
            )
    for name in _QUANTISERS:
        if (folder / name).is_file():
            raise InputError(f"{folder / name}: found weights that are quantised, {_PLAIN}")


def _method(key: str, given: Any) -> str:
    """What quantised weights, as a config.json says it."""
    if not isinstance(given, Mapping):
        return ascii(given)[:80]
    method = given.get("quant_method") or given.get("quant_algo")
    if method is None:
        return "MLX" if {"group_size", "bits"} <= given.keys() or key != QUANTISED else "an unnamed method"
    bits = next((f" in {n} bits" for n in (4, 8) if given.get(f"load_in_{n}bit") is True), "")
    kind = given.get("format") or given.get("fmt")
    named = ascii(method).strip("'")[:80]
    return f"{named}{bits}" + (f" ({ascii(kind)[1:-1]:.80})" if isinstance(kind, str) else "")


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Raises InputError where the tensors' names are those of an adapter, or of packed weights."""
    for name in names:
        if _LORA.search(name):
            raise InputError(_adapter(folder, f"tensor {name!r}", None))
        if by := next((method for method, pattern in _PACKED.items() if re.search(pattern, name)), None):
            raise InputError(f"{folder}: holds weights quantised by {by} (tensor {name!r}), {_PLAIN}")


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
        f"{folder}: holds a LoRA adapter{of} ({sign}), expected a whole model; name the model, and this folder with "
        "--adapter (load(adapter=...))"
    )
