"""The drafters in a model's folder: `<model>/drafters/<name>/drafter.json`, their weights, and maybe a card.

drafted_fill("runs/ours", "adjust")      what `--fill adjust` means: the drafter `adjust` of that model

No model that ships has one yet: `jaxdiff fit --kind adjust` or `--kind head` makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.checkpoint import named_part, part_homes
from jaxdiff.convert import stream
from jaxdiff.files import copy_present, read_object, refusing, replaced, saving, write_object
from jaxdiff.fills import Adjust, Head
from jaxdiff.models.config import Config
from jaxdiff.models.drafter import Adjuster, SamplerHead, one_layer_of
from jaxdiff.protocols import Definition, Model
from jaxdiff.types import InputError, Params

DRAFTERS, DRAFTER = "drafters", "drafter.json"
KINDS: dict[str, tuple[Any, Any]] = {"adjust": (Adjust, Adjuster), "head": (Head, SamplerHead)}
STORED = "bfloat16"  # as a model folder's params


def drafted_fill(
    model: str | Path, kind: str, name: str | None = None, *, adapter: str | Path | None = None
) -> Adjust | Head:
    """What `adjust:name=NAME` and `head:name=NAME` mean for a model: one of the drafters in its folder, by default that
    of the fill's own name. `k` is that of the drafter's card. `adapter`: as of `load`; its own drafters come first, and
    where it has none of that name the model's own is taken, though it was fitted without the adapter.

    Raises InputError for a drafter that the model has not, that is of another kind, or that is damaged.
    """
    homes, name = part_homes(model, DRAFTERS, adapter=adapter), kind if name is None else name
    folder = named_part(f"fill {kind}", homes, name, DRAFTER, mend=f"fit one (jaxdiff fit --kind {kind})")
    fill = load_drafter(folder)
    if (found := kind_of(fill)) != kind:
        raise InputError(f"fill {kind}: found {folder}, a drafter of kind {found}; take --fill {found}:name={name}")
    return fill


def unfitted(kind: str, model: Model, make: Callable[[Definition], Params]) -> Adjust | Head:
    """A fill for this model whose drafter `make` makes: of shapes alone, or of random weights, to see what it costs."""
    fill, drafter = KINDS[kind]
    made = drafter(one_layer_of(model.config))
    return fill(made, make(made))


def kind_of(fill: Adjust | Head) -> str:
    """The name of a fill's class: `adjust` or `head`."""
    return next(kind for kind, (cls, _) in KINDS.items() if type(fill) is cls)


def save_drafter(folder: Path, fill: Adjust | Head) -> None:
    """Write a fill with its drafter to `folder`, as a whole or not at all; a card that lies there stays."""
    from jaxdiff.convert import writer

    config = {
        "kind": kind_of(fill),
        "k": int(np.asarray(fill.k)),
        "fitted_to": fill.fitted_to,
        "shape": dataclasses.asdict(fill.drafter.config),
    }
    with replaced(folder) as new:
        write_object(new / DRAFTER, config)
        with saving(folder):
            writer.save(new / "params", jax.tree.map(lambda x: np.asarray(x, jnp.dtype(STORED)), fill.params))
        copy_present(["README.md"], folder, new)


def load_drafter(folder: Path) -> Adjust | Head:
    """A fill with the drafter in a folder; its weights in float32 on a CPU, else as they are stored, in bfloat16.

    Raises InputError for a folder that is missing or damaged.
    """
    damage = (OSError, ValueError, KeyError, TypeError)
    with refusing(f"{folder / DRAFTER}: missing or damaged", "fit it again", damage):
        card = read_object(folder / DRAFTER)
        shape = card["shape"] | {"further_eos_token_ids": tuple(card["shape"]["further_eos_token_ids"])}
        make, kind = KINDS[card["kind"]]
        drafter, k, fitted_to = kind(Config(**shape)), int(card["k"]), card["fitted_to"]
        shapes = jax.eval_shape(drafter.init, jax.random.key(0))
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.dtype(STORED)
    params = stream.restore(folder / "params", jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes))
    if not all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(params)):
        raise InputError(f"{folder / 'params'}: found weights that are no numbers (NaN or inf); fit the drafter again")
    return make(drafter, params, fitted_to, k)
