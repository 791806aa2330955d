"""Results that a killed run keeps: a JSON file of named entries, all of one setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdiff.files import replaced_file


class Kept:
    """What the file holds is not measured again, unless the setting changed."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.content: dict[str, Any] = {"setting": setting, "entries": {}}
        if path.is_file() and (kept := json.loads(path.read_text()))["setting"] == setting:
            self.content = kept

    @property
    def entries(self) -> dict[str, Any]:
        return self.content["entries"]

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The entry called `name`, made and written where it is missing."""
        if name not in self.entries:
            self.entries[name] = make()
            self.write()
        return self.entries[name]

    def write(self) -> None:
        """Whole or not at all."""
        with replaced_file(self.path) as new:
            new.write_text(json.dumps(self.content, indent=1) + "\n")
