"""The judges in a model's folder: `<model>/judges/<name>/judge.json`, their weights, and maybe a card.

named_judge("gsm-1m")    what `correct(POLICY + judge)` means: the judge called `judge` of that model, and its threshold
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxdiff.checkpoint import named_part, part_homes
from jaxdiff.files import copy_present, read_object, refusing, replaced, saving, write_object
from jaxdiff.filters import CARD, layers_in, widths_of
from jaxdiff.policies import Judge

JUDGES, JUDGE, DEFAULT = "judges", "judge.json", "judge"


def named_judge(
    model: str | Path, name: str | None = None, *, adapter: str | Path | None = None
) -> tuple[Judge, float]:
    """One of the judges in a model's folder, and the threshold of its card; `adapter`: as of `load`, whose own judges
    come before the model's.

    Raises InputError for a judge that the model has not, or that is damaged.
    """
    homes = part_homes(model, JUDGES, adapter=adapter)
    mend = "fit one (jaxdiff fit --kind judge)"
    return load_judge(named_part("policy correct", homes, DEFAULT if name is None else name, JUDGE, mend=mend))


def save_judge(folder: Path, judge: Judge, tau: float, *, card: str | None = None) -> None:
    """Write a judge with its threshold to `folder`, as a whole or not at all.

    `card`: the text of its README.md; None: the one that lies there stays.
    """
    from jaxdiff.convert import writer

    config = {
        "widths": widths_of(judge.layers),
        "reach": judge.reach,
        "features": judge.features,
        "repeats": judge.repeats,
        "fitted_to": judge.fitted_to,
        "tau": round(float(np.float32(tau)), 6),
    }
    with replaced(folder) as new:
        write_object(new / JUDGE, config)
        with saving(folder):
            writer.save(new / "params", judge.layers)
        if card is None:
            copy_present([CARD], folder, new)
        else:
            (new / CARD).write_text(card, encoding="utf-8")


def load_judge(folder: Path) -> tuple[Judge, float]:
    """A judge and the threshold of its card. Raises InputError for a folder that is missing or damaged."""
    damage = (OSError, ValueError, KeyError, TypeError)
    with refusing(f"{folder / JUDGE}: missing or damaged", "fit it again", damage):
        config = read_object(folder / JUDGE)
        names = ("reach", "features", "repeats", "fitted_to", "tau")
        reach, features, repeats, fitted_to, tau = (config[name] for name in names)
        if not all(type(each) is int and 0 <= each < 2**31 for each in (reach, features)) or repeats not in (0, 1):
            raise ValueError(
                f"found reach {reach!r:.80}, features {features!r:.80} and repeats {repeats!r:.80}, expected whole "
                "numbers, repeats 0 or 1"
            )
        if not (fitted_to is None or isinstance(fitted_to, str)) or not 0.0 <= float(tau) <= 1.0:
            raise ValueError(
                f"found fitted_to {fitted_to!r:.80} and tau {tau!r:.80}, expected a text and a probability"
            )
        empty = Judge((), reach, features, repeats, fitted_to)
        widths = config["widths"]
        if not isinstance(widths, list) or (widths[:1], widths[1:][-1:]) != ([empty.width], [1]):
            raise ValueError(f"found widths {widths!r:.80}, expected from {empty.width} to 1")
    return dataclasses.replace(empty, layers=layers_in(folder, widths, "judge")), float(tau)
