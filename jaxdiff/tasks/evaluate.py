"""What `jaxdiff eval` measures: decode a task's problems, ask its verifier, count forwards and seconds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys
from jaxdiff.decode.checks import block_of, check_lengths
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Timed
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
    seconds: float  # decoding alone, warm
    compile_seconds: float  # past the persistent cache

    def summary(self) -> dict[str, float | int]:
        """The numbers to report: accuracy with its 95 % Wilson interval, mean NFE, TPF as total over total, times."""
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
) -> tuple[Report, ...]:
    """One report for each value of a decoder's number, from one compiled program: rows are values x problems.

    `decoder` makes a decoder from the values of a batch's rows. `seed` is that of the problems and of the decode's
    randomness, where each problem has its own key. Problems whose worked answers are about as long share a batch, and
    end together. `progress` is called after each batch with the rows, the tokens and the seconds so far. A report's
    seconds are its rows' share of their batches'.

    Raises InputError for a task that is not known, the training split, a model without a tokenizer, and what
    `decode` refuses.
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

    run, texts = Timed(persistent_cache=False), np.empty((len(values), n), object)
    kinds = {"nfe": np.int32, "work": float, "lengths": np.int32, "near_ties": np.int32}
    counted = {name: np.zeros(texts.shape, kind) for name, kind in kinds.items()}
    seconds, done = np.zeros(len(values)), 0
    for rows in batches(len(values) * n, batch_size):
        which, at = rows // n, by_length[rows % n]
        before = run.seconds
        call = prepare(
            *(checkpoint.model, checkpoint.params, prompts[at], decoder(numbers[which])),
            gen_length=gen_length,
            origin=origin[at],
            key=request_keys(seed, at),
            mesh=mesh,
        )
        result = run.run(call)
        for name, column in counted.items():
            column[which, at] = getattr(result, name)
        for generated, *place in zip(np.asarray(result.tokens)[:, prompts.shape[1] :], which, at, strict=True):
            texts[tuple(place)] = tokenizer.decode(generated)
        np.add.at(seconds, which, (run.seconds - before) / len(rows))
        done += len(np.unique(rows))
        if progress is not None:
            progress(done, int(counted["lengths"].sum()), run.seconds)
    return tuple(
        Report(
            task=task_name,
            split=split,
            seed=seed,
            problems=problems,
            texts=tuple(texts[i]),
            correct=np.asarray([module.verify(text, p) for text, p in zip(texts[i], problems, strict=True)]),
            **{name: column[i] for name, column in counted.items()},
            seconds=float(seconds[i]),
            compile_seconds=run.compile_seconds,
        )
        for i in range(len(values))
    )
