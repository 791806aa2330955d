"""Rows of a file, decoded and counted, with the progress that the terminal shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli import requests
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note, progress
from jaxdiff.serve import Meter, Refusal

MOST_NAMED = 20  # rows that a line names


@dataclasses.dataclass
class Tally:
    """What decoding took so far; NFE, cheap passes, those of a guide, work and tokens are totals over the rows."""

    meter: Meter = dataclasses.field(default_factory=Meter)
    rows: int = 0
    refused: int = 0
    nfe: int = 0
    cheap: int = 0
    guide_nfe: int = 0
    work: float = 0.0
    tokens: int = 0
    near_ties: int = 0
    not_finite: int = 0
    by_string: int = 0  # rows that ended at a stop string

    def add(self, line: Mapping[str, Any]) -> None:
        """A line of a part: an answer's, or a refusal's."""
        row = line["row"]
        if "error" in row:
            self.refused += 1
            return
        self.rows, self.nfe, self.cheap = self.rows + 1, self.nfe + row["nfe"], self.cheap + row["cheap"]
        self.work, self.guide_nfe = self.work + row["work"], self.guide_nfe + row["guide_nfe"]
        self.tokens, self.near_ties = self.tokens + line["length"], self.near_ties + line["near_ties"]
        self.not_finite += row["not_finite"]
        self.by_string += row["reason"] == "string"

    def numbers(self) -> dict[str, Any]:
        return {
            "nfe": self.nfe,
            "cheap": self.cheap,
            "guide_nfe": self.guide_nfe,
            "work": self.work,
            "generated_tokens": self.tokens,
            "tpf": self.tokens / max(self.nfe, 1),
            "near_ties": self.near_ties,
            "not_finite": self.not_finite,
            "seconds": self.meter.seconds,
            "compile_seconds": self.meter.compile_seconds,
        }

    def line(self) -> str:
        cheap = f"{self.cheap} cheap passes · " if self.cheap else ""
        cheap += f"{self.guide_nfe} passes of the guide · " if self.guide_nfe else ""
        ended = f"{self.by_string} ended at a stop string · " if self.by_string else ""
        return (
            f"NFE {self.nfe} · {cheap}{self.tokens} tokens · TPF {self.tokens / max(self.nfe, 1):.2f} · {ended}"
            f"{self.meter.seconds:.2f} s · compiling {self.meter.compile_seconds:.2f} s"
        )

    def says(self, tokens: float | int, seconds: float | int) -> str:
        """The words beside the progress bar."""
        rate, tpf = tokens / max(seconds, 1e-9), tokens / max(self.nfe, 1)
        return f"{rate:,.0f} tokens/s · TPF {tpf:.2f} · slots {self.meter.occupancy:.0%} busy"


def trusted(model: str, what: str, counts: Mapping[int, int]) -> bool:
    """Whether all scores were numbers; else it is told which of `what` met others, and what to do.

    `counts`: `not_finite` of each, by its number from 0.
    """
    met = [str(number + 1) for number, count in sorted(counts.items()) if count]
    if met:
        which = ", ".join(met[:MOST_NAMED]) + (f" and {len(met) - MOST_NAMED} more" if len(met) > MOST_NAMED else "")
        note(
            f"{what} {which}: the model's scores were no numbers (NaN or infinity); do not trust what was written, and "
            f"check the weights: jaxdiff inspect {model} --weights",
            style="red",
        )
    return not met


def decode_rows(
    checkpoint: Checkpoint,
    rows: Sequence[requests.Row],
    decoding: Decoding,
    in_file: Path,
    job: requests.Job,
    keep: Callable[[dict[str, Any]], None],
) -> Tally:
    """`keep` each row's line of a part as it is done; refusals first, and told by their line. Returns what it took."""
    wanted, tally = [row for row in rows if not isinstance(row, Refusal)], Tally()
    for row in rows:
        if isinstance(row, Refusal):
            note(f"{in_file} line {row.number + 1}: {row.error}", style="red")
            line = {"number": row.number, "row": {"id": row.id, "error": row.error}}
            keep(line)
            tally.add(line)
    with progress("rows", len(wanted), tally.says) as update:
        for line in requests.lines(checkpoint, wanted, decoding, job, tally.meter):
            keep(line)
            tally.add(line)
            update(tally.rows, tally.tokens, tally.meter.seconds)
    return tally
