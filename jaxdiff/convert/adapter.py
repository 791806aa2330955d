"""A LoRA adapter as peft saves it, merged into its model's tensors as they are read.

    adapter_config.json, adapter_model.safetensors -> Adapter;  W + s B A for each matrix W [O, I] that it names

`lora_A` is [r, I] and `lora_B` [O, r]; s is `lora_alpha` / r, or / sqrt(r) with `use_rslora`. An embedding W [V, D] has
`lora_embedding_A` [r, V] and `lora_embedding_B` [D, r]. A module of `modules_to_save` takes the place of the model's.
Facts: huggingface/peft `tuners/lora/layer.py`, `tuners/tuners_utils.py`, `utils/save_and_load.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.convert.engine import DTYPES, Tensors
from jaxdiff.convert.names import known_name
from jaxdiff.convert.published import Files
from jaxdiff.convert.table import Plan
from jaxdiff.files import first_line, read_object
from jaxdiff.types import InputError

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
ALL_LINEAR = "all-linear"
# Ways to draw the first numbers that leave the model's own as they are; others take some out of them.
_DRAWN = (None, True, False, "gaussian", "eva", "orthogonal")
_USED = (
    *("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules", "init_lora_weights"),
)
# What another value of changes the numbers: refused. `fan_in_fan_out` is of layers that store [I, O], which none does.
_REQUIRED = {
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "use_qalora": False,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
}
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "fan_in_fan_out", "inference_mode", "revision"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core"),
    *("lora_dropout", "peft_version", "qalora_group_size", "runtime_config", "task_type"),
)
# A tensor's name: the module, which of its tensors it is, and the adapter's own name, which peft leaves out.
_PIECE = re.compile(r"^(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.\w+)??(?:\.weight)?$")
_WHOLE = "whole"
# A whole tensor: of a module in `modules_to_save`, or of an embedding that has an adapter too.
_SAVED = re.compile(r"\.(?:modules_to_save(?:\.\w+)?|base_layer)(?=\.weight$|\.bias$)")


class Low(NamedTuple):
    """The two tensors of a matrix of low rank, as the files name them, and what their product is multiplied by."""

    a: str
    b: str
    scale: float
    embedding: bool


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that fits its model: each of its tensors is used.

    Attributes:
        path: its folder.
        files: its tensors.
        low: by the name of the model's tensor, what is added to it.
        saved: by the name of the model's tensor, the adapter's that takes its place.
    """

    path: Path
    files: Files
    low: Mapping[str, Low]
    saved: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, plan: Plan) -> Adapter:
        """Read a folder's config and the headers of its tensors, for a model of this plan.

        Raises InputError for a folder that holds no adapter of LoRA, one of a kind that is not computed here, and one
        that does not fit the model.
        """
        config = read_config(folder)
        files = Files(folder, FILES)
        adapter = cls(folder, files, *_sorted_out(files, plan, config, folder))
        if there := sorted(plan.tied & (adapter.low.keys() | adapter.saved.keys())):
            raise InputError(
                f"{folder}: changes {there[0]}, which is the model's embedding and its head at once, expected an "
                "adapter that leaves it; merge it with peft into a model whose head is its own"
            )
        adapter._check_targets(plan, config)
        adapter._check_shapes(plan)
        return adapter

    def merged(self, tensors: Tensors) -> Tensors:
        """The model's tensors with the adapter in them."""
        return Merged(tensors, self)

    def facts(self) -> dict[str, Any]:
        """What `jaxdiff inspect` shows, as plain data for JSON."""
        ranks = sorted({self.files.specs[low.a].shape[0] for low in self.low.values()})
        return {"path": str(self.path), "ranks": ranks, "matrices": len(self.low), "saved": sorted(self.saved)}

    def _check_shapes(self, plan: Plan) -> None:
        specs = self.files.specs
        for key, (a, b, _, embedding) in self.low.items():
            whole = plan.tensors[key][::-1] if embedding else plan.tensors[key]
            wanted = {a: (specs[a].shape[0], whole[1]), b: (whole[0], specs[a].shape[0])}
            for name, shape in wanted.items():
                self._check(name, shape)
        for key, name in self.saved.items():
            self._check(name, plan.tensors[key])

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        spec = self.files.specs[name]
        if spec.shape != shape or spec.dtype not in DTYPES:
            raise InputError(
                f"{spec.file} {name}: found shape {list(spec.shape)} and dtype {spec.dtype}, expected {list(shape)} "
                f"and {', '.join(DTYPES)}; the adapter is of another model"
            )

    def _check_targets(self, plan: Plan, config: Mapping[str, Any]) -> None:
        """Raises InputError where the config names other modules than those that have tensors."""
        low = {_module(key) for key in self.low}
        targeted = {
            module for module in map(_module, _matrices(plan, low, config)) if _is_target(module, config, self.path)
        }
        unsaved = {name for name in _strings(config, "modules_to_save", self.path) if not self._saves(name)}
        for key, words, modules in (
            ("target_modules", "names {0}, which has no tensors in the adapter", targeted - low),
            ("target_modules", "does not name {0}, which has tensors in the adapter", low - targeted),
            ("modules_to_save", "names {0}, which has no tensors in the adapter", unsaved),
        ):
            if modules:
                raise InputError(
                    f"{self.path / CONFIG} {key}: {words.format(min(modules))} (one of {len(modules)}), expected the "
                    "same modules in both; get the adapter again"
                )

    def _saves(self, name: str) -> bool:
        return any(_is_named(key.rpartition(".")[0], [name]) for key in self.saved)


class Merged:
    """A model's tensors with an adapter in them; those that it changes are read in float32."""

    def __init__(self, tensors: Tensors, adapter: Adapter) -> None:
        self.name, self.specs = tensors.name, tensors.specs
        self._tensors, self._adapter = tensors, adapter

    def read(self, key: str, rows: slice) -> np.ndarray:
        files, saved = self._adapter.files, self._adapter.saved.get(key)
        base = self._tensors.read(key, rows) if saved is None else files.read(saved, rows)
        if (low := self._adapter.low.get(key)) is None:
            return base
        a, b = (files.read(name, slice(None)).astype(np.float32) for name in (low.a, low.b))
        return base.astype(np.float32) + low.scale * (a[:, rows].T @ b.T if low.embedding else b[rows] @ a)


def read_config(folder: Path) -> dict[str, Any]:
    """An adapter's config. Raises InputError for one that asks for what is not computed here."""
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"adapter: no {CONFIG} in {str(folder)!r}; name the folder of a LoRA adapter that peft saved")
    config = read_object(file)
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{file} peft_type: found {config.get('peft_type')!r:.80}, expected 'LORA'; merge the adapter with peft "
            "(merge_and_unload), and name the merged model's folder"
        )
    if (drawn := config.get("init_lora_weights")) not in _DRAWN:
        raise InputError(
            f"{file} init_lora_weights: found {drawn!r:.80}, which changes the model's own weights too; convert the "
            "adapter to plain LoRA with peft (save_pretrained(path_initial_model_for_weight_conversion=...))"
        )
    for key, found in config.items():
        if key in _REQUIRED and (found or None) != (_REQUIRED[key] or None):
            raise InputError(
                f"{file} {key}: found {found!r:.80}, expected {_REQUIRED[key]!r}; merge the adapter with peft "
                "(merge_and_unload), and name the merged model's folder"
            )
        if key not in _REQUIRED and key not in _USED and key not in _HARMLESS and found:
            raise InputError(
                f"{file} {key}: found {found!r:.80}, expected keys that are known here; merge it with peft"
            )
    return config


def _sorted_out(
    files: Files, plan: Plan, config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Low], dict[str, str]]:
    """What each tensor of an adapter is to the model. Raises InputError for one that is nothing to it."""
    known = plan.tensors.keys() | plan.copies.keys()
    pieces: dict[str, dict[str, str]] = {}
    for name in files.specs:
        piece = _PIECE.match(name)
        key = known_name(f"{piece[1]}.weight" if piece else _SAVED.sub("", name), known)
        if key is None:
            raise InputError(
                f"{files.specs[name].file} {name!a:.200}: found no such module in the model, expected those of its "
                "family; the adapter is of another model, or has tensors that are not read here"
            )
        role = piece[2] if piece else _WHOLE
        if role in pieces.setdefault(key, {}):
            raise InputError(f"{files.name} {key}: found two adapters, expected one; save them apart")
        pieces[key][role] = name
    saved = {key: found.pop(_WHOLE) for key, found in pieces.items() if _WHOLE in found}
    low = {}
    for key, found in pieces.items():
        if not found:
            continue
        for names, embedding in ((("lora_A", "lora_B"), False), (("lora_embedding_A", "lora_embedding_B"), True)):
            if found.keys() == set(names):
                a, b = found[names[0]], found[names[1]]
                low[key] = Low(a, b, _scale(key, files.specs[a].shape, config, folder), embedding)
        if key not in low:
            raise InputError(
                f"{files.name} {key}: found {', '.join(sorted(found))} alone, expected a pair; get it again"
            )
    return low, saved


def _scale(key: str, shape: tuple[int, ...], config: Mapping[str, Any], folder: Path) -> float:
    """What the product of a module's two matrices is multiplied by. Raises InputError for another rank than theirs."""
    rank = _of_pattern("rank_pattern", key, config, folder, config.get("r", 8))
    alpha = _of_pattern("alpha_pattern", key, config, folder, config.get("lora_alpha", 8))
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise InputError(f"{folder / CONFIG}: found r {rank!r:.80} and lora_alpha {alpha!r:.80}, expected numbers")
    if shape[:1] != (rank,):
        raise InputError(
            f"{folder / CONFIG} r: found {rank} for {key}, whose tensors are of rank {shape[:1]}; get the adapter again"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_pattern(name: str, key: str, config: Mapping[str, Any], folder: Path, default: Any) -> Any:
    """A module's own value of those that a config gives by pattern, else the default."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise InputError(f"{folder / CONFIG} {name}: found {patterns!r:.80}, expected an object")
    for pattern, value in patterns.items():
        if _matches(rf"(.*\.)?({pattern})", _module(key), folder / CONFIG):
            return value
    return default


def _module(key: str) -> str:
    return key.removesuffix(".weight")


def _matrices(plan: Plan, low: set[str], config: Mapping[str, Any]) -> list[str]:
    """The model's tensors that an adapter's config may mean: matrices; with "all-linear" neither embedding nor head,
    and a router only where it has tensors, for in some families it is no Linear.
    """
    found = [key for key, shape in plan.tensors.items() if len(shape) == 2]
    if config.get("target_modules") != ALL_LINEAR:
        return found
    leaves = {key: plan.by_tensor[key][0].leaf for key in found}
    outer = [key for key, leaf in leaves.items() if leaf in ("wte", "head")]
    routers = [key for key, leaf in leaves.items() if "router/" in leaf and _module(key) not in low]
    return [key for key in found if key not in outer and key not in routers]


def _is_target(module: str, config: Mapping[str, Any], folder: Path) -> bool:
    """Whether an adapter's config means a module, as peft reads it (`check_target_module_exists`)."""
    targets, exclude = config.get("target_modules"), config.get("exclude_modules")
    if isinstance(exclude, str):
        excluded = _matches(exclude, module, folder / CONFIG)
    else:
        excluded = _is_named(module, _strings(config, "exclude_modules", folder))
    if excluded or _is_named(module, _strings(config, "modules_to_save", folder)):
        return False
    if isinstance(targets, str):
        return targets == ALL_LINEAR or _matches(targets, module, folder / CONFIG)
    named = _strings(config, "target_modules", folder)
    return module in named or (_is_named(module, named) and _is_in_layers(module, config, folder))


def _is_in_layers(module: str, config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a module's layer is one of `layers_to_transform`, if there are such."""
    layers = config.get("layers_to_transform")
    if layers in (None, []):
        return True
    patterns = [re.escape(name) for name in _strings(config, "layers_pattern", folder)] or ["[^.]*"]
    found = next((m for p in patterns if (m := re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module))), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _is_named(module: str, names: list[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _strings(config: Mapping[str, Any], key: str, folder: Path) -> list[str]:
    """The names that a key lists. Raises InputError for another value."""
    found = config.get(key) or []
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{folder / CONFIG} {key}: found {found!r:.80}, expected a list of names")
    return names


def _matches(pattern: str, module: str, where: Path) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: found {pattern!r:.80}, expected a pattern ({first_line(error)})") from error
