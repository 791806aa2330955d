"""Which texts an answer may be: one file per kind of constraint."""

from jaxdiff.constraints import awrs
from jaxdiff.constraints.letters import letters_of, pattern_of, schema_pattern
from jaxdiff.constraints.named import Named
from jaxdiff.constraints.predicates import Function, NoRepeat, NotEmpty, Table
from jaxdiff.constraints.regex import Regex
from jaxdiff.constraints.rejection import Awrs

__all__ = [
    "Awrs",
    "Function",
    "Named",
    "NoRepeat",
    "NotEmpty",
    "Regex",
    "Table",
    "awrs",
    "letters_of",
    "pattern_of",
    "schema_pattern",
]
