"""`jaxdiff inspect`: what a model folder holds, as every command understands it, before any weight is read."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import jaxdiff
from jaxdiff import checkpoint
from jaxdiff.cli import options
from jaxdiff.cli.show import tell

SHOWN = 5  # names in a row of the table; --json has all


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=options.MODEL)],
    check: Annotated[
        bool, typer.Option("--weights", help="Read every tensor too, and report those that hold NaN or infinity.")
    ] = False,
    mesh: Annotated[
        str, typer.Option("--mesh", metavar="DxM", help="Devices that memory is told for; they need not be here.")
    ] = "1x1",
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    as_json: options.Json = False,
) -> int:
    """Show what a model folder holds and where it contradicts itself: what is used, ignored, missing; memory.

    Exit code 1: it cannot be loaded, or weights hold NaN or infinity.
    """
    ignore, name = ignore_config or (), options.pinned(model)
    adapter = options.pinned_adapter(adapter, name)
    facts = checkpoint.survey(name, ignore=ignore, adapter=adapter, mesh=mesh)
    unsound = None
    if check and not facts["faults"]:
        unsound = [str(one) for one in jaxdiff.inspect(name, ignore=ignore, adapter=adapter).unsound()]
    tell(facts | {"unsound": unsound}, _shown(facts, unsound), as_json=as_json)
    return 1 if unsound or facts["faults"] else 0


def _shown(facts: dict[str, Any], unsound: list[str] | None) -> Table:
    """The facts; below them what contradicts itself, what keeps it from being loaded, what was found in the weights."""
    table = Table(title=facts["path"], box=None, show_header=False, title_justify="left")
    rows = _rows(facts) if "config" in facts else [("family", f"{facts.get('family')}, {facts['layout']} layout")]
    rows += _of_files(facts)
    rows += [("warning", line) for line in facts["warnings"]] + [("fault", line) for line in facts["faults"]]
    if unsound is not None:
        rows += [("unsound", line) for line in unsound] or [("numbers", "all are finite")]
    for name, words in rows:
        table.add_row(Text(name), Text(words, overflow="fold"))
    return table


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    heads, positions, ids, tokenizer = facts["heads"], facts["positions"], facts["ids"], facts.get("tokenizer")
    past, block, memory = facts["embedding_rows"] - facts["vocab_size"], facts["attention_block"], facts["memory"]
    rows = [
        ("family", f"{facts['family']}, {facts['layout']} layout"),
        ("parameters", f"{facts['parameters']:,}"),
        ("computed in", f"{facts['dtype']}; on a CPU float32 unless it is asked for"),
        ("vocabulary", f"{facts['vocab_size']:,}" + (f", and {past:,} rows that are never predicted" if past else "")),
        ("context", f"{facts['context']:,} positions"),
        ("layers", f"{facts['layers']} of width {facts['width']}" + (", head tied" if facts["tied_head"] else "")),
        ("heads", f"{heads['query']} of {heads['size']}, {heads['key_value']} for keys and values"),
        ("positions", f"theta {positions['theta']:g}, {positions['rotated']} rotated, in {positions['dtype']}"),
        ("attention", _attention(block)),
        ("mask", "none" if ids["mask"] is None else str(ids["mask"])),
        ("ends of an answer", ", ".join(_named(i, tokenizer) for i in ids["ends"])),
        (
            "memory",
            f"{_size(memory['params_per_device'])} of weights on each device of {memory['mesh']}, and "
            f"{_size(memory['kv_per_row'])} of keys and values for each row of {facts['context']:,} positions, in "
            f"{memory['dtype']}",
        ),
    ]
    if (adapter := facts.get("adapter")) is not None:
        ranks = ", ".join(map(str, adapter["ranks"])) or "none"
        saved = f", {len(adapter['saved'])} in place of the model's" if adapter["saved"] else ""
        gated = ", on at the mask alone" if adapter["gated"] else ""
        rows.append(("adapter", f"{adapter['path']}: {adapter['matrices']} matrices of rank {ranks}{saved}{gated}"))
    if tokenizer is not None:
        rows.append(("tokenizer", f"{tokenizer['tokens']:,} tokens"))
        rows.append(("chat template", tokenizer["template"] or "none: plain text"))
        rows.append(("prompt of 'hi'", "none: see below" if tokenizer["prompt"] is None else repr(tokenizer["prompt"])))
    return rows


def _attention(block: int | None) -> str:
    if block is None:
        return "all positions"
    return "what lies left" if block == 1 else f"its own block of {block} and what lies left"


def _of_files(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The weights' files, and the tensors and the keys of config.json that are used, ignored, missing."""
    rows, tensors, keys = [], facts.get("tensors"), facts.get("keys")
    if "files" in facts:
        held = ", ".join(f"{dtype} {count:,}" for dtype, count in facts["stored"].items())
        files = f"{len(facts['files'])} files" if len(facts["files"]) > 1 else facts["files"][0]
        rows.append(("weights", f"{files}, {_size(facts['bytes'])}: {held}"))
    if tensors is not None:
        lists = [(name, tensors[name]) for name in ("ignored", "missing", "unexpected", "unfit")]
        rows.append(("tensors", "; ".join([f"{tensors['used']:,} used", *_lists(lists)])))
    if keys is not None:
        default = [f"{key} ({value})" for key, value in keys["default"].items() if value not in (None, (), False)]
        lists = [*((name, keys[name]) for name in ("ignored", "unknown", "missing")), ("by default", default)]
        count = len(keys["used"]) + len(keys["required"])
        rows.append(("config.json", "; ".join([f"{count} keys used", *_lists(lists)])))
    return rows


def _lists(lists: list[tuple[str, list[str]]]) -> list[str]:
    """`3 ignored: a, b, c` of each list that is not empty."""
    return [
        f"{len(names)} {name}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for name, names in lists
        if names
    ]


def _size(count: int) -> str:
    """Bytes, for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _named(token: int, tokenizer: dict[str, Any] | None) -> str:
    name = None if tokenizer is None else tokenizer["ends"][str(token)]
    return str(token) if name is None else f"{token} {name}"
