"""jaxdiff against PyTorch: the published loops, each beside the jaxdiff decode that does the same.

| name | published | jaxdiff |
|---|---|---|
| `standard` | LLaDA `generate`, one token a step | `--policy fixed` |
| `threshold` | Fast-dLLM `generate`, 0.9 | `--policy threshold:tau=0.9` |
| `prefix` | Fast-dLLM `generate_with_prefix_cache`, 0.9 | the same, `--cache prefix` |
| `dual` | Fast-dLLM `generate_with_dual_cache`, 0.9 | the same, `--cache dual` |
| `learn2pd` | Learn2PD `generate_learn2parallel` | `--policy learned:name=official` |
| `eotp` | Learn2PD `generate_l2p_eot` | the same, `--stop eotp:way=official` |
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.bench.clock import Median, ratio, seconds_of, told
from jaxdiff.bench.measure import Timing, Work
from jaxdiff.bench.pytorch.client import Ran, Worker, worker
from jaxdiff.bench.starts import warm_compile_seconds
from jaxdiff.caches import Dual, Prefix
from jaxdiff.fills import Parallel
from jaxdiff.policies import Fixed, Learned, Threshold, any_of
from jaxdiff.stoppers import OfficialEotp
from jaxdiff.types import InputError

STANDARD = "standard"
ONE_ROW = ("learn2pd", "eotp")  # are published for one row, and ask Learn2PD's filter
PEERS = (STANDARD, "threshold", "prefix", "dual", *ONE_ROW)


def parse_peers(names: str, rows: int) -> tuple[str, ...]:
    """`standard,dual` as a tuple.

    Raises InputError for a name that is not known, and for a loop of one row where there are more.
    """
    asked = tuple(name.strip() for name in names.split(","))
    for name in asked:
        if name not in PEERS:
            raise InputError(f"against: found {name!r}, expected {', '.join(PEERS)}")
        if name in ONE_ROW and rows > 1:
            raise InputError(
                f"against: found {name} with --batch-size {rows}, but it is published for one row; take --batch-size 1"
            )
    return asked


def decoders(learned: Learned | None) -> dict[str, dict[str, Any]]:
    """By peer: what of a decoder with neither cache nor stopper is to be changed, so that it does the same."""
    parts: dict[str, dict[str, Any]] = {
        STANDARD: {"policy": Fixed()},
        "threshold": {"policy": Threshold(0.9)},
        "prefix": {"policy": Threshold(0.9), "cache": Prefix()},
        "dual": {"policy": Threshold(0.9), "cache": Dual()},
    }
    if learned is not None:
        published = any_of(learned, Fixed())
        parts |= {"learn2pd": {"policy": published}, "eotp": {"policy": published, "stop": OfficialEotp()}}
    return {name: own | {"fill": Parallel()} for name, own in parts.items()}


def against_pytorch(
    work: Work,
    names: Sequence[str],
    *,
    learned: Learned | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Seconds of each PyTorch loop, eager and compiled, over jaxdiff's for the same prompts; and how they start.

    Both get the prompts padded to the longest of them. The processes take turns.

    Args:
        learned: Learn2PD's filter with its threshold, for the loops that ask it.
        progress: told how many rounds are done, of `len(names) * work.rounds`.

    Returns by name `jaxdiff`, `eager` and `compiled`; the last is None where torch.compile cannot, and `not_compiled`
    says why. `ratio` is PyTorch over jaxdiff: above 1, jaxdiff is faster. `first_seconds` are of the first decode, what
    it compiles included; `compile_seconds` what it took beyond the later ones; `warm_compile_seconds` the same where
    another process has left on disk what it compiled.

    Raises InputError where PyTorch is not installed, and for another family than LLaDA.
    """
    common = int(work.origin.min())
    work = dataclasses.replace(work, prompts=work.prompts[:, common:], origin=work.origin - common)
    parts, found = decoders(learned), {}
    with tempfile.TemporaryDirectory(prefix="jaxdiff-bench-") as folder:
        start = functools.partial(
            worker,
            work.model,
            work.params,
            [row[first:].tolist() for row, first in zip(work.prompts, work.origin, strict=True)],
            gen_length=work.gen_length,
            block_length=work.block_length,
            learned=learned,
            compiled=Path(folder),
        )
        with start() as torch:
            for index, name in enumerate(names):
                done = None if progress is None else functools.partial(_added, progress, index * work.rounds)
                found[name] = _compared(work, work.program(**parts[name]), name, torch, done)
                found[name]["jaxdiff"]["warm_compile_seconds"] = warm_compile_seconds(work, **parts[name])
        if compiled := {name: each["compiled"] for name, each in found.items() if each["compiled"] is not None}:
            with start() as torch:
                for name, each in compiled.items():
                    each["warm_compile_seconds"] = torch.run(name, compiled=True).seconds - each["seconds"]["median"]
    return found


def _added(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _compared(
    work: Work, ours: Timing, name: str, torch: Worker, progress: Callable[[int], None] | None
) -> dict[str, Any]:
    """One loop, its first decodes and then the rounds."""
    firsts, why = {"eager": torch.run(name, compiled=False)}, None
    try:
        firsts["compiled"] = torch.run(name, compiled=True)
    except InputError as error:
        why = str(error)
    ways = {way: functools.partial(_worker_seconds, torch, name, way == "compiled") for way in firsts}
    seconds = told({"jaxdiff": functools.partial(seconds_of, ours.program)} | ways, work.rounds, progress)
    assert ours.result is not None
    tokens = np.asarray(ours.result.tokens)[:, work.prompts.shape[1] :]

    def peer(way: str, first: Ran) -> dict[str, Any]:
        return {
            "ratio": dataclasses.asdict(ratio(seconds[way], seconds["jaxdiff"])),
            "seconds": dataclasses.asdict(Median.of(seconds[way])),
            "same_tokens": float(np.mean(first.tokens == tokens)),
            "forwards": first.forwards,
            "first_seconds": first.seconds,
        }

    made = {way: peer(way, first) for way, first in firsts.items()}
    if each := made.get("compiled"):
        each["compile_seconds"] = each["first_seconds"] - each["seconds"]["median"]
    return {
        "jaxdiff": {
            "seconds": dataclasses.asdict(Median.of(seconds["jaxdiff"])),
            "forwards": ours.steps,
            "first_seconds": ours.program.compile_seconds + ours.first_seconds,
            "compile_seconds": ours.program.compile_seconds,
        },
        "eager": made["eager"],
        "compiled": made.get("compiled"),
        "not_compiled": why,
        "torch": torch.version,
    }


def _worker_seconds(torch: Worker, name: str, compiled: bool) -> float:
    return torch.run(name, compiled=compiled).seconds
