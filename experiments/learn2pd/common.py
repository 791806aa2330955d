"""What the four steps of this experiment share: the setting, the policies, and results that a killed run keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jaxdiff
from experiments.kept import Kept
from experiments.policies import SWEEPS, TAUS, Sweep, decoder_of, describe, measure
from jaxdiff.cli.show import progress
from jaxdiff.policies import Fixed, Learned, any_of
from jaxdiff.policies.filters import Filter
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import evaluate, gsm_symbolic

MODEL = "gsm-1m"
LENGTH, LONG, BLOCK = 256, 1024, 32
ROWS = 4  # per batch: on CPU a row costs least in small batches
SEED = 0
TRAINED_ON = SEED + 1000  # the seed of the training problems that are traced
CHOSEN_ON = 100  # validation problems
N, N_LONG, TIMED = 500, 100, 32  # test problems: at 256; at 1024 for accuracy; at 1024 for wall-clock
TRACES = Path("runs/learn2pd/traces")
RESULTS = Path(__file__).parent / "results"

MORE, ELSE = 1000, SEED + 1  # validation problems, and their seed, where 100 do not tell an accuracy from its neighbour

HEURISTICS = tuple(s for s in SWEEPS if s.name in ("threshold", "factor", "entropy", "entropy bounded", "above mean"))
FILTER_TAUS = (0.999, 0.995, 0.99, 0.98, *TAUS[2:9], 0.65, 0.5)
EOS = Eos()


def learned(judge: Filter, *, quota: bool) -> Callable[[Any], jaxdiff.Policy]:
    """A policy for each threshold; the published one is joined with one token a step."""
    return lambda tau: any_of(Learned(judge, tau), Fixed()) if quota else Learned(judge, tau)


class Results(Kept):
    """The entries of one step; other weights or another setting are measured anew."""

    def __init__(self, name: str, checkpoint: jaxdiff.Checkpoint) -> None:
        setting = describe(checkpoint, MODEL, CHOSEN_ON, "as named", SEED) | {"split": "as named"}
        super().__init__(RESULTS / f"{name}.json", setting)


def points(
    checkpoint: jaxdiff.Checkpoint,
    name: str,
    policy: Callable[[Any], jaxdiff.Policy],
    values: Sequence[float] = (0.0,),
    *,
    n: int,
    split: str,
    seed: int = SEED,
    stop: jaxdiff.Stopper = EOS,
    gen_length: int = LENGTH,
    block_length: int = BLOCK,
) -> list[dict[str, Any]]:
    """One point of the frontier for each value, with its share of the decode's seconds; a bar on stderr."""
    with progress(name, n * len(values)) as update:
        reports = evaluate.sweep(
            checkpoint,
            gsm_symbolic.NAME,
            functools.partial(decoder_of, policy, stop, block_length=block_length),
            values,
            n=n,
            seed=seed,
            split=split,
            batch_size=ROWS,
            gen_length=gen_length,
            progress=update,
        )
    made = measure(values, reports)
    return [point | {"seconds": report.seconds, "n": n} for point, report in zip(made, reports, strict=True)]


def chosen_of(swept: Sequence[dict[str, Any]], standard: dict[str, Any]) -> dict[str, Any]:
    """The fastest point that is no less accurate than standard decoding; where none is, of the most accurate ones."""
    enough = min(standard["accuracy"], max(point["accuracy"] for point in swept))
    return max((point for point in swept if point["accuracy"] >= enough), key=lambda point: point["tpf"])


def standard_on_validation(checkpoint: jaxdiff.Checkpoint, results: Results) -> dict[str, Any]:
    return results.once(
        "standard, validation",
        lambda: points(checkpoint, "standard", lambda _: Fixed(), n=CHOSEN_ON, split="validation")[0],
    )


def swept_on_validation(checkpoint: jaxdiff.Checkpoint, results: Results, sweep: Sweep) -> list[dict[str, Any]]:
    make = functools.partial(points, checkpoint, sweep.name, sweep.policy, sweep.values)
    return results.once(f"{sweep.name}, validation", lambda: make(n=CHOSEN_ON, split="validation"))
