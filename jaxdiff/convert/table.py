"""What a family's mapping table is made of, and the plan that it gives for one model.

A rule sends a published tensor to one of our leaves. `{n}` in its key counts layers and `{e}` experts: those are the
leading axes of the leaf, since our layers are stacked. `dense` turns a PyTorch Linear's [out, in] into a kernel
[in, out]; `same` keeps the layout. A fused tensor has several leaves, and is cut by rows in their order. A rule whose
leaves a model does not have (a bias, a tied head) is not used for it; a tied head that is stored all the same repeats
the leaf that it is tied to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxdiff.types import InputError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    key: str  # model.layers.{n}.self_attn.q_proj.weight
    leaves: tuple[str, ...]  # layers/q_proj/kernel
    transposed: bool
    after: str = ""  # the group of layers that `{n}` counts before this one's
    tied: str = ""  # the leaf that the tensor repeats, number for number, where the model has none of `leaves`

    @property
    def stacked(self) -> int:
        """How many leading axes of the leaves the key counts."""
        return self.key.count("{")


Table = tuple[Rule, ...]


def dense(key: str, *leaves: str, tied: str = "") -> Rule:
    """A Linear's weight [out, in], which is a kernel [in, out] here."""
    return Rule(key, leaves, transposed=True, tied=tied)


def same(key: str, *leaves: str) -> Rule:
    """A tensor in the leaf's own layout."""
    return Rule(key, leaves, transposed=False)


def stack(prefix: str, group: str, *rules: Rule, after: str = "") -> Table:
    """A layer's rules for all layers of a group: keys under `prefix` (which holds `{n}`), leaves under `group`."""
    return tuple(
        Rule(prefix + rule.key, tuple(group + leaf for leaf in rule.leaves), rule.transposed, after) for rule in rules
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a published tensor, and the slice of a leaf that they are."""

    key: str
    rows: slice
    leaf: str
    index: Shape  # along the leaf's stacked axes
    transposed: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """For one model: the shape of every published tensor and of every leaf, and what goes where.

    `copies`: tensors that may be there as well, each with the one that it repeats.
    """

    tensors: dict[str, Shape]
    leaves: Mapping[str, Shape]
    by_tensor: dict[str, list[Part]]
    by_leaf: dict[str, list[Part]]
    copies: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def tied(self) -> set[str]:
        """The tensors that are one: the embedding, and the head that repeats it."""
        return {*self.copies, *self.copies.values()}

    @classmethod
    def make(cls, table: Table, leaves: Mapping[str, Shape], *, most: int | None = None) -> Plan:
        """Spell a table out for a model's leaves, {path: shape}.

        Raises InputError where the table lacks a rule for a leaf, or has two; or where a rule alone asks for more than
        `most` tensors (a config may claim any number of layers).
        """
        plan = cls({}, leaves, {}, {leaf: [] for leaf in leaves})
        for rule in table:
            if found := [leaf for leaf in rule.leaves if leaf in leaves]:
                count = math.prod(leaves[found[0]][: rule.stacked])
                if most is not None and count > most:
                    raise InputError(
                        f"{rule.key}: found {most} tensors in all, but config.json asks for {count} of these"
                    )
                plan._add(rule, found)
            elif plan.by_leaf.get(rule.tied):
                plan.copies[rule.key] = plan.by_leaf[rule.tied][0].key
        for leaf, parts in plan.by_leaf.items():
            size = sum(math.prod(leaves[leaf][len(part.index) :]) for part in parts)
            if size != math.prod(leaves[leaf]):
                raise InputError(f"{leaf}: found rules for {size} numbers, expected {math.prod(leaves[leaf])}")
        return plan

    def _add(self, rule: Rule, found: list[str]) -> None:
        others = [shape[0] for leaf, shape in self.leaves.items() if rule.after and leaf.startswith(rule.after)]
        before = others[0] if others else 0
        for index in np.ndindex(self.leaves[found[0]][: rule.stacked]):
            counted = {"n": index[0] + before, "e": index[-1]} if index else {}
            key, start, width = rule.key.format(**counted), 0, ()
            for leaf in found:
                one = self.leaves[leaf][rule.stacked :]
                rows, *width = reversed(one) if rule.transposed else one
                part = Part(key, slice(start, start + rows), leaf, index, rule.transposed)
                self.by_leaf[leaf].append(part)
                self.by_tensor.setdefault(key, []).append(part)
                start += rows
            self.tensors[key] = (start, *width)
