"""Ways timed in turn, so that what else the machine does strikes all of them alike; ratios with an interval."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxdiff.types import InputError


@dataclasses.dataclass(frozen=True)
class Median:
    """A median over rounds and an interval for it: order statistics, at least 90 % from 5 rounds on."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"] | Sequence[float]) -> Median:
        """Raises InputError for no values."""
        ordered = np.sort(np.asarray(values, float))
        if not ordered.size:
            raise InputError("median: found no values, expected at least one round")
        # Between the r-th value from each end lies the true median in all but 2 P(Binomial(n, 1/2) < r) of the cases.
        reach = max(int((ordered.size - 1.645 * ordered.size**0.5) / 2), 0)
        return cls(float(np.median(ordered)), float(ordered[reach]), float(ordered[-1 - reach]), ordered.size)


def in_turn(
    ways: Mapping[str, Callable[[], object]], rounds: int, progress: Callable[[int], None] | None = None
) -> dict[str, Float[np.ndarray, " n"]]:
    """Seconds of each way in each round, [rounds]; every call must return only when its work is done.

    Each way runs once before the clock starts. A round runs all of them, beginning with another one each time.

    Raises InputError for no rounds.
    """
    for way in ways.values():
        way()
    return told({name: functools.partial(seconds_of, way) for name, way in ways.items()}, rounds, progress)


def told(
    clocks: Mapping[str, Callable[[], float]], rounds: int, progress: Callable[[int], None] | None = None
) -> dict[str, Float[np.ndarray, " n"]]:
    """As `in_turn`, for ways that ran once and return their own seconds: another process has its clock."""
    if rounds < 1:
        raise InputError(f"rounds: found {rounds}, expected at least 1")
    names = list(clocks)
    seconds = {name: np.zeros(rounds) for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name][index] = clocks[name]()
        if progress is not None:
            progress(index + 1)
    return seconds


def ratio(slow: Float[np.ndarray, " n"], fast: Float[np.ndarray, " n"]) -> Median:
    """How many times the seconds of `fast` those of `slow` are: round by round, then the median."""
    return Median.of(slow / fast)


def seconds_of(way: Callable[[], object]) -> float:
    """Of one call."""
    since = time.perf_counter()
    way()
    return time.perf_counter() - since
