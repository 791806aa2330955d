"""Requests, one or a JSONL file of them, and their answers: read, decoded in slots, each answer a row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import jax

from jaxdiff import policies
from jaxdiff.checkpoint import Checkpoint
from jaxdiff.cli import choosing, drafting, inserting, particles
from jaxdiff.cli.choosing import Asked, How
from jaxdiff.cli.options import Decoding
from jaxdiff.convert.chats import check_messages, with_system
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.decode import Decoder, Sampling
from jaxdiff.decode.batches import widths_of
from jaxdiff.decode.checks import block_of, check_block
from jaxdiff.decode.guide import check_asked
from jaxdiff.decode.result import Reason
from jaxdiff.files import parse_json
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.protocols import is_insertion
from jaxdiff.serve import (
    Answer,
    Meter,
    Refusal,
    Request,
    check_drafted,
    check_insertion,
    check_request,
    decode_stream,
    draft_stream,
    insert_stream,
)
from jaxdiff.show import pieces_of
from jaxdiff.stoppers.strings import ROOM, StopStrings, encoded
from jaxdiff.types import InputError

Row = Request | Asked | Refusal
KINDS = ("prompt", "messages", "prompt_ids", "canvas_ids", "insert")
KEYS = ("id", *KINDS, "stop_strings", "choices")
OTHERS = {  # how files of other kinds begin; all of them hold a zero byte soon
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\0\0\xfe\xff": "UTF-32",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "a Parquet file",
}
MOST_LEVELS = 100  # of lists and objects in an id: what is read must be written again, from a deeper stack


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run of `generate` is beside its decoding.

    Attributes:
        log_prob: rows hold the tokens' log-softmax too.
        special: the names of special tokens in a text prompt are those tokens, not text.
        system: the system turn of chats that have none of their own.
        chat: a text prompt is a user's turn of the folder's chat template; else it is given to the model as it stands.
        prompt_text: rows hold the text that the model was given.
        for_show: rows hold what `jaxdiff show` draws, of all the above what is shown too.
        choosing: how choices are compared.
        particles: of each prompt, one of which is its answer; None: it has one draw alone.
    """

    seed: int
    slots: int
    log_prob: bool = False
    special: bool = False
    system: str | None = None
    chat: bool = True
    prompt_text: bool = False
    for_show: bool = False
    choosing: How = dataclasses.field(default_factory=How)
    particles: int | None = None


def prompt_ids(checkpoint: Checkpoint, text: str, job: Job) -> list[int]:
    """The ids of a text prompt, in the folder's chat template unless the job says otherwise.

    Raises InputError for an empty text, and where the folder has no tokenizer.
    """
    if not text.strip():
        raise InputError("prompt: found an empty text, expected at least one word")
    tokenizer = _tokenizer(checkpoint, "prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt: found {text!r}, expected text that UTF-8 can hold") from error
    if not job.chat:
        return tokenizer.plain(text, job.special)
    if job.system is None:
        return tokenizer.prompt(text, job.special)
    return tokenizer.chat(with_system([{"role": "user", "content": text}], job.system), job.special)


def chat_ids(checkpoint: Checkpoint, messages: Any, job: Job) -> list[int]:
    """The ids of a conversation. Raises InputError as `Tokenizer.chat`, and where no chats are asked for."""
    if not job.chat:
        raise InputError("messages: found a chat, but --no-chat asks for plain text; give prompt, or leave it out")
    tokenizer = _tokenizer(checkpoint, "messages")
    return tokenizer.chat(with_system(check_messages(messages), job.system), job.special)


def _tokenizer(checkpoint: Checkpoint, what: str) -> Tokenizer:
    if checkpoint.tokenizer is None:
        raise InputError(
            f"{what}: {checkpoint.path} has no tokenizer.json; add one, or give prompt_ids in a JSONL file (--in)"
        )
    return checkpoint.tokenizer


def stop_strings(checkpoint: Checkpoint, requests: Iterable[Request], decoding: Decoding) -> StopStrings | None:
    """The stop strings of all requests, with room for those that they bring; None where there are none.

    Raises InputError for a model without a tokenizer, or one that is not byte-level.
    """
    lists = [decoding.stop_string, *(request.stop_strings or () for request in requests)]
    texts = [encoded(texts) for texts in lists]
    if not any(texts):
        return None
    longest = max(len(text) for each in texts for text in each)
    tokenizer = _tokenizer(checkpoint, "stop_strings")
    return tokenizer.stop_strings(
        decoding.stop_string, most=max(ROOM[0], *map(len, texts)), longest=max(ROOM[1], longest)
    )


def check(checkpoint: Checkpoint, request: Request, decoding: Decoding) -> None:
    """Raises the InputError that this request is refused with."""
    if is_insertion(checkpoint.model):
        check_insertion(checkpoint.model, request, decoding.gen_length)
        return
    if (draft := drafting.draft_of(decoding, checkpoint)) is not None:
        check_drafted(checkpoint.model, request, draft, decoding.gen_length)
        return
    asked = Decoder(  # the policy's steps hang on the length, which is checked here: one that any constraint goes with
        policies.Fixed(order="left"),
        block_length=decoding.block_length,
        length=decoding.length,
        stop_strings=stop_strings(checkpoint, [request], decoding),
        sampling=Sampling(1.0, forbid_eos=decoding.forbid_eos),
        constraint=decoding.constrained(checkpoint.tokenizer),
    )
    check_request(checkpoint.model, request, decoding.gen_length, asked)
    if request.is_canvas:
        decoder = decoding.decoder(checkpoint.model, len(request.ids), canvas=True, tokenizer=checkpoint.tokenizer)
        check_block(decoder, block_of(checkpoint.model, decoder.block_length))
        check_asked(decoder.policy, given=False)
        mask = checkpoint.model.config.mask_token_id
        if mask not in request.ids:
            raise InputError(f"canvas_ids: found no mask (id {mask}), expected a hole to fill")


def read(data: bytes, checkpoint: Checkpoint, decoding: Decoding, job: Job) -> list[Row]:
    """The rows of a JSONL file's bytes, in its order; blank lines are skipped; without an id it is the line's number.

    Raises InputError for a file of another kind, and where the decoding fits no prompt, or the model takes no system
    turn or stop strings that are asked for: that is the command line's mistake, not a row's.
    """
    if job.system is not None:
        prompt_ids(checkpoint, "one", job)
    stop_strings(checkpoint, (), decoding)
    inserting.check(decoding, checkpoint.model)
    drafting.check(decoding, checkpoint.model)
    if kind := next((kind for start, kind in OTHERS.items() if data.startswith(start) and b"\0" in data[:64]), None):
        raise InputError(f"in: found {kind}, expected lines of JSON in UTF-8; save it as that")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    rows = [_parse(number, line, checkpoint, job) for number, line in enumerate(lines) if line.strip()]
    if any(isinstance(row, Request) and not row.is_canvas for row in rows):
        check_decoding(checkpoint, decoding, job)
    for place, row in enumerate(rows):
        try:
            if isinstance(row, Request):
                particles.check_request(row, job.particles)
                check(checkpoint, row, decoding)
            elif isinstance(row, Asked) and decoding.draft is not None:
                raise InputError("choices: found answers to compare, and --draft guesses what follows; leave it out")
            elif isinstance(row, Asked):
                choosing.check(checkpoint, row, decoding, job.choosing)
        except InputError as error:
            rows[place] = Refusal(row.number, row.id, str(error))
    return rows


def check_decoding(checkpoint: Checkpoint, decoding: Decoding, job: Job) -> None:
    """Raises InputError for a decoding that fits no prompt of this model."""
    inserting.check(decoding, checkpoint.model)
    drafting.check(decoding, checkpoint.model)
    drafting.draft_of(decoding, checkpoint)
    if not is_insertion(checkpoint.model):
        decoding.decoder(checkpoint.model, decoding.gen_length, tokenizer=checkpoint.tokenizer)
    elif job.for_show:
        raise InputError(
            "for-show, html: found it with an insertion model, but a page shows masks that turn into text; leave it out"
        )


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The order in which processes share rows out: refusals, prompts, canvases by their length, the longest prompts
    first, so that each gets as many of each.
    """
    return sorted(rows, key=lambda row: (-1, 0) if isinstance(row, Refusal) else (_canvas_length(row), -len(row.ids)))


def lines(
    checkpoint: Checkpoint, rows: Sequence[Row], decoding: Decoding, job: Job, meter: Meter
) -> Iterator[dict[str, Any]]:
    """The line of each request that is no refusal, when its answer is there: those with choices come last."""
    for answer, more in _answered(checkpoint, [row for row in rows if isinstance(row, Request)], decoding, job, meter):
        line = line_of(checkpoint, answer, decoding, job)
        yield line | {"row": line["row"] | more}
    chosen = [row for row in rows if isinstance(row, Asked)]
    compared = choosing.answers(checkpoint, chosen, decoding, job.choosing, seed=job.seed, slots=job.slots, meter=meter)
    for answer, more in compared:
        line = line_of(checkpoint, answer, decoding, job)
        yield line | {"row": line["row"] | more}


def _answered(
    checkpoint: Checkpoint, requests: Sequence[Request], decoding: Decoding, job: Job, meter: Meter
) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """Each answer, and what its row holds beside what all rows do."""
    if job.particles is None:
        yield from ((answer, {}) for answer in answers(checkpoint, requests, decoding, job, meter))
        return
    yield from particles.answers(
        *(checkpoint, requests, decoding, job.particles), seed=job.seed, slots=job.slots, meter=meter
    )


def answers(
    checkpoint: Checkpoint, requests: Sequence[Request], decoding: Decoding, job: Job, meter: Meter
) -> Iterator[Answer]:
    """Decode requests that were checked: prompts, then canvases by their length, else in the order given; each answer
    comes when it is there.

    Prompts of a file are padded to one width or to two, the wider ones first, which show at once whether memory holds
    them. A prompt alone is padded to a bucket of an endless queue, so that the next one finds its program compiled.
    """
    if is_insertion(checkpoint.model):
        yield from insert_stream(
            *(checkpoint.model, checkpoint.params, requests, inserting.way(decoding), inserting.sampling(decoding)),
            slots=job.slots,
            gen_length=decoding.gen_length,
            key=jax.random.key(job.seed),
            meter=meter,
        )
        return
    if (draft := drafting.draft_of(decoding, checkpoint)) is not None:
        yield from draft_stream(
            *(checkpoint.model, checkpoint.params, requests, draft, drafting.sampling(decoding)),
            slots=job.slots,
            gen_length=decoding.gen_length,
            key=jax.random.key(job.seed),
            meter=meter,
        )
        return
    strings, guide = stop_strings(checkpoint, requests, decoding), decoding.beside(checkpoint)
    for canvas, rows in groupby(sorted(requests, key=_canvas_length), key=_canvas_length):
        alike = [row for row in rows if isinstance(row, Request)]
        length = canvas or decoding.gen_length
        widths: tuple[int, ...] = ()
        if len(alike) > 1 and not canvas:
            room = checkpoint.model.config.max_sequence_length - length
            widths = widths_of([len(row.ids) for row in alike], length, room)
            alike.sort(key=lambda row: len(row.ids) <= widths[0] < widths[-1])
        decoder = decoding.decoder(checkpoint.model, length, canvas=bool(canvas), tokenizer=checkpoint.tokenizer)
        yield from decode_stream(  # type: ignore[misc]
            *(checkpoint.model, checkpoint.params, alike),
            dataclasses.replace(decoder, stop_strings=None if canvas else strings),
            slots=job.slots,
            gen_length=length,
            key=jax.random.key(job.seed),
            mesh=parse_mesh(decoding.mesh),
            widths=widths,
            meter=meter,
            guide=guide,
        )


def _canvas_length(row: Row) -> int:
    return len(row.ids) if isinstance(row, Request) and row.is_canvas else 0


def line_of(checkpoint: Checkpoint, done: Answer, decoding: Decoding, job: Job) -> dict[str, Any]:
    """An answer as a line of a part: its number, its row of the output file, and what only the summary counts."""
    row: dict[str, Any] = {
        "id": done.request.id,
        "text": None,
        "token_ids": done.tokens.tolist(),
        "nfe": done.nfe,
        "cheap": done.cheap,
        "guide_nfe": done.guide_nfe,
        "work": done.work,
        "not_finite": done.not_finite,
        "reason": Reason(done.reason).name.lower(),
        "commit_step": done.commit_step.tolist(),
        "seconds": done.seconds,
    }
    if decoding.weighs:
        row |= {"log_weight": done.log_weight, "checks": done.checks}
    holes = None
    if done.request.is_canvas:
        holes = [token == checkpoint.model.config.mask_token_id for token in done.request.ids]
        row["filled"] = [_span(checkpoint, row["token_ids"], start, end) for start, end in runs(holes)]
    if is_insertion(checkpoint.model):
        row["full"] = done.reason == Reason.FULL
    if done.request.gaps is not None:
        holes = [step >= 0 for step in row["commit_step"]]
        row["inserted"] = inserting.inserted(checkpoint, row["token_ids"], holes, done.request.gaps)
    if checkpoint.tokenizer is not None:
        own = done.request.stop_strings
        strings = () if holes else decoding.stop_string if own is None else own
        row["text"] = checkpoint.tokenizer.decode(row["token_ids"], holes, strings)
    if (job.prompt_text or job.for_show) and not done.request.is_canvas:
        row["prompt_text"] = None if checkpoint.tokenizer is None else checkpoint.tokenizer.show(done.request.ids)
    if job.log_prob or job.for_show:
        row["log_prob"] = done.log_prob.tolist()
    if job.for_show:
        tokenizer, length = checkpoint.tokenizer, _canvas_length(done.request)
        row["pieces"] = None if tokenizer is None else pieces_of(row["token_ids"], tokenizer.fast)
        row["generated_tokens"] = done.length
        row["decoder"] = decoding.told(checkpoint.model, canvas=length) | ({"seed": job.seed} if job.seed else {})
        if checkpoint.model.attention_block and not done.request.is_canvas:
            row["block_lead"] = len(done.request.ids) % row["decoder"]["block_length"]
    return {"number": done.request.number, "row": row, "length": done.length, "near_ties": done.near_ties}


def runs(holes: Sequence[bool]) -> list[tuple[int, int]]:
    """The first column of each run of holes, and the one after its last."""
    edges = [column for column, (a, b) in enumerate(pairwise([False, *holes, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _span(checkpoint: Checkpoint, tokens: list[int], start: int, end: int) -> dict[str, Any]:
    text = None if checkpoint.tokenizer is None else checkpoint.tokenizer.decode(tokens[start:end])
    return {"start": start, "end": end, "token_ids": tokens[start:end], "text": text}


def _parse(number: int, line: bytes, checkpoint: Checkpoint, job: Job) -> Row:
    name: Any = number + 1
    try:
        row = _object(line)
        given = row.get("id")
        _check_id(given)
        name = name if given is None else given
        if unknown := [key for key in row if key not in KEYS]:
            raise InputError(
                f"found key {unknown[0]!r}, expected id, stop_strings, choices and one of {', '.join(KINDS)}; take it "
                "out"
            )
        kinds = [kind for kind in KINDS if kind in row]
        if len(kinds) != 1:
            raise InputError(f"found {' and '.join(kinds) or 'no prompt'}, expected one of {', '.join(KINDS)}")
        (kind,) = kinds
        value = row[kind]
        strings: Any = row.get("stop_strings")
        if "stop_strings" in row and encoded(strings):
            _tokenizer(checkpoint, "stop_strings").stop_strings(strings)
        gaps = None
        if kind == "insert":
            ids, gaps = inserting.parts_of(checkpoint.tokenizer, value, special=job.special)
        else:
            ids = _ids_of(checkpoint, kind, value, job)
        request = Request(ids, name, number, is_canvas=kind == "canvas_ids", gaps=gaps, stop_strings=strings)
        if "choices" not in row:
            return request
        if "stop_strings" in row:
            raise InputError("stop_strings: found some with choices, which end by themselves; leave one of them out")
        return asked(checkpoint, request, row["choices"], job, is_chat=kind in ("prompt", "messages") and job.chat)
    except InputError as error:
        return Refusal(number, name, str(error))


def _ids_of(checkpoint: Checkpoint, kind: str, value: Any, job: Job) -> list[int]:
    """The ids of a row's prompt or canvas. Raises the InputError that it is refused with."""
    if kind == "prompt":
        if not isinstance(value, str):
            raise InputError(f"prompt: found {type(value).__name__}, expected a text")
        return prompt_ids(checkpoint, value, job)
    if kind == "messages":
        return chat_ids(checkpoint, value, job)
    if not isinstance(value, list):
        raise InputError(f"{kind}: found {type(value).__name__}, expected a list of whole numbers")
    for place, token in enumerate(value):
        if type(token) is not int:
            found = json.dumps(token)[:40]
            raise InputError(f"{kind}: found {found} in place {place}, expected a list of whole numbers")
    return value


def asked(checkpoint: Checkpoint, request: Request, choices: Any, job: Job, *, is_chat: bool) -> Asked:
    """A request with the answers to choose from; in a chat a text is followed by the end of the turn, where the model
    has one apart from end-of-text. Raises InputError as `choices_of`.
    """
    end = checkpoint.model.config.turn_ends[:1] if is_chat else ()
    ids = choosing.choices_of(checkpoint.tokenizer, choices, special=job.special, end=end)
    return Asked(dataclasses.replace(request, stop_strings=()), ids)


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises InputError for what is none, and for text that UTF-8 cannot hold."""
    try:
        row = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        found = f"byte {line[error.start]:#04x} at byte {error.start + 1}"
        raise InputError(f"not JSON (not UTF-8: found {found} of the line); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg}, at character {error.pos + 1})") from error
    except RecursionError as error:
        raise InputError("not JSON that can be read (too many lists or objects in each other)") from error
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"found {type(row).__name__}, expected a JSON object")
    return row


def _check_id(value: Any, levels: int = MOST_LEVELS) -> None:
    """Raises InputError for an id that cannot be written into the output as it was read."""
    if not levels:
        raise InputError(f"id: found more than {MOST_LEVELS} lists or objects in each other, expected a name")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"id: found {value!r}, expected text that UTF-8 can hold") from error
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        _check_id(one, levels - 1)
