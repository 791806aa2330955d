"""What a model folder is, read and checked as one before any of its weights: `load`, `convert`, `export` and `inspect`
all start from it.

    config.json, generation_config.json, tokenizer files, chat template, the weights' names -> Description
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.convert import kinds, published, stream, text
from jaxdiff.convert.adapter import Adapter
from jaxdiff.convert.engine import ROWS, Tensors, check, plan_of
from jaxdiff.convert.facts import facts_of
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.convert.table import Plan
from jaxdiff.convert.weights import Weights, opened
from jaxdiff.files import read_object
from jaxdiff.models import family_name, model_of
from jaxdiff.models.config import Config
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params


class Unsound(NamedTuple):
    """A tensor that holds numbers which are none."""

    file: str
    tensor: str
    nan: int
    inf: int
    size: int

    def __str__(self) -> str:
        kinds = " and ".join(f"{count} {name}" for count, name in ((self.nan, "NaN"), (self.inf, "inf")) if count)
        return f"{self.file} {self.tensor}: found {kinds} among {self.size:,} numbers"


@dataclasses.dataclass(frozen=True)
class Description:
    """A model folder that was understood.

    Attributes:
        path: the folder.
        given: its config.json.
        model: with its config: family, shapes, ids, positions, dtype of the computation.
        shapes: of the model's params, abstract.
        tokenizer: None where the folder has none.
        plan: what the family calls its tensors, and where each goes.
        weights: a published folder's tensors, none of them read yet; None for a folder of ours.
        adapter: what is merged into the tensors as they are read, or, gated, kept beside the params; None for none.
        warnings: what contradicts itself or was passed over, though the folder can be used; a line each.
    """

    path: Path
    given: Mapping[str, Any]
    model: Model
    shapes: Params
    tokenizer: Tokenizer | None
    plan: Plan
    weights: Weights | None
    adapter: Adapter | None
    warnings: tuple[str, ...]

    @property
    def config(self) -> Config:
        return self.model.config

    @property
    def published(self) -> bool:
        """Whether the folder is as its family publishes it, and not one of ours."""
        return self.weights is not None

    @functools.cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each leaf as it is stored. Raises InputError where the stored tensors are not the model's."""
        if self.weights is None:
            return stream.stored(self.path / "params", self.shapes)
        try:
            return check(self.plan, self.weights.tensors)
        except InputError as error:
            raise InputError("; ".join([str(error), *self.weights.notes])) from error

    @functools.cached_property
    def tensors(self) -> Tensors:
        """What the model's params are made of, under the family's names, with the adapter in it unless that is gated.

        Raises as `dtypes`.
        """
        return self.adapter.merged(self._stored) if self.adapter is not None and self._merges else self._stored

    @functools.cached_property
    def _stored(self) -> Tensors:
        """What is stored, under the family's names. Raises as `dtypes`."""
        dtypes = self.dtypes
        if self.weights is not None:
            return self.weights.tensors
        params = self.path / "params"
        return stream.Leaves(str(params), self.plan, dtypes, functools.partial(stream.read, params))

    def check_base(self) -> None:
        """Raises InputError for an adapter that says beside which weights it was trained, where these are others; it
        reads some rows of each matrix that the adapter changes.
        """
        if self.adapter is not None:
            self.adapter.check_base(self._stored, self.plan)

    @property
    def _merges(self) -> bool:
        return self.adapter is not None and not self.adapter.gated

    def unsound(self) -> Iterator[Unsound]:
        """Reads every tensor, a few rows at a time (of ours a leaf), and gives those with NaN or infinity."""
        for file, name, size, pieces in self._numbers():
            nan = inf = 0
            for piece in pieces:
                nan, inf = nan + int(np.isnan(piece).sum()), inf + int(np.isinf(piece).sum())
            if nan or inf:
                yield Unsound(file, name, nan, inf, size)

    def check_numbers(self) -> None:
        """Raises InputError that names the tensors which hold NaN or infinity, with how many."""
        if found := list(self.unsound()):
            more = f"; and {len(found) - 5} more tensors" if len(found) > 5 else ""
            raise InputError(f"{'; '.join(map(str, found[:5]))}{more}; expected none; get the weights again")

    def _numbers(self) -> Iterator[tuple[str, str, int, Iterator[np.ndarray]]]:
        """File, name, size and rows of each tensor."""
        if self.adapter is not None and not self._merges:
            files = self.adapter.files
            for name, spec in files.specs.items():
                numbers = files.read(name, slice(None)).astype(np.float32)
                yield spec.file, name, math.prod(spec.shape), iter([numbers])
        leaves = self.dtypes
        if self.weights is None and not self._merges:
            params = self.path / "params"
            for leaf in leaves:
                yield str(params), leaf, math.prod(self.plan.leaves[leaf]), iter(stream.read(params, [leaf]).values())
            return
        for key, spec in self.tensors.specs.items():
            starts = range(0, spec.shape[0], ROWS)
            rows = (self.tensors.read(key, slice(at, min(at + ROWS, spec.shape[0]))) for at in starts)
            yield spec.file, key, math.prod(spec.shape), rows

    def facts(self, *, mesh: str = "1x1") -> dict[str, Any]:
        """What `jaxdiff inspect` shows, as plain data for JSON. Raises InputError for a mesh that does not fit."""
        return facts_of(self, mesh=mesh)


def describe(
    folder: Path,
    *,
    dtype: str | None = None,
    ignore: Iterable[str] = (),
    adapter: Path | None = None,
    beyond: Mapping[str, published.Open] | None = None,
) -> Description:
    """Understand a folder, published or ours; no number of its weights is read, but buffers of rotary frequencies.

    Args:
        dtype: of the computation; default of a published folder that of its tensors, of one of ours its config's.
        ignore: unknown keys of its config.json that are left alone (`jaxdiff.load`).
        adapter: the folder of a LoRA adapter that is to be merged into it, or kept beside it.
        beyond: how files of weights are opened that are not in a published folder, by their names.

    Raises InputError for a folder that is missing, of another kind, damaged, of an unknown family, or whose config is
    not known in full or contradicts itself; for weights that are packed; and for an adapter that does not fit.
    """
    ignore = {ignore} if isinstance(ignore, str) else set(ignore)
    if folder.is_dir():
        kinds.check_kind(folder)
        if not (folder / published.CONFIG).is_file():
            raise InputError(kinds.without_config(folder))
    else:
        raise InputError(f"model: found no folder {str(folder)!r}; name one that holds a model")
    config = given = read_object(folder / published.CONFIG)
    warnings = [f"config.json {key}: ignored, as was asked" for key in sorted(ignore & config.keys())]
    weights: Weights | None = None
    if published.is_published(folder, given):
        config, said = published.with_ids(given, folder)
        warnings += said
        kinds.check_plain(folder, config, ignore)
        weights = opened(folder, config, beyond)
        config = {key: value for key, value in config.items() if key != kinds.QUANTISED}  # `opened` has heeded it
        dtype = dtype or weights.computed_in
    model, shapes = model_of(
        config | ({} if dtype is None else {"dtype": dtype}), folder / "config.json", ignore=ignore
    )
    plan = plan_of(model, shapes, most=None if weights is None else len(weights.held))
    if weights is not None:
        weights = weights.fitted(plan, model.config)
        warnings += weights.notes
    tokenizer = _tokenizer(folder, model)
    warnings += _doubts(model.config, tokenizer)
    fitting = None if adapter is None else Adapter.of(adapter, plan)
    return Description(folder, given, model, shapes, tokenizer, plan, weights, fitting, tuple(warnings))


def check_config(folder: Path, ignore: Iterable[str] = ()) -> None:
    """Raises what `describe` does for the configs of a folder whose weights are not there yet."""
    ignore = {ignore} if isinstance(ignore, str) else set(ignore)
    kinds.check_kind(folder)
    config = read_object(folder / published.CONFIG)
    if published.is_published(folder, config):
        config, _ = published.with_ids(config, folder)
        kinds.check_plain(folder, config, ignore)
        # whatever dtype it says: that of the weights counts
        config = {key: value for key, value in config.items() if key != kinds.QUANTISED} | {"dtype": "float32"}
    model_of(config, folder / published.CONFIG, ignore=ignore)


def _tokenizer(folder: Path, model: Model) -> Tokenizer | None:
    fast, c = text.open_tokenizer(folder, family_name(model)), model.config
    if fast is None:
        return None
    template = text.template_file(folder)
    return Tokenizer(fast, c.eos_token_id, c.eot_token_id, c.further_eos_token_ids, fast.backend_tokenizer, template)


def _doubts(config: Config, tokenizer: Tokenizer | None) -> list[str]:
    """What a model and its tokenizer say otherwise, and the template's fault."""
    if tokenizer is None:
        return ["no tokenizer: prompts are ids (prompt_ids)"]
    fast, backend, found = tokenizer.fast, tokenizer.backend, []
    if (size := backend.get_vocab_size(with_added_tokens=True)) > config.vocab_size:
        found.append(f"the tokenizer has {size} tokens, the model {config.vocab_size}: a prompt of others is refused")
    if fast.mask_token_id not in (None, config.mask_token_id):
        found.append(f"the tokenizer's mask is {fast.mask_token_id}, the model's {config.mask_token_id}, which counts")
    if fast.eos_token_id is not None and fast.eos_token_id not in config.eos_ids:
        found.append(f"the tokenizer's end-of-text {fast.eos_token_id} is none of the model's ends {config.eos_ids}")
    masks = [("mask", config.mask_token_id)] if config.has_mask else []
    for name, token in (*masks, *(("end", i) for i in config.eos_ids)):
        if backend.id_to_token(token) is None:
            found.append(f"the model's {name} {token} has no token in the tokenizer")
    return found + ([] if tokenizer.fault is None else [tokenizer.fault])
