"""Weights in float8 (e4m3) with scales beside them, multiplied out as they are read.

A matrix `X.weight` [O, I] has a scale `X.weight_scale_inv` (DeepSeek's files and transformers' `fp8`) or
`X.weight_scale` (compressed-tensors' `float-quantized`, vLLM's `fp8`, `fbgemm_fp8`); whatever it is called, weights are
multiplied by it. Its shape says how many weights share a number: one number for the tensor, [O] or [O, 1] one for each
row, [O / b, I / b] (rounded up) one for each block of b x b. Scales of activations and of caches are not read: here
activations are computed in the model's dtype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.convert.engine import DTYPES, Spec, Tensors
from jaxdiff.convert.published import FLOAT8
from jaxdiff.convert.table import Shape
from jaxdiff.types import InputError

BLOCK = (128, 128)
SCALES = re.compile(r"^(.*)\.weight_scale(_inv)?$")
_UNREAD = re.compile(r"\.(input_scale|activation_scale|input_scale_ub|k_scale|v_scale)$")
_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")


def is_float8(given: Any) -> bool:
    """Whether a `quantization_config` says that its weights are stored as they are read here."""
    if not isinstance(given, Mapping) or given.get("quant_method") not in _METHODS:
        return False
    if given["quant_method"] != "compressed-tensors":
        return given.get("fmt") in (None, "e4m3", "float8_e4m3fn")
    sparse, weights = given.get("sparsity_config"), _weights(given)
    dense = not sparse or (isinstance(sparse, Mapping) and sparse.get("format") in (None, "dense"))
    eights = [each for each in weights if each.get("type") == "float" and each.get("num_bits") == 8]
    return dense and given.get("format") == "float-quantized" and len(eights) == len(weights)


def block_of(given: Any) -> tuple[int, int]:
    """The block of weights that share a scale, as a `quantization_config` says it. Raises InputError for none."""
    if not isinstance(given, Mapping):
        return BLOCK
    said = [given.get("weight_block_size"), *(each.get("block_structure") for each in _weights(given))]
    found = next((each for each in said if each is not None), list(BLOCK))
    if not isinstance(found, list) or len(found) != 2 or not all(type(b) is int and 0 < b < 2**31 for b in found):
        raise InputError(f"config.json weight_block_size: found {found!r:.80}, expected two whole numbers")
    return found[0], found[1]


def _weights(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors says of the weights of each of its groups."""
    groups = given.get("config_groups")
    found = (
        [each.get("weights") for each in groups.values() if isinstance(each, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    return [each for each in found if isinstance(each, Mapping)]


class Dequantised:
    """The tensors of others, those in float8 multiplied by their scales: read in float32, and said to be of `dtype`.

    Raises InputError, which names the tensor, for one in float8 without a scale, for a scale of another, and for one
    whose shape is none of those above.
    """

    def __init__(self, tensors: Tensors, dtype: str, block: tuple[int, int] = BLOCK) -> None:
        self.name, self._tensors = tensors.name, tensors
        self._scales: dict[str, tuple[str, Shape]] = {}  # by weight: its scale, and the block of weights of a number
        self.specs: dict[str, Spec] = {}
        self.unread = tuple(key for key in tensors.specs if _UNREAD.search(key))
        scaled: dict[str, str] = {}
        for key, found in ((key, SCALES.match(key)) for key in tensors.specs):
            if found is not None and scaled.setdefault(f"{found[1]}.weight", key) != key:
                raise InputError(
                    f"{tensors.specs[key].file} {_shown(key)}: found it beside {_shown(scaled[f'{found[1]}.weight'])}, "
                    "expected one scale for a weight; get the weights again, or those in bfloat16"
                )
        for key, spec in tensors.specs.items():
            if key in scaled and spec.dtype == FLOAT8.name:
                self._scales[key] = scaled[key], _shared(tensors, key, scaled[key], block)
                self.specs[key] = spec._replace(dtype=dtype)
            elif spec.dtype == FLOAT8.name:
                raise InputError(
                    f"{spec.file} {_shown(key)}: found {FLOAT8.name} without a scale beside it (weight_scale or "
                    "weight_scale_inv), expected one; get the weights again, or those in bfloat16"
                )
            elif key not in self.unread and not SCALES.match(key):
                self.specs[key] = spec
        for weight, scale in scaled.items():
            if weight not in self._scales:
                found = tensors.specs[weight].dtype if weight in tensors.specs else "nothing"
                raise InputError(
                    f"{tensors.specs[scale].file} {_shown(scale)}: is a scale, but {_shown(weight)} is {found}, "
                    f"expected {FLOAT8.name}; get the model's weights in bfloat16"
                )

    @property
    def note(self) -> str:
        unread = f"; {len(self.unread)} scales of activations or caches are not read" if self.unread else ""
        return f"{len(self._scales)} tensors are {FLOAT8.name} with scales, and multiplied out as they are read{unread}"

    def read(self, key: str, rows: slice) -> np.ndarray:
        if key not in self._scales:
            return self._tensors.read(key, rows)
        scale, (height, width) = self._scales[key]
        weights = self._tensors.read(key, rows).astype(np.float32)
        at = range(self.specs[key].shape[0])[rows]
        numbers = self._tensors.read(scale, slice(None)).astype(np.float32)
        numbers = numbers.reshape(-1, numbers.shape[1] if numbers.ndim == 2 else 1)[np.asarray(at, np.int64) // height]
        for i in range(numbers.shape[1]):
            weights[:, i * width : (i + 1) * width] *= numbers[:, i : i + 1]
        return weights


def _shown(name: str) -> str:
    """A tensor's name in a message; a damaged file may hold any."""
    return ascii(name)[1:-1]


def _shared(tensors: Tensors, weight: str, scale: str, block: tuple[int, int]) -> Shape:
    """How many rows and columns of a weight share a number of its scale. Raises InputError where that fits none."""
    spec, (shape, dtype, file) = tensors.specs[weight], tensors.specs[scale]
    whole = spec.shape
    if len(whole) == 2 and dtype in DTYPES:
        if shape in ((), (1,), (1, 1)):
            return whole
        if shape in ((whole[0],), (whole[0], 1)):
            return 1, whole[1]
        if shape == (-(-whole[0] // block[0]), -(-whole[1] // block[1])):
            return block
    raise InputError(
        f"{file} {_shown(scale)}: found shape {list(shape)} and dtype {dtype} for weights of {list(whole)}, expected "
        f"one number, one for each row, or one for each block of {block[0]} x {block[1]}; get the weights in bfloat16"
    )
