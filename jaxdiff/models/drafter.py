"""Drafters: small networks beside a frozen model, which move its features on as tokens are written between two passes.

    features [B W D] of the full pass, tokens written since -> a drafter -> features [B W D] -> the model's own head

`Adjuster` is ADJUST's (arXiv 2509.22738): one bidirectional layer over the block. `SamplerHead` is that of "Your LLM
knows the future" (arXiv 2507.11851): an MLP on the token to the left and the position's features, without attention.
The last norm of both begins at zero, so that a drafter that has learned nothing gives the features that it was given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxdiff.models.config import Config
from jaxdiff.models.layers import Projection, RMSNorm, SwiGLU, rope_table
from jaxdiff.models.stack import Block
from jaxdiff.types import Params


def one_layer_of(config: Config) -> Config:
    """The shape of a drafter for a model with this config: its heads, widths and vocabulary, and one dense layer.

    The rest of a family (biases, norms of queries and keys, experts, blocks of attention) is left out.
    """
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return Config(**shared | {"n_layers": 1, "prefix_lm": False})


class _Layer(nn.Module):
    config: Config

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "B W D"],
        embedded: Float[Array, "B W D"],
        positions: Int[Array, "B W"],
        valid: Bool[Array, "B W"],
    ) -> Float[Array, "B W D"]:
        c = self.config
        both = _both(c, hidden, embedded)
        x = Projection(c.d_model, name="fuse")(both.reshape(-1, both.shape[-1])).reshape(hidden.shape)
        rope = rope_table(positions, c.rotary_dim, c.rope_theta, jnp.dtype(c.rope_dtype))
        mlp = lambda: SwiGLU(c.mlp_hidden_size, c.output_scale)  # noqa: E731
        x, _ = Block(c, mlp, name="layer")(x, rope, valid[:, None])
        return hidden + RMSNorm(c.rms_norm_eps, name="norm")(x)


class _Mlp(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, hidden: Float[Array, "B C D"], left: Float[Array, "B C D"]) -> Float[Array, "B C D"]:
        c = self.config
        both = _both(c, hidden, left)
        x = both.reshape(-1, both.shape[-1])
        for name, norm in (("first", "first_norm"), ("second", "norm")):
            x = RMSNorm(c.rms_norm_eps, name=norm)(jax.nn.silu(Projection(c.d_model, name=name)(x)))
        return hidden + x.reshape(hidden.shape)


def _both(config: Config, hidden: Float[Array, "B C D"], embedded: Float[Array, "B C D"]) -> Float[Array, "B C E"]:
    """Tokens and features side by side, each normalised; for a module's compact call."""
    eps = config.rms_norm_eps
    return jnp.concatenate(
        [RMSNorm(eps, name="token_norm")(embedded), RMSNorm(eps, name="hidden_norm")(hidden)], axis=-1
    )


@dataclasses.dataclass(frozen=True)
class Adjuster:
    """ADJUST's drafter: h + norm(layer(W [norm(embedding); norm(h)])), with rotary positions.

    It sees the block alone. All that a step writes lies in the block, and what the rest of the canvas says has reached
    the features of each position in the full pass; so no summary of the rest is kept, and a pass costs W columns of one
    layer whatever the canvas' length.
    """

    config: Config

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters."""
        x, at = jnp.zeros((1, 1, self.config.d_model)), jnp.zeros((1, 1), jnp.int32)
        return _at_rest(_Layer(self.config).init(key, x, x, at, at == 0)["params"])

    def apply(
        self,
        params: Params,
        hidden: Float[Array, "B W D"],
        embedded: Float[Array, "B W D"],
        positions: Int[Array, "B W"],
        valid: Bool[Array, "B W"],
    ) -> Float[Array, "B W D"]:
        """The block's features after a token more.

        Args:
            hidden: those of the full pass, or of the pass before this one.
            embedded: the model's embeddings of what stands in the block now, masks too.
            positions: absolute ones; `valid`: those that the row attends to.
        """
        out: Any = _Layer(self.config).apply({"params": params}, hidden, embedded, positions, valid)
        return out


@dataclasses.dataclass(frozen=True)
class SamplerHead:
    """The sampler head: h + MLP [norm(embedding of the token to the left); norm(h)], two layers of SiLU and norm."""

    config: Config

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 parameters."""
        x = jnp.zeros((1, 1, self.config.d_model))
        return _at_rest(_Mlp(self.config).init(key, x, x)["params"])

    def apply(
        self, params: Params, hidden: Float[Array, "B C D"], left: Float[Array, "B C D"]
    ) -> Float[Array, "B C D"]:
        """The features of some positions, given the embedding of the token left of each."""
        out: Any = _Mlp(self.config).apply({"params": params}, hidden, left)
        return out


def _at_rest(params: Params) -> Params:
    """Params whose last norm lets nothing through yet."""
    return params | {"norm": {"weight": jnp.zeros_like(params["norm"]["weight"])}}
