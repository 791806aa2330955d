"""What a token must pass to be written (`protocols.Predicate`): a function, a table, and what keeps a text from
degenerating, for searches that are conditioned on it (Yoshida's thesis, arXiv 2408.16241).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxdiff.constraints.regex import words_of
from jaxdiff.protocols import Model
from jaxdiff.pytree import InputError, number, pytree, static
from jaxdiff.stoppers.strings import Spelling
from jaxdiff.types import HOLE, Count, is_end

LONGEST = 8  # tokens of a run that may not come again


@pytree
class Function:
    """A jittable function of (tokens [G], column, candidate), with what `Predicate.fits` says of them; compiled in, so
    that another function is another program. What has numbers or weights of its own is a class with `fits`.
    """

    function: Callable[[Any, Any, Any], Any] = static()

    def check(self, model: Model) -> None:
        del model

    def fits(self, tokens: Int[Array, " G"], column: Int[Array, ""], candidate: Int[Array, ""]) -> Bool[Array, ""]:
        return jnp.asarray(self.function(tokens, column, candidate), bool).reshape(())


@pytree
class Table:
    """Which ids may be written: booleans [V] anywhere, or [G V] in each column of what is generated."""

    allowed: Any

    def __post_init__(self) -> None:
        shape = getattr(self.allowed, "shape", ())
        if not isinstance(self.allowed, jax.core.Tracer) and (len(shape) not in (1, 2) or self.allowed.dtype != bool):
            raise InputError(f"table: found {self.allowed!r:.40}, expected booleans [V], or [columns, V]")

    def check(self, model: Model) -> None:
        if (found := self.allowed.shape[-1]) != model.config.vocab_size:
            raise InputError(f"table: found {found} ids, expected those of the model, {model.config.vocab_size}")

    def fits(self, tokens: Int[Array, " G"], column: Int[Array, ""], candidate: Int[Array, ""]) -> Bool[Array, ""]:
        del tokens
        allowed = jnp.asarray(self.allowed)
        return allowed[candidate] if allowed.ndim == 1 else allowed[column, candidate]


@pytree
class NotEmpty:
    """Something stands before the first end of the answer.

    Attributes:
        ends: ids that end an answer.
        blank: further ids that are nothing: of white space, special tokens.
    """

    ends: tuple[int, ...] = static(default=())
    blank: Int[Array, " n"] | Int[np.ndarray, " n"] | tuple[()] = ()

    @classmethod
    def of(cls, spelling: Spelling, ends: Sequence[int]) -> NotEmpty:
        """Of tokens with these bytes: those of white space, and those that write nothing, are blank."""
        words = enumerate(words_of(spelling)[:-1])
        blank = [i for i, word in words if not word.strip() and i not in ends]
        return cls(tuple(ends), np.asarray(blank, np.int32) if blank else ())

    def check(self, model: Model) -> None:
        _check_ends(self.ends, model)

    def fits(self, tokens: Int[Array, " G"], column: Int[Array, ""], candidate: Int[Array, ""]) -> Bool[Array, ""]:
        """A hole before the first end may still become something."""
        text, columns = tokens.at[column].set(candidate), jnp.arange(tokens.shape[0], dtype=jnp.int32)
        end = is_end(text[None], self.ends)[0]
        first = jnp.min(jnp.where(end, columns, tokens.shape[0]))
        nothing = jnp.isin(text, jnp.asarray(self.blank, jnp.int32)) if len(self.blank) else jnp.zeros_like(end)
        return jnp.any((columns < first) & ~nothing)


@pytree
class NoRepeat:
    """No run of `n` tokens comes twice in the answer; what reaches over an end is no run.

    Attributes:
        ends: ids that end an answer.
        n: from 1 to LONGEST.
    """

    ends: tuple[int, ...] = static(default=())
    n: Count = number(default=3, low=1, high=LONGEST, whole=True)

    def check(self, model: Model) -> None:
        _check_ends(self.ends, model)

    def fits(self, tokens: Int[Array, " G"], column: Int[Array, ""], candidate: Int[Array, ""]) -> Bool[Array, ""]:
        """Runs with holes in them are none yet: whether they can become others is not looked ahead."""
        text, length, n = tokens.at[column].set(candidate), tokens.shape[0], jnp.asarray(self.n)
        lanes, starts = jnp.arange(LONGEST, dtype=jnp.int32), jnp.arange(length, dtype=jnp.int32)
        fixed = (text != HOLE) & ~is_end(text[None], self.ends)[0]

        def runs(first: Int[Array, " m"]) -> tuple[Int[Array, "m n"], Bool[Array, " m"]]:
            """The runs from these columns on, behind n nothing; and which of them are runs."""
            at = first[:, None] + lanes[None]
            inside, there = (at >= 0) & (at < length), jnp.clip(at, 0, length - 1)
            within = lanes[None] < n
            return jnp.where(within, text[there], 0), jnp.all(~within | (inside & fixed[there]), axis=1)

        own, others = column - lanes, starts
        (run, is_run), (other, is_other) = runs(own), runs(others)
        is_run &= lanes < n  # those that hold the column
        same = jnp.all(run[:, None] == other[None], axis=2) & (own[:, None] != others[None])
        return ~jnp.any(same & is_run[:, None] & is_other[None])


def _check_ends(ends: tuple[int, ...], model: Model) -> None:
    if set(ends) != set(model.config.eos_ids):
        raise InputError(
            f"constraint: found one whose text ends with ids {sorted(ends)}, expected those of the model, "
            f"{sorted(model.config.eos_ids)}; make it with the model's tokenizer"
        )
