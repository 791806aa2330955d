"""What `jaxdiff eval` measures: decode a task's problems, ask its verifier, count forwards and seconds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxdiff import parts
from jaxdiff.checkpoint import Checkpoint, Tokenizer
from jaxdiff.decode.batches import widths_of
from jaxdiff.decode.checks import block_of, check_lengths
from jaxdiff.decode.decoder import Decoder, Sampling
from jaxdiff.decode.guide import Guide
from jaxdiff.files import check_writable, json_line
from jaxdiff.insertion import One, Way
from jaxdiff.metrics import tpf, wilson
from jaxdiff.serve import Answer, Meter, Refusal, Request, check_insertion, decode_stream, insert_stream
from jaxdiff.tasks import Task, lengths, task
from jaxdiff.tasks.base import Problem
from jaxdiff.types import InputError

HELD_OUT = ("test", "validation")


def prompt_ids(tokenizer: Tokenizer, problem: Problem) -> list[int]:
    """What a problem's answer follows, in tokens."""
    return tokenizer.encode(problem.question) if problem.continues else tokenizer.prompt(problem.question)


def held_out(task_name: str, n: int, *, split: str, seed: int) -> tuple[Problem, ...]:
    """The first `n` problems of a split. Raises InputError for one that is not held out, or that has fewer."""
    if split not in HELD_OUT:
        raise InputError(f"split: found {split!r}, expected {' or '.join(HELD_OUT)}; only held-out problems are scored")
    problems = tuple(itertools.islice(task(task_name).problems(split, seed), n))
    if len(problems) < n:
        raise InputError(f"n: found {n}, but {task_name}/{split} has {len(problems)} problems; ask for fewer")
    return problems


def fingerprints(
    checkpoint: Checkpoint, decoder: Any, problems: Sequence[Problem], guide: Guide | None = None
) -> dict[str, str]:
    """What an evaluation's answers hang on beside its settings, as digests: the weights of the model and of its guide,
    all numbers of the decoder (a learned policy's filter, a fill's drafter, a threshold), or of what inserts, and the
    problems, as the model is given them, with what the verifier looks for.
    """
    tokenizer = checkpoint.tokenizer_for("problems")
    asked = (json_line([prompt_ids(tokenizer, problem), problem.answer]).encode() for problem in problems)
    return {
        "weights": parts.digest_of_tree(_weights(checkpoint, guide)),
        "decoder": parts.digest_of_tree(jax.tree.leaves(decoder)),
        "problems": parts.digest(*asked),
    }


def _weights(checkpoint: Checkpoint, guide: Guide | None) -> Any:
    return checkpoint.params if guide is None else (checkpoint.params, guide.params)


@dataclasses.dataclass(frozen=True)
class Report:
    """One evaluation. Arrays are per problem, in the task's order, so that two reports of one seed can be paired."""

    task: str
    split: str
    seed: int
    problems: tuple[Problem, ...]
    texts: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    nfe: Int[np.ndarray, " n"]
    cheap: Int[np.ndarray, " n"]  # passes of the fill
    work: Float[np.ndarray, " n"]  # of both, in forwards over the row's canvas
    lengths: Int[np.ndarray, " n"]  # generated tokens through the first end-of-text
    near_ties: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]  # positions whose scores were no numbers, as of `Result`
    seconds: float  # decoding alone, warm
    compile_seconds: float  # tracing and compiling, or reading from the persistent cache
    guide_nfe: Int[np.ndarray, " n"]  # passes of the guide

    def summary(self) -> dict[str, float | int]:
        """The numbers to report: accuracy with its 95 % Wilson interval, mean NFE, cheap passes, those of a guide and
        work, TPF as total over total, times, and how many problems met scores that are no numbers.
        """
        low, high = wilson(int(self.correct.sum()), self.correct.size)
        return {
            "accuracy": float(self.correct.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "nfe": float(self.nfe.mean()),
            "cheap": float(self.cheap.mean()),
            "work": float(self.work.mean()),
            "tpf": tpf(self.lengths, self.nfe),
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "n": self.correct.size,
            "not_finite": int((self.not_finite > 0).sum()),
            "guide_nfe": float(self.guide_nfe.mean()),
        }


def evaluate(checkpoint: Checkpoint, task_name: str, decoder: Decoder | None = None, **options: Any) -> Report:
    """Decode the first `n` problems of a held-out split and let the task judge the texts; `options` are `sweep`'s."""
    return sweep(checkpoint, task_name, lambda _: Decoder() if decoder is None else decoder, (0.0,), **options)[0]


def sweep(
    checkpoint: Checkpoint,
    task_name: str,
    decoder: Callable[[Any], Decoder],
    values: Sequence[float],
    *,
    n: int = 100,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 16,
    gen_length: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    out: Path | None = None,
    meter: Meter | None = None,
    guide: Guide | None = None,
) -> tuple[Report, ...]:
    """One report for each value of a decoder's number, from one compiled program: rows are values x problems.

    `decoder` makes a decoder from one value, or from a vector of them. `gen_length`: default the task's own, and of a
    puzzle's one block, where the decoder names none. `seed` is that of the problems and of the
    decode's randomness, where each problem has its own key. The rows go through `batch_size` slots (`decode_stream`),
    value after value, the longest prompts first. `progress` is called after each row with the rows, the tokens and the
    seconds so far. A row's seconds are those since the row before it was done: they add up to those of the decode.

    `out`: a JSONL file of the rows, value after value, in the task's order: number (value x n + problem), question,
    text, correct, nfe, cheap, guide_nfe, work, length, near_ties, not_finite. Rows are written to
    `parts.folder_of(out)` as they are done; the same call goes on from what lies there, and its reports count all rows.

    `meter`, `guide`: as of `decode_stream`; with the same meter again nothing is compiled twice.

    Raises InputError for a task that is not known, the training split, a model without a tokenizer, what `decode`
    refuses, an `out` that cannot be written, and rows of another run beside it.
    """
    if n < 1 or batch_size < 1:
        raise InputError(f"n, batch_size: found {n}, {batch_size}, expected at least 1 of each")
    tokenizer = checkpoint.tokenizer_for(task_name)

    problems = held_out(task_name, n, split=split, seed=seed)
    questions = [prompt_ids(tokenizer, problem) for problem in problems]
    numbers = np.asarray(values, np.float32)
    gen_length, own_block = lengths(
        task_name, gen_length, decoder(numbers).block_length, checkpoint.model.attention_block
    )

    def made(value: Any) -> Decoder:
        return dataclasses.replace(decoder(value), block_length=own_block)

    decoders = [made(np.asarray(number)) for number in numbers]
    block = block_of(checkpoint.model, decoders[0].block_length)
    check_lengths(checkpoint.model, max(map(len, questions)), gen_length, block)
    own = decoders if len(values) > 1 else [None]
    ends = () if decoders[0].stop_strings is None else decoders[0].stop_strings.texts
    room = checkpoint.model.config.max_sequence_length - gen_length
    order = sorted(range(len(values) * n), key=lambda number: (number // n, -len(questions[number % n])))
    meter = Meter() if meter is None else meter

    def answered(left: set[int]) -> Iterable[Answer | Refusal]:
        return decode_stream(
            *(checkpoint.model, checkpoint.params),
            # Each row of a problem has the problem's number, and with it its key.
            [
                Request(questions[number % n], number, number % n, decoder=own[number // n])
                for number in order
                if number in left
            ],
            decoders[0],
            slots=batch_size,
            gen_length=gen_length,
            key=jax.random.key(seed),
            mesh=mesh,
            widths=widths_of(map(len, questions), gen_length, room),
            meter=meter,
            guide=guide,
        )

    asked = _Asked(task_name, split, seed, problems, functools.partial(tokenizer.decode, stop_strings=ends))
    depends = None
    if out is not None:
        depends = _run_of(checkpoint, task_name, split, questions, made(numbers), gen_length, seed, guide)
    return _reports(asked, len(values), answered, meter, out, depends, progress)


def evaluate_insertion(
    checkpoint: Checkpoint,
    task_name: str,
    way: Way | None = None,
    sampling: Sampling | None = None,
    *,
    n: int = 100,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 16,
    gen_length: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    out: Path | None = None,
    meter: Meter | None = None,
) -> Report:
    """As `evaluate`, of an insertion model: `way` and `sampling` as of `insert`, the other arguments and the errors as
    of `sweep`. `gen_length`: tokens that an answer has room for.
    """
    if n < 1 or batch_size < 1:
        raise InputError(f"n, batch_size: found {n}, {batch_size}, expected at least 1 of each")
    way, sampling = One() if way is None else way, Sampling() if sampling is None else sampling
    tokenizer, model = checkpoint.tokenizer_for(task_name), checkpoint.model
    problems = held_out(task_name, n, split=split, seed=seed)
    questions = [prompt_ids(tokenizer, problem) for problem in problems]
    room = task(task_name).LENGTH if gen_length is None else gen_length
    check_insertion(model, Request(max(questions, key=len), number=0), room)
    meter = Meter() if meter is None else meter

    def answered(left: set[int]) -> Iterable[Answer | Refusal]:
        return insert_stream(
            *(model, checkpoint.params, [Request(questions[number], number, number) for number in sorted(left)]),
            *(way, sampling),
            slots=batch_size,
            gen_length=room,
            key=jax.random.key(seed),
            meter=meter,
        )

    depends = None
    if out is not None:
        depends = _run_of(checkpoint, task_name, split, questions, (way, sampling), room, seed)
    asked = _Asked(task_name, split, seed, problems, tokenizer.decode)
    return _reports(asked, 1, answered, meter, out, depends, progress)[0]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What an evaluation asks, and how ids become the text that is judged."""

    task: str
    split: str
    seed: int
    problems: tuple[Problem, ...]
    decode: Callable[[Any], str]


def _reports(
    asked: _Asked,
    copies: int,
    answered: Callable[[set[int]], Iterable[Answer | Refusal]],
    meter: Meter,
    out: Path | None,
    depends: dict[str, Any] | None,
    progress: Callable[[int, int, float], None] | None,
) -> tuple[Report, ...]:
    """One report for each of the `copies` of all problems; row number = copy x n + problem.

    Args:
        answered: the answers to the rows with these numbers, in any order.
        out, depends: where rows are kept, and what they depend on.
    """
    n, lines = len(asked.problems), {}
    before, compiled = meter.seconds, meter.compile_seconds
    with ExitStack() as stack:
        keep: Callable[[Mapping[str, Any]], None] | None = None
        if out is not None and depends is not None:
            check_writable(out)
            lines = parts.written(out, depends)
            keep = stack.enter_context(parts.Part(out, 0, depends)).write
        tokens, told = sum(line["row"]["length"] for line in lines.values()), before
        for answer in answered(set(range(copies * n)) - lines.keys()):
            if isinstance(answer, Refusal):
                raise InputError(answer.error)
            number = answer.request.id
            row = _row(number, asked.problems[number % n], answer, asked.decode(answer.tokens), task(asked.task))
            lines[number] = {"number": number, "row": row, "seconds": meter.seconds - told}
            tokens, told = tokens + answer.length, meter.seconds
            if keep is not None:
                keep(lines[number])
            if progress is not None:
                progress(len(lines), tokens, meter.seconds - before)
    done = [lines[number] for number in range(copies * n)]
    if out is not None:
        parts.finish(out, done)
        parts.remove(out)
    return tuple(
        _report(asked, done[first : first + n], meter.compile_seconds - compiled) for first in range(0, copies * n, n)
    )


def _row(number: int, problem: Problem, answer: Answer, text: str, module: Task) -> dict[str, Any]:
    return {
        "number": number,
        "question": problem.question,
        "text": text,
        "correct": bool(module.verify(text, problem)),
        "nfe": answer.nfe,
        "cheap": answer.cheap,
        "guide_nfe": answer.guide_nfe,
        "work": answer.work,
        "length": answer.length,
        "near_ties": answer.near_ties,
        "not_finite": answer.not_finite,
    }


def _report(asked: _Asked, lines: Sequence[parts.Line], compiling: float) -> Report:
    rows = [line["row"] for line in lines]
    return Report(
        task=asked.task,
        split=asked.split,
        seed=asked.seed,
        problems=asked.problems,
        texts=tuple(row["text"] for row in rows),
        correct=np.asarray([row["correct"] for row in rows]),
        nfe=np.asarray([row["nfe"] for row in rows], np.int32),
        cheap=np.asarray([row["cheap"] for row in rows], np.int32),
        work=np.asarray([row["work"] for row in rows]),
        lengths=np.asarray([row["length"] for row in rows], np.int32),
        near_ties=np.asarray([row["near_ties"] for row in rows], np.int32),
        not_finite=np.asarray([row["not_finite"] for row in rows], np.int32),
        seconds=sum(line["seconds"] for line in lines),
        compile_seconds=compiling,
        guide_nfe=np.asarray([row["guide_nfe"] for row in rows], np.int32),
    )


def _run_of(
    checkpoint: Checkpoint,
    name: str,
    split: str,
    questions: Sequence[Sequence[int]],
    decoder: Any,
    gen_length: int,
    seed: int,
    guide: Guide | None = None,
) -> dict[str, Any]:
    """What the rows of an evaluation depend on; not its batches, nor the mesh."""
    weights = parts.digest_of_tree(_weights(checkpoint, guide))
    model = parts.digest(repr((checkpoint.model, guide and guide.model)).encode(), weights.encode())
    return parts.run_of(
        fields=parts.FIELDS,
        task=name,
        split=split,
        seed=seed,
        problems=parts.digest(*(np.asarray(question, np.int32).tobytes() for question in questions)),
        model=model,
        revision=checkpoint.revision,
        decoder=parts.digest_of_tree(decoder),
        gen_length=gen_length,
        versions={package: version(package) for package in ("jax", "jaxlib", "flax")},
    )
