"""`jaxdiff show`: rows that `jaxdiff generate` wrote, as one page on which their decodes are played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.cli.show import note
from jaxdiff.files import check_writable, parse_json, refusing, replaced_file
from jaxdiff.show import page
from jaxdiff.types import InputError


def show(
    rows: Annotated[
        list[Path],
        typer.Argument(
            metavar="ROWS.jsonl...",
            help="Written with generate --for-show. Rows of one id, or of one prompt where they have none, stand "
            "side by side: name a file for each policy, fill or cache.",
        ),
    ],
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page, which needs no network.")],
) -> None:
    """Write a page on which decodes are played, forward by forward, side by side."""
    found: dict[str, Mapping[str, Any]] = {}
    refused = 0
    for file in rows:
        check_writable(html, file, what="html")
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            place = f"{file} line {number}"
            if not line.strip():
                continue
            with refusing(
                f"{place}: not JSON", "give rows that generate --for-show wrote", (ValueError, RecursionError)
            ):
                row = parse_json(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise InputError(f"{place}: found {type(row).__name__}, expected a row that generate --for-show wrote")
            if "error" in row:
                refused += 1
            else:
                found[place] = row
    if not found:
        raise InputError(
            f"show: found no rows, and {refused} that were refused; expected at least one that was decoded"
        )
    write_page(html, list(found.values()), places=list(found))
    if refused:
        note(f"{refused} refused rows left out")


def write_page(html: Path, rows: Sequence[Mapping[str, Any]], *, places: Sequence[str] | None = None) -> None:
    """Write the page of `jaxdiff.show.page`, as a whole or not at all, and tell of it. Raises as that."""
    text = page(rows, places=places)
    with replaced_file(html) as new:
        new.write_text(text, encoding="utf-8")
    note(f"{html}: {len(text) / 1e6:.2f} MB")
