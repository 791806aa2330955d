"""Seconds of one decoding step against the canvas' length, for each cache; and of a whole decode of 256 tokens.

    python -m experiments.caches.speed

The model that ships, one row. Half of the canvas is prompt; the step is one inside the first block, after its rebuild:
`prefix` and `frozen` feed half of the canvas, `dual` one block. Programs take turns, ROUNDS times; medians are shown.
Writes results/speed.json and results/speed.png beside this file. Run it on an idle machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt

import jaxdiff
from jaxdiff.caches import Dual, Frozen, NoCache, Prefix
from jaxdiff.decode import loop
from jaxdiff.decode.api import prepare

LENGTHS, BLOCK, STEPS, ROUNDS, GENERATED = (256, 512, 1024), 32, 24, 9, 256
TICKS = (2, 5, 10, 20, 50)  # milliseconds
RESULTS = Path(__file__).parent / "results"
CACHES = {
    "none": NoCache(),
    "prefix": Prefix(),
    "dual": Dual(),
    "frozen": Frozen(),
}


class Steps:
    """STEPS steps of a decode that is one step under way."""

    def __init__(self, model: Any, params: Any, cache: jaxdiff.Cache, length: int) -> None:
        half = length // 2
        prompt = jax.random.randint(jax.random.key(0), (1, half), 10, model.config.vocab_size)
        call = prepare(model, params, prompt, jaxdiff.Decoder(cache=cache, block_length=BLOCK), gen_length=half)
        self.setup = call.setup
        self.run = jax.jit(
            lambda setup, state, n: jax.lax.fori_loop(0, n, lambda _, state: loop.step(setup, state), state)
        )
        self.state = self.run(self.setup, loop.begin(self.setup, call.rows), 1)

    def seconds(self) -> float:
        """Of one step."""
        since = time.perf_counter()
        jax.block_until_ready(self.run(self.setup, self.state, STEPS))
        return (time.perf_counter() - since) / STEPS


class Whole:
    """A decode of GENERATED tokens."""

    def __init__(self, checkpoint: jaxdiff.Checkpoint, cache: jaxdiff.Cache) -> None:
        self.checkpoint = checkpoint
        self.decoder = jaxdiff.Decoder(policy=jaxdiff.policies.Threshold(0.9), cache=cache, block_length=BLOCK)
        self.prompt = jax.random.randint(jax.random.key(0), (1, 64), 10, checkpoint.model.config.vocab_size)

    def seconds(self) -> float:
        model, params, since = self.checkpoint.model, self.checkpoint.params, time.perf_counter()
        jax.block_until_ready(jaxdiff.decode(model, params, self.prompt, self.decoder, gen_length=GENERATED))
        return time.perf_counter() - since


def interleaved(measured: dict[str, Any]) -> dict[str, float]:
    """The median of each; the first round warms up."""
    rounds = [{name: one.seconds() for name, one in measured.items()} for _ in range(ROUNDS + 1)][1:]
    return {name: statistics.median(seconds[name] for seconds in rounds) for name in measured}


def main() -> None:
    load = os.getloadavg()[0]
    checkpoint = jaxdiff.load()
    step = {
        str(length): interleaved({k: Steps(checkpoint.model, checkpoint.params, c, length) for k, c in CACHES.items()})
        for length in LENGTHS
    }
    whole = interleaved({name: Whole(checkpoint, cache) for name, cache in CACHES.items()})
    report = {
        "seconds_per_step": step,
        "seconds_per_decode": whole,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "load_before": load,
        "jax": jax.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report)
    print(json.dumps(report, indent=1))


def draw(report: dict[str, Any]) -> None:
    step = report["seconds_per_step"]
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name in CACHES:
        axes.plot(LENGTHS, [1e3 * step[str(length)][name] for length in LENGTHS], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="canvas length", ylabel="ms per step", xticks=LENGTHS)
    axes.set(yticks=TICKS, xticklabels=LENGTHS, yticklabels=TICKS)
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "speed.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
