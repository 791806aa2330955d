"""What slots that are refilled save over batches in lock-step, and that a long queue costs no memory.

    python experiments/stream.py --part queue
    python experiments/stream.py --part memory

queue: 256 word problems whose answers end log-uniformly between 16 and 256 tokens, 16 slots, against batches of 16 in
the same order. The ends come from a table, by a stopper of this experiment, so that their distribution is exact.
memory: 100,000 short requests to a tiny random model. Both write into results/stream.json, and the table and the
picture of what is there.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import typer
from jaxtyping import Array, Int

import jaxdiff
from jaxdiff.decode import Timed
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys
from jaxdiff.files import replaced_file
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.policies import Fixed
from jaxdiff.pytree import pytree
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.types import PartState, Progress

REQUESTS, SLOTS = 256, 16
GEN_LENGTH, BLOCK_LENGTH = 256, 32
SHORTEST, LONGEST = 16, 256  # tokens of an answer
SHORT = 100_000  # requests of the memory part
SMALL_SLOTS, WARM = 64, 5_000  # and how many of them are warm-up
LARGEST_GROWTH = 50.0  # MB
COLOURS = {"slots": "#0072b2", "lock-step": "#d55e00"}  # Okabe and Ito


@pytree
class EndsAt:
    """Ends a row after as many tokens as a table says for its prompt, once they all stand; what they are is not asked.

    A prompt is found by a sum of its ids, each times a weight of its place.
    """

    weights: Int[Array, " P"]
    codes: Int[Array, " n"]
    ends: Int[Array, " n"]

    wants_tail = cuts = hides = False

    def init(self, rows: int) -> PartState:
        del rows
        return ()

    def update(self, state: PartState, progress: Progress) -> tuple[Int[Array, " B"], PartState]:
        column = jnp.arange(progress.canvas.shape[1], dtype=jnp.int32)[None]
        first = jnp.argmax(progress.generated, axis=1).astype(jnp.int32)[:, None]
        place = column - progress.score.origin[:, None]
        weight = self.weights[jnp.clip(place, 0, self.weights.size - 1)]
        prompt = (place >= 0) & (column < first)
        code = jnp.sum(jnp.where(prompt, progress.canvas * weight, 0), axis=1, dtype=jnp.int32)
        end = first[:, 0] + self.ends[jnp.argmax(self.codes[None] == code[:, None], axis=1)]
        return jnp.where(progress.settled >= end, end, progress.end), state


def ends_at(prompts: Sequence[Sequence[int]], ends: np.ndarray) -> EndsAt:
    """The stopper of these prompts."""
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 2**20, max(map(len, prompts)), dtype=np.int64)
    codes = np.asarray([np.sum(np.asarray(ids) * weights[: len(ids)]) for ids in prompts])
    codes = codes.astype(np.uint32).view(np.int32)  # as int32 sums wrap
    assert len(set(codes.tolist())) == len(prompts)
    return EndsAt(*(jnp.asarray(x, jnp.int32) for x in (weights, codes, ends)))


def log_uniform(n: int, low: int, high: int) -> np.ndarray:
    """The quantiles of the distribution, so that it is exact, in an order that is drawn."""
    return np.random.default_rng(0).permutation(np.round(np.geomspace(low, high, n)).astype(int))


# --- the queue ------------------------------------------------------------------------------------------------------


def lock_step(
    checkpoint: jaxdiff.Checkpoint, prompts: Sequence[Sequence[int]], rows: int, decoder: jaxdiff.Decoder
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Batches of `rows`: each runs until its slowest row is done."""
    config, run = checkpoint.model.config, Timed()
    room, found, live = config.max_sequence_length - GEN_LENGTH, {}, []
    for batch in batches(len(prompts), rows):
        padded, origin = pad_to_bucket([prompts[i] for i in batch], config.eos_token_id, room)
        call = prepare(
            checkpoint.model,
            checkpoint.params,
            padded,
            decoder,
            gen_length=GEN_LENGTH,
            origin=origin,
            key=request_keys(0, batch),
        )
        result = run.run(call)
        nfe = np.asarray(result.nfe)
        live += [int((nfe > step).sum()) for step in range(nfe.max())]
        for row, number in enumerate(batch.tolist()):
            found[number] = (np.asarray(result.tokens)[row, padded.shape[1] :], nfe[row], result.near_ties[row])
    return summary(len(live) * rows, sum(live), run, [[step, n / rows] for step, n in enumerate(live)]), found


def slots(
    checkpoint: jaxdiff.Checkpoint, prompts: Sequence[Sequence[int]], rows: int, free: int, decoder: jaxdiff.Decoder
) -> tuple[dict[str, Any], dict[int, Any]]:
    """The same through slots that are refilled once `free` of them are done."""
    meter, found, curve, before = jaxdiff.Meter(), {}, [], (0, 0)
    queue = jaxdiff.decode_stream(
        checkpoint.model,
        checkpoint.params,
        prompts,
        decoder,
        slots=rows,
        free=free,
        gen_length=GEN_LENGTH,
        meter=meter,
    )
    for answer in queue:
        assert isinstance(answer, jaxdiff.Answer)
        found[answer.request.number] = (answer.tokens, answer.nfe, answer.near_ties)
        if meter.steps > before[0]:
            curve.append([before[0], (meter.busy - before[1]) / (rows * (meter.steps - before[0]))])
            before = meter.steps, meter.busy
    curve.append([before[0], 0.0])
    return summary(meter.slot_steps, meter.busy, meter, curve), found


def summary(computed: int, busy: int, run: Timed, curve: list[list[float]]) -> dict[str, Any]:
    return {
        "row_forwards": computed,
        "needed": busy,
        "occupancy": busy / computed,
        "seconds": run.seconds,
        "compile_seconds": run.compile_seconds,
        "programs": run.programs,
        "curve": curve,  # forwards of all rows so far, and the share of the rows that had work
    }


def queue(tokens: int, frees: Sequence[int]) -> dict[str, Any]:
    """Both ways over the same requests, and whether they answer alike."""
    checkpoint = jaxdiff.load()
    problems = itertools.islice(gsm_symbolic.problems("test", 0), REQUESTS)
    prompts = [checkpoint.tokenizer_for(gsm_symbolic.NAME).prompt(problem.question) for problem in problems]
    decoder = jaxdiff.Decoder(
        policy=Fixed(steps=BLOCK_LENGTH // tokens),
        stop=ends_at(prompts, log_uniform(REQUESTS, SHORTEST, LONGEST)),
        block_length=BLOCK_LENGTH,
    )
    results: dict[str, Any] = {"tokens_a_step": tokens, "load": os.getloadavg()[0]}
    results["lock-step"], wanted = lock_step(checkpoint, prompts, SLOTS, decoder)
    for free in frees:
        results[f"slots, free {free}"], found = slots(checkpoint, prompts, SLOTS, free, decoder)
        differ = [i for i, (t, n, _) in wanted.items() if n != found[i][1] or not np.array_equal(t, found[i][0])]
        results[f"slots, free {free}"]["differ"] = len(differ)
        results[f"slots, free {free}"]["differ_without_near_tie"] = sum(
            not (wanted[i][2] or found[i][2]) for i in differ
        )
    return results


# --- memory ---------------------------------------------------------------------------------------------------------


def resident() -> float:
    """Anonymous memory of this process, in MB."""
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1000


def memory(requests: int, warm: int) -> dict[str, Any]:
    """`requests` of 1 to 40 tokens through a tiny random model; rows end at different times.

    The first 200 of each 2,000 are of at most 32, so that the canvas is narrowed and widened all along.
    """
    config = LladaConfig(
        vocab_size=16,
        d_model=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        mlp_hidden_size=8,
        mask_token_id=0,
        eos_token_id=1,
        max_sequence_length=72,
        dtype="float32",
    )
    model = Llada(config)
    params = model.init(jax.random.key(0))
    draw, meter = np.random.default_rng(0), jaxdiff.Meter()
    longest = (32 if i % 2000 < 200 else 40 for i in range(requests))
    prompts = (draw.integers(2, 16, draw.integers(1, most + 1)) for most in longest)
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    curve, since, before = [], time.perf_counter(), 0
    decoder = jaxdiff.Decoder(
        policy=Fixed(order="random"),
        stop=jaxdiff.stoppers.Eos(),
        sampling=jaxdiff.Sampling(temperature=1.0),
        block_length=8,
    )
    stream = jaxdiff.decode_stream(model, params, prompts, decoder, slots=SMALL_SLOTS, gen_length=8, meter=meter)
    for done, _ in enumerate(stream, start=1):
        if done == warm:
            before = len(compiled)
        if done % (warm // 5) == 0:
            curve.append([done, resident()])
    at_warm, after = curve[4][1], [size for done, size in curve if done > warm]
    return {
        "requests": requests,
        "warm_up": warm,
        "resident_mb_after_warm_up": at_warm,
        "growth_mb": max(after) - at_warm,
        "compiled_after_warm_up": len(compiled) - before,
        "programs": meter.programs - (len(compiled) - before),
        "occupancy": meter.occupancy,
        "seconds": time.perf_counter() - since,
        "load": os.getloadavg()[0],
        "curve": curve,
    }


# --- tables and pictures --------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    lines = ["# A queue through slots", "", f"Device: {results['device']}."]
    if found := results.get("queue"):
        base = found["lock-step"]
        lines += [
            "",
            f"{REQUESTS} requests, answers of {SHORTEST} to {LONGEST} tokens (log-uniform), {found['tokens_a_step']} "
            f"tokens a step, {SLOTS} rows at a time: `python experiments/stream.py --part queue --tokens "
            f"{found['tokens_a_step']}`. Load of the machine at the start: {found['load']:.1f}.",
            "",
            "| | rows x forwards | of these needed | seconds | fewer rows x forwards | faster | answers that differ |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, way in found.items():
            if isinstance(way, dict):
                differ = (
                    f"{way['differ']} ({way['differ_without_near_tie']} without a near-tie)" if "differ" in way else ""
                )
                lines.append(
                    f"| {name} | {way['row_forwards']} | {way['occupancy']:.1%} | {way['seconds']:.1f} | "
                    f"{base['row_forwards'] / way['row_forwards']:.2f}x | {base['seconds'] / way['seconds']:.2f}x | "
                    f"{differ} |"
                )
    if found := results.get("memory"):
        lines += [
            "",
            f"{found['requests']:,} short requests to a tiny model, {SMALL_SLOTS} slots: `python experiments/stream.py "
            f"--part memory`. {found['seconds']:.0f} s. After the first {found['warm_up']:,}: anonymous memory grew by "
            f"{found['growth_mb']:.1f} MB from {found['resident_mb_after_warm_up']:.0f} MB (bound: "
            f"{LARGEST_GROWTH:.0f} MB), and {found['compiled_after_warm_up']} programs were compiled "
            f"(before: {found['programs']}, for two widths of the canvas).",
        ]
    return "\n".join(lines) + "\n"


def draw(results: dict[str, Any], path: Path) -> None:
    parts = [name for name in ("queue", "memory") if name in results]
    figure, axes = plt.subplots(len(parts), 1, figsize=(10, 3.6 * len(parts)), layout="constrained", squeeze=False)
    for axis, part in zip(axes[:, 0], parts, strict=True):
        if part == "queue":
            for name, way in results[part].items():
                if name in ("lock-step", "slots, free 1"):
                    steps, share = np.asarray(way["curve"]).T
                    label = f"{name}: {way['occupancy']:.0%} on average"
                    axis.step(steps, share, where="post", lw=1.4, color=COLOURS[name.split(",")[0]], label=label)
            axis.set(xlabel=f"forwards of all {SLOTS} rows", ylabel="share of rows with work", ylim=(0, 1.05))
            axis.set_title(f"{REQUESTS} requests: rows that had work", fontsize=12, loc="left")
            axis.legend(frameon=False, fontsize=11, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
        else:
            done, size = np.asarray(results[part]["curve"]).T
            axis.plot(done, size, color=COLOURS["slots"])
            axis.set(xlabel="requests done", ylabel="RssAnon, MB", ylim=(0, 1.2 * size.max()))
            axis.set_title("Host memory of a long queue", fontsize=12, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(
    part: Annotated[Literal["queue", "memory"], typer.Option(help="what to measure")],
    tokens: Annotated[int, typer.Option(help="tokens committed at a step (a divisor of 32)")] = 4,
    free: Annotated[list[int], typer.Option(help="slots that must be done before a refill")] = [1, 4],  # noqa: B006
    requests: Annotated[int, typer.Option(help="of the memory part")] = SHORT,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent / "results",
) -> None:
    """Measure one part; write stream.json, .md and .png of both as far as they are there; print the table."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "stream.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results["device"] = f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)"
    results[part] = queue(tokens, free) if part == "queue" else memory(requests, min(WARM, requests // 2))
    with replaced_file(path) as new:
        new.write_text(json.dumps(results) + "\n")
    path.with_suffix(".md").write_text(markdown(results))
    draw(results, path.with_suffix(".png"))
    print(markdown(results))


if __name__ == "__main__":
    typer.run(main)
