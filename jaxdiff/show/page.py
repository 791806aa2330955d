"""The page: one file that holds its own style, script and data, and asks no network for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jaxdiff.files import json_line
from jaxdiff.show.rows import compare, decode_of
from jaxdiff.types import InputError


def page(rows: Sequence[Mapping[str, Any]], title: str = "jaxdiff", *, places: Sequence[str] | None = None) -> str:
    """The HTML of rows that `jaxdiff generate --for-show` writes, or `row_of` makes. Rows of one id, or of one prompt
    where they have none, stand side by side; those of others are chosen from a list.

    All text in it is data: none of it becomes markup or script.

    Args:
        places: what messages call each row; default `row` and its place from 0.

    Raises InputError, with the row's place, for one that lacks what is drawn, for rows of one id with other prompts,
    and where there are no rows.
    """
    if not rows:
        raise InputError("show: found no rows, expected at least one")
    prompts: dict[str, dict[str, Any]] = {}
    places = [f"row {number}" for number in range(len(rows))] if places is None else places
    for place, row in zip(places, rows, strict=True):
        try:
            decode = decode_of(row)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        name, text = row.get("id"), row.get("prompt_text")
        key = json_line([name is None, text if name is None else name])
        group = prompts.setdefault(key, {"name": name, "text": text, "of": []})
        if group["text"] != text:
            raise InputError(
                f"{place}: found id {json_line(name)} with another prompt than a row before it, expected the rows of "
                "one id to answer one prompt; show the files apart"
            )
        group["of"].append(decode)
    for group in prompts.values():
        compare(group["of"])
    return _rendered(title, {"prompts": list(prompts.values())})


def _rendered(title: str, data: dict[str, Any]) -> str:
    from jinja2 import Environment  # slow to import

    home = files("jaxdiff.show")
    template, style, script = (
        home.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    made = Environment(autoescape=True, keep_trailing_newline=True).from_string(template)
    return made.render(title=title, style=style, script=script, data=data)
