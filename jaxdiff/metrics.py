"""Numbers about decodes: intervals of an accuracy and of a paired difference, TPF, the AUP score. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jaxdiff.types import InputError

ALPHA = 3.0  # of AUP: how fast an accuracy below the best stops counting
TOLERANCE = 5.0  # of AUP: points of accuracy that a frontier may lose against its slowest point


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, within [0, 1]; z = 1.96 gives 95 %.

    Unlike the normal approximation it keeps its width at 0 and at n successes.

    Raises InputError for no trials, or for more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"wilson: found {successes} successes of {n}, expected 0 to n of at least 1")
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At the ends the formula gives 0 and 1 exactly, float arithmetic only nearly.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def paired_difference(
    first: Bool[np.ndarray, " n"] | Sequence[bool], second: Bool[np.ndarray, " n"] | Sequence[bool], z: float = 1.96
) -> tuple[float, float, float]:
    """Accuracy of `first` minus that of `second` on the same problems, and its interval: (difference, low, high).

    Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998, method 10): closed form,
    so no seed, and of positive width even where both answer alike.

    Raises InputError for vectors that are empty or differ in length.
    """
    x, y = np.asarray(first, bool), np.asarray(second, bool)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise InputError(f"paired_difference: found shapes {x.shape} and {y.shape}, expected two equal lengths")
    n, p, q = x.size, float(x.mean()), float(y.mean())
    (p_low, p_high), (q_low, q_high) = wilson(int(x.sum()), n, z), wilson(int(y.sum()), n, z)
    phi = _correlation(int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum()))

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p - q, p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def tpf(lengths: Int[np.ndarray, " n"] | Sequence[int], nfe: Int[np.ndarray, " n"] | Sequence[int]) -> float:
    """Generated tokens through the first end-of-text per forward, as total over total."""
    return float(np.sum(lengths) / np.sum(nfe))


def aup(points: Sequence[tuple[float, float]], best: float) -> float:
    """Accuracy under parallelism (d3LLM, arXiv 2601.07568): the area under a policy's (TPF, accuracy %) frontier.

    Points that lose more than 5 points against the slowest one are left out, and an accuracy y below the `best` of all
    policies counts y exp(-3 (1 - y / best)): speed bought with wrong answers scores little.

        AUP = t_1 y_1 + sum_{i >= 2} (t_i - t_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2

    Raises InputError without points.
    """
    if not points:
        raise InputError("aup: found no points, expected at least one (TPF, accuracy)")
    ordered = sorted(points)
    kept = [(speed, y) for speed, y in ordered if y >= ordered[0][1] - TOLERANCE]
    if best <= 0.0:
        return 0.0
    speeds = np.asarray([speed for speed, _ in kept])
    accuracies = np.asarray([y for _, y in kept])
    weighted = accuracies * np.minimum(np.exp(-ALPHA * (1 - accuracies / best)), 1.0)
    return float(speeds[0] * accuracies[0] + np.sum(np.diff(speeds) * (weighted[1:] + weighted[:-1]) / 2))


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Phi of a 2 x 2 table with Newcombe's continuity correction; 0 where a margin is empty."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_first * only_second
    if product > 0:
        product = max(product - (both + only_first + only_second + neither) / 2, 0.0)
    return product / math.sqrt(margins)
