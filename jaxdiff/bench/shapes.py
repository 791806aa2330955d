"""Models of published shapes with random weights: a machine's speed does not hang on their training."""

from __future__ import annotations

from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxdiff.models import build, in_dtype
from jaxdiff.protocols import Definition, Model
from jaxdiff.types import InputError, Params
from jaxdiff.weights import quantised

# The shapes of the published config.json files: GSAI-ML/LLaDA-8B, Dream-org/Dream-v0-7B, inclusionAI/LLaDA2.0-mini;
# without what is a family's default, and without the special ids, which follow from the size of the vocabulary.
SHAPES: dict[str, dict[str, Any]] = {
    "llada-8b": {
        "family": "llada",
        "vocab_size": 126464,
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "mlp_hidden_size": 12288,
    },
    "dream-7b": {
        "family": "dream",
        "vocab_size": 152064,
        "d_model": 3584,
        "n_layers": 28,
        "n_heads": 28,
        "n_kv_heads": 4,
        "mlp_hidden_size": 18944,
    },
    "llada2-mini": {
        "family": "llada2",
        "vocab_size": 157184,
        "d_model": 2048,
        "n_layers": 20,
        "n_heads": 16,
        "n_kv_heads": 4,
        "mlp_hidden_size": 5120,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 512,
        "first_k_dense_replace": 1,
        "rope_theta": 600000.0,
    },
}


def shaped(name: str, dtype: str = "bfloat16", **changes: Any) -> Model:
    """The model of a published shape; `changes` to its config (fewer layers, say).

    Raises InputError for a shape that is not known.
    """
    if name not in SHAPES:
        raise InputError(f"shape: found {name!r}, expected {', '.join(SHAPES)}")
    return build(SHAPES[name] | {"dtype": dtype} | changes)


def abstract_params(model: Definition, weights: str | None = None) -> Params:
    """Shapes and dtypes of the parameters, for compiling alone."""
    shapes = in_dtype(jax.eval_shape(model.init, jax.random.key(0)), model.config.dtype)
    return shapes if weights is None else jax.eval_shape(quantised, shapes)


def random_params(model: Definition, weights: str | None = None) -> Params:
    """Random parameters in the model's dtype or in int8, made leaf by leaf on the device: never a copy of the whole."""
    leaves: Any = flatten_dict(abstract_params(model), sep="/")
    made = {}
    for key, (name, leaf) in zip(jax.random.split(jax.random.key(0), len(leaves)), leaves.items(), strict=True):
        one = {name: _leaf(key, leaf.shape, leaf.dtype)}
        made |= one if weights is None else quantised(one)
    return unflatten_dict(made, sep="/")


def _leaf(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Layer by layer where layers are stacked, since the generator works in float32."""
    if len(shape) < 3:
        return (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)
    return jax.lax.map(
        lambda k: (0.02 * jax.random.normal(k, shape[1:], dtype)).astype(dtype), jax.random.split(key, shape[0])
    )
