"""What a compiled program does, read from its text: products, memory traffic, collectives.

    text -> Hlo: computations of Instructions -> runs: each with how often it runs -> `cost.py`

A program over a mesh is that of one device, and all devices run the same: what is counted is each one's own.
XLA's cost analysis counts the body of every loop once, the layers' too; here loops of a known length count all rounds.
The loop whose length is not known is the decode's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
NAMES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "optimization-barrier")
CALLS = ("while", "conditional", "call", "async-start")  # what they call is counted in their place
SAME = ("bitcast", "copy", "convert")  # one element for each
SLICES = ("dynamic-slice", "slice", "gather")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """What an instruction gives; `main`: it lies in the device's main memory, not in an on-chip one."""

    dtype: str
    shape: tuple[int, ...]
    main: bool = True

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """0 for what is no array (a token)."""
        bits = re.search(r"\d+", self.dtype)
        width = int(bits[0]) if bits else 8 * (self.dtype == "pred")
        return -(-self.size * width // 8)

    @property
    def traffic(self) -> int:
        """Bytes that main memory gives or takes."""
        return self.bytes if self.main else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `operands` are names of instructions of the same one."""

    name: str
    kind: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    line: str
    root: bool

    @classmethod
    def parse(cls, line: str) -> Instruction | None:
        """None for a line that is none."""
        if not (found := _INSTRUCTION.match(line)):
            return None
        rest = line[found.end() :]
        type_end = _closing(rest) if rest.startswith("(") else rest.index(" ")
        kind, _, after = rest[type_end:].strip().partition("(")
        operands = after[: _closing("(" + after) - 1]
        results = tuple(
            Array(dtype, tuple(map(int, filter(None, dims.split(",")))), "S(" not in layout)
            for dtype, dims, layout in _ARRAY.findall(rest[:type_end])
        )
        return cls(found[2], kind, results, tuple(_NAME.findall(operands)), line, bool(found[1]))

    @property
    def called(self) -> list[str]:
        """Computations that run each time that this does, a conditional's left out."""
        return [] if self.branches else _CALLED.findall(self.line)

    @functools.cached_property
    def branches(self) -> list[str]:
        """Computations of which one runs."""
        if not (found := _BRANCHES.search(self.line)):
            return []
        return [name.strip().lstrip("%") for name in found[1].split(",")] if found[1] else [found[2], found[3]]


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, and how often it runs each time the decode's loop body (or, `step` False, the program) does.

    Attributes:
        part: of a step, the conditional or the loop of unknown length that it is in, by name; else empty.
        among: all instructions of its computation, by name.
        fused: they are one kernel.
    """

    instruction: Instruction
    times: int
    step: bool
    part: str
    among: dict[str, Instruction]
    fused: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """What devices tell each other in one instruction; `times` and `step` as of a `Run`."""

    kind: str
    results: tuple[Array, ...]
    times: int
    step: bool
    line: str

    @property
    def elements(self) -> int:
        """Of its result."""
        return sum(each.size for each in self.results)

    @property
    def bytes(self) -> int:
        """Of its result, on one device."""
        return sum(each.bytes for each in self.results)

    @property
    def groups(self) -> list[list[int]] | None:
        """The devices that talk to each other; None where the instruction does not name whole groups.

        XLA writes groups out, as numbers in a row that is reshaped, or (with jax 0.12) as axes of a mesh.
        """
        if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", self.line):
            return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        if found := re.search(r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',?)+)\}", self.line):
            sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", found[1])}
            names, inside = list(sizes), found[2].split(",")
            order = [*(name for name in names if name not in inside), *inside]
            devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
            devices = devices.transpose([names.index(name) for name in order])
            return devices.reshape(-1, math.prod(sizes[name] for name in inside)).tolist()
        found = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", self.line)
        if found is None:
            return None
        count, size, dims = int(found[1]), int(found[2]), list(map(int, found[3].split(",")))
        devices = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            devices = devices.transpose(list(map(int, found[4].split(","))))
        return devices.reshape(count, size).tolist()


class Hlo:
    """A compiled program's computations, by name; a computation is its instructions, by name."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, inside = "", {}
        self._weights: dict[tuple[str, Callable[[Run], int]], int] = {}
        for line in map(str.strip, text.splitlines()):
            if found := _COMPUTATION.match(line):
                inside = self.computations.setdefault(found[2], {})
                self.entry = found[2] if found[1] else self.entry
            elif instruction := Instruction.parse(line):
                inside[instruction.name] = instruction

    def runs(self, weigh: Callable[[Run], int] | None = None, rung: int | None = None) -> list[Run]:
        """Every instruction that runs; of a conditional's branches all, or the one that weighs most.

        `rung`: of those that weigh anything the one that weighs more than so many others, or the most.
        """

        def walk(name: str, times: int, step: bool, part: str, fused: bool) -> Iterator[Run]:
            among = self.computations[name]
            for each in among.values():
                yield Run(each, times, step, part, among, fused)
                trips = self._trips(each) if each.kind == "while" else 1
                others = each.called + each.branches
                if each.branches and weigh is not None:
                    heavy = self.heavy(each, weigh) or each.branches[:1]
                    others = [heavy[-1 if rung is None else min(rung, len(heavy) - 1)]]
                here = part or (each.name if step and (each.branches or trips is None) else "")
                for other in others:
                    inside = fused or each.kind not in CALLS
                    yield from walk(other, times * (trips or 1), step or trips is None, here, inside)

        return list(walk(self.entry, 1, False, "", False))

    def heavy(self, each: Instruction, weigh: Callable[[Run], int]) -> list[str]:
        """The branches of a conditional that weigh anything, the lightest first."""
        weights = {name: self._weight(name, weigh) for name in each.branches}
        return sorted(filter(weights.__getitem__, each.branches), key=weights.__getitem__)

    def _weight(self, name: str, weigh: Callable[[Run], int]) -> int:
        """Of all that runs in a computation, and of the dearest of branches."""
        if (name, weigh) not in self._weights:
            total = 0
            among = self.computations[name]
            for each in among.values():
                own = weigh(Run(each, 1, True, "", among, False))
                trips = (self._trips(each) or 1) if each.kind == "while" else 1
                dearest = max((self._weight(branch, weigh) for branch in each.branches), default=0)
                total += own + trips * (sum(self._weight(other, weigh) for other in each.called) + dearest)
            self._weights[name, weigh] = total
        return self._weights[name, weigh]

    def _trips(self, loop: Instruction) -> int | None:
        """Rounds of a loop that counts from 0 to a constant; None for any other."""
        if found := _TRIPS.search(loop.line):
            return int(found[1])
        found = re.search(r"condition=%?([\w.\-]+)", loop.line)
        condition = self.computations[found[1]] if found else {}
        (root,) = (each for each in condition.values() if each.root)
        if root.kind != "compare" or "direction=LT" not in root.line:
            return None
        bounds = [re.search(r" constant\((\d+)\)", condition[name].line) for name in root.operands]
        return next((int(bound[1]) for bound in bounds if bound), None)

    def traffic(self, run: Run) -> int:
        """Bytes that one instruction moves to and from the device's main memory.

        What it slices counts as much as the slice, and so does what is written into a larger array in place.
        """
        each = run.instruction
        ended = each.kind.endswith(("-done", "-update")) and each.kind != "dynamic-update-slice"
        if run.fused or ended or each.kind in NAMES + CALLS or not each.operands:
            return 0
        if each.kind != "fusion":
            return _moved(each, run.among)
        inside = self.computations[each.called[0]]
        by_number = {}
        for inner in inside.values():
            if inner.kind == "parameter" and (found := re.search(r"parameter\((\d+)\)", inner.line)):
                by_number[int(found[1])] = inner.name
        read = sum(
            self._used(inside, by_number[number], array)
            for number, operand in enumerate(each.operands)
            if operand in run.among
            for array in run.among[operand].results
        )
        return read + sum(self.written(each))

    def _used(self, inside: dict[str, Instruction], name: str, array: Array) -> int:
        """Of a fusion's parameter, the bytes that it reads."""
        return array.main * self._read(inside, name, array.size) * array.bytes // max(1, array.size)

    def _read(self, inside: dict[str, Instruction], name: str, size: int) -> int:
        """Of an array of that size in a fusion, the elements that are read; where it is copied or converted as a whole,
        which never leaves the fusion, those that are read of that.
        """
        total = 0
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.kind in SLICES and user.operands[0] == name:
                total += sum(result.size for result in user.results)
            elif user.kind == "dynamic-update-slice" and user.operands[0] == name:
                continue
            elif user.kind in SAME and not user.root:
                total += self._read(inside, user.name, size)
            elif user.kind == "fusion":
                inner = self.computations[user.called[0]]
                number = user.operands.index(name)
                names = [one.name for one in inner.values() if f" parameter({number})" in one.line]
                within = self._read(inner, names[0], size)
                whole = within == size == user.results[0].size and not user.root
                total += self._read(inside, user.name, size) if whole else within
            else:
                return size
        return min(total, size)

    def written(self, each: Instruction) -> Iterator[int]:
        """Of each of an instruction's results, the bytes that it writes to main memory."""
        if each.kind != "fusion":
            yield from (array.traffic for array in _received(each))
            return
        for array, update in zip(each.results, self._updates(each.called[0]), strict=True):
            yield array.traffic if update is None else array.main * update

    def _updates(self, name: str) -> list[int | None]:
        """Of each of a computation's results, the bytes that are written into one of its parameters; None: all anew."""
        inside = self.computations[name]
        (root,) = (each for each in inside.values() if each.root)

        def of(one: Instruction) -> list[int | None]:
            while one.kind == "bitcast":
                one = inside[one.operands[0]]
            if one.kind == "tuple":
                return [update for name in one.operands for update in of(inside[name])]
            if one.kind == "fusion":
                return self._updates(one.called[0])
            if one.kind == "dynamic-update-slice":
                return [inside[one.operands[1]].results[0].bytes]
            return [None] * len(one.results)

        return of(root)


def collectives(runs: Iterable[Run]) -> list[Collective]:
    """Those among what runs."""
    kinds = ((run, run.instruction.kind.removesuffix("-start")) for run in runs)
    return [
        Collective(kind, _received(run.instruction), run.times, run.step, run.instruction.line)
        for run, kind in kinds
        if kind in KINDS
    ]


def flops(run: Run) -> int:
    """Of one instruction, if it is a product: two for each pair of entries that are multiplied and added.

    Attention in a kernel is two products.
    """
    each = run.instruction
    if _is_splash(each):
        keys = run.among[each.operands[3]].results[0]
        return 4 * each.results[-1].size * keys.shape[-2]
    if each.kind not in ("dot", "convolution", "ragged-dot"):
        return 0
    out, (left, right) = each.results[0], (run.among[name].results[0].shape for name in each.operands[:2])
    if each.kind != "convolution":
        return 2 * out.size * math.prod(left[axis] for axis in _numbers(each.line, "lhs_contracting_dims"))
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.line)
    assert found is not None, each.line
    of_left, of_right, of_out = found[1], found[2], found[3]
    window = _window(each.line)
    pairs = 1
    for index, label in enumerate(label for label in of_out if label.isdigit()):
        sizes = left[of_left.index(label)], right[of_right.index(label)], out.shape[of_out.index(label)]
        pairs *= _valid(*sizes, **{name: values[index] for name, values in window.items()})
    groups = int(found[1]) if (found := re.search(r"batch_group_count=(\d+)", each.line)) else 1
    batch = left[of_left.index("b")] // groups
    return 2 * batch * right[of_right.index("i")] * right[of_right.index("o")] * pairs


def _is_splash(each: Instruction) -> bool:
    """Whether it is the kernel of `jaxdiff.models.splash`, whose operands are two tables, queries, keys, values ..."""
    return each.kind == "custom-call" and each.name.startswith("splash_") and "_fwd_" in each.name


def _moved(each: Instruction, among: dict[str, Instruction]) -> int:
    if _is_splash(each):  # keys and values are read for each tile of queries; of the results the last alone is written
        queries, keys, values = (among[name].results[0] for name in each.operands[2:5])
        tile, out = each.results[0].shape[-2], each.results[-1]
        return queries.traffic + out.traffic + (keys.traffic + values.traffic) * (queries.shape[-2] // tile)
    operands = [array for name in each.operands if name in among for array in among[name].results]
    results = _received(each)
    if each.kind in SLICES:
        return sum(operands[0].main * array.bytes + array.traffic for array in results)
    if each.kind == "dynamic-update-slice":
        return 2 * operands[1].traffic
    return sum(array.traffic for array in (*operands, *results))


def _received(each: Instruction) -> tuple[Array, ...]:
    """The results proper: one that is started in the background gives its operands and some counters too."""
    if each.kind in ("all-gather-start", "collective-permute-start", "copy-start", "slice-start"):
        found = [array for array in each.results if array.size > 1 or array.dtype != "u32"]
        if each.kind == "copy-start":
            return tuple(found[:1])
        return tuple(found[len(found) // 2 :])
    return each.results


def _valid(left: int, right: int, out: int, *, size: int, stride: int, low: int, dilate: int, spread: int) -> int:
    """Of one axis of a convolution: how many pairs of output and kernel entry meet an entry of the input.

    A product over a batch is such an axis, in which each output meets one.
    """
    assert size == right
    at = np.arange(out)[:, None] * stride + np.arange(right)[None] * spread - low
    return int(((at >= 0) & (at < (left - 1) * dilate + 1) & (at % dilate == 0)).sum())


def _window(line: str) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", line)
    given = dict(part.split("=") for part in found[1].split()) if found else {}
    size = [int(x) for x in given["size"].split("x")] if "size" in given else []

    def read(name: str) -> list[int]:
        return [int(x.split("_")[0]) for x in given[name].split("x")] if name in given else []

    ones, zeros = [1] * len(size), [0] * len(size)
    return {
        "size": size,
        "stride": read("stride") or ones,
        "low": read("pad") or zeros,
        "dilate": read("lhs_dilate") or ones,
        "spread": read("rhs_dilate") or ones,
    }


def _numbers(line: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", line)
    return list(map(int, filter(None, found[1].split(",")))) if found else []


def _closing(text: str) -> int:
    """One past the bracket that closes the first one."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index + 1
    return len(text)
