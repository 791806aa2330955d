"""OpenAI's completions and chat completions, as requests of a stream and back: JSON on both sides, no server.

    body -> `Served.read` -> Call -> its requests through a stream -> `Choice` of each -> body, or chunks of a stream

Source: the HTTP interface that the `openai` clients speak (POST /v1/completions, /v1/chat/completions), as published in
its API reference. What a client may send is listed here in full: a field that is not is refused by name, since it might
change the answer.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.convert.chats import check_messages
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.result import Reason
from jaxdiff.pytree import number_paths, with_number
from jaxdiff.serve.fields import (
    Given,
    a_number,
    a_text,
    a_truth,
    a_whole,
    an_object,
    anything,
    kind_of,
    only_zero,
    some_seconds,
    some_texts,
)
from jaxdiff.serve.queue import Answer, Partial, Request, check_request
from jaxdiff.stoppers.strings import UNREADABLE
from jaxdiff.types import InputError

MOST_CHOICES, LARGEST_SEED = 128, 2**32 - 1
# What clients send beside a request: for whom it is and how it is kept. It changes no answer.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# What would change an answer, and is not done here: the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
TEMPERATURE, TOP_P = "sampling.temperature", "sampling.top_p"


class UnknownModel(InputError):
    """A request for another model than the one that is served."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What one HTTP request asks for. Choice i is what `jaxdiff generate --seed SEED` gives for row i of a file.

    Attributes:
        requests: one for each choice: each prompt n times.
        prompt_tokens: of each prompt, once.
        usage: a stream ends with a chunk of what it took.
        log_probs: choices hold the log-softmax of their tokens.
        events: choices hold which token was committed where, in which forward.
        timeout: seconds until it is given up; None: the server's.
    """

    chat: bool
    seed: int
    requests: tuple[Request, ...]
    prompt_tokens: int
    stream: bool
    usage: bool
    log_probs: bool
    events: bool
    timeout: float | int | None
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


@dataclasses.dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        name: the model's, as clients say it.
        decoder: with room for stop strings, where clients may bring them.
        gen_length: tokens that a slot generates: the most that a client may ask for, and the default.
        longest: tokens that a prompt may have; None: as many as the model's context leaves.
    """

    name: str
    checkpoint: Checkpoint
    decoder: Decoder
    gen_length: int
    longest: int | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer_for("a completion")

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it, with the numbers that a request may bring."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "jaxdiff",
            "max_model_len": self.checkpoint.model.config.max_sequence_length,
            "max_tokens": self.gen_length,
            "numbers": {path: leaf.item() for path, leaf in number_paths(self.decoder).items()},
        }

    def read(self, body: Any, *, chat: bool) -> Call:
        """What a body of /v1/chat/completions, or of /v1/completions, asks for.

        Raises InputError, which names the field, for one that is not known or of which a value is not served, and for
        whatever `decode` would refuse; UnknownModel for another model's name.
        """
        if not isinstance(body, dict):
            raise InputError(f"body: found {kind_of(body)}, expected a JSON object")
        given = Given({name: value for name, value in body.items() if value is not None})
        if given.take("model", a_text, self.name) != self.name:
            raise UnknownModel(f"model: found {body['model']!r:.80}, expected {self.name}")
        for name, neutral in NEUTRAL.items():
            if given.take(name, anything, neutral[0]) not in neutral:
                raise InputError(f"{name}: found {body[name]!r:.80}, which is not served; leave it out")
        seed = given.take("seed", a_whole(0, LARGEST_SEED), None)
        stream = given.take("stream", a_truth, False)
        given.take("top_logprobs", only_zero, True)
        prompts = self._chat(given) if chat else self._prompts(given)
        options = Given(given.take("stream_options", an_object, {}))
        call = Call(
            chat=chat,
            seed=secrets.randbelow(LARGEST_SEED + 1) if seed is None else seed,
            requests=(),
            prompt_tokens=sum(map(len, prompts)),
            stream=stream,
            usage=options.take("include_usage", a_truth, False),
            log_probs=given.take("logprobs", a_truth if chat else only_zero, False),
            events=given.take("events", a_truth, False),
            timeout=given.take("timeout", some_seconds, None),
        )
        options.take("include_obfuscation", a_truth, False)
        options.finish(of="stream_options ")
        count, request = given.take("n", a_whole(1, MOST_CHOICES), 1), self._request(given)
        given.finish(IGNORED)
        if len(prompts) * count > MOST_CHOICES:
            raise InputError(f"n: found {count} for {len(prompts)} prompts, expected at most {MOST_CHOICES} choices")
        requests = []
        for ids in prompts:
            if self.longest is not None and len(ids) > self.longest:
                raise InputError(f"prompt: found {len(ids)} tokens, expected at most {self.longest} of this server")
            one = dataclasses.replace(request, ids=ids, number=len(requests))
            try:
                check_request(self.checkpoint.model, one, self.gen_length, self.decoder)
            except InputError as error:
                raise InputError(str(error).replace("stop_strings:", "stop:", 1)) from error
            requests += [dataclasses.replace(one, number=len(requests) + copy) for copy in range(count)]
        return dataclasses.replace(call, requests=tuple(requests))

    def _request(self, given: Given) -> Request:
        """What all choices have in common; without a prompt."""
        lengths = [given.take(name, a_whole(1), None) for name in ("max_tokens", "max_completion_tokens")]
        numbers = {
            path: a_number(f"numbers {path}", value) for path, value in given.take("numbers", an_object, {}).items()
        }
        if (temperature := given.take("temperature", a_number, None)) is not None:
            numbers[TEMPERATURE] = temperature
        top_p = given.take("top_p", a_number, None)
        if TOP_P in number_paths(self.decoder):
            numbers |= {} if top_p is None else {TOP_P: top_p}
        elif top_p not in (None, 1):
            raise InputError(
                f"top_p: found {top_p}, expected 1 or none: this server draws from all tokens; what cuts them goes "
                "over the vocabulary many times a step, and is there where it is started with --top-p 1"
            )
        return Request(
            ids=(),
            max_tokens=next((length for length in lengths if length is not None), None),
            decoder=self._with(numbers) if numbers else None,
            stop_strings=given.take("stop", some_texts, None),
        )

    def _with(self, numbers: dict[str, float | int]) -> Decoder:
        decoder, known = self.decoder, number_paths(self.decoder)
        for path, value in numbers.items():
            if path not in known:
                raise InputError(f"numbers: found {path!r:.80}, expected some of {', '.join(known)}")
            try:
                decoder = with_number(decoder, path, value)
            except InputError as error:
                name = {TEMPERATURE: "temperature", TOP_P: "top_p"}.get(path, f"numbers {path}")
                raise InputError(f"{name}: {str(error).partition(': ')[2]}") from error
        return decoder

    def _chat(self, given: Given) -> list[list[int]]:
        if "messages" not in given.fields:
            raise InputError("messages: found none, expected a list of turns with role and content")
        turns = given.take("messages", anything, None)
        if isinstance(turns, list):
            turns = [_plain(turn) if isinstance(turn, dict) else turn for turn in turns]
        return [self.tokenizer.chat(check_messages(turns))]

    def _prompts(self, given: Given) -> list[list[int]]:
        found = given.take("prompt", anything, None)
        prompts = found if isinstance(found, list) and not all(type(one) is int for one in found) else [found]
        made = []
        for prompt in prompts:
            if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
                made.append(prompt)
            elif isinstance(prompt, str) and prompt.strip():
                made.append(self.tokenizer.plain(a_text("prompt", prompt)))
            else:
                raise InputError(f"prompt: found {prompt!r:.80}, expected a text, or ids, or a list of either")
        return made


class Choice:
    """One choice of a call, as it comes: each item of the stream gives what was not told before."""

    def __init__(self, served: Served, call: Call, index: int) -> None:
        self.served, self.call, self.index = served, call, index
        self.text, self.tokens = "", 0  # told so far
        self.before: tuple[Any, Any] | None = None
        own = call.requests[index].stop_strings
        strings = served.decoder.stop_strings
        self.strings = (() if strings is None else strings.texts) if own is None else tuple(own)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        made = self._told(answer)
        if self.call.chat:
            made["message"] = {"role": "assistant", "content": made.pop("text")}
        return made

    def first(self) -> dict[str, Any]:
        """What a chat's stream begins with."""
        return {"index": self.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def more(self, item: Partial | Answer) -> dict[str, Any] | None:
        """What a stream tells of it now; None: nothing."""
        made = self._told(item)
        if self.call.chat:
            text = made.pop("text")
            made["delta"] = {"content": text} if text else {}
        told = made.get("text") or made.get("delta") or made.get("events") or made["logprobs"]
        return made if told or made["finish_reason"] is not None else None

    def _told(self, item: Partial | Answer) -> dict[str, Any]:
        ids = item.tokens[: item.request.max_tokens]
        ends = np.flatnonzero(np.isin(ids, self.served.checkpoint.model.config.eos_ids))
        first_end = int(ends[0]) if ends.size else len(ids)
        if isinstance(item, Partial):
            reason, settled = None, min(item.settled, first_end)
        else:
            by_string = item.reason == Reason.STRING
            reason = "stop" if by_string or ends.size else "length"
            settled = min(item.length, first_end) if by_string else first_end
        text = self._text(ids[:settled], done=reason is not None)
        made: dict[str, Any] = {"index": self.index, "text": text, "finish_reason": reason}
        made["logprobs"] = self._log_probs(item, settled) if self.call.log_probs else None
        if self.call.events:
            made["events"] = self._events(ids, item.commit_step[: len(ids)])
        self.tokens = settled
        return made

    def _text(self, ids: Int[np.ndarray, " n"], *, done: bool) -> str:
        """What of the text is certain and was not told; the beginning of a stop string or of a letter is held back."""
        text = self.served.tokenizer.decode(ids, None, self.strings)
        if not done:
            text = held_back(text, self.strings)
        if not text.startswith(self.text):  # of a tokenizer that joins what it decodes in some way of its own
            if done:
                raise InputError("stream: found a text whose beginning changed with its end; ask for it without stream")
            return ""
        new, self.text = text[len(self.text) :], text
        return new

    def _log_probs(self, item: Partial | Answer, settled: int) -> dict[str, Any] | None:
        """Of the tokens that were not told."""
        at = range(self.tokens, settled)
        if not at and isinstance(item, Partial):
            return None
        words = [self.served.tokenizer.show([item.tokens[i]]) for i in at]
        values = [float(item.log_prob[i]) for i in at]
        if not self.call.chat:
            return {"tokens": words, "token_logprobs": values, "top_logprobs": None, "text_offset": None}
        pairs = zip(words, values, strict=True)
        return {"content": [{"token": a, "logprob": b, "bytes": None, "top_logprobs": []} for a, b in pairs]}

    def _events(self, ids: Int[np.ndarray, " n"], steps: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
        """What was committed, edited or taken back (token null) since the item before, in the order of the forwards."""
        old_ids, old_steps = (np.full_like(ids, -1), np.full_like(steps, -1)) if self.before is None else self.before
        self.before = ids, steps
        changed: Bool[np.ndarray, " n"] = (steps != old_steps) | ((steps >= 0) & (ids != old_ids))
        order = sorted(np.flatnonzero(changed).tolist(), key=lambda place: (steps[place], place))
        show = self.served.tokenizer.show
        return [
            {
                "position": place,
                "token_id": int(ids[place]) if steps[place] >= 0 else None,
                "token": show([ids[place]]) if steps[place] >= 0 else None,
                "step": int(steps[place]) if steps[place] >= 0 else None,
            }
            for place in order
        ]


def held_back(text: str, strings: Sequence[str]) -> str:
    """A text that goes on, without what may yet turn out otherwise at its end: a letter that is not whole, and what a
    stop string may begin with.
    """
    text = text.rstrip(UNREADABLE)
    longest = min(len(text), max(map(len, strings), default=1) - 1)
    for size in range(longest, 0, -1):
        if any(len(string) > size and string.startswith(text[-size:]) for string in strings):
            return text[:-size]
    return text


def usage(call: Call, answers: Sequence[Answer]) -> dict[str, Any]:
    """What a call took, as totals over its choices: tokens through each answer's end, and what decoding cost."""
    made = sum(answer.length for answer in answers)
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": call.prompt_tokens + made,
        "nfe": sum(answer.nfe for answer in answers),
        "cheap": sum(answer.cheap for answer in answers),
        "work": sum(answer.work for answer in answers),
    }


def body(served: Served, call: Call, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """An answer's body, or a chunk of a stream; `more`: its `usage`."""
    kind = "chat.completion" if call.chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if call.chat else 'cmpl'}-{call.id}",
        "object": f"{kind}.chunk" if call.chat and call.stream else kind,
        "created": call.created,
        "model": served.name,
        "choices": list(choices),
        "seed": call.seed,
        **more,
    }


def _plain(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn whose content may be a list of texts, as one text."""
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    for part in content:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise InputError(f"messages: found {part!r:.80} in a turn's content, expected text alone")
    return turn | {"content": "".join(part["text"] for part in content)}
