"""What `--constraint` says: `regex:`, `json:`, and constraints that draw by rejection, `awrs + ... + regex:`."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdiff.constraints.awrs import ESTIMATORS
from jaxdiff.constraints.letters import KINDS, pattern_of
from jaxdiff.constraints.predicates import NoRepeat, NotEmpty
from jaxdiff.pytree import InputError, choice, pytree
from jaxdiff.registry import Registry


@pytree
class Rejection:
    """Tokens are drawn by rejection (`awrs`); `estimator`: as of `constraints.Awrs`."""

    estimator: str = choice(ESTIMATORS, default="recursive")


PARTS = Registry("constraint", {"awrs": Rejection, "not_empty": NotEmpty, "no_repeat": NoRepeat})


@dataclasses.dataclass(frozen=True)
class Named:
    """A constraint by its parts.

    Attributes:
        pattern: a regular expression that the text matches, or None.
        estimator: None: not by rejection.
        predicates: `NotEmpty` and `NoRepeat`, which do not know the ids of an end yet.
        text: what names it, a schema written as the regular expression that it is.
    """

    pattern: str | None
    estimator: str | None
    predicates: tuple[Any, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Named:
        """Of `regex:PATTERN` or `json:SCHEMA`, alone or as the last of parts that are joined by `+`:

            awrs+regex:[0-9]+      not_empty+no_repeat:n=3      awrs:estimator=paper+no_repeat+json:schema.json

        Behind `regex:` and `json:` all is the pattern's or the schema's. With any other part tokens are drawn by
        rejection.

        Raises InputError for another part, one that is given twice, `awrs` alone, and as `letters.pattern_of`.
        """
        found: dict[str, Any] = {}
        names, rest, pattern = [], text, None
        while rest and pattern is None:
            name = rest.partition(":")[0].strip()
            if name in KINDS:
                pattern = pattern_of(rest.lstrip())
                break
            part, plus, rest = rest.partition("+")
            name = part.partition(":")[0].strip()
            if name not in PARTS.entries:
                raise InputError(
                    f"constraint: found {part!r:.60}, expected regex:PATTERN, or json: and a schema or its file, or "
                    f"{', '.join(PARTS.entries)} before it, joined by +"
                )
            if name in found:
                raise InputError(f"constraint: found {name} twice, expected it once")
            found[name] = PARTS.parse(part.strip())
            names.append(part.strip())
            if plus and not rest.strip():
                raise InputError(f"constraint: found nothing behind the last + of {text!r:.60}, expected another part")
        rejection = found.pop("awrs", Rejection())
        if pattern is None and not found:
            raise InputError(
                f"constraint: found {text!r:.60}, which says nothing of a text, expected regex:PATTERN, or json: and a "
                "schema or its file, not_empty or no_repeat:n="
            )
        whole = [*names, *([] if pattern is None else [f"regex:{pattern}" if names else pattern])]
        return cls(pattern, rejection.estimator if names else None, tuple(found.values()), "+".join(whole))
