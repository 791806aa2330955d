"""One file per family. `build` turns a config.json into a model."""

import collections
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.files import first_line
from jaxdiff.leaves import leaf_dtype, leaf_name
from jaxdiff.models.config import Config, architecture_of
from jaxdiff.models.dream import Dream, DreamConfig
from jaxdiff.models.enat import Enat, EnatConfig
from jaxdiff.models.fast_dllm_v2 import FastDllmV2, FastDllmV2Config
from jaxdiff.models.illada import Illada, IlladaConfig
from jaxdiff.models.insertion import Insertion, InsertionConfig
from jaxdiff.models.llada import Llada, LladaConfig
from jaxdiff.models.llada2 import Llada2, Llada2Config
from jaxdiff.models.llada_moe import LladaMoe, LladaMoeConfig
from jaxdiff.models.llama import Llama, LlamaConfig
from jaxdiff.models.qwen2 import Qwen2, Qwen2Config
from jaxdiff.models.qwen3 import Qwen3, Qwen3Config
from jaxdiff.models.qwen_diffusion import QwenDiffusion, QwenDiffusionConfig
from jaxdiff.models.sdar import Sdar, SdarConfig
from jaxdiff.models.sdar_moe import SdarMoe, SdarMoeConfig
from jaxdiff.models.stable_diffcoder import StableDiffcoder, StableDiffcoderConfig
from jaxdiff.models.stack import Transformer
from jaxdiff.protocols import Model
from jaxdiff.types import InputError

FAMILIES: dict[str, tuple[type[Transformer], type[Config]]] = {
    "llada": (Llada, LladaConfig),
    "illada": (Illada, IlladaConfig),
    "stable_diffcoder": (StableDiffcoder, StableDiffcoderConfig),
    "dream": (Dream, DreamConfig),
    "llada_moe": (LladaMoe, LladaMoeConfig),
    "llada2": (Llada2, Llada2Config),
    "sdar": (Sdar, SdarConfig),
    "sdar_moe": (SdarMoe, SdarMoeConfig),
    "qwen_diffusion": (QwenDiffusion, QwenDiffusionConfig),
    "fast_dllm_v2": (FastDllmV2, FastDllmV2Config),
    "llama": (Llama, LlamaConfig),
    "qwen2": (Qwen2, Qwen2Config),
    "qwen3": (Qwen3, Qwen3Config),
}
# Families that nobody publishes: they are trained here.
OWN: dict[str, tuple[type[Transformer], type[Config]]] = {
    "insertion": (Insertion, InsertionConfig),
    "enat": (Enat, EnatConfig),
}
ARCHITECTURES = {
    "LLaDAModelLM": "llada",
    "ILLaDAForCausalLM": "illada",
    "StableDiffcoderForCausalLM": "stable_diffcoder",
    "DreamModel": "dream",
    "LLaDAMoEModelLM": "llada_moe",
    "LLaDA2MoeModelLM": "llada2",
    "SDARForCausalLM": "sdar",
    "SDARMoeForCausalLM": "sdar_moe",
    **dict.fromkeys(QwenDiffusionConfig.by_architecture, "qwen_diffusion"),
    "Fast_dLLM_QwenForCausalLM": "fast_dllm_v2",
}
# Those of a config that names no mask; with one, some of them are above.
AUTOREGRESSIVE = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


def family_of(config: Mapping[str, Any]) -> str:
    """The family that a config names: by our own `family`, else by the published `architectures` and, where those
    are of two, by whether it names a mask.

    Raises InputError for a family that is not known here.
    """
    published = architecture_of(config)
    tables = (AUTOREGRESSIVE, ARCHITECTURES) if config.get("mask_token_id") is None else (ARCHITECTURES, AUTOREGRESSIVE)
    family = config.get("family") or collections.ChainMap(*tables).get(published)
    if not isinstance(family, str) or family not in FAMILIES | OWN:
        known = ", ".join(dict.fromkeys((*ARCHITECTURES, *AUTOREGRESSIVE)))
        raise InputError(
            f"config.json: found family {family!r}, architectures {published!r}; expected family "
            f"{', '.join(FAMILIES | OWN)} or architectures {known}"
        )
    return family


def architecture(model: Model) -> str:
    """The published architecture of a model: among its family's, the one that means most of what its config says.

    Raises InputError for a family that is not published.
    """
    config, family = model.config, family_name(model)
    tables = (ARCHITECTURES, AUTOREGRESSIVE)
    names = [name for table in tables for name, of in table.items() if of == family]

    if not names:
        raise InputError(f"export: found family {family}, which has no published form; keep the folder as it is")

    def agrees(name: str) -> int:
        return sum(getattr(config, key) == value for key, value in config.by_architecture.get(name, {}).items())

    return max(names, key=agrees)


def family_name(model: Model) -> str:
    """The family that a model is of, as its folder's config.json says it."""
    return next(name for name, (kind, _) in (FAMILIES | OWN).items() if kind is type(model))


def build(config: Mapping[str, Any], *, ignore: Iterable[str] = ()) -> Model:
    """The model that a config describes.

    Args:
        ignore: keys that the family does not know, to be left alone (`Config.from_dict`).

    Raises InputError for an unknown family, or what the family refuses.
    """
    model, parse = (FAMILIES | OWN)[family_of(config)]
    return model(parse.from_dict(config, ignore=ignore))


def model_of(config: Mapping[str, Any], file: Path, *, ignore: Iterable[str] = ()) -> tuple[Model, Any]:
    """The model that a file's config describes (`build`), and the shapes of its params; no number is made.

    Raises InputError, which names the file, for a config that describes none.
    """
    try:
        model = build(config, ignore=ignore)
        return model, _shapes(model)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix('config.json').lstrip(': ')}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{file}: makes no model ({first_line(error)}); restore the file") from error


@functools.lru_cache(maxsize=16)
def _shapes(model: Model) -> Any:
    """Of the params. Tracing takes a tenth of a second, and a folder is often read more than once."""
    return jax.eval_shape(model.init, jax.random.key(0))


def in_dtype(params: Any, dtype: str) -> Any:
    """The shape and dtype of each leaf of params (arrays or shapes) of a model in `dtype`; raises as `leaf_dtype`."""

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf_dtype(leaf_name(path), dtype)))

    return jax.tree_util.tree_map_with_path(one, params)
