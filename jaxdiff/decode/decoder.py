"""How to decode, as one value: a `Decoder` of a policy, a fill, a cache, a stopper and a `Sampling`."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdiff.caches import NoCache
from jaxdiff.fills import Parallel
from jaxdiff.policies import Fixed
from jaxdiff.protocols import Automaton, Cache, Constraint, Fill, Policy, Stopper
from jaxdiff.pytree import choice, number, pytree, static
from jaxdiff.stoppers import NoStop, StopStrings
from jaxdiff.types import KV, Count, InputError, Leaf

BLOCK_LENGTH = 32
INFINITE = float("inf")
LENGTHS = ("fixed", "var")


@pytree
class EndThink:
    """A push towards the end of a thought, in which what is left to generate runs out (iLLaDA's `generate.py`).

    At the leftmost masked position of the row's block the logit of the token that comes next in the sequence is raised
    by boost x progress^power, before the candidate and its confidence are taken; until the row holds the sequence.
    Progress is the position's place among all that are to be generated, up to 1.

    Attributes:
        tokens: the ids of the sequence, such as those of `</think>`.
        boost: what the logit is raised by at the last position; 100 in iLLaDA's evaluation.
        power: how late the push comes: 0 is all of it from the first position on, 1 grows evenly, more keeps it for the
            end; 3 in iLLaDA's evaluation, 1 in that of HumanEval.
    """

    tokens: Sequence[int] | Int[np.ndarray, " n"] = static()
    boost: Leaf = number(low=0.0, high=INFINITE)
    power: Leaf = number(default=2.0, low=0.0, high=INFINITE)

    def __post_init__(self) -> None:
        wrong = InputError(f"end_think: found tokens {self.tokens!r:.40}, expected the ids of a sequence, one or more")
        try:
            object.__setattr__(self, "tokens", tuple(operator.index(token) for token in self.tokens))
        except TypeError:
            raise wrong from None
        if not self.tokens:
            raise wrong


@pytree
class Sampling:
    """How a position's token is drawn. Numbers are one for all rows, or one for each row [B].

    Attributes:
        temperature: 0 is greedy.
        top_p, top_k: sample among the most likely tokens alone: those that together reach `top_p`, and of them the
            `top_k` best; None is off. They take effect after the temperature. At temperature 0 the token stays the
            same, but its confidence is that among those left, as in Dream's `generation_utils.py`. `near_ties` does not
            count where float rounding decides who is left.
        cfg_scale: classifier-free guidance, w in un + (w + 1) (cond - un); None is off, and each guided pass counts 2.
        forbid_eos: LLaDA's `logits_eos_inf`: end-of-text is never predicted, nor what a file lists beside it; the end
            of a turn may be.
        defer_eos: LLaDA's `confidence_eos_eot_inf`: positions predicted to be any end of an answer commit last. (The
            official code's chained assignment spares one of the two ids above temperature 0; here both wait.)
        end_think: a push towards the end of a thought; None is off.
    """

    temperature: Leaf = number(default=0.0, low=0.0, high=INFINITE)
    top_p: Leaf | None = number(default=None, low=0.0, high=1.0)
    top_k: Count | None = number(default=None, low=1, high=2**30, whole=True)
    cfg_scale: Leaf | None = number(default=None, low=0.0, high=INFINITE)
    forbid_eos: bool = static(default=False)
    defer_eos: bool = static(default=False)
    end_think: EndThink | None = None

    def __post_init__(self) -> None:
        check_kind("end_think", self.end_think, EndThink)


@pytree
class Decoder:
    """How to decode: one value for `decode`, `infill`, `decode_stream`, `lower`, evaluation and serving.

    Attributes:
        policy: where: which positions commit at each step; default one token a step, most confident first.
        fill: what: which tokens the chosen positions get together; default each its own candidate.
        cache: which keys and values are reused; default none, the only exact one on every model; an autoregressive one
            has `seeded`.
        stop: when a row's end moves left; default never.
        constraint: which texts an answer, or what fills a canvas, may be (`Tokenizer.regex`, `Tokenizer.schema`,
            `constraints.Awrs`); default any.
        stop_strings: texts that end a row too, whatever the stopper (`Tokenizer.stop_strings`); default none.
        sampling: how a token is drawn; default greedy.
        block_length: in tokens, a divisor of what is generated; default 32 for `decode`, the whole canvas for `infill`.
            A model that attends in blocks has its own, or takes a divisor of it: then its blocks are decoded in parts.
        length: "fixed": a block sees the masks of all blocks right of it. "var", iLLaDA's `var_generate`: it sees what
            lies left of its end alone, so that an answer grows block by block, and `gen_length` is but the most of it.
            Without a cache: what earlier blocks keep changes with each block that is added.
    """

    policy: Policy = dataclasses.field(default_factory=Fixed)
    fill: Fill = dataclasses.field(default_factory=Parallel)
    cache: Cache = dataclasses.field(default_factory=NoCache)
    stop: Stopper = dataclasses.field(default_factory=NoStop)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    block_length: int | None = static(default=None)
    stop_strings: StopStrings | None = None
    length: str = choice(LENGTHS, default="fixed")
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_kind("stop_strings", self.stop_strings, StopStrings)
        check_kind("constraint", self.constraint, Constraint)

    @property
    def automaton(self) -> Automaton | None:
        """The tables of the constraint, where it has any."""
        return None if self.constraint is None else self.constraint.automaton

    @property
    def keeps_kv(self) -> bool:
        """Whether keys and values are kept from pass to pass: for a cache, or for the passes of a fill."""
        return self.cache.window != "canvas" or KV in self.fill.needs


def check_kind(name: str, value: Any, kind: type) -> None:
    """Raises InputError for what is neither of this kind nor None."""
    if not isinstance(value, kind | None):
        raise InputError(f"{name}: found {value!r:.40}, expected a jaxdiff {kind.__name__}, or None")
