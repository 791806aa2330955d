"""What `jaxdiff eval` measures: decode a task's problems, ask its verifier, count forwards and seconds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.api import check_lengths, decode
from jaxdiff.decode.many import Timed, batches, pad_to_bucket, request_keys
from jaxdiff.metrics import tpf, wilson
from jaxdiff.tasks import task
from jaxdiff.tasks.base import Problem
from jaxdiff.types import InputError, Policy, Stopper

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
            "tpf": tpf(self.lengths, self.nfe),
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "n": self.correct.size,
        }


def evaluate(
    checkpoint: Checkpoint,
    task_name: str,
    *,
    n: int = 100,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 16,
    policy: Policy | None = None,
    stop: Stopper | None = None,
    gen_length: int = 256,
    block_length: int = 32,
    temperature: float = 0.0,
    cfg_scale: float | None = None,
    forbid_eos: bool = False,
    defer_eos: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> Report:
    """Decode the first `n` problems of a held-out split and let the task judge the texts.

    All batches share one shape, so one program is compiled. `seed` is that of the problems and of the decode's
    randomness, where each problem has its own key; `progress` is called after each batch with the problems, the
    tokens and the seconds so far; the rest is as in `decode`.

    Raises InputError for a task that is not known, the training split, a model without a tokenizer, and what
    `decode` refuses.
    """
    module = task(task_name)
    if split not in HELD_OUT:
        raise InputError(f"split: found {split!r}, expected {' or '.join(HELD_OUT)}; only held-out problems are scored")
    if n < 1 or batch_size < 1:
        raise InputError(f"n, batch_size: found {n}, {batch_size}, expected at least 1 of each")
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        raise InputError(f"model: {checkpoint.path} has no tokenizer, and {task_name} is text; add its tokenizer.json")

    problems = tuple(itertools.islice(module.problems(split, seed), n))
    if len(problems) < n:
        raise InputError(f"n: found {n}, but {task_name}/{split} has {len(problems)} problems; ask for fewer")
    questions = [tokenizer.encode(p.question) if p.continues else tokenizer.prompt(p.question) for p in problems]
    check_lengths(checkpoint.model, max(map(len, questions)), gen_length, block_length)
    config = checkpoint.model.config
    prompts, origin = pad_to_bucket(questions, fill=config.eos_token_id, room=config.max_sequence_length - gen_length)
    run = Timed(persistent_cache=False)
    decode_rows = functools.partial(
        decode,
        checkpoint.model,
        checkpoint.params,
        policy=policy,
        stop=stop,
        gen_length=gen_length,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        forbid_eos=forbid_eos,
        defer_eos=defer_eos,
        run=run,
    )
    texts: list[str] = []
    nfe, lengths, near_ties = (np.zeros(n, np.int32) for _ in range(3))
    for rows in batches(n, batch_size):
        result = decode_rows(prompts[rows], origin=origin[rows], key=request_keys(seed, rows))
        nfe[rows], lengths[rows], near_ties[rows] = result.nfe, result.lengths, result.near_ties
        generated = np.asarray(result.tokens)[:, prompts.shape[1] :]
        texts += [tokenizer.decode(generated[i]) for i in range(min(len(rows), n - len(texts)))]
        if progress is not None:
            progress(len(texts), int(lengths.sum()), run.seconds)
    correct = np.asarray([module.verify(text, problem) for text, problem in zip(texts, problems, strict=True)])
    return Report(
        task=task_name,
        split=split,
        seed=seed,
        problems=problems,
        texts=tuple(texts),
        correct=correct,
        nfe=nfe,
        lengths=lengths,
        near_ties=near_ties,
        seconds=run.seconds,
        compile_seconds=run.compile_seconds,
    )
