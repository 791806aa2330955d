"""What the fills with a drafter share: what they ask of one, which model it belongs to, and its weights."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.leaves import fingerprint
from jaxdiff.protocols import Model
from jaxdiff.pytree import InputError
from jaxdiff.types import Params

# What a drafter's config shares with that of its model.
SHARED = ("d_model", "vocab_size", "mask_token_id", "n_heads", "n_kv_heads", "head_dim", "mlp_hidden_size")


@runtime_checkable
class BlockDrafter(Protocol):
    """A static, hashable definition that moves the features of a whole block on (`jaxdiff.models.drafter.Adjuster`)."""

    @property
    def config(self) -> Any: ...

    def apply(
        self,
        params: Params,
        hidden: Float[Array, "B W D"],
        embedded: Float[Array, "B W D"],
        positions: Int[Array, "B W"],
        valid: Bool[Array, "B W"],
    ) -> Float[Array, "B W D"]: ...


@runtime_checkable
class TokenDrafter(Protocol):
    """One that moves the features of some positions on, by the embedding of the token left of each
    (`jaxdiff.models.drafter.SamplerHead`).
    """

    @property
    def config(self) -> Any: ...

    def apply(
        self, params: Params, hidden: Float[Array, "B C D"], left: Float[Array, "B C D"]
    ) -> Float[Array, "B C D"]: ...


def check_drafter(label: str, config: Any, fitted_to: str | None, model: Model, params: Params) -> None:
    """Raises InputError for a drafter of another model: of another shape, or of other weights.

    `fitted_to`: the fingerprint of the weights that it was fitted to; None: it may go with any.
    """
    for name in SHARED:
        found, expected = getattr(config, name, None), getattr(model.config, name, None)
        if found != expected:
            raise InputError(
                f"fill {label}: found a drafter for a model of {name} {found}, but this one has {expected}; take the "
                "drafter of this model, or fit one (jaxdiff fit)"
            )
    here = None if fitted_to is None else fingerprint(params)
    if here is not None and fitted_to != here:
        raise InputError(
            f"fill {label}: found a drafter of the weights {fitted_to}, but these are {here}; take the drafter of this "
            "model, or fit one (jaxdiff fit)"
        )


def weights_of(params: Params) -> int:
    """How many there are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
