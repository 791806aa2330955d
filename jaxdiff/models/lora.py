"""LoRA as leaves (arXiv 2106.09685): a matrix W stays as it is, and beside it stand two small ones, which are trained.

    W [.. in out] --adapt--> Adapted(W, A [.. in r], B [.. r out], s [..]) --product--> x W + s (x A) B

An adapted leaf keeps its name, shape and dtype; W may be in int8, while A and B are float32. A gated one (arXiv
2507.11851) is on at positions whose input is [MASK] alone: elsewhere the product is that of W, to the bit. What no mask
is seen from (the visible tokens of a causal model, the finished blocks of one that attends in blocks, the prompt under
`prefix_lm`) then has the keys and values of the base in every layer; what sees masks has them in the first. A shifted
model reads a token from the position before it: where that is visible, the token is predicted with the adapter off.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxdiff.leaves import LEAVES, TRAINED, Kind, leaf_name
from jaxdiff.parallel.mesh import platform
from jaxdiff.pytree import pytree, static
from jaxdiff.types import InputError, Params
from jaxdiff.weights import full

ALL = "all"  # every matrix that `targets` may name
MOST_RANK = 2**20


@pytree
class Adapted:
    """An adapted matrix, or a stack of them.

    Attributes:
        base: W [.. in out], an array or in int8.
        a, b: [.. in r] and [.. r out], float32.
        factor: what their product is multiplied by, one for each layer of a stack.
        gated: on at [MASK] alone.
    """

    base: Any
    a: Float[Array, "*n i r"]
    b: Float[Array, "*n r o"]
    factor: Float[Array, "*layers"]
    gated: bool = static(default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.base.dtype


@dataclasses.dataclass(frozen=True)
class LoraRecipe:
    """What an adapter is. Raises InputError for a rank or a scale that is none.

    Attributes:
        rank: r.
        alpha: s = alpha / rank.
        targets: names of matrices, such as `q_proj` or `experts/up_proj`, in all layers; or `all`.
        gated: on at [MASK] alone.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL,)
    gated: bool = False

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= MOST_RANK:
            raise InputError(f"rank: found {self.rank!r:.40}, expected a whole number from 1 to {MOST_RANK}")
        sound = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool) and math.isfinite(self.alpha)
        if not sound or self.alpha == 0:
            raise InputError(f"alpha: found {self.alpha!r:.40}, expected a number that is not 0")


def product(
    x: Float[Array, "n i"],
    weight: Any,
    gate: Bool[Array, " n"] | None,
    times: Callable[[Array, Array], Array] = jnp.matmul,
) -> Float[Array, "n o"]:
    """`times(x, weight)` of a matrix that may be in int8, adapted, or both, in the dtype of x.

    `gate`: the rows at which a gated adapter is on.
    """
    if not isinstance(weight, Adapted):
        return times(x, full(weight, x.dtype))
    plain = times(x, full(weight.base, x.dtype))

    def adapted() -> Float[Array, "n o"]:
        low = times(times(x, weight.a.astype(x.dtype)), weight.b.astype(x.dtype))
        return plain + weight.factor.astype(x.dtype) * low

    if not weight.gated:
        return adapted()
    assert gate is not None

    def where_on() -> Float[Array, "n o"]:
        return jnp.where(gate[:, None], adapted(), plain)

    # What follows must be compiled as after a bare product, or it would round otherwise where the gate is off. On CPUs
    # XLA fuses across a barrier, and not across a branch.
    if platform() == "cpu":
        return jax.lax.cond(jnp.any(gate), where_on, lambda: plain)
    return jax.lax.optimization_barrier(where_on())


def adapt(params: Params, key: Key[Array, ""], recipe: LoraRecipe) -> Params:
    """A model's params with an adapter beside the matrices that the recipe names; what the model computes is the same
    until it is trained: B is zero, and A uniform within 1 / sqrt(in), as peft begins.

    Raises InputError for a name that no matrix of the model has, and for params that hold an adapter.
    """
    if is_adapted(params):
        raise InputError("params: found an adapter in them, expected none; merge it first (lora.merged)")
    named = {leaf: _target(leaf) for path, _ in _leaves(params) if (leaf := leaf_name(path)) and is_matrix(leaf)}
    known = dict.fromkeys((*named.values(), ALL))
    if unknown := [name for name in recipe.targets if name not in known]:
        raise InputError(f"targets: found {unknown[0]!r:.80}, expected some of {', '.join(known)}; the model has these")
    if not recipe.targets:
        raise InputError(f"targets: found none, expected some of {', '.join(known)}")
    chosen = [leaf for leaf, name in named.items() if ALL in recipe.targets or name in recipe.targets]
    keys = dict(zip(chosen, jax.random.split(key, len(chosen)), strict=True))

    def one(path: Any, leaf: Any) -> Any:
        name = leaf_name(path)
        if name not in keys:
            return leaf
        *stacked, wide, out = leaf.shape
        a = jax.random.uniform(keys[name], (*stacked, wide, recipe.rank), jnp.float32, -1.0, 1.0) / math.sqrt(wide)
        b = jnp.zeros((*stacked, recipe.rank, out), jnp.float32)
        return beside(name, leaf, a, b, recipe.alpha / recipe.rank, gated=recipe.gated)

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_whole)


def beside(name: str, base: Any, a: Any, b: Any, factor: Any, *, gated: bool) -> Adapted:
    """The matrix of that name, adapted; arguments are those of `Adapted`, `factor` one for all layers or for each."""
    layers = jnp.broadcast_to(jnp.asarray(factor, jnp.float32), _layers(name, base))
    return Adapted(base, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), layers, gated)


def is_adapted(params: Params) -> bool:
    """Whether any leaf of params has an adapter beside it."""
    return any(isinstance(leaf, Adapted) for _, leaf in _leaves(params))


def trainable(params: Params) -> Any:
    """Of each leaf of adapted params: whether it is trained. For `optax.masked`, or `split`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaf_name(path).rpartition("/")[2] in TRAINED, params)


def split(params: Params) -> tuple[Params, Params]:
    """What is trained and what is frozen, each the whole tree with None in place of the other's leaves: gradients and
    an optimizer's state are then of the adapter alone. `join` is the inverse.
    """
    mask = trainable(params)
    return tuple(jax.tree.map(lambda yes, x, of=of: x if yes is of else None, mask, params) for of in (True, False))


def join(trained: Params, frozen: Params) -> Params:
    """The params of a `split`."""
    return jax.tree.map(lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None)


def merged(params: Params) -> Params:
    """Params with W + s A B in place of each adapted matrix, added in float32, in the dtype of W; int8 is multiplied
    out.

    Raises InputError for a gated adapter, which no single matrix stands for.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Adapted):
            return leaf
        if leaf.gated:
            raise InputError(
                "adapter: is gated, on at [MASK] alone, and cannot be merged, expected one that is on everywhere; keep "
                "it beside the model"
            )
        wide = full(leaf.base, jnp.float32)
        factor = leaf.factor.reshape(leaf.factor.shape + (1,) * (wide.ndim - leaf.factor.ndim))
        return (wide + factor * (leaf.a @ leaf.b)).astype(leaf.dtype)

    return jax.tree.map(one, params, is_leaf=_is_whole)


def bare(params: Params) -> Params:
    """Params without the adapter."""
    return jax.tree.map(lambda leaf: leaf.base if isinstance(leaf, Adapted) else leaf, params, is_leaf=_is_whole)


def adapters(params: Params) -> dict[str, Adapted]:
    """The adapted leaves of params, by path."""
    return {leaf_name(path): leaf for path, leaf in _leaves(params) if isinstance(leaf, Adapted)}


def _leaves(params: Params) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_whole)


def _is_whole(leaf: Any) -> bool:
    """A leaf by name, whatever arrays it consists of."""
    return isinstance(leaf, Adapted) or hasattr(leaf, "qvalue")


def is_matrix(leaf: str) -> bool:
    """Whether a layer multiplies with the leaf of this name (`product`): not embedding, head, norms and routers."""
    found = _kind(leaf)
    return found is not None and found.summed is not None and "vocab" not in found.axes


def _kind(leaf: str) -> Kind | None:
    return LEAVES.get("/".join(leaf.split("/")[-2:]))


def _target(leaf: str) -> str:
    """What `targets` call the matrix of this name: its path without the group of layers and the kernel."""
    return leaf.partition("/")[2].removesuffix("/kernel")


def _layers(name: str, leaf: Any) -> tuple[int, ...]:
    """The axes of a leaf that count layers."""
    found = _kind(name)
    assert found is not None
    return tuple(leaf.shape[: leaf.ndim - len(found.axes)])
