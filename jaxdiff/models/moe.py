"""A mixture of experts: a router chooses k of X gated MLPs for each token.

    tokens [n D] -> router -> k experts and weights each -> tokens sorted by expert -> one ragged product for each
    matrix -> back in order, weighted, summed (+ a shared expert that sees every token)

There is no capacity and no dropping: what a token gets depends on that token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.models.layers import SwiGLU
from jaxdiff.models.lora import product
from jaxdiff.parallel.mesh import over_experts
from jaxdiff.types import InputError

Routes = tuple[Float[Array, "n k"], Int[Array, "n k"]]  # weights, experts
Choose = Callable[[Float[Array, "n X"], Float[Array, " X"] | None], Routes]  # of float32 logits and the expert bias


class Router(nn.Module):
    """Logits in float32, whatever the dtype of the rest.

    Logits that are not finite, and a bias that is no number or +inf, choose experts and may leave the weights finite:
    these become NaN then, so that the model's scores tell of it. A bias of -inf turns an expert off.
    """

    experts: int
    choose: Choose
    bias: bool

    @nn.compact
    def __call__(self, flat: Float[Array, "n D"]) -> Routes:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (flat.shape[-1], self.experts))
        bias = self.param("bias", nn.initializers.zeros, (self.experts,)) if self.bias else None
        logits = jnp.matmul(flat.astype(jnp.float32), kernel.astype(jnp.float32))
        weights, chosen = self.choose(logits, None if bias is None else bias.astype(jnp.float32))
        sound = jnp.all(jnp.isfinite(logits), axis=-1, keepdims=True)
        if bias is not None:
            sound &= jnp.all(bias < jnp.inf)
        return jnp.where(sound, weights, jnp.nan), chosen


class Experts(nn.Module):
    """X gated MLPs, their kernels stacked [X, in, out]."""

    experts: int
    width: int
    scale: float

    @nn.compact
    def __call__(
        self,
        flat: Float[Array, "n D"],
        weights: Float[Array, "n k"],
        chosen: Int[Array, "n k"],
        gate: Bool[Array, " n"] | None = None,
    ) -> Float[Array, "n D"]:
        size = flat.shape[1]

        def kernel(name: str, shape: tuple[int, int], scale: float) -> Float[Any, "X i o"]:
            init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal", batch_axis=(0,))
            return self.param(name, init, (self.experts, *shape))

        kernels = {
            "ff_proj": kernel("ff_proj", (size, self.width), 1.0),
            "up_proj": kernel("up_proj", (size, self.width), 1.0),
            "ff_out": kernel("ff_out", (self.width, size), self.scale),
        }
        return over_experts(_mix, kernels, flat, weights, chosen, gate).astype(flat.dtype)


def _mix(
    kernels: Mapping[str, Float[Any, "X i o"]],
    flat: Float[Array, "n D"],
    weights: Float[Array, "n k"],
    chosen: Int[Array, "n k"],
    gate: Bool[Array, " n"] | None,
) -> Float[Array, "n D"]:
    """Each token's experts, weighted and summed in float32."""
    count, each = chosen.shape
    order = jnp.argsort(chosen.reshape(-1), stable=True)
    sizes = jnp.bincount(chosen.reshape(-1), length=kernels["ff_out"].shape[0]).astype(jnp.int32)
    x, on = flat[order // each], None if gate is None else gate[order // each]

    def ragged(x: Float[Array, "m i"], name: str) -> Float[Array, "m o"]:
        return product(x, kernels[name], on, lambda x, kernel: jax.lax.ragged_dot(x, kernel, sizes))

    out = ragged(jax.nn.silu(ragged(x, "ff_proj")) * ragged(x, "up_proj"), "ff_out")
    back = out[jnp.argsort(order)].reshape(count, each, -1).astype(jnp.float32)
    return jnp.sum(back * weights[..., None], axis=1)


class Mixture(nn.Module):
    """The MLP of a block.

    Attributes:
        width: of one expert; `shared`: of the expert that sees every token, 0 for none.
        choose: the router's rule; `bias`: whether it has an expert bias.
    """

    experts: int
    width: int
    choose: Choose
    bias: bool = False
    shared: int = 0
    scale: float = 1.0  # of the initial output kernels

    @nn.compact
    def __call__(self, flat: Float[Array, "n D"], gate: Bool[Array, " n"] | None = None) -> Float[Array, "n D"]:
        routes = Router(self.experts, self.choose, self.bias, name="router")(flat)
        mixed = Experts(self.experts, self.width, self.scale, name="experts")(flat, *routes, gate)
        return mixed + SwiGLU(self.shared, self.scale, name="shared")(flat, gate) if self.shared else mixed


def most_likely(
    logits: Float[Array, "n X"], bias: Float[Array, " X"] | None, *, k: int, renormalised: bool = False
) -> Routes:
    """The k experts of highest softmax (plus bias, for the choice alone), weighted by their softmax.

    Args:
        renormalised: the weights of the k are scaled to a sum of 1 (`norm_topk_prob`).
    """
    likely = jax.nn.softmax(logits, axis=-1)
    _, chosen = jax.lax.top_k(likely if bias is None else likely + bias[None], k)
    weights = jnp.take_along_axis(likely, chosen, axis=-1)
    return weights / jnp.sum(weights, axis=-1, keepdims=True) if renormalised else weights, chosen


def check_chosen(each: int, experts: int) -> None:
    """Raises InputError where a token is to have more experts than there are."""
    if each > experts:
        raise InputError(f"num_experts_per_tok: found {each}, expected at most num_experts = {experts}")
