"""Where: one file per policy. `parse` reads the command line's `NAME:k=v,...`, and combinations of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jaxdiff.policies.above_mean import AboveMean
from jaxdiff.policies.agree import Agree, AgreeRatio, AgreeThreshold, AgreeTopK
from jaxdiff.policies.combine import AllOf as AllOf
from jaxdiff.policies.combine import AnyOf as AnyOf
from jaxdiff.policies.combine import Cap as Cap
from jaxdiff.policies.combine import all_of, any_of, cap
from jaxdiff.policies.contiguous import Contiguous
from jaxdiff.policies.edit import Edit
from jaxdiff.policies.entropy import Entropy
from jaxdiff.policies.entropy_bounded import EntropyBounded
from jaxdiff.policies.explore import Explore as Explore
from jaxdiff.policies.factor import Factor, FactorCode
from jaxdiff.policies.fixed import Fixed, FixedDream
from jaxdiff.policies.judge import Correct as Correct
from jaxdiff.policies.judge import Judge as Judge
from jaxdiff.policies.judge import correct
from jaxdiff.policies.learned import Learned
from jaxdiff.policies.margin import Margin
from jaxdiff.policies.multi_block import MultiBlock
from jaxdiff.policies.oracle import Oracle
from jaxdiff.policies.remdm import RemdmCap, RemdmLoop, RemdmRescale
from jaxdiff.policies.remedi import Remedi
from jaxdiff.policies.replay import Replay as Replay
from jaxdiff.policies.revise import Revise as Revise
from jaxdiff.policies.revise import revise
from jaxdiff.policies.threshold import Threshold
from jaxdiff.policies.wino import Wino
from jaxdiff.policies.witness import Witness as Witness
from jaxdiff.protocols import Policy
from jaxdiff.pytree import InputError
from jaxdiff.registry import Keyed, Modes, Registry, arguments_of, parse_arguments, parse_number

POLICIES = Registry(
    "policy",
    {
        "fixed": Modes("schedule", "uniform", {"uniform": Fixed, "dream": FixedDream}),
        "threshold": Threshold,
        "factor": Modes("rule", "paper", {"paper": Factor, "code": FactorCode}),
        "margin": Margin,
        "entropy": Entropy,
        "entropy_bounded": EntropyBounded,
        "above_mean": AboveMean,
        "contiguous": Contiguous,
        "multi_block": MultiBlock,
        "edit": Edit,
        "remdm": Keyed("cap", {"cap": RemdmCap, "rescale": RemdmRescale, "loop": RemdmLoop}),
        "remedi": Remedi,
        "wino": Wino,
        "agree": Modes(
            "rule", "argmax", {"argmax": Agree, "topk": AgreeTopK, "ratio": AgreeRatio, "threshold": AgreeThreshold}
        ),
        "oracle": Oracle,
        "learned": Learned,
    },
    more=("any_of()", "all_of()", "cap()", "correct()", "revise()"),
)
_COMBINED = re.compile(r"(any_of|all_of|cap|correct)\((.*)\)", re.DOTALL)
_REVISED = re.compile(r"revise(?:\((.*)\))?(?::([^()]*))?", re.DOTALL)


def parse(
    text: str,
    *,
    learned: Callable[[str | None, float | None], Policy] | None = None,
    judge: Callable[[str | None], tuple[Judge, float]] | None = None,
    **defaults: Any,
) -> Policy:
    """The policy that `text` names.

        fixed:order=margin            threshold:tau=0.85            above_mean
        any_of(threshold:tau=0.9 + entropy:tau=0.05)      cap(4 + threshold:tau=0.6)      learned:name=official
        correct(threshold:tau=0.5 + judge:name=judge,tau=0.7,sure=0.9)      revise(threshold:tau=0.5):passes=1

    `learned` finds a learned policy by its name and threshold, either of which may be left to its default: it belongs
    to a model. So does a judge, which `judge` finds by its name, with the threshold of its card.
    `defaults` fill fields of the policies that have them and are not set in the text (`steps`).

    Raises InputError for a name or an argument that is not known (with those that are), or a value out of range.
    """
    text = text.strip()
    if combined := _COMBINED.fullmatch(text):
        kind, parts = combined[1], [part.strip() for part in _split(combined[2])]
        defaults |= {"learned": learned, "judge": judge}
        if kind == "cap":
            if len(parts) != 2:
                raise InputError(f"policy: found {text!r}, expected cap(K + POLICY)")
            return cap(int(parse_number("cap k", parts[0], whole=True)), parse(parts[1], **defaults))
        if kind == "correct":
            if len(parts) != 2:
                raise InputError(f"policy: found {text!r}, expected correct(POLICY + judge:name=NAME,tau=TAU)")
            return _corrected(parse(parts[0], **defaults), parts[1], judge)
        policies = [parse(part, **defaults) for part in parts]
        return any_of(*policies) if kind == "any_of" else all_of(*policies)
    if revised := _REVISED.fullmatch(text):
        around = "fixed" if revised[1] is None else revised[1]
        items = [item for item in (revised[2] or "").split(",") if item]
        values = parse_arguments("policy revise", arguments_of(Revise), items)
        return revise(parse(around, learned=learned, judge=judge, **defaults), **values)
    name, _, rest = text.partition(":")
    if name != "learned":
        return POLICIES.parse(text, **defaults)
    known = {"name": {"static": True}, "tau": {"whole": False}}
    values = parse_arguments("policy learned", known, [item for item in rest.split(",") if item])
    if learned is None:
        raise InputError("policy learned: found no model, expected one whose filters it names")
    return learned(values.get("name"), values.get("tau"))


def _corrected(policy: Policy, text: str, judge: Callable[[str | None], tuple[Judge, float]] | None) -> Correct:
    """A policy with the judge that the second part of `correct(...)` names."""
    name, _, rest = text.partition(":")
    if name != "judge":
        raise InputError(f"policy correct: found {text!r} behind the policy, expected judge:name=NAME,tau=TAU,sure=P")
    known = {"name": {"static": True}, "tau": {"whole": False}, "sure": {"whole": False}}
    values = parse_arguments("policy correct", known, [item for item in rest.split(",") if item])
    if judge is None:
        raise InputError("policy correct: found no model, expected one whose judges it names")
    found, tau = judge(values.pop("name", None))
    return correct(policy, found, **{"tau": tau} | values)


def _split(text: str) -> list[str]:
    """At the `+` signs outside parentheses."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "+" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts
