"""What `jaxdiff eval` measures: decode a task's problems, ask its verifier, count forwards and seconds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxdiff import parts
from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys
from jaxdiff.decode.checks import block_of, check_lengths
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Timed
from jaxdiff.files import check_writable
from jaxdiff.metrics import tpf, wilson
from jaxdiff.tasks import task
from jaxdiff.tasks.base import Problem
from jaxdiff.types import InputError

HELD_OUT = ("test", "validation")


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
    work: Float[np.ndarray, " n"]  # in forwards over the row's canvas
    lengths: Int[np.ndarray, " n"]  # generated tokens through the first end-of-text
    near_ties: Int[np.ndarray, " n"]
    not_finite: Int[np.ndarray, " n"]  # positions whose scores were no numbers, as of `Result`
    seconds: float  # decoding alone, warm
    compile_seconds: float  # past the persistent cache

    def summary(self) -> dict[str, float | int]:
        """The numbers to report: accuracy with its 95 % Wilson interval, mean NFE, TPF as total over total, times, and
        how many problems met scores that are no numbers.
        """
        low, high = wilson(int(self.correct.sum()), self.correct.size)
        return {
            "accuracy": float(self.correct.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
            "nfe": float(self.nfe.mean()),
            "work": float(self.work.mean()),
            "tpf": tpf(self.lengths, self.nfe),
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "n": self.correct.size,
            "not_finite": int((self.not_finite > 0).sum()),
        }


def evaluate(checkpoint: Checkpoint, task_name: str, decoder: Decoder | None = None, **options: Any) -> Report:
    """Decode the first `n` problems of a held-out split and let the task judge the texts; `options` are `sweep`'s."""
    return sweep(checkpoint, task_name, lambda _: Decoder() if decoder is None else decoder, (0.0,), **options)[0]


def sweep(
    checkpoint: Checkpoint,
    task_name: str,
    decoder: Callable[[Float[np.ndarray, " B"]], Decoder],
    values: Sequence[float],
    *,
    n: int = 100,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 16,
    gen_length: int = 256,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    out: Path | None = None,
) -> tuple[Report, ...]:
    """One report for each value of a decoder's number, from one compiled program: rows are values x problems.

    `decoder` makes a decoder from the values of a batch's rows. `seed` is that of the problems and of the decode's
    randomness, where each problem has its own key. Problems whose worked answers are about as long share a batch, and
    end together. `progress` is called after each batch with the rows, the tokens and the seconds so far. A report's
    seconds are its rows' share of their batches'.

    `out`: a JSONL file of the rows, value after value, in the task's order: number (value x n + problem), question,
    text, correct, nfe, work, length, near_ties, not_finite. Rows are written to `parts.folder_of(out)` as their batches
    end; the same call goes on from what lies there, and its reports count all rows.

    Raises InputError for a task that is not known, the training split, a model without a tokenizer, what `decode`
    refuses, an `out` that cannot be written, and rows of another run beside it.
    """
    module = task(task_name)
    if split not in HELD_OUT:
        raise InputError(f"split: found {split!r}, expected {' or '.join(HELD_OUT)}; only held-out problems are scored")
    if n < 1 or batch_size < 1:
        raise InputError(f"n, batch_size: found {n}, {batch_size}, expected at least 1 of each")
    tokenizer = checkpoint.tokenizer_for(task_name)

    problems = tuple(itertools.islice(module.problems(split, seed), n))
    if len(problems) < n:
        raise InputError(f"n: found {n}, but {task_name}/{split} has {len(problems)} problems; ask for fewer")
    questions = [tokenizer.encode(p.question) if p.continues else tokenizer.prompt(p.question) for p in problems]
    numbers = np.asarray(values, np.float32)
    block = block_of(checkpoint.model, decoder(numbers[:1]).block_length)
    check_lengths(checkpoint.model, max(map(len, questions)), gen_length, block)
    config = checkpoint.model.config
    prompts, origin = pad_to_bucket(questions, fill=config.eos_token_id, room=config.max_sequence_length - gen_length)
    by_length = np.argsort([len(problem.worked) for problem in problems], kind="stable")

    order = (np.arange(len(values))[:, None] * n + by_length).reshape(-1)
    run, lines = Timed(persistent_cache=False), {}
    with ExitStack() as stack:
        keep: Callable[[Mapping[str, Any]], None] | None = None
        if out is not None:
            check_writable(out)
            depends = _run_of(checkpoint, task_name, split, questions, decoder(numbers), gen_length, seed)
            lines = parts.written(out, depends)
            keep = stack.enter_context(parts.Part(out, 0, depends)).write
        left = np.asarray([number for number in order if number not in lines], np.int64)
        for rows in batches(left.size, batch_size):
            which, at = np.divmod(left[rows], n)
            before = run.seconds
            call = prepare(
                *(checkpoint.model, checkpoint.params, prompts[at], decoder(numbers[which])),
                gen_length=gen_length,
                origin=origin[at],
                key=request_keys(seed, at),
                mesh=mesh,
            )
            result = jax.device_get(run.run(call))
            fresh = len(np.unique(rows))  # the last batch repeats its own
            for place, number in enumerate(left[rows[:fresh]].tolist()):
                problem = problems[number % n]
                text = tokenizer.decode(result.tokens[place, prompts.shape[1] :])
                row = {
                    "number": number,
                    "question": problem.question,
                    "text": text,
                    "correct": bool(module.verify(text, problem)),
                    "nfe": int(result.nfe[place]),
                    "work": float(result.work[place]),
                    "length": int(result.lengths[place]),
                    "near_ties": int(result.near_ties[place]),
                    "not_finite": int(result.not_finite[place]),
                }
                lines[number] = {"number": number, "row": row, "seconds": (run.seconds - before) / fresh}
                if keep is not None:
                    keep(lines[number])
            if progress is not None:
                progress(len(lines), sum(line["row"]["length"] for line in lines.values()), run.seconds)
    done = [lines[number] for number in range(order.size)]
    if out is not None:
        parts.finish(out, done)
        parts.remove(out)
    return tuple(
        _report(task_name, split, seed, problems, done[first : first + n], run.compile_seconds)
        for first in range(0, order.size, n)
    )


def _report(
    name: str, split: str, seed: int, problems: tuple[Problem, ...], lines: Sequence[parts.Line], compiling: float
) -> Report:
    rows = [line["row"] for line in lines]
    return Report(
        task=name,
        split=split,
        seed=seed,
        problems=problems,
        texts=tuple(row["text"] for row in rows),
        correct=np.asarray([row["correct"] for row in rows]),
        nfe=np.asarray([row["nfe"] for row in rows], np.int32),
        work=np.asarray([row["work"] for row in rows]),
        lengths=np.asarray([row["length"] for row in rows], np.int32),
        near_ties=np.asarray([row["near_ties"] for row in rows], np.int32),
        not_finite=np.asarray([row["not_finite"] for row in rows], np.int32),
        seconds=sum(line["seconds"] for line in lines),
        compile_seconds=compiling,
    )


def _run_of(
    checkpoint: Checkpoint,
    name: str,
    split: str,
    questions: Sequence[Sequence[int]],
    decoder: Decoder,
    gen_length: int,
    seed: int,
) -> dict[str, Any]:
    """What the rows of an evaluation depend on; not its batches, nor the mesh."""
    model = parts.digest(repr(checkpoint.model).encode(), parts.digest_of_tree(checkpoint.params).encode())
    return parts.run_of(
        task=name,
        split=split,
        seed=seed,
        problems=parts.digest(*(np.asarray(question, np.int32).tobytes() for question in questions)),
        model=model,
        decoder=parts.digest_of_tree(decoder),
        gen_length=gen_length,
        versions={package: version(package) for package in ("jax", "jaxlib", "flax")},
    )
