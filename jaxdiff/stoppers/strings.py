"""Stop at a string: a row ends as soon as one of its stop strings stands in its text.

The text is read as bytes, which is what the tokens of a byte-level tokenizer are: a string that begins or ends within
a token is found too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from jaxdiff.pytree import InputError, pytree
from jaxdiff.types import Progress, first_end

AT_ONCE = 64  # bytes of a row's text, and tokens, that are read at a time
MOST, LONGEST = 64, 1024  # strings of a row, bytes of one
ROOM = (4, 32)  # for requests that bring their own: strings, bytes
NONE = -1  # no byte: stands left of a string, and before a text
UNREADABLE = "\ufffd"


@pytree
class Spelling:
    """The bytes that each token writes into a text, back to back: those of id i are letters[starts[i] : starts[i + 1]].

    The last entry is that of an id that has no token, and of any id beyond it.
    """

    letters: UInt8[Array, " n"] | UInt8[np.ndarray, " n"]
    starts: Int[Array, " entries"] | Int[np.ndarray, " entries"]

    @classmethod
    def of(cls, tokens: Sequence[bytes]) -> Spelling:
        """Of the bytes of each id, from 0; the last is that of unknown ids. Its arrays lie on the device."""
        starts = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
        letters = np.frombuffer(b"".join(tokens) or b"\0", np.uint8)
        return cls(*jax.device_put((letters, starts)))


@pytree
class Reading:
    """How far each row's text has been read."""

    position: Int[Array, " B"]  # absolute, of the token that is read next
    tail: Int[Array, "B m"]  # the last bytes that have been read
    found: Bool[Array, " B"]


@pytree
class StopStrings:
    """End a row once one of its strings stands in its text, all of it settled, behind the token that completes it.

    Settled tokens never change, so the text up to the string is, token for token, what decoding the whole canvas and
    cutting its text gives (`cut`): it costs no quality under any policy, and strings that do not occur change nothing.
    Where several strings occur, the one that is complete first counts, and of those that end together the longest. What
    lies behind the first end of an answer is no text.

    Source: the `stop` of text completion servers, which look for it after each token; here it is looked for in what a
    step has settled.

    Attributes:
        spelling: what the tokens write, `Tokenizer.stop_strings` makes it.
        strings: their bytes, each at the end of its line of m, NONE before it; or such lines for each row.
    """

    spelling: Spelling
    strings: Int[Array, "*rows n m"] | Int[np.ndarray, "*rows n m"]

    @classmethod
    def of(
        cls, spelling: Spelling, texts: Sequence[str] = (), *, most: int = ROOM[0], longest: int = ROOM[1]
    ) -> StopStrings:
        """These strings, and room for requests that bring up to `most` of their own, the longest of `longest` bytes.

        The room grows to what `texts` take, and in doublings, so that few programs are compiled.

        Raises InputError for texts that can be no stop strings.
        """
        found = encoded(texts)
        most, longest = (
            int(2 ** np.ceil(np.log2(max(1, *each)))) for each in ((most, len(found)), (longest, *map(len, found)))
        )
        empty = cls(spelling, np.full((min(most, MOST), min(longest, LONGEST)), NONE, np.int32))
        return cls(spelling, empty.lines(texts))

    @property
    def texts(self) -> tuple[str, ...]:
        """The strings that all rows have. Raises InputError where each row has its own."""
        lines = np.asarray(self.strings)
        if lines.ndim != 2:
            raise InputError(f"stop_strings: found those of {len(lines)} rows, expected the same for all")
        return tuple(bytes(line[line != NONE].tolist()).decode() for line in lines if line[-1] != NONE)

    def lines(self, texts: Sequence[str]) -> Int[np.ndarray, "n m"]:
        """Other strings as `strings` has them. Raises InputError for those that the room does not hold."""
        (most, longest), found = self.strings.shape[-2:], encoded(texts)
        if len(found) > most or max(map(len, found), default=0) > longest:
            raise InputError(
                f"stop_strings: found {len(found)}, the longest of {max(map(len, found))} bytes, expected at most "
                f"{most} of {longest}; make room with stop_strings(most=, longest=)"
            )
        made = np.full((most, longest), NONE, np.int32)
        for line, text in zip(made, found, strict=False):
            line[longest - len(text) :] = np.frombuffer(text, np.uint8)
        return made

    def init(self, rows: int) -> Reading:
        zero = jnp.zeros((rows,), jnp.int32)
        return Reading(zero, jnp.full((rows, self.strings.shape[-1]), NONE, jnp.int32), zero > 0)

    def update(self, state: Reading, progress: Progress) -> tuple[Int[Array, " B"], Reading]:
        origin, first = progress.score.origin, jnp.argmax(progress.generated, axis=1).astype(jnp.int32)
        ended = first_end(progress.canvas, progress.generated, progress.eos_ids)
        known = jnp.minimum(jnp.minimum(progress.settled, ended), progress.end)
        known = jnp.where(progress.live, known, 0)
        begun = (
            jnp.maximum(state.position + origin, first),
            jnp.zeros_like(first),
            state.tail,
            state.found,
            progress.end,
        )
        column, _, tail, found, end = jax.lax.while_loop(
            lambda carry: jnp.any((carry[0] < known) & ~carry[3]),
            lambda carry: self._read(progress.canvas, known, *carry),
            begun,
        )
        return end, Reading(column - origin, tail, found)

    def _read(
        self,
        canvas: Int[Array, "B L"],
        known: Int[Array, " B"],
        column: Int[Array, " B"],
        taken: Int[Array, " B"],
        tail: Int[Array, "B m"],
        found: Bool[Array, " B"],
        end: Int[Array, " B"],
    ) -> tuple[Array, ...]:
        """The next bytes of each row's text left of column `known`, compared with its strings.

        `taken`: the bytes of the token at `column` that have been read; 0 again once all that is known is.
        """
        place = jnp.arange(AT_ONCE, dtype=jnp.int32)
        at = column[:, None] + place[None]
        ids = jnp.take_along_axis(canvas, jnp.minimum(at, canvas.shape[1] - 1), axis=1)
        ids = jnp.minimum(ids, self.spelling.starts.shape[0] - 2)
        before = jnp.where(place[None] == 0, taken[:, None], 0)
        start = self.spelling.starts[ids] + before
        count = jnp.where((at < known[:, None]) & ~found[:, None], self.spelling.starts[ids + 1] - start, 0)
        upto = jnp.cumsum(count, axis=1, dtype=jnp.int32)

        holder = jnp.sum(upto[:, None] <= place[None, :, None], axis=2, dtype=jnp.int32)  # of each byte, its token
        there = place[None] < upto[:, -1:]
        shift = _at(start - (upto - count), jnp.minimum(holder, AT_ONCE - 1))
        letter = self.spelling.letters[jnp.where(there, shift + place[None], 0)].astype(jnp.int32)
        text = jnp.concatenate([tail, jnp.where(there, letter, NONE)], axis=1)

        width = tail.shape[1]
        behind = place[:, None] + 1 + jnp.arange(width, dtype=jnp.int32)[None]  # the bytes up to and with each
        strings = self.strings if self.strings.ndim == 3 else self.strings[None]
        strings = jnp.asarray(strings)[:, None]
        same = (text[:, behind][:, :, None] == strings) | (strings == NONE)
        complete = jnp.any(jnp.all(same, axis=3) & (strings[..., -1] != NONE), axis=2) & there
        hit = jnp.any(complete, axis=1) & ~found
        last = _at(holder, jnp.argmax(complete, axis=1)[:, None])[:, 0]

        read = jnp.minimum(upto[:, -1], AT_ONCE)
        whole = jnp.sum(upto <= read[:, None], axis=1, dtype=jnp.int32)  # tokens that are read to their end
        inside = _at(read[:, None] - (upto - count) + before, jnp.minimum(whole, AT_ONCE - 1)[:, None])[:, 0]
        cut_off = (whole < AT_ONCE) & (column + whole < known)
        return (
            jnp.minimum(column + whole, jnp.maximum(column, known)),
            jnp.where(cut_off, inside, 0),
            _at(text, read[:, None] + jnp.arange(width, dtype=jnp.int32)[None]),
            found | hit,
            jnp.where(hit, column + last + 1, end),
        )


def cut(text: str, strings: Sequence[str]) -> str:
    """A text up to the first of these strings that is complete in it, without the string; whole where none occurs."""
    found = [(at + len(string), at) for string in strings if (at := text.find(string)) >= 0]
    return text[: min(found)[1]] if found else text


def encoded(texts: Any) -> list[bytes]:
    """The bytes of stop strings, each once. Raises InputError for what can be none."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"stop_strings: found {type(texts).__name__}, expected a list of texts")
    found: dict[bytes, None] = {}
    for text in texts:
        if not isinstance(text, str) or not text:
            raise InputError(f"stop_strings: found {text!r:.40}, expected a text of at least one character")
        try:
            letters = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"stop_strings: found {text!r:.40}, expected text that UTF-8 can hold") from error
        if UNREADABLE in text:
            raise InputError("stop_strings: found U+FFFD, which stands for what is no text; leave it out")
        if len(letters) > LONGEST:
            raise InputError(f"stop_strings: found one of {len(letters)} bytes, expected at most {LONGEST}")
        found[letters] = None
    if len(found) > MOST:
        raise InputError(f"stop_strings: found {len(found)}, expected at most {MOST}")
    return list(found)


def _at(values: Int[Array, "B n"], places: Int[Array, "B k"]) -> Int[Array, "B k"]:
    return jnp.take_along_axis(values, places, axis=1)
