"""The learned filters in a model's folder: `<model>/filters/<name>/filter.json`, their weights, and a card.

learned_policy("gsm-1m")                what `--policy learned` means: the best filter of that model
learned_policy("gsm-1m", "official")    what `--policy learned:name=official` means
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.checkpoint import named_part, part_homes
from jaxdiff.convert import stream
from jaxdiff.files import copy_present, read_object, refusing, replaced, saving, write_object
from jaxdiff.policies import Fixed, Learned, any_of
from jaxdiff.policies.filters import BlockFilter, ConfidenceFilter, Layers, LocalFilter, init_layers
from jaxdiff.protocols import Policy
from jaxdiff.types import InputError

FILTERS, FILTER, CARD = "filters", "filter.json", "README.md"
BEST_FILTER = "local"  # what bare `learned` means
FILTER_KINDS: dict[str, Any] = {"block": BlockFilter, "local": LocalFilter, "confidence": ConfidenceFilter}


def learned_policy(
    model: str | Path, name: str | None = None, tau: float | None = None, *, adapter: str | Path | None = None
) -> Policy:
    """What `learned:name=NAME,tau=TAU` means for a model: one of the filters in its folder, the best one by default.

    `tau` replaces the threshold of the filter's card; a filter of the published kind is joined with one token a step.
    `adapter`: as of `load`; its own filters come before the model's.

    Raises InputError for a filter that the model has not, or that is damaged.
    """
    learned, quota = named_filter(model, name, adapter=adapter)
    if tau is not None:
        learned = dataclasses.replace(learned, tau=tau)
    return any_of(learned, Fixed()) if quota else learned


def named_filter(
    model: str | Path, name: str | None = None, *, adapter: str | Path | None = None
) -> tuple[Learned, bool]:
    """What `load_filter` gives of one of a model's filters; arguments and errors are those of `learned_policy`."""
    homes = part_homes(model, FILTERS, adapter=adapter)
    name = BEST_FILTER if name is None else name
    return load_filter(named_part("policy learned", homes, name, FILTER, mend="fit a filter"))


def save_filter(folder: Path, learned: Learned, *, quota: bool, card: str | None = None) -> None:
    """Write a learned filter with its threshold to `folder`, as a whole or not at all.

    `quota`: whether the policy joins it with one token a step, as the published decode does. `card`: the text of its
    README.md; None: the one that lies there stays.
    """
    from jaxdiff.convert import writer

    judge = learned.filter
    config = {
        "kind": next(kind for kind, cls in FILTER_KINDS.items() if type(judge) is cls),
        "widths": widths_of(judge.layers),
        "reach": getattr(judge, "reach", None),
        "features": getattr(judge, "features", None),
        "tau": round(float(np.asarray(learned.tau)), 6),  # float32 has no more digits
        "quota": quota,
    }
    with replaced(folder) as new:
        write_object(new / FILTER, config)
        with saving(folder):
            writer.save(new / "params", judge.layers)
        if card is None:
            copy_present([CARD], folder, new)
        else:
            (new / CARD).write_text(card, encoding="utf-8")


def load_filter(folder: Path) -> tuple[Learned, bool]:
    """A learned policy with the threshold of its card, and whether it is joined with the fixed quota.

    Raises InputError for a folder that is missing or damaged.
    """
    damage = (OSError, ValueError, KeyError, TypeError)
    with refusing(f"{folder / FILTER}: missing or damaged", "fit it again", damage):
        config = read_object(folder / FILTER)
        _check_widths(config)
        make = FILTER_KINDS[config["kind"]]
        fields = {f.name: config[f.name] for f in dataclasses.fields(make) if f.name != "layers"}
        tau, quota = float(config["tau"]), bool(config["quota"])
    return Learned(make(layers=layers_in(folder, config["widths"], "filter"), **fields), tau), quota


def widths_of(layers: Layers) -> list[int]:
    """Of the inputs, and of what each layer gives."""
    return [layers[0].kernel.shape[0], *(layer.kernel.shape[1] for layer in layers)]


def layers_in(folder: Path, widths: list[int], what: str) -> Layers:
    """The layers of these widths that were saved in a folder. Raises InputError where they are damaged."""
    if len(widths) < 2 or not all(type(width) is int and 0 < width < 2**31 for width in widths):
        raise InputError(f"{folder}: found widths {widths!r:.80}, expected two whole numbers or more; fit it again")
    layers = jax.eval_shape(lambda key: init_layers(key, tuple(widths)), jax.random.key(0))
    layers = stream.restore(folder / "params", layers)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(layers)):
        raise InputError(f"{folder / 'params'}: found weights that are no numbers (NaN or inf); fit the {what} again")
    return layers


def _check_widths(config: dict[str, Any]) -> None:
    """Raises ValueError where the layers of a filter's card do not fit what it reads and gives."""
    widths, kind = config["widths"], config["kind"]
    if not isinstance(widths, list) or len(widths) < 2 or not all(type(w) is int and 0 < w < 2**31 for w in widths):
        raise ValueError(f"found widths {widths!r:.80}, expected two whole numbers or more")
    ends = (widths[0], widths[0])
    if kind != "block":
        reach, features = config["reach"], config["features"]
        if not all(type(each) is int and 0 <= each < 2**31 for each in (reach, features)):
            raise ValueError(f"found reach {reach!r:.80} and features {features!r:.80}, expected whole numbers")
        empty = LocalFilter((), reach, features) if kind == "local" else ConfidenceFilter((), reach)
        ends = (empty.width, 1)
    if (widths[0], widths[-1]) != ends:
        raise ValueError(f"found widths from {widths[0]} to {widths[-1]}, expected from {ends[0]} to {ends[1]}")
