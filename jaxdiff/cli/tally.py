"""Rows of a file, decoded and counted, with the progress that the terminal shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli import requests
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note, progress
from jaxdiff.serve import Answer, Meter, Refusal, Request


@dataclasses.dataclass
class Tally:
    """What decoding took so far; NFE and tokens are totals over the rows."""

    meter: Meter = dataclasses.field(default_factory=Meter)
    rows: int = 0
    refused: int = 0
    nfe: int = 0
    work: float = 0.0
    tokens: int = 0
    near_ties: int = 0

    def add(self, answer: Answer) -> None:
        self.rows, self.nfe, self.tokens = self.rows + 1, self.nfe + answer.nfe, self.tokens + answer.length
        self.near_ties, self.work = self.near_ties + answer.near_ties, self.work + answer.work

    def numbers(self) -> dict[str, Any]:
        return {
            "nfe": self.nfe,
            "work": self.work,
            "generated_tokens": self.tokens,
            "tpf": self.tokens / max(self.nfe, 1),
            "near_ties": self.near_ties,
            "seconds": self.meter.seconds,
            "compile_seconds": self.meter.compile_seconds,
        }

    def line(self) -> str:
        return (
            f"NFE {self.nfe} · {self.tokens} tokens · TPF {self.tokens / max(self.nfe, 1):.2f} · "
            f"{self.meter.seconds:.2f} s · compiling {self.meter.compile_seconds:.2f} s"
        )

    def says(self, tokens: float | int, seconds: float | int) -> str:
        """The words beside the progress bar."""
        rate, tpf = tokens / max(seconds, 1e-9), tokens / max(self.nfe, 1)
        return f"{rate:,.0f} tokens/s · TPF {tpf:.2f} · slots {self.meter.occupancy:.0%} busy"


def decoded(
    checkpoint: Checkpoint,
    rows: Sequence[requests.Row],
    decoding: Decoding,
    in_file: Path,
    job: requests.Job,
    tally: Tally,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row's number and its line of the output, as they are done; refusals first, and told by their line."""
    wanted = [row for row in rows if isinstance(row, Request)]
    for row in rows:
        if isinstance(row, Refusal):
            tally.refused += 1
            note(f"{in_file} line {row.number + 1}: {row.error}", style="red")
            yield row.number, requests.row_of(checkpoint, row)
    with progress("rows", len(wanted), tally.says) as update:
        for answer in requests.answers(checkpoint, wanted, decoding, job, tally.meter):
            tally.add(answer)
            yield answer.request.number, requests.row_of(checkpoint, answer, log_prob=job.log_prob)
            update(tally.rows, tally.tokens, tally.meter.seconds)
