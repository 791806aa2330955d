"""Constraints whose tokens are drawn by rejection (`awrs.py`): of an automaton, of predicates, or of both."""

from __future__ import annotations

from typing import Any

from jaxdiff.constraints.awrs import ESTIMATORS
from jaxdiff.constraints.predicates import Function
from jaxdiff.protocols import Constraint, Model, Predicate
from jaxdiff.pytree import InputError, choice, pytree


@pytree
class Awrs:
    """Each token that is committed is drawn by rejection among those that fit, and weighs what `estimator` says: the
    product of a row's weights makes it a weighed draw from the model's texts that are allowed (`Result.log_weight`,
    `particles`), where writing the best token that fits does not.

    It goes with a temperature above 0, fill `parallel`, and a policy that commits in an order which does not hang on
    the candidates (`Policy.blind`): `fixed:order=random|left|entropy`, `entropy`, `entropy_bounded`, `multi_block`, and
    any with a block length of 1.

    Attributes:
        automaton: of a regular expression; None: any text.
        predicates: what each token must pass beside.
        estimator: `recursive` asks least and varies most, then `geometric` and `paper` (`constraints.awrs.draw`).
    """

    automaton: Any = None  # an Automaton
    predicates: tuple[Predicate, ...] = ()
    estimator: str = choice(ESTIMATORS, default="recursive")

    @classmethod
    def of(cls, *parts: Any, estimator: str = "recursive") -> Awrs:
        """All of these at once: what `Tokenizer.regex` gives, predicates, jittable functions (`predicates.Function`).

        Raises InputError for nothing, for two regular expressions, and for what is none of these.
        """
        tables, predicates = [], []
        for part in parts:
            if isinstance(part, Constraint) and part.estimator is None:
                tables.append(part.automaton)
            elif isinstance(part, Predicate):
                predicates.append(part)
            elif callable(part):
                predicates.append(Function(part))
            else:
                raise InputError(
                    f"constraint: found {part!r:.40}, expected a regular expression, a predicate or a function of "
                    "(tokens, column, candidate)"
                )
        if not parts or len(tables) > 1:
            raise InputError(
                f"constraint: found {len(tables)} regular expressions in {len(parts)} parts, expected parts, and of "
                "regular expressions one at most; join two of them"
            )
        return cls(tables[0] if tables else None, tuple(predicates), estimator)

    def check(self, model: Model) -> None:
        """Raises InputError for a model whose ids mean something else."""
        for part in (self.automaton, *self.predicates):
            if part is not None:
                part.check(model)
