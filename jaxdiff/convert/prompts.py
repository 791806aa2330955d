"""Text to ids and back: a prompt or a conversation through a folder's chat template, and an answer up to its end."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from jaxdiff.constraints import Awrs, Named, NoRepeat, NotEmpty, Regex, schema_pattern
from jaxdiff.convert.chats import Message, check_messages, frames, shown
from jaxdiff.convert.spelling import spelling_of
from jaxdiff.files import first_line
from jaxdiff.stoppers.strings import ROOM, Spelling, StopStrings, cut
from jaxdiff.types import InputError

UNKNOWN = "\ufffd"  # shown for an id that has no token
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
            one, two = (self._rendered("prompt", [{"role": "user", "content": text}]) for text in ("one", "two"))
            if one != two:
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
        if self.fast.chat_template is None:
            return self.plain(text, special)
        return self._conversation("prompt", [{"role": "user", "content": text}], special)

    def chat(self, messages: Any, special: bool = False) -> list[int]:
        """A conversation through the folder's chat template, up to where the assistant's next turn begins. Where the
        last turn is the assistant's, the prompt ends with its text, and what is generated continues it.

        Args:
            messages: turns [{"role": "system" | "user" | "assistant", "content": text}, ...].
            special: as in `prompt`, of each turn.

        Raises InputError for other messages, for a folder without a template, and where the template refuses a turn,
        leaves it out, or changes the text that is to be continued.
        """
        messages = check_messages(messages)
        if self.fault is not None:
            raise InputError(self.fault)
        if self.fast.chat_template is None:
            raise InputError("messages: found a chat, but the model has no chat template; give plain text (prompt)")
        return self._conversation("messages", messages, special)

    def plain(self, text: str, special: bool = False) -> list[int]:
        """A text as it stands, without the chat template, within what the tokenizer puts around a text; `special` as
        in `prompt`.
        """
        apart = not special and self._names_a_token(text)
        whole = self._as_text(text, framed=True) if apart else self.fast.encode(text)
        return self._unended(whole, self._as_text(text) if apart else self.encode(text))

    def part(self, text: str, special: bool = False) -> list[int]:
        """A part of a text, without what the tokenizer puts around a whole one; `special` as in `prompt`."""
        return self._as_text(text) if not special and self._names_a_token(text) else self.encode(text)

    def stop_strings(self, texts: Sequence[str] = (), *, most: int = ROOM[0], longest: int = ROOM[1]) -> StopStrings:
        """Stop strings for `Decoder(stop_strings=)`; further arguments and errors as of `StopStrings.of`.

        Raises InputError too for a tokenizer that is not byte-level, and for the name of a special token, which no text
        holds; that of an end of an answer is taken, for it ends a row in any case.
        """
        made = StopStrings.of(self._spelled("stop_strings"), texts, most=most, longest=longest)
        hidden = {token.content for i, token in self._added_tokens.items() if token.special and i not in self.eos_ids}
        if found := [text for text in made.texts if text in hidden]:
            raise InputError(
                f"stop_strings: found {found[0]!r}, a special token, which is left out of every text; leave it out, or "
                "name its id among the ends in generation_config.json (eos_token_id)"
            )
        return made

    def regex(self, pattern: str) -> Regex:
        """The texts that match `pattern` as a whole, for `Decoder(constraint=)`; errors as of `Regex.of_pattern`.

        Raises InputError too for a tokenizer that is not byte-level.
        """
        if pattern not in self._made:  # a large vocabulary takes a second
            self._made[pattern] = Regex.of_pattern(pattern, self._spelled("constraint"), self.eos_ids)
        return self._made[pattern]

    def schema(self, schema: dict[str, Any] | str) -> Regex:
        """The JSON texts that a schema, an object or its text, describes; errors as of `schema_pattern` and `regex`."""
        return self.regex(schema_pattern(schema))

    def not_empty(self) -> NotEmpty:
        """Something but white space stands in the answer, for `constraints.Awrs.of`.

        Raises InputError for a tokenizer that is not byte-level.
        """
        return NotEmpty.of(self._spelled("constraint"), self.eos_ids)

    def no_repeat(self, n: int = 3) -> NoRepeat:
        """No run of n tokens comes twice in the answer, for `constraints.Awrs.of`."""
        return NoRepeat(tuple(self.eos_ids), n)

    def constraint(self, text: str | Named) -> Regex | Awrs:
        """What `--constraint` says, for `Decoder(constraint=)`; errors as of `constraints.Named.parse`, `regex` and
        `not_empty`.
        """
        named = Named.parse(text) if isinstance(text, str) else text
        tables = [] if named.pattern is None else [self.regex(named.pattern)]
        if named.estimator is None:
            return tables[0]
        predicates = [
            self.not_empty() if isinstance(part, NotEmpty) else dataclasses.replace(part, ends=tuple(self.eos_ids))
            for part in named.predicates
        ]
        return Awrs.of(*tables, *predicates, estimator=named.estimator)

    def decode(self, ids: Any, generated: Any = None, stop_strings: Sequence[str] = ()) -> str:
        """The text up to the first generated id that ends an answer, and up to the first stop string that is complete
        in it; neither is part of it. Special tokens are left out.

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
        return cut(self._text((i for i in ids[:stop] if i not in ends), special=False), stop_strings)

    def show(self, ids: Any) -> str:
        """The text of ids as a model is given them, special tokens and all."""
        return self._text((int(i) for i in ids), special=True)

    def _text(self, ids: Iterable[int], *, special: bool) -> str:
        return "".join(
            self.fast.decode(list(run), skip_special_tokens=not special) if known else UNKNOWN * len(list(run))
            for known, run in itertools.groupby(ids, key=self._is_known)
        )

    def _is_known(self, token: int) -> bool:
        return self.backend is None or (0 <= token < 2**32 and self.backend.id_to_token(token) is not None)

    def _conversation(self, what: str, messages: list[Message], special: bool) -> list[int]:
        """The ids of turns through the chat template. `what` they are, for messages."""
        render = functools.partial(self._rendered, what)
        rendered, continues = render(messages), messages[-1]["role"] == "assistant"
        apart = not special and any(self._names_a_token(turn["content"]) for turn in messages)
        if not apart and len(messages) == 1:  # `fault` has seen that the template does not drop it
            return self.encode(rendered)
        pieces = frames(render, messages)
        texts = shown(rendered, pieces, messages)
        if texts is None and continues:
            raise InputError(
                f"{what}: the chat template of {self.template} changes the last turn, so that it cannot be continued; "
                "end with a user's turn"
            )
        if texts is None and apart:
            raise InputError(
                f"{what}: holds the text of a special token, and the chat template of {self.template} changes the "
                "message, so that the two cannot be told apart; take it out, or allow it (--special, special=True)"
            )
        if texts is None:
            return self.encode(rendered)
        if continues:
            texts = texts[: len(texts) - pieces[::-1].index(len(messages) - 1)]
        if not apart:
            return self.encode("".join(texts))
        turns = (self._as_text(text) if place % 2 else self.encode(text) for place, text in enumerate(texts))
        return list(itertools.chain.from_iterable(turns))

    def _rendered(self, what: str, messages: list[Message]) -> str:
        """The chat template's text for these turns. Raises InputError for whatever the template raises."""
        asked = messages[-1]["role"] != "assistant"
        try:
            return self.fast.apply_chat_template(messages, add_generation_prompt=asked, tokenize=False)
        except Exception as error:  # a template is a program, and may raise anything
            words = f"{type(error).__name__}: {first_line(error)}"
            if what == "prompt":
                raise InputError(f"{self.template}: the chat template fails ({words}); {_MEND}") from error
            raise InputError(
                f"{what}: the chat template of {self.template} takes no such turns ({words}); change them, or "
                "give ids (prompt_ids)"
            ) from error

    @functools.cached_property
    def _made(self) -> dict[str, Regex]:
        return {}

    def _spelled(self, what: str) -> Spelling:
        """The bytes of the tokens. Raises InputError, which names `what` needs them, where they are none."""
        try:
            return self._spelling
        except InputError as error:
            raise InputError(f"{what}: {error}; leave it out") from error

    @functools.cached_property
    def _spelling(self) -> Spelling:
        return spelling_of(self.fast, self.backend)

    @functools.cached_property
    def _added(self) -> dict[int, str]:
        """Tokens that are found in a text before it is split: id to text. Plain white space is left out: it is text."""
        tokens = self._added_tokens.items()
        return {i: token.content for i, token in tokens if token.special or not token.content.isspace()}

    @functools.cached_property
    def _added_tokens(self) -> dict[int, Any]:
        return {} if self.backend is None else self.backend.get_added_tokens_decoder()

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
