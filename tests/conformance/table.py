"""The conformance table: one line for each policy, fill, stopper and cache. To add one is to add its line."""

import dataclasses
import itertools

import jax
from hypothesis import strategies as st

from jaxdiff import policies as p
from jaxdiff.caches import BlockCausal, Dual, Frozen, FrozenAtCommit, FrozenPrompt, NoCache, Prefix, SeededDual
from jaxdiff.fills import Parallel, Recap
from jaxdiff.policies.filters import BlockFilter, LocalFilter, init_layers, local_width
from jaxdiff.stoppers import BlockEotp, Eos, NoStop, OfficialEotp, SafeEotp
from tests import drafters, small
from tests.fills import LeftToRight


def _floats(low, high):
    return st.floats(low, high, width=32)


def _fixed(**options):
    return lambda steps: p.Fixed(steps=steps, **options)


_STEPS = {"steps": st.integers(1, 16)}
_TAU = {"tau": _floats(0, 1)}


def random_filter(kind):
    """A filter of random weights, sharp enough to accept some positions and refuse others."""
    widths = (small.BLOCK, small.BLOCK, small.BLOCK) if kind == "block" else (local_width(3, 0), 8, 1)
    layers = jax.tree.map(lambda x: 4.0 * x, init_layers(jax.random.key(1), widths))
    return BlockFilter(layers) if kind == "block" else LocalFilter(layers)


def random_judge(seed=1):
    """A judge of random weights, sharp enough to doubt some commits and trust others."""
    empty = p.Judge((), reach=1, repeats=1)
    layers = init_layers(jax.random.key(seed), (empty.width, 8, 1))
    return dataclasses.replace(empty, layers=jax.tree.map(lambda x: 4.0 * x, layers))


# name -> (constructor, how to draw its numbers)
POLICIES = {
    "fixed": (_fixed(), _STEPS),
    "fixed-margin": (_fixed(order="margin"), _STEPS),
    "fixed-entropy": (_fixed(order="entropy"), _STEPS),
    "fixed-random": (_fixed(order="random"), _STEPS),
    "fixed-dream": (p.FixedDream, _STEPS),
    "threshold": (p.Threshold, _TAU),
    "factor": (p.Factor, {"f": _floats(0, 10)}),
    "factor-code": (p.FactorCode, {"f": _floats(0, 10)}),
    "margin": (p.Margin, _TAU),
    "entropy": (p.Entropy, {"tau": _floats(0, 3)}),
    "entropy_bounded": (p.EntropyBounded, {"gamma": _floats(0, 6)}),
    "above_mean": (p.AboveMean, {}),
    "remdm-cap": (p.RemdmCap, {"cap": _floats(0, 1), **_STEPS}),
    "remdm-rescale": (p.RemdmRescale, {"rescale": _floats(0, 1), **_STEPS}),
    "remdm-loop": (p.RemdmLoop, {"loop": _floats(0, 1), "alpha": _floats(0, 1), **_STEPS}),
    "oracle": (p.Oracle, {}),
    "learned-block": (lambda tau: p.Learned(random_filter("block"), tau), _TAU),
    "learned-local": (lambda tau: p.Learned(random_filter("local"), tau), _TAU),
    "learned-published": (lambda tau: p.any_of(p.Learned(random_filter("block"), tau), p.Fixed()), _TAU),
    "any_of": (lambda tau: p.any_of(p.Threshold(tau), p.Fixed(order="random")), _TAU),
    "any_of-remdm": (lambda tau, steps: p.any_of(p.RemdmCap(steps, 0.3), p.Threshold(tau)), {**_TAU, **_STEPS}),
    "all_of": (lambda tau: p.all_of(p.Threshold(tau), p.Entropy(1.0)), _TAU),
    "cap": (lambda k, tau: p.cap(k, p.Threshold(tau)), {"k": st.integers(1, 9), **_TAU}),
    "remedi": (p.Remedi, _STEPS),
    "correct": (
        lambda tau, sure: p.Correct(p.Threshold(0.4), random_judge(), tau, sure),
        {**_TAU, "sure": _floats(0, 2)},
    ),
    "multi_block": (
        lambda **numbers: p.MultiBlock(**numbers),
        {"size": st.integers(1, small.BLOCK - 1), "add": _floats(0, 1), "ready": _floats(0, 1), "tau": _floats(0, 3)},
    ),
    "wino": (p.Wino, {"tau": _floats(0, 1), "revoke": _floats(0, 1)}),
    "edit": (p.Edit, {"tau": _floats(0, 1), "edit": _floats(0, 1), "post": st.integers(0, 5)}),
    "revise": (
        lambda passes, tau, sure: p.Revise(p.Threshold(0.2), passes, tau, sure),
        {"passes": st.integers(0, 5), **_TAU, "sure": _floats(0, 2)},
    ),
    "contiguous": (lambda tau: p.Contiguous(tau, "both"), _TAU),
}
FILLS = {
    "parallel": (Parallel, {}),
    "canvas": (lambda: LeftToRight("canvas"), {}),
    "window": (lambda: LeftToRight("window"), {}),
    "recap": (Recap, {"slices": st.integers(2, small.BLOCK)}),
    "adjust": (lambda k=small.BLOCK: drafters.fill("adjust", k=k), {"k": st.integers(1, small.BLOCK)}),
    "head": (lambda k=small.BLOCK: drafters.fill("head", k=k), {"k": st.integers(1, small.BLOCK)}),
}
STOPPERS = {
    "none": NoStop,
    "eos": Eos,
    "eotp": SafeEotp,
    "eotp-official": OfficialEotp,
    "eotp-block": BlockEotp,
    "eos-strings": Eos,
}
STRINGS = ["ab", "caca", "é"]  # with the stopper of that name
CACHES = {
    "none": NoCache,
    "prefix": Prefix,
    "dual": Dual,
    "frozen": Frozen,
    "frozen-commit": FrozenAtCommit,
    "frozen-prompt": FrozenPrompt,
    "seeded-dual": SeededDual,
    "block": BlockCausal,
}
# The model that a cache is for, where it is not for all.
MODELS = {"seeded-dual": small.FAST, "block": small.FAST}


# What goes together of the two; the last caches are variants of `frozen`.
_MEETINGS = [
    *((stop, cache) for stop in STOPPERS for cache in ("prefix", "dual", "frozen") if stop != "eos-strings"),
    ("eos-strings", "dual"),
    ("none", "frozen-commit"),
    ("eos", "frozen-commit"),
    ("eos", "seeded-dual"),
    ("eos", "frozen-prompt"),
    ("none", "block"),
    ("eos", "block"),
    ("none", "seeded-dual"),
]
# Strings stand beside `eos`, so that the two of them meet `dual` at once; 20 are as many as `cover` has room for.
MEETINGS = [
    (stop, cache)
    for stop, cache in _MEETINGS
    if (stop, cache) != ("eos", "dual") and (cache != "dual" or not STOPPERS[stop]().wants_tail)
]


def cover():
    """Each policy in one case: two of three at a meeting of a stopper and a cache, one of four with another fill.

    Every meeting and every fill is in one of them, at a small part of the cost of the product; `fewest` come first.
    """
    own, meetings, fills = itertools.cycle(STOPPERS), iter(MEETINGS), itertools.cycle(list(FILLS)[1:])
    cases = []
    for i, policy in enumerate(POLICIES):
        stop, cache = (next(own), "none") if i % 3 == 2 else next(meetings)
        cases.append((policy, stop, cache, next(fills) if i % 4 == 1 else "parallel"))
    first = fewest(cases)
    return [*first, *(case for case in cases if case not in first)]


def fewest(cases):
    """As few of them as still hold every stopper, cache and fill that they do."""
    chosen, left = [], {(kind, name) for case in cases for kind, name in enumerate(case[1:])}
    while left:
        chosen.append(max(cases, key=lambda case: len(left & set(enumerate(case[1:])))))
        left -= set(enumerate(chosen[-1][1:]))
    return chosen


def draw(data, name, table=POLICIES):
    """A policy, or a fill of FILLS, with drawn numbers."""
    build, numbers = table[name]
    return build(**data.draw(st.fixed_dictionaries(numbers)))
