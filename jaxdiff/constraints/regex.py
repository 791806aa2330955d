"""Texts that match a regular expression, as tables over the tokens of a tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.constraints.letters import Letters, letters_of
from jaxdiff.protocols import Model, Predicate
from jaxdiff.pytree import InputError, pytree
from jaxdiff.stoppers.strings import UNREADABLE, Spelling
from jaxdiff.types import BEGUN, ENDED, ENDS, LOST, NOWHERE

STATES, ENTRIES = 1024, 2**22  # of the tables, at most: 16 MiB of int32
ROOM = 16  # states and classes that tables have at least


@pytree
class Regex:
    """The texts that match a regular expression: a deterministic automaton whose letters are classes of tokens.

    Tokens of one class lead from each state to the same one. States and classes are filled up to powers of two, so
    that regular expressions of about one size share a compiled program. `jaxdiff.protocols.Automaton` says what the
    tables mean.
    """

    of: Int[Array, " n"] | Int[np.ndarray, " n"]
    next: Int[Array, "K S"] | Int[np.ndarray, "K S"]
    accepts: Bool[Array, " S"] | Bool[np.ndarray, " S"]
    hole: Float[Array, "S S"] | Float[np.ndarray, "S S"]
    example: Int[Array, " K"] | Int[np.ndarray, " K"]

    @classmethod
    def of_pattern(cls, pattern: str, spelling: Spelling, ends: Sequence[int], *, room: int = ROOM) -> Regex:
        """The texts that match `pattern` as a whole (`letters.letters_of` says its syntax).

        Args:
            spelling: the bytes of the tokens; one that writes nothing, as a special token, fits nowhere.
            ends: the ids that end an answer.
            room: states and classes that the tables have at least, for several that are to share a program.

        Raises InputError for a pattern that cannot be read, that no tokens spell, or whose tables would be too large.
        """
        words = words_of(spelling)
        words += [b""] * (max(ends) + 2 - len(words))
        words = [b"" if i in ends else word for i, word in enumerate(words)]
        steps, accepts = _over_tokens(letters_of(pattern), words, pattern)
        alive = _alive(steps, accepts)
        if not alive[0]:
            raise InputError(
                f"constraint: found {pattern!r:.60}, which no text of this tokenizer's tokens matches; allow other "
                "characters"
            )
        number = np.append(np.where(alive, np.cumsum(alive) - 1, -1), -1).astype(np.int16)  # the last is that of -1
        return cls._filled(number[steps[alive]], accepts[alive], ends, room, pattern)

    @classmethod
    def _filled(
        cls, steps: Int[np.ndarray, "s n"], accepts: Bool[np.ndarray, " s"], ends: Sequence[int], room: int, what: str
    ) -> Regex:
        """The tables of an automaton whose state 0 is the first; -1 stands for what leads nowhere."""
        # By their bytes: sorted as numpy does it, a large vocabulary takes 20 seconds.
        seen: dict[bytes, int] = {}
        kind = np.asarray([seen.setdefault(column.tobytes(), len(seen)) for column in np.ascontiguousarray(steps.T)])
        first = np.unique(kind, return_index=True)[1]
        columns = steps[:, first]
        fits = np.any(columns >= 0, axis=0)
        number = np.where(fits, np.cumsum(fits) + ENDS, NOWHERE)  # of each kind, its class
        states, classes = (
            1 << (max(room, count) - 1).bit_length() for count in (len(accepts) + BEGUN, int(fits.sum()) + ENDS + 1)
        )
        if states > STATES or states * classes > ENTRIES:
            raise InputError(_too_large(what, f"{states} states and {classes} kinds of tokens"))
        following = np.full((classes, states), LOST, np.int32)
        example = np.zeros(classes, np.int32)
        following[number[fits], BEGUN : BEGUN + len(accepts)] = np.where(columns < 0, LOST, columns + BEGUN).T[fits]
        example[number[fits]] = first[fits]
        final = np.zeros(states, bool)
        final[BEGUN : BEGUN + len(accepts)] = accepts
        final[ENDED] = True
        following[ENDS] = np.where(final, ENDED, LOST)
        example[ENDS] = ends[0]
        hole = np.zeros((states, states), np.float32)
        for row in following[ENDS + 1 :]:
            hole[np.arange(states), row] = 1.0
        hole[:, LOST] = 0.0
        of = number[kind].astype(np.int32)
        of[list(ends)] = ENDS
        return cls(*jax.device_put((of, following, final, hole, example)))

    @property
    def automaton(self) -> Regex:
        return self

    @property
    def predicates(self) -> tuple[Predicate, ...]:
        return ()

    @property
    def estimator(self) -> None:
        """What does not fit is written over, and nothing is weighed."""

    def check(self, model: Model) -> None:
        """Raises InputError for a model whose ids mean something else than those of the tokenizer. Under a trace, where
        the tables are not known, the caller vouches for them.
        """
        if isinstance(self.of, jax.core.Tracer):
            return
        of, config = np.asarray(self.of), model.config
        ends = {int(i) for i in np.flatnonzero(of == ENDS)}
        if ends != set(config.eos_ids):
            raise InputError(
                f"constraint: found one whose text ends with ids {sorted(ends)}, expected those of the model, "
                f"{sorted(config.eos_ids)}; make it with the model's tokenizer"
            )
        wrong = np.flatnonzero(of[config.vocab_size :] != NOWHERE)
        if wrong.size or of[min(config.mask_token_id, len(of) - 1)] != NOWHERE:
            token = config.vocab_size + int(wrong[0]) if wrong.size else config.mask_token_id
            raise InputError(
                f"constraint: found a text for id {token}, which the model never writes, expected none; make it with "
                "the model's tokenizer"
            )


def words_of(spelling: Spelling) -> list[bytes]:
    """The bytes of each id, none for one that has no token; the last entry is that of any id beyond."""
    letters, starts = np.asarray(spelling.letters).tobytes(), np.asarray(spelling.starts)
    words = [letters[a:b] for a, b in itertools.pairwise(starts)]
    return [b"" if word == UNREADABLE.encode() else word for word in words]


def _over_tokens(
    letters: Letters, words: Sequence[bytes], what: str
) -> tuple[Int[np.ndarray, "s n"], Bool[np.ndarray, " s"]]:
    """The states in which a token may begin, from the first on: where each token leads, -1 where it fits nowhere; and
    which of them accept.
    """
    lengths = np.asarray([len(word) for word in words])
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths[order[0]])
    table = np.zeros((longest, len(words)), np.uint8)
    for column, i in enumerate(order):
        table[: lengths[i], column] = np.frombuffer(words[i], np.uint8)
    count = np.sum(lengths[None] > np.arange(longest + 1)[:, None], axis=1)
    number = np.full(len(letters.accepts), -1, np.int16)
    number[letters.start] = 0
    rows: list[Int[np.ndarray, " n"]] = []
    for state in (queue := [letters.start]):
        at = np.full(len(words), state, np.int32)
        for place in range(longest):
            at[: count[place]] = letters.next[at[: count[place]], table[place, : count[place]]]
        at[count[0] :] = 0  # a token that writes nothing fits nowhere
        new = np.unique(at[(at > 0) & (number[at] < 0)])
        number[new] = np.arange(len(queue), len(queue) + len(new))
        queue += new.tolist()
        if len(queue) > STATES:
            raise InputError(_too_large(what, f"more than {STATES} states"))
        row = np.empty(len(words), np.int16)
        row[order] = number[at]
        rows.append(row)
    return np.stack(rows), letters.accepts[queue]


def _alive(steps: Int[np.ndarray, "s n"], accepts: Bool[np.ndarray, " s"]) -> Bool[np.ndarray, " s"]:
    """The states from which some tokens lead to one that accepts."""
    edges = np.zeros((len(accepts), len(accepts)), bool)
    for state, row in enumerate(steps):
        edges[state, row[row >= 0]] = True
    alive = accepts
    while np.any(more := ~alive & np.any(edges & alive[None], axis=1)):
        alive = alive | more
    return alive


def _too_large(what: str, found: str) -> str:
    return (
        f"constraint: found {what!r:.60}, which takes {found}, expected at most {STATES} states and {ENTRIES} entries; "
        "bound its repetitions, or say what an object's properties are"
    )
