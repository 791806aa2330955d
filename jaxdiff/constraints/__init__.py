"""Which texts an answer may be: one file per kind of constraint."""

from jaxdiff.constraints import awrs
from jaxdiff.constraints.letters import letters_of, pattern_of, schema_pattern
from jaxdiff.constraints.regex import Regex

__all__ = ["Regex", "awrs", "letters_of", "pattern_of", "schema_pattern"]
