"""The conformance table: one line for each policy. To add a policy is to add its line."""

import jax
from hypothesis import strategies as st

from jaxdiff import Dual, EosStop, EotpStop, Frozen, NoCache, NoStop, Prefix
from jaxdiff import policies as p
from jaxdiff.policies.filters import Block, Local, init_layers, local_width
from tests import small


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
    return Block(layers) if kind == "block" else Local(layers)


# name -> (constructor, how to draw its numbers)
POLICIES = {
    "fixed": (_fixed(), _STEPS),
    "fixed-margin": (_fixed(order="margin"), _STEPS),
    "fixed-entropy": (_fixed(order="entropy"), _STEPS),
    "fixed-random": (_fixed(order="random"), _STEPS),
    "fixed-dream": (_fixed(schedule="dream"), _STEPS),
    "threshold": (p.Threshold, _TAU),
    "factor": (p.Factor, {"f": _floats(0, 10)}),
    "margin": (p.Margin, _TAU),
    "entropy": (p.Entropy, {"tau": _floats(0, 3)}),
    "entropy_bounded": (p.EntropyBounded, {"gamma": _floats(0, 6)}),
    "above_mean": (p.AboveMean, {}),
    "oracle": (p.Oracle, {}),
    "learned-block": (lambda tau: p.Learned(random_filter("block"), tau), _TAU),
    "learned-local": (lambda tau: p.Learned(random_filter("local"), tau), _TAU),
    "learned-published": (lambda tau: p.any_of(p.Learned(random_filter("block"), tau), p.Fixed()), _TAU),
    "any_of": (lambda tau: p.any_of(p.Threshold(tau), p.Fixed(order="random")), _TAU),
    "all_of": (lambda tau: p.all_of(p.Threshold(tau), p.Entropy(1.0)), _TAU),
    "cap": (lambda k, tau: p.cap(k, p.Threshold(tau)), {"k": st.integers(1, 9), **_TAU}),
}
STOPPERS = {
    "none": NoStop,
    "eos": EosStop,
    "eotp": EotpStop,
    "eotp-official": lambda: EotpStop(way="official"),
}


CACHES = {"none": NoCache, "prefix": Prefix, "dual": Dual, "frozen": Frozen}


def cover(offset):
    """Each policy with one stopper, and every third with a cache, at a small part of the cost of the product.

    Rules with another offset take others; with both, every stopper meets every cache that goes with it.
    """
    cases = []
    for i, policy in enumerate(POLICIES):
        stop = list(STOPPERS)[(i + offset) % len(STOPPERS)]
        cache = ("prefix", "frozen", "dual")[i // 3 % 3] if i % 3 == offset else "none"
        if cache == "dual" and STOPPERS[stop]().wants_tail:
            cache = "frozen"
        cases.append((policy, stop, cache))
    return cases


def draw(data, policy):
    """A policy of the table with drawn numbers."""
    build, numbers = POLICIES[policy]
    return build(**data.draw(st.fixed_dictionaries(numbers)))
