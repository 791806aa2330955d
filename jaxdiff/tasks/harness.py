"""The model that lm-eval asks (`pip install 'jaxdiff[lm-eval]'`): its three kinds of requests, answered by jaxdiff.

    generate_until          -> decode_stream, with the task's stop strings
    loglikelihood           -> log_likelihood of the continuation, and a decode of as many tokens: is it the same?
    loglikelihood_rolling   -> log_likelihood of a text, a context's length at a time

Each answer is a row, which `keep` is given as soon as it is there; rows of `known` are not made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxdiff import parts
from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys, widths_of
from jaxdiff.decode.checks import block_of, whole_block
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.likelihood import SAMPLES, Likelihood, log_likelihood
from jaxdiff.files import json_line
from jaxdiff.metrics import tpf
from jaxdiff.serve import Answer, Meter, Refusal, Request, decode_stream
from jaxdiff.stoppers.strings import StopStrings, encoded
from jaxdiff.types import InputError

LENGTH = 256  # tokens to generate where neither the task nor the caller says; lm-eval's own default
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # what tasks call them
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": None}  # what of a task's would be sampled with, and no effect
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Job:
    """A request: its digest, which its seed and its row go by, and what it asks."""

    digest: str
    request: Any  # lm-eval's Instance
    prompt: list[int]
    answer: list[int] = dataclasses.field(default_factory=list)
    length: int = 0
    until: tuple[str, ...] = ()
    cut: int = 0  # tokens of the context that the model's context has no room for

    @property
    def number(self) -> int:
        """What its key is folded with: the same whatever else is asked."""
        return int(self.digest[:7], 16)

    def row(self, kind: str, **values: Any) -> Row:
        """Of its answer."""
        asked = {"digest": self.digest, "kind": kind, "task": self.request.task_name, "doc": self.request.doc_id}
        return asked | {"request": self.request.idx, **values, "cut": self.cut}


class Harness(LM):
    """A checkpoint and a decoder, as lm-eval's `simple_evaluate(model=)` takes them.

    Args:
        decoder: how texts are generated; its sampling counts, whatever a task says.
        gen_length: tokens to generate; default each task's own `max_gen_toks`, else 256.
        samples, likelihood_block: `samples` and `block_length` of `log_likelihood`.
        batch_size: slots, and rows of a likelihood.
        seed: of all draws; each request has its own key, whatever else is asked.
        known: rows of an earlier run by their digest, which are not made again.
        keep: is given each new row: digest, kind, task, doc, request (its number among the document's), nfe,
            not_finite, cut (tokens taken off the left of a context that was too long); of a text also text, cheap,
            work, length (tokens through the first end-of-text), seconds; of a likelihood value, its standard error,
            low and high (its 95 % interval), and greedy (the decode of as many tokens gives it; its forwards count).
        progress: (name, total) to a context whose value is called with what is done.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: Decoder | None = None,
        *,
        gen_length: int | None = None,
        samples: int = SAMPLES,
        likelihood_block: int | None = None,
        batch_size: int = 16,
        seed: int = 0,
        mesh: Mesh | None = None,
        known: Mapping[str, Row] | None = None,
        keep: Callable[[Row], None] = lambda row: None,
        progress: Callable[[str, int], Any] = lambda name, total: contextlib.nullcontext(lambda done: None),
    ) -> None:
        super().__init__()
        self.checkpoint, self.text = checkpoint, checkpoint.tokenizer_for("lm-eval")
        self.decoder = Decoder() if decoder is None else decoder
        self.gen_length, self.samples, self.likelihood_block = gen_length, samples, likelihood_block
        self.batch_size, self.seed, self.mesh = batch_size, seed, mesh
        self.known, self.keep, self.progress = dict(known or {}), keep, progress
        self.rows: dict[str, Row] = {}  # of what was asked so far
        self.meter = Meter()
        self.block = block_of(checkpoint.model, self.decoder.block_length)
        self.context = checkpoint.model.config.max_sequence_length
        self._chats: dict[str, list[int]] = {}
        self._asked: Counter[str] = Counter()

    # What lm-eval calls -----------------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        return self.checkpoint.path.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat; that it stands for these ids is remembered, so that no message can forge a turn."""
        ids = self.text.chat(chat_history)
        shown = self.text.show(ids)
        self._chats[shown] = ids
        return shown

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text after each context, up to the first of its stop strings."""
        jobs = [self._generation(request) for request in requests]
        made = self._made("generated", jobs, self._generate)
        return [made[job.digest]["text"] for job in jobs]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Each continuation's log-likelihood, and whether a decode of as many tokens gives it."""
        jobs = [self._continuation(request) for request in requests]
        made = self._made("scored", jobs, self._score)
        return [(_value(made[job.digest]), made[job.digest]["greedy"]) for job in jobs]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Each text's log-likelihood, the sum of windows of a context's length."""
        jobs = [
            _Job(self._digest("loglikelihood_rolling", request), request, [], self.text.encode(*request.args))
            for request in requests
        ]
        made = self._made("scored", jobs, self._roll)
        return [_value(made[job.digest]) for job in jobs]

    # ------------------------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, dict[str, float | int]]:
        """What each task's requests took: how many, means of NFE, cheap passes and work, generated tokens per forward,
        the mean standard error of likelihoods, contexts that were cut, and scores that were no numbers.
        """
        of: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows.values():
            of[row["task"]].append(row)
        return {task: _summed(rows) for task, rows in sorted(of.items())}

    def _digest(self, kind: str, request: Any) -> str:
        """Of a request; one that is asked again, as for several draws, is told from the first."""
        digest = parts.digest(kind.encode(), json_line([request.task_name, request.doc_id, *request.args]).encode())
        self._asked[digest] += 1
        again = self._asked[digest] - 1
        return parts.digest(digest.encode(), str(again).encode()) if again else digest

    def _made(self, name: str, jobs: Sequence[_Job], make: Callable[[list[_Job]], Iterator[Row]]) -> dict[str, Row]:
        """The row of each job; those that are not known are made, kept and told of."""
        self.rows |= {job.digest: self.known[job.digest] for job in jobs if job.digest in self.known}
        missing = [job for job in jobs if job.digest not in self.rows]
        self._asked.clear()
        with self.progress(name, len(jobs)) as update:
            done = len(jobs) - len(missing)
            update(done)
            for row in make(missing):
                self.rows[row["digest"]] = row
                self.keep(row)
                done += 1
                update(done)
        return self.rows

    def _ids(self, text: str) -> list[int]:
        """A context's: a chat's, or a text as it stands, behind what the tokenizer puts around one."""
        return self._chats.get(text) or self.text.plain(text) or [self.text.eos_id]

    def _generation(self, request: Any) -> _Job:
        context, asked = request.args
        asked = dict(asked)
        until = asked.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(text for text in until if text)
        encoded(until)
        own = [asked.pop(name) for name in LENGTHS if name in asked]
        length = self.gen_length or (own[0] if own else LENGTH)
        sampled = asked.pop("do_sample", True)
        given = {name: asked.pop(name) for name in SAMPLING if name in asked}
        drawn = bool(np.any(np.asarray(self.decoder.sampling.temperature) > 0))
        if sampled and given.get("temperature") and not drawn:
            raise InputError(
                f"{request.task_name}: found temperature {given['temperature']}, but the decode is greedy; give it a "
                "temperature too, or take it out of the task's generation_kwargs"
            )
        if asked:
            raise InputError(
                f"{request.task_name}: found {next(iter(asked))!r} in generation_kwargs, expected until, do_sample, "
                f"{', '.join(LENGTHS)}, {', '.join(SAMPLING)}; take it out"
            )
        prompt, cut = self._fitting(self._ids(context), self._canvas(length))
        digest = self._digest("generate_until", request)
        return _Job(digest, request, prompt, length=length, until=until, cut=cut)

    def _continuation(self, request: Any) -> _Job:
        context, continuation = request.args
        bare = context.rstrip() if context not in self._chats else context
        prompt = self._ids(bare)
        text = context[len(bare) :] + continuation  # white space belongs to the word behind it
        answer = self.text.encode(text)
        if bare and bare not in self._chats:
            answer = self.text.plain(bare + text)[len(prompt) :] or answer
        if not answer:
            raise InputError(f"{request.task_name}: found a continuation without tokens, {continuation!r:.40}")
        prompt, cut = self._fitting(prompt, max(len(answer), self._canvas(len(answer))))
        return _Job(self._digest("loglikelihood", request), request, prompt, answer, cut=cut)

    def _fitting(self, prompt: list[int], room: int) -> tuple[list[int], int]:
        """A context's last tokens, as many as the model's context holds beside what follows, and how many it lost."""
        if room >= self.context:
            raise InputError(
                f"lm-eval: found {room} tokens to generate or to score, expected less than the context of "
                f"{self.context}; take a smaller gen_length, or another task"
            )
        cut = max(0, len(prompt) + room - self.context)
        return prompt[cut:], cut

    def _canvas(self, length: int) -> int:
        """So many tokens in whole blocks."""
        block = whole_block(self.checkpoint.model, self.block)
        return -(-length // block) * block

    def _generate(self, jobs: list[_Job]) -> Iterator[Row]:
        for job, answer in self._decoded(jobs):
            yield job.row(
                "generate_until", text=self.text.decode(answer.tokens, stop_strings=job.until), **_cost(answer)
            )

    def _decoded(self, jobs: Sequence[_Job]) -> Iterator[tuple[_Job, Answer]]:
        """The decode of each job, those of one canvas together, the longest prompts first."""
        of: dict[int, list[_Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: -len(job.prompt)):
            of[self._canvas(job.length)].append(job)
        for length, alike in of.items():
            requests = [
                Request(job.prompt, id=place, number=job.number, max_tokens=job.length, stop_strings=job.until or None)
                for place, job in enumerate(alike)
            ]
            answers = decode_stream(
                *(self.checkpoint.model, self.checkpoint.params, requests),
                dataclasses.replace(self.decoder, stop_strings=self._room(alike)),
                slots=self.batch_size,
                gen_length=length,
                key=jax.random.key(self.seed),
                mesh=self.mesh,
                widths=widths_of((len(job.prompt) for job in alike), length, self.context - length),
                meter=self.meter,
            )
            for answer in answers:
                if isinstance(answer, Refusal):
                    raise InputError(answer.error)
                yield alike[answer.request.id], answer

    def _room(self, jobs: Sequence[_Job]) -> StopStrings | None:
        texts = [encoded(job.until) for job in jobs]
        if not any(texts):
            return None
        return self.text.stop_strings(
            most=max(map(len, texts)), longest=max(len(text) for each in texts for text in each)
        )

    def _score(self, jobs: list[_Job]) -> Iterator[Row]:
        asked = [dataclasses.replace(job, length=len(job.answer)) for job in jobs]
        decoded = {job.digest: answer for job, answer in self._decoded(asked)}
        for place, found in self._likelihoods([(job.number, job.prompt, job.answer) for job in jobs]):
            job, answer = jobs[place], decoded[jobs[place].digest]
            greedy = answer.tokens[: len(job.answer)].tolist() == job.answer
            yield job.row("loglikelihood", **_told(found), greedy=greedy, nfe=int(found.nfe[0]) + answer.nfe)

    def _roll(self, jobs: list[_Job]) -> Iterator[Row]:
        """Windows that do not overlap, each behind the token before it; the first behind end-of-text."""
        asked, owner = [], []
        for place, job in enumerate(jobs):
            windows = get_rolling_token_windows(job.answer, self.text.eos_id, self.context - 1, 1)
            for number, window in enumerate(map(make_disjoint_window, windows)):
                asked.append((job.number + number, *window))
                owner.append(place)
        counts, found = Counter(owner), defaultdict(list)
        for window, one in self._likelihoods(asked):
            place = owner[window]
            found[place].append(one)
            if len(found[place]) == counts[place]:
                whole = _joined(found.pop(place))
                yield jobs[place].row("loglikelihood_rolling", **_told(whole), nfe=int(whole.nfe[0]))
        for place in set(range(len(jobs))) - set(counts):  # an empty text
            yield jobs[place].row("loglikelihood_rolling", value=0.0, error=0.0, not_finite=0, nfe=0)

    def _likelihoods(self, asked: Sequence[tuple[int, list[int], list[int]]]) -> Iterator[tuple[int, Likelihood]]:
        """The place and the likelihood, of one row, of each (number of its key, prompt, answer), in no order.

        Answers of like lengths go together, the longest first, padded so that few programs are compiled.
        """
        of: dict[int, list[int]] = defaultdict(list)
        for place, (_, prompt, answer) in sorted(enumerate(asked), key=lambda one: -len(one[1][1])):
            of[min(1 << (len(answer) - 1).bit_length(), self.context - len(prompt))].append(place)
        for width, places in sorted(of.items(), reverse=True):
            for chosen in batches(len(places), self.batch_size):
                rows = [asked[places[number]] for number in chosen]
                prompts, origin = pad_to_bucket([row[1] for row in rows], self.text.eos_id, self.context)
                answers = np.full((len(rows), width), self.text.eos_id, np.int32)
                for line, row in zip(answers, rows, strict=True):
                    line[: len(row[2])] = row[2]
                found = log_likelihood(
                    *(self.checkpoint.model, self.checkpoint.params, prompts, answers),
                    origin=origin,
                    lengths=np.asarray([len(row[2]) for row in rows]),
                    samples=self.samples,
                    block_length=self.likelihood_block,
                    cfg_scale=self.decoder.sampling.cfg_scale,
                    key=request_keys(self.seed, np.asarray([row[0] for row in rows])),
                    mesh=self.mesh,
                )
                for number, row in zip(*np.unique(chosen, return_index=True), strict=True):
                    yield places[number], Likelihood(*(values[row : row + 1] for values in vars(found).values()))


def _cost(answer: Answer) -> Row:
    return {name: getattr(answer, name) for name in ("nfe", "cheap", "work", "length", "not_finite", "seconds")}


def _joined(windows: Sequence[Likelihood]) -> Likelihood:
    """Of a text in windows, each estimated with draws of its own."""
    value, error, nfe, work = (np.stack(each) for each in zip(*(vars(one).values() for one in windows), strict=True))
    return Likelihood(value.sum(axis=0), np.sqrt((error**2).sum(axis=0)), nfe.sum(axis=0), work.sum(axis=0))


def _told(found: Likelihood) -> Row:
    sound = bool(np.isfinite(found.value[0]))
    numbers = (found.value, found.error, *found.interval)
    told = (float(each[0]) if sound else None for each in numbers)
    return dict(zip(("value", "error", "low", "high"), told, strict=True)) | {"not_finite": int(not sound)}


def _value(row: Row) -> float:
    return float("nan") if row["value"] is None else row["value"]


def _summed(rows: Sequence[Row]) -> dict[str, float | int]:
    def mean(name: str) -> float:
        found = [row[name] for row in rows if row.get(name) is not None]
        return float(np.mean(found)) if found else 0.0

    generated = [row for row in rows if row["kind"] == "generate_until"]
    numbers: dict[str, float | int] = {"requests": len(rows), "nfe": mean("nfe")}
    if generated:
        numbers |= {"cheap": mean("cheap"), "work": mean("work")}
        numbers["tpf"] = tpf(*(np.asarray([row[name] for row in generated]) for name in ("length", "nfe")))
    if len(generated) < len(rows):
        numbers["likelihood_error"] = mean("error")
    counts = {name: sum(row[name] > 0 for row in rows) for name in ("cut", "not_finite")}
    return numbers | counts
