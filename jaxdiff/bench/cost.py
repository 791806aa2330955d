"""What one device does in a step of a compiled decode: products, memory traffic, collectives, by pass and width."""

from __future__ import annotations

import re
from typing import Any

from jaxdiff.bench.hlo import Hlo, Run, collectives, flops

_COLUMNS = re.compile(r"/(\d+)_columns/")  # the scope that `decode.pieces.shortest` gives to a width
_FILL = "/fill/"  # the scope of what `decode.loop` has the fill do


def step_cost(text: str) -> dict[str, Any]:
    """What one device does in a step.

    `always`: in every one; `passes`: in turn, what is done once for each piece of the rows that need it: a conditional,
    in its dearest branch, or one round of a loop. Each: `flops`, of matrix products; `bytes_accessed`, moved between
    main memory and the chip; `collectives`, by kind how many, and the bytes of their results. A pass also says whether
    it is one of the `fill`, how many `columns` of a row it feeds where widths are compiled, and as `rungs` the same
    numbers for each of these, the lightest first.
    """
    hlo = Hlo(text)
    parts = _parts(hlo)
    always = parts.pop("")
    conditionals = [run.instruction for runs in parts.values() for run in runs if run.instruction.branches]
    most = max((len(hlo.heavy(each, flops)) for each in conditionals), default=1)
    rungs = [_parts(hlo, rung) for rung in range(most)]
    found = []
    for name, runs in parts.items():
        if (cost := _pass(hlo, runs))["flops"]:
            ladder = [_pass(hlo, each[name]) for each in rungs]
            ladder = [one for one, before in zip(ladder, [None, *ladder], strict=False) if one != before]
            found.append(cost | {"rungs": ladder})
    return {"always": _cost(hlo, always), "passes": found}


def _parts(hlo: Hlo, rung: int | None = None) -> dict[str, list[Run]]:
    """What runs in a step, by part; under "" what runs in every one."""
    parts: dict[str, list[Run]] = {"": []}
    for run in hlo.runs(flops, rung):
        if run.step:
            parts.setdefault(run.part, []).append(run)
    return parts


def _pass(hlo: Hlo, runs: list[Run]) -> dict[str, Any]:
    products = [run.instruction.line for run in runs if flops(run)]
    widths = [int(found[1]) for line in products if (found := _COLUMNS.search(line))]
    # A product that XLA made from others has lost its scope; the rest of its loop has not.
    named = {"fill": any(_FILL in run.instruction.line for run in runs), "columns": max(widths, default=None)}
    return _cost(hlo, runs) | named


def _cost(hlo: Hlo, runs: list[Run]) -> dict[str, Any]:
    kinds: dict[str, dict[str, int]] = {}
    for each in collectives(runs):
        kind = kinds.setdefault(each.kind, {"count": 0, "bytes": 0})
        kind["count"] += each.times
        kind["bytes"] += each.times * each.bytes
    return {
        "flops": sum(run.times * flops(run) for run in runs),
        "bytes_accessed": sum(run.times * hlo.traffic(run) for run in runs),
        "collectives": kinds,
    }
