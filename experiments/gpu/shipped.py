"""The model that ships: what a step costs over a bare forward, and how many tokens a second a queue gets."""

from __future__ import annotations

import json
import time
from typing import Any

import jaxdiff
from experiments.gpu.job import Job
from experiments.gpu.parity import EXPECTED
from jaxdiff.bench.measure import Work, step_over_forward
from jaxdiff.decode import Decoder

GENERATED, BLOCK, ROUNDS = 256, 32, 7
ROWS = (1, 8)
SLOTS, REQUESTS = 64, 1024
SMALL_SLOTS, SMALL_REQUESTS = 2, 4


def shipped(job: Job) -> None:
    """Step over bare forward with the learned filter at batch 1 and 8; `decode_stream` through 64 slots."""
    job.device()
    checkpoint = jaxdiff.load()
    prompts = json.loads(EXPECTED.read_text())["prompts"]
    for rows in ROWS[:1] if job.small else ROWS:
        call = lambda rows=rows: step(checkpoint, prompts[:rows], 1 if job.small else ROUNDS)  # noqa: E731
        job.part(f"step_over_forward, {rows}", call)
    slots, count = (SMALL_SLOTS, SMALL_REQUESTS) if job.small else (SLOTS, REQUESTS)
    meter = jaxdiff.Meter()
    for free in sorted({1, max(1, slots // 8)}):
        job.part(f"stream, refill at {free}", lambda free=free: stream(checkpoint, prompts, slots, count, free, meter))


def step(checkpoint: jaxdiff.Checkpoint, prompts: list[list[int]], rounds: int) -> dict[str, Any]:
    """As `jaxdiff bench --policy learned` measures it."""
    padded, origin = jaxdiff.pad_prompts(prompts, fill=checkpoint.model.config.eos_token_id, multiple=32)
    work = Work(
        model=checkpoint.model,
        params=checkpoint.params,
        prompts=padded,
        origin=origin,
        decoder=Decoder(policy=jaxdiff.learned_policy("gsm-1m")),
        gen_length=GENERATED,
        block_length=BLOCK,
        rounds=rounds,
    )
    program = work.program()
    return step_over_forward(work, program) | {"compile_seconds": program.program.compile_seconds}


def stream(
    checkpoint: jaxdiff.Checkpoint, prompts: list[list[int]], slots: int, count: int, free: int, meter: jaxdiff.Meter
) -> dict[str, Any]:
    """The prompts over and over through the slots, each until its end of text; the second time is
    measured, with the programs that `meter` holds by then.
    """
    decoder = Decoder(policy=jaxdiff.learned_policy("gsm-1m"), stop=jaxdiff.stoppers.Eos())
    queue = [prompts[i % len(prompts)] for i in range(count)]

    def run(meter: jaxdiff.Meter) -> tuple[int, float]:
        since = time.perf_counter()
        answers = jaxdiff.decode_stream(
            *(checkpoint.model, checkpoint.params, queue, decoder),
            slots=slots,
            gen_length=GENERATED,
            free=free,
            meter=meter,
        )
        tokens = sum(answer.length for answer in answers if isinstance(answer, jaxdiff.Answer))
        return tokens, time.perf_counter() - since

    _, first = run(meter)
    warm = meter.beside()
    tokens, seconds = run(warm)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "answers_per_second": count / seconds,
        "device_seconds": warm.seconds,
        "occupancy": warm.occupancy,
        "steps": warm.steps,
        "first_seconds": first,
        "compile_seconds": meter.compile_seconds,
        "programs": meter.programs,
    }
