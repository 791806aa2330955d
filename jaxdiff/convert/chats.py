"""Conversations: what is one, and where the turns stand in the text that a chat template makes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.types import InputError

ROLES = ("system", "user", "assistant")
KEYS = {"role", "content"}
Message = dict[str, str]
_STAND_IN = "jaxdiffmessage"  # rendered in place of a turn's text, to see where in a prompt it stands


def check_messages(messages: Any) -> list[Message]:
    """The turns of a conversation, as they were given.

    Raises InputError for what is no list of {"role": system, user or assistant, "content": text}, and for one without
    a user's turn.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InputError(f"messages: found {type(messages).__name__}, expected a list of turns with role and content")
    if not messages:
        raise InputError("messages: found no turns, expected at least one of a user")
    for number, turn in enumerate(messages, 1):
        where = f"messages: turn {number}"
        if not isinstance(turn, dict):
            raise InputError(f"{where}: found {type(turn).__name__}, expected an object with role and content")
        if unknown := [key for key in turn if key not in KEYS]:
            raise InputError(f"{where}: found key {unknown[0]!r}, expected role and content; take it out")
        if missing := KEYS - turn.keys():
            raise InputError(f"{where}: found no {' and no '.join(sorted(missing))}, expected role and content")
        if turn["role"] not in ROLES:
            raise InputError(f"{where} role: found {turn['role']!r:.40}, expected one of {', '.join(ROLES)}")
        content = turn["content"]
        if not isinstance(content, str):
            raise InputError(f"{where} content: found {type(content).__name__}, expected a text")
        if not content.strip():
            raise InputError(f"{where} content: found an empty text, expected at least one word")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} content: found {content!r:.40}, expected text that UTF-8 can hold") from error
    if all(turn["role"] != "user" for turn in messages):
        raise InputError("messages: found no turn of a user, expected at least one")
    return list(messages)


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The turns, behind this system turn where they have none."""
    if system is None or any(turn["role"] == "system" for turn in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def frames(render: Callable[[list[Message]], str], messages: list[Message]) -> list[str | int]:
    """What the chat template puts around the turns, and the number of the turn between: text, number, text ...

    `render` makes the template's text. The number of a turn whose text it changes may be missing. Raises InputError for
    a turn that it leaves out.
    """
    stand_ins = [turn | {"content": f"{_STAND_IN}{number}z"} for number, turn in enumerate(messages)]
    pieces: list[Any] = re.split(f"{_STAND_IN}([0-9]+)z", render(stand_ins))
    pieces[1::2] = map(int, pieces[1::2])
    for number in sorted(set(range(len(messages))) - set(pieces[1::2])):
        turn, before, behind = messages[number], messages[:number], messages[number + 1 :]
        one, two = (render([*before, turn | {"content": text}, *behind]) for text in ("one", "two"))
        if one == two:
            raise InputError(
                f"messages: the chat template drops turn {number + 1} ({turn['role']}); leave it out, or put its text "
                "into a user's turn"
            )
    return pieces


def shown(rendered: str, pieces: Sequence[str | int], messages: Sequence[Message]) -> list[str] | None:
    """The texts in `rendered` of each of the frames' `pieces`; a turn's may have lost white space at its ends.

    None where the template changes a turn's text beyond that.
    """
    texts = [str(pieces[0])]
    if not set(range(len(messages))) <= set(pieces[1::2]):
        return None
    if not rendered.startswith(texts[0]):
        return None
    at = len(texts[0])
    for number, frame in zip(pieces[1::2], pieces[2::2], strict=True):
        text = messages[int(number)]["content"]
        forms = (text, text.strip(), text.rstrip(), text.lstrip())
        form = next((form for form in forms if rendered.startswith(f"{form}{frame}", at)), None)
        if form is None:
            return None
        texts += [form, str(frame)]
        at += len(form) + len(str(frame))
    return texts if at == len(rendered) else None
