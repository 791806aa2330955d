"""A LoRA adapter as peft saves it, merged into its model's tensors as they are read, or kept beside its params.

    adapter_config.json (`lora`), adapter_model.safetensors -> Adapter;  W + s B A for each matrix W [O, I] it names

`lora_A` is [r, I] and `lora_B` [O, r]; s is `lora_alpha` / r, or / sqrt(r) with `use_rslora`. An embedding W [V, D] has
`lora_embedding_A` [r, V] and `lora_embedding_B` [D, r]. A module of `modules_to_save` takes the place of the model's.
Facts: huggingface/peft `tuners/lora/layer.py`, `utils/save_and_load.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.convert.engine import DTYPES, Tensors
from jaxdiff.convert.lora import Lora, is_named
from jaxdiff.convert.low_rank import TENSORS, Pair, beside, digest_of_base, written_beside
from jaxdiff.convert.names import known_name
from jaxdiff.convert.published import Files
from jaxdiff.convert.table import Plan
from jaxdiff.models.lora import is_matrix
from jaxdiff.types import InputError, Params

FILES = (TENSORS, "adapter_model.bin")
LINEAR, EMBEDDING = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
# A tensor's name: the module, which of its tensors it is, and the adapter's own name, which peft leaves out.
_PIECE = re.compile(rf"^(.+)\.({'|'.join(LINEAR + EMBEDDING)})(?:\.\w+)??(?:\.weight)?$")
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
        gated: on at [MASK] alone; such a one is never merged.
        base: the digest of the matrices that it was trained beside, and what the model is called that they are of; the
            first is None where the folder does not say (as peft writes none).
    """

    path: Path
    files: Files
    low: Mapping[str, Low]
    saved: Mapping[str, str]
    gated: bool
    base: tuple[str | None, str]

    @classmethod
    def of(cls, folder: Path, plan: Plan) -> Adapter:
        """Read a folder's config and the headers of its tensors, for a model of this plan.

        Raises InputError for a folder that holds no adapter of LoRA, one of a kind that is not computed here, and one
        that does not fit the model.
        """
        lora, files = Lora.read(folder), Files(folder, FILES)
        pieces = _pieces(files, plan)
        if there := sorted(plan.tied & pieces.keys()):
            raise InputError(
                f"{folder}: changes {there[0]}, which is the model's embedding and its head at once, expected an "
                "adapter that leaves it; merge it with peft into a model whose head is its own"
            )
        saved = {key: found.pop(_WHOLE) for key, found in pieces.items() if _WHOLE in found}
        low = {key: _low(files, plan, lora, key, found) for key, found in pieces.items() if found}
        _check_targets(lora, plan, low, saved)
        for key, name in saved.items():
            _check_saved(lora, plan, key, name)
            _check(files, name, plan.tensors[key])
        if lora.gated:
            _check_matrices(folder, plan, low, saved)
        base = (written_beside(folder), str(lora.given.get("base_model_name_or_path") or ""))
        return cls(folder, files, low, saved, lora.gated, base)

    def merged(self, tensors: Tensors) -> Tensors:
        """The model's tensors with the adapter in them. Raises as `check_merges`."""
        self.check_merges()
        return Merged(tensors, self)

    def check_merges(self) -> None:
        """Raises InputError for a gated one: no single matrix stands for it."""
        if self.gated:
            raise InputError(
                f"{self.path}: is gated, on at [MASK] alone, and cannot be merged, expected an adapter that is on "
                "everywhere; keep the model as it is and give --adapter where it is read"
            )

    def check_base(self, tensors: Tensors, plan: Plan) -> None:
        """Raises InputError where it says beside which weights it was trained, and a model's tensors are others."""
        expected, name = self.base
        if expected is not None and (found := digest_of_base(tensors, plan, self.low)) != expected:
            raise InputError(
                f"{self.path}: was trained beside other weights{f' ({name!a:.80})' if name else ''} than those of "
                f"{tensors.name} (digest {found}, expected {expected}); name the model that it was trained on"
            )

    def beside(self, params: Params, plan: Plan) -> Params:
        """The model's params with the adapter beside them, float32, not laid over any mesh. Raises InputError for one
        that changes more than matrices of the layers.
        """
        _check_matrices(self.path, plan, self.low, self.saved)
        return beside(params, plan, {key: self._pair(low) for key, low in self.low.items()}, gated=self.gated)

    def _pair(self, low: Low) -> Pair:
        a, b = (self.files.read(name, slice(None)).astype(np.float32) for name in (low.a, low.b))
        return Pair(a, b, low.scale)

    def facts(self) -> dict[str, Any]:
        """What `jaxdiff inspect` shows, as plain data for JSON."""
        ranks = sorted({self.files.specs[low.a].shape[0] for low in self.low.values()})
        return {
            "path": str(self.path),
            "ranks": ranks,
            "matrices": len(self.low),
            "saved": sorted(self.saved),
            "gated": self.gated,
        }


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


def _pieces(files: Files, plan: Plan) -> dict[str, dict[str, str]]:
    """The tensors of an adapter, by the model's tensor that they change and by what they are to it.

    Raises InputError for one that is nothing to the model.
    """
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
    return pieces


def _low(files: Files, plan: Plan, lora: Lora, key: str, found: Mapping[str, str]) -> Low:
    """The two matrices of a tensor. Raises InputError for another number of them, and where they do not fit it."""
    shape, embedding = plan.tensors[key], plan.by_tensor[key][0].leaf == "wte"
    names = EMBEDDING if embedding else LINEAR
    if found.keys() != set(names) or len(shape) != 2:
        held = ", ".join(sorted(found))
        raise InputError(f"{files.name} {key}: found {held}, expected {' and '.join(names)} of a matrix; get it again")
    (a, b), (height, width) = (found[name] for name in names), shape[::-1] if embedding else shape
    rank = (*files.specs[a].shape, 0)[0]
    scale = lora.scale(_module(key), rank)
    _check(files, a, (rank, width))
    _check(files, b, (height, rank))
    return Low(a, b, scale, embedding)


def _check(files: Files, name: str, shape: tuple[int, ...]) -> None:
    spec = files.specs[name]
    if spec.shape != shape or spec.dtype not in DTYPES:
        raise InputError(
            f"{spec.file} {name}: found shape {list(spec.shape)} and dtype {spec.dtype}, expected {list(shape)} and "
            f"{', '.join(DTYPES)}; the adapter is of another model"
        )


def _check_matrices(folder: Path, plan: Plan, low: Mapping[str, Low], saved: Mapping[str, str]) -> None:
    """Raises InputError for an adapter that changes more than matrices of the layers, where it is not to be merged."""
    others = [key for key in low if not all(is_matrix(part.leaf) for part in plan.by_tensor[key])]
    if found := sorted([*others, *saved]):
        raise InputError(
            f"{folder}: changes {found[0]} (one of {len(found)}), expected matrices of the layers alone where an "
            "adapter is kept beside the weights; merge it, or train one without"
        )


def _check_saved(lora: Lora, plan: Plan, key: str, name: str) -> None:
    """Raises InputError for a whole tensor of a module that the config does not name. Embedding and head may come
    unnamed: peft saves them where a vocabulary grew (`save_embedding_layers`).
    """
    if plan.by_tensor[key][0].leaf not in ("wte", "head") and not is_named(key.rpartition(".")[0], lora.saved):
        raise InputError(
            f"{lora.file} modules_to_save: found {name!a:.200} in the adapter, which it does not name, expected the "
            "matrices of LoRA and modules that it names; get the adapter again"
        )


def _check_targets(lora: Lora, plan: Plan, low: Mapping[str, Low], saved: Mapping[str, str]) -> None:
    """Raises InputError where a config names other modules than those that have tensors."""
    there = {_module(key) for key in low}
    targeted = {module for module in _modules(plan, there, lora) if lora.targets(module)}
    unsaved = {name for name in lora.saved if not any(is_named(key.rpartition(".")[0], [name]) for key in saved)}
    for key, words, modules in (
        ("target_modules", "names {0}, which has no tensors in the adapter", targeted - there),
        ("target_modules", "does not name {0}, which has tensors in the adapter", there - targeted),
        ("modules_to_save", "names {0}, which has no tensors in the adapter", unsaved),
    ):
        if modules:
            raise InputError(
                f"{lora.file} {key}: {words.format(ascii(min(modules))[1:-1])} (one of {len(modules)}), expected the "
                "same modules in both; get the adapter again"
            )


def _modules(plan: Plan, there: set[str], lora: Lora) -> list[str]:
    """The model's matrices that a config may mean: with "all-linear" neither embedding nor head, and a router only
    where it has tensors, for in some families it is no Linear.
    """
    leaves = {_module(key): plan.by_tensor[key][0].leaf for key, shape in plan.tensors.items() if len(shape) == 2}
    if not lora.all_linear:
        return list(leaves)
    return [m for m, leaf in leaves.items() if leaf not in ("wte", "head") and ("router/" not in leaf or m in there)]


def _module(key: str) -> str:
    return key.removesuffix(".weight")
