"""Write docs/reference.md from the tables of parts of a decoder: `python experiments/reference.py`.

A test compares the file with what this writes, so that the reference cannot go stale.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

from jaxdiff.caches import CACHES
from jaxdiff.constraints import Awrs, NoRepeat, NotEmpty, Table, letters_of, schema_pattern
from jaxdiff.decode import EndThink, Sampling
from jaxdiff.drafters import DRAFTERS
from jaxdiff.drafts import DRAFTS
from jaxdiff.fills import DRAFTED, FILLS
from jaxdiff.filters import BEST_FILTER, FILTERS
from jaxdiff.insertion import WAYS
from jaxdiff.judges import DEFAULT, JUDGES
from jaxdiff.policies import POLICIES, AllOf, AnyOf, Cap, Correct, Explore, Replay, Revise, Witness
from jaxdiff.pytree import is_number
from jaxdiff.registry import Registry
from jaxdiff.stoppers import STOPPERS, StopStrings

FILE = Path(__file__).parents[1] / "docs" / "reference.md"
PARTS = {
    "Policies": ("--policy", POLICIES, "Where: which positions commit, are edited or remasked at a step."),
    "Fills": ("--fill", FILLS, "What: which tokens the chosen positions of a step get together."),
    "Caches": ("--cache", CACHES, "Which keys and values are kept between passes, and when they are refreshed."),
    "Stoppers": ("--stop", STOPPERS, "When a row's end moves left."),
}
# What the command line names beside a class's fields, to find its weights: where in the model's folder, and by default.
NAMED = {"learned": (FILTERS, BEST_FILTER)} | {name: (DRAFTERS, name) for name in DRAFTED}
NAMED["correct(A + judge)"] = (JUDGES, DEFAULT)
COMBINED = {
    "any_of(A + B)": AnyOf,
    "all_of(A + B)": AllOf,
    "cap(K + A)": Cap,
    "correct(A + judge)": Correct,
    "revise(A)": Revise,
    "(Python alone)": Replay,
    "(Python alone, of fit --reward)": Explore,
    "(Python alone, of collect --rash)": Witness,
}


def reference() -> str:
    """The whole document."""
    parts = [
        "# Reference",
        "Every policy, fill, cache and stopper: how the command line names it, its class in Python, its",
        "numbers with their range and default, what it does, where it is from, and when it is exact. Written by",
        "`python experiments/reference.py` from the code; [guide.md](guide.md) says how to choose.",
        "",
        "In Python a number may be one value or one for each row; a new value never recompiles.",
    ]
    for title, (option, registry, what) in PARTS.items():
        parts += ["", f"## {title}", "", f"{what} Command line: `{option} NAME[:K=V,...]`."]
        parts += [line for name, cls in registry.classes().items() for line in entry(registry, name, cls)]
        if registry is STOPPERS:
            parts += entry(registry, "--stop-string", StopStrings)
        if registry is POLICIES:
            parts += [line for name, cls in COMBINED.items() for line in entry(registry, name, cls)]
    what = "Into how many gaps a forward of an insertion model inserts, and when a row ends."
    parts += ["", "## Insertion", "", f"{what} Command line: `--insert NAME[:K=V,...]`."]
    for name, cls in WAYS.classes().items():
        parts += ["", f"### `{name}`", "", f"`jaxdiff.insertion.{cls.__name__}`", "", *described(cls), "", *fields(cls)]
    what = "What guesses the next tokens of an autoregressive model, so that a pass gives several."
    parts += ["", "## Drafts", "", f"{what} Command line: `--draft NAME[:K=V,...]`; `denoiser:model=NAME`."]
    parts += [line for name, cls in DRAFTS.classes().items() for line in entry(DRAFTS, name, cls)]
    parts += ["", "## Constraints", "", "Which texts an answer may be. Command line: `--constraint KIND:...`."]
    for name, made in {"regex:PATTERN": letters_of, "json:SCHEMA": schema_pattern}.items():
        parts += ["", f"### `{name}`", "", "`jaxdiff.constraints.Regex`", "", *described(made)]
    for name, cls in {"awrs": Awrs, "not_empty": NotEmpty, "no_repeat": NoRepeat, "(Python alone)": Table}.items():
        parts += [
            "",
            f"### `{name}`",
            "",
            f"`jaxdiff.constraints.{cls.__name__}`",
            "",
            *described(cls),
            "",
            *fields(cls),
        ]
    parts += ["", "## Sampling", "", *described(Sampling), "", *fields(Sampling)]
    parts += ["", "### `end_think`", "", "`jaxdiff.EndThink`", "", *described(EndThink), "", *fields(EndThink)]
    return "\n".join(parts) + "\n"


def entry(registry: Registry, name: str, cls: type) -> list[str]:
    """The section of one class."""
    module = inspect.getmodule(cls)
    room = "" if module is None else module.__name__.rpartition(".")[0]
    about = inspect.getdoc(module) or ""
    heading = [f"### `{name}`", "", f"`{room}.{cls.__name__}`", ""]
    return ["", *heading, *about.splitlines(), "", *described(cls), "", *fields(cls, NAMED.get(name))]


def described(cls: type | Callable) -> list[str]:
    """A class's docstring, its attributes as a list."""
    text, _, attributes = (inspect.getdoc(cls) or "").partition("Attributes:")
    lines = text.rstrip().splitlines()
    for line in inspect.cleandoc(attributes).splitlines() if attributes else ():
        first = not line.startswith(" ") and line.partition(":")[1]
        lines += [f"- {line}"] if first else [f"  {line.strip()}"]
    if attributes:
        lines.insert(len(text.rstrip().splitlines()), "")
    return lines


def fields(cls: type, named: tuple[str, str] | None = None) -> list[str]:
    """A table of what can be set; `named` as in NAMED."""
    rows = []
    if named is not None:
        rows.append(f"| `name` (command line) | a folder in `{named[0]}/` of the model | {named[1]} |")
    for field in dataclasses.fields(cls):
        if is_number(field):
            low, high = field.metadata["low"], field.metadata["high"]
            kind = "whole number" if field.metadata["whole"] else "number"
            values = f"{kind}, {low:g} or more" if high >= 2**20 else f"{kind}, {low:g} to {high:g}"
        elif "options" in field.metadata:
            values = ", ".join(field.metadata["options"])
        elif isinstance(field.default, bool):
            values = "true, false"
        else:
            continue
        default = (
            "off" if field.default is None else "needed" if field.default is dataclasses.MISSING else field.default
        )
        default = "unlimited" if default == 2**20 else default
        rows.append(f"| `{field.name}` | {values} | {default} |")
    return ["| argument | values | default |", "|---|---|---|", *rows] if rows else ["No arguments."]


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    print(FILE)
