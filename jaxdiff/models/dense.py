"""Layers of attention and SwiGLU, as a config describes them: all of a dense family's, parts of a mixture's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from jaxdiff.models.config import Config
from jaxdiff.models.layers import Attention, SwiGLU
from jaxdiff.models.stack import Group, Transformer


def output_scale(config: Config) -> float:
    """Of the initial kernels that write to the residual stream: there are two of them in each layer."""
    return 1.0 / (2 * config.n_layers)


def attention(config: Config) -> Callable[[], Attention]:
    """The attention of every layer, with the biases and norms that the config names."""
    return functools.partial(
        Attention,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        bias=config.qkv_bias,
        norm_eps=config.rms_norm_eps if config.qk_norm else None,
        scale=output_scale(config),
    )


def swiglu(config: Config) -> Callable[[], SwiGLU]:
    """The MLP of a layer without experts."""
    return functools.partial(SwiGLU, config.mlp_hidden_size, scale=output_scale(config))


@dataclasses.dataclass(frozen=True)
class DenseTransformer(Transformer):
    """A family whose layers are all alike and have no experts."""

    def groups(self) -> tuple[Group, ...]:
        return (Group("layers", self.config.n_layers, attention(self.config), swiglu(self.config)),)
