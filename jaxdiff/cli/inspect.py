"""`jaxdiff inspect`: what a model folder holds, as every command understands it, before any weight is read."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import jaxdiff
from jaxdiff.cli import options
from jaxdiff.cli.show import tell
from jaxdiff.hub import origin_of


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL)],
    check: Annotated[
        bool, typer.Option("--weights", help="Read every tensor too, and report those that hold NaN or infinity.")
    ] = False,
    ignore_config: options.IgnoreConfig = None,
    as_json: options.Json = False,
) -> int:
    """Show what a model folder holds and where it contradicts itself. Exit code 1: weights hold NaN or infinity."""
    described = jaxdiff.inspect(options.pinned(model), ignore=ignore_config or ())
    origin = origin_of(described.path)
    facts = described.facts() | {"revision": None if origin is None else origin.revision}
    unsound = [str(one) for one in described.unsound()] if check else None
    tell(facts | {"unsound": unsound}, _shown(facts, unsound), as_json=as_json)
    return 1 if unsound else 0


def _shown(facts: dict[str, Any], unsound: list[str] | None) -> Table:
    """The facts; below them what contradicts itself, and what was found in the weights."""
    table = Table(title=facts["path"], box=None, show_header=False, title_justify="left")
    checked = [] if unsound is None else [("unsound", line) for line in unsound] or [("numbers", "all are finite")]
    for name, words in (*_rows(facts), *(("warning", line) for line in facts["warnings"]), *checked):
        table.add_row(Text(name), Text(words, overflow="fold"))
    return table


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    heads, positions, ids, tokenizer = facts["heads"], facts["positions"], facts["ids"], facts["tokenizer"]
    stored = ", ".join(f"{dtype} {count:,}" for dtype, count in facts["stored"].items())
    past = facts["embedding_rows"] - facts["vocab_size"]
    block = facts["attention_block"]
    rows = [
        ("family", f"{facts['family']}, {facts['layout']} layout"),
        ("parameters", f"{facts['parameters']:,} ({facts['bytes'] / 1e9:.3g} GB stored: {stored})"),
        ("computed in", f"{facts['dtype']}; on a CPU float32 unless it is asked for"),
        ("vocabulary", f"{facts['vocab_size']:,}" + (f", and {past:,} rows that are never predicted" if past else "")),
        ("context", f"{facts['context']:,} positions"),
        ("layers", f"{facts['layers']} of width {facts['width']}" + (", head tied" if facts["tied_head"] else "")),
        ("heads", f"{heads['query']} of {heads['size']}, {heads['key_value']} for keys and values"),
        ("positions", f"theta {positions['theta']:g}, {positions['rotated']} rotated, in {positions['dtype']}"),
        ("attention", "all positions" if block is None else f"its own block of {block} and what lies left"),
        ("mask", str(ids["mask"])),
        ("ends of an answer", ", ".join(_named(i, tokenizer) for i in ids["ends"])),
        ("weights", f"{len(facts['files'])} files" if len(facts["files"]) > 1 else facts["files"][0]),
    ]
    if tokenizer is not None:
        rows.append(("tokenizer", f"{tokenizer['tokens']:,} tokens"))
        rows.append(("chat template", tokenizer["template"] or "none: plain text"))
        rows.append(("prompt of 'hi'", "none: see below" if tokenizer["prompt"] is None else repr(tokenizer["prompt"])))
    return rows


def _named(token: int, tokenizer: dict[str, Any] | None) -> str:
    name = None if tokenizer is None else tokenizer["ends"][str(token)]
    return str(token) if name is None else f"{token} {name}"
