"""Text to ids and back: one user turn through a folder's chat template, and an answer up to its end."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

from jaxdiff.files import first_line
from jaxdiff.types import InputError

UNKNOWN = "\ufffd"  # shown for an id that has no token
_STAND_IN = "jaxdiffmessage"  # rendered in place of a message, to see where in a prompt it stands
_MEND = "correct the template, take it out to prompt with plain text, or give ids (prompt_ids)"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; the chat template comes from the folder, never from this code.

    Attributes:
        fast: a transformers.PreTrainedTokenizerFast.
        eos_id: end-of-text, which also fills what follows an answer.
        eot_id: the end of a turn, where the model has one.
        further_ids: whatever else ends an answer.
        backend: the tokenizers.Tokenizer that `fast` is made of; None: none of its tokens is known apart.
        template: where the chat template comes from, for messages.
    """

    fast: Any
    eos_id: int
    eot_id: int | None = None
    further_ids: tuple[int, ...] = ()
    backend: Any = None
    template: str = "the tokenizer"

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end an answer, each once."""
        named = () if self.eot_id is None else (self.eot_id,)
        return tuple(dict.fromkeys((self.eos_id, *named, *self.further_ids)))

    @functools.cached_property
    def fault(self) -> str | None:
        """Why no prompt can be made: the chat template, tried on two messages, fails or gives the same for both."""
        named = self.fast.chat_template
        if named is None:
            return None
        if isinstance(named, dict) and "default" not in named:
            return (
                f"{self.template}: found chat templates named {', '.join(named)}, expected one named default; {_MEND}"
            )
        try:
            if self._rendered("one") != self._rendered("two"):
                return None
        except InputError as error:
            return str(error)
        return f"{self.template}: the chat template drops the message: it gives the same prompt for any; {_MEND}"

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands, in which the text of a special token is that token."""
        return self.fast.encode(text, add_special_tokens=False)

    def prompt(self, text: str, special: bool = False) -> list[int]:
        """One user turn through the folder's chat template; plain text where it has none.

        Args:
            special: whether the text of an added token (`<|assistant|>`, [MASK]) in `text` is that token. By default it
                is text, as all that a user writes, so that no turn can be forged.

        Raises InputError, which names the template, where it makes no prompt of this text.
        """
        if self.fault is not None:
            raise InputError(self.fault)
        apart = not special and self._names_a_token(text)
        if self.fast.chat_template is None:
            whole = self._as_text(text, framed=True) if apart else self.fast.encode(text)
            return self._unended(whole, self._as_text(text) if apart else self.encode(text))
        rendered = self._rendered(text)
        if not apart:
            return self.encode(rendered)
        first, *rest = self._rendered(_STAND_IN).split(_STAND_IN)
        forms = (text, text.strip(), text.rstrip(), text.lstrip())
        shown = next((form for form in forms if rest and form.join((first, *rest)) == rendered), None)
        if shown is None:
            raise InputError(
                f"prompt: holds the text of a special token, and the chat template of {self.template} changes the "
                "message, so that the two cannot be told apart; take it out, or allow it (--special, special=True)"
            )
        return sum((self._as_text(shown) + self.encode(part) for part in rest), self.encode(first))

    def decode(self, ids: Any, generated: Any = None) -> str:
        """The text up to the first generated id that ends an answer; special tokens are left out.

        Args:
            ids: one row of token ids [n]; one that has no token is shown as U+FFFD.
            generated: bool [n], which of them the model wrote (default all): an end that was given cuts nothing.
        """
        ids = [int(i) for i in ids]
        own = [True] * len(ids) if generated is None else [bool(one) for one in generated]
        if len(own) != len(ids):
            raise InputError(f"generated: found {len(own)} entries, expected one for each of {len(ids)} ids")
        ends = frozenset(self.eos_ids)
        stop = next((n for n, (i, made) in enumerate(zip(ids, own, strict=True)) if made and i in ends), len(ids))
        runs = itertools.groupby((i for i in ids[:stop] if i not in ends), key=self._is_known)
        texts = (
            self.fast.decode(list(run), skip_special_tokens=True) if known else UNKNOWN * len(list(run))
            for known, run in runs
        )
        return "".join(texts)

    def _is_known(self, token: int) -> bool:
        return self.backend is None or (0 <= token < 2**32 and self.backend.id_to_token(token) is not None)

    def _rendered(self, text: str) -> str:
        """The chat template's text for one message. Raises InputError for whatever the template raises."""
        message = [{"role": "user", "content": text}]
        try:
            return self.fast.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program, and may raise anything
            words = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{self.template}: the chat template fails ({words}); {_MEND}") from error

    @functools.cached_property
    def _added(self) -> dict[int, str]:
        """Tokens that are found in a text before it is split: id to text. Plain white space is left out: it is text."""
        tokens = {} if self.backend is None else self.backend.get_added_tokens_decoder()
        return {i: token.content for i, token in tokens.items() if token.special or not token.content.isspace()}

    @functools.cached_property
    def _plain(self) -> Any:
        """The same tokenizer without those tokens."""
        from tokenizers import Tokenizer as Backend

        whole = json.loads(self.backend.to_str())
        whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] not in self._added]
        return Backend.from_str(json.dumps(whole | {"truncation": None, "padding": None}))

    def _names_a_token(self, text: str) -> bool:
        """Whether a text holds an added token's text, as it stands or as the tokenizer normalises it."""
        if any(content in text for content in self._added.values()):
            return True
        return bool(self._added) and not self._added.keys().isdisjoint(self.encode(text))

    def _as_text(self, text: str, *, framed: bool = False) -> list[int]:
        """A text's ids without any added token; `framed` by what the tokenizer puts around a text."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if found := [self._added[i] for i in ids if i in self._added]:
            raise InputError(
                f"prompt: found {found[0]!r}, which this tokenizer has as an ordinary word too, expected text without "
                "special tokens; take it out, or allow it (--special, special=True)"
            )
        return self._plain.encode(text, add_special_tokens=True).ids if framed else ids

    def _unended(self, whole: list[int], text: Sequence[int]) -> list[int]:
        """A prompt without the ends of an answer that the tokenizer put behind its text."""
        ends = frozenset(self.eos_ids)
        tails = [len(list(itertools.takewhile(ends.__contains__, reversed(ids)))) for ids in (whole, text)]
        return whole[: len(whole) - max(0, tails[0] - tails[1])]
