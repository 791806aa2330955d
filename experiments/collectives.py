"""What the devices of a mesh tell each other in one step of the decode, counted in the compiled program.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python experiments/collectives.py

A vocabulary of LLaDA-8B's size over 8 model devices. The window and the vocabulary are what matters; the network is few
and narrow layers, so that it compiles in seconds. Counted are elements, not bytes: the CPU backend promotes bfloat16.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff
from jaxdiff.bench.shapes import abstract_params
from jaxdiff.decode import loop
from jaxdiff.decode.layout import Setup, layout_of
from jaxdiff.decode.state import Rows
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.parallel.mesh import make_mesh
from jaxdiff.parallel.rules import shardings
from jaxdiff.policies import Threshold

ROWS, PROMPT, GEN_LENGTH, BLOCK_LENGTH = 4, 64, 64, 32
MESH = (1, 8)
CONFIG = LladaConfig(
    vocab_size=126464,
    d_model=256,
    n_layers=4,
    n_heads=8,
    n_kv_heads=8,
    mlp_hidden_size=512,
    mask_token_id=126336,
    eos_token_id=126081,
)
SUMMARIES = 9  # numbers that each shard of the vocabulary says of a position
RESULTS = Path(__file__).parent / "results"

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of a compiled program.

    Attributes:
        times: how often it runs each time the decode's loop body (or, `step` False, the program around it) does.
        line: the instruction.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    times: int
    step: bool
    line: str

    @property
    def elements(self) -> int:
        """Of its result."""
        return sum(map(math.prod, self.shapes))

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


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program's text, with how often it runs; loops of a known length count all rounds.

    The loop whose length is not known is the decode's.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in map(str.strip, text.splitlines()):
        if found := _COMPUTATION.match(line):
            lines = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        else:
            lines.append(line)

    def walk(name: str, times: int, step: bool) -> Iterator[Collective]:
        for line in computations[name]:
            if found := _COLLECTIVE.search(line):
                shapes = tuple(tuple(map(int, filter(None, dims.split(",")))) for dims in _SHAPE.findall(found[1]))
                yield Collective(found[2], shapes, times, step, line)
            trips, is_loop = _TRIPS.search(line), " while(" in line
            inside = times * int(trips[1]) if is_loop and trips else times
            called = _CALLED.findall(line)
            for names in _BRANCHES.findall(line):
                called += [name.strip().lstrip("%") for name in names.split(",")]
            for other in called:
                yield from walk(other, inside, step or (is_loop and trips is None))

    return list(walk(entry, 1, False))


def compiled_text(
    model: jaxdiff.Model,
    mesh: Any,
    *,
    rows: int,
    prompt: int,
    generated: int,
    block: int,
    cache: jaxdiff.Cache | None = None,
) -> str:
    """The compiled program of a decode on a mesh, from shapes alone."""
    decoder = jaxdiff.Decoder(
        policy=Threshold(0.9), cache=cache or jaxdiff.caches.NoCache(), stop=jaxdiff.stoppers.Eos(), block_length=block
    )
    layout = layout_of(model, decoder, first=prompt, generated=generated, block=block, mesh=mesh)
    given = Rows(
        canvas=jnp.zeros((rows, prompt + generated), jnp.int32),
        origin=jnp.zeros((rows,), jnp.int32),
        last=jnp.full((rows,), prompt + generated, jnp.int32),
        keys=jax.random.split(jax.random.key(0), rows),
    )
    params = shardings(model.config, abstract_params(model), mesh)
    return loop.run.trace(Setup(model, params, decoder, layout), given).lower().compile().as_text() or ""


def count(config: Any, found: list[Collective]) -> dict[str, Any]:
    """What a step moves, beside the least that tensor parallelism moves."""
    fed = ROWS * (PROMPT + GEN_LENGTH)
    layers, embedding = 2 * (config.n_layers - 1) * fed * config.d_model, fed * config.d_model
    layers += 2 * ROWS * BLOCK_LENGTH * config.d_model  # the last one answers for the block alone
    merge = SUMMARIES * MESH[1] * ROWS * BLOCK_LENGTH
    step = [each for each in found if each.step]
    moved = sum(each.times * each.elements for each in step)
    return {
        "elements_per_step": moved,
        "minimum": layers + embedding + merge,
        "minimum_of": {"layers": layers, "embedding": embedding, "score": merge},
        "ratio": moved / (layers + embedding + merge),
        "outside_the_loop": sum(each.times * each.elements for each in found if not each.step),
        "largest": max(each.elements for each in found),
        "vocabulary_sized": [each.line for each in found if vocabulary_sized(each, config.vocab_size)],
        "collectives": [
            {"kind": each.kind, "shapes": each.shapes, "times": each.times, "elements": each.elements} for each in step
        ],
    }


def vocabulary_sized(each: Collective, vocabulary: int) -> bool:
    """Whether an axis of what it carries is as long as the vocabulary, or as one shard of it."""
    return any(axis >= vocabulary // MESH[1] for shape in each.shapes for axis in shape)


def main() -> None:
    text = compiled_text(
        Llada(CONFIG),
        make_mesh(*MESH),
        rows=ROWS,
        prompt=PROMPT,
        generated=GEN_LENGTH,
        block=BLOCK_LENGTH,
    )
    numbers: dict[str, Any] = {
        "mesh": "x".join(map(str, MESH)),
        "jax": jax.__version__,
        "rows": ROWS,
        "canvas": PROMPT + GEN_LENGTH,
        "block": BLOCK_LENGTH,
        "model": {k: getattr(CONFIG, k) for k in ("vocab_size", "d_model", "n_layers", "n_heads", "mlp_hidden_size")},
    } | count(CONFIG, collectives(text))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collectives.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for each in numbers["collectives"]:
        print(f"{each['times']} x {each['kind']}: {each['shapes']}")
    print(
        f"{numbers['elements_per_step']:,} elements a step, {numbers['ratio']:.3f} times the minimum of "
        f"{numbers['minimum']:,}; {len(numbers['vocabulary_sized'])} collectives of the vocabulary's size"
    )


if __name__ == "__main__":
    main()
