"""The same tokens on every mesh: every policy and cache of the command line on five meshes of 8 simulated devices.

    python experiments/meshes.py                  # 64 prompts; every policy without a cache and with one in turn
    python experiments/meshes.py --n 8 --policy threshold:tau=0.9 --policy above_mean

Held-out problems of mixed lengths, decoded by the model that ships, in float32; every other row is sampled, at
temperature 0.7. What a row gives on one device (tokens, commit trace, NFE) is compared with what it gives on each
mesh. A row may differ where it met a near-tie; one that differs and met none is unexplained. Finished policies are
kept in the JSON, and the same call made again goes on after them.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.decode.batches import pad_to_bucket, request_keys
from jaxdiff.filters import learned_policy
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.policies import parse
from jaxdiff.tasks import task

MESHES = ("1x1", "8x1", "4x2", "2x4", "1x8")
POLICIES = (
    "above_mean",
    "threshold:tau=0.9",
    "factor:f=1",
    "margin:tau=0.8",
    "entropy:tau=0.2",
    "entropy_bounded:gamma=0.1",
    "cap(4 + threshold:tau=0.6)",
    "all_of(threshold:tau=0.9 + entropy:tau=0.3)",
    "fixed:order=random,steps=16",
    "fixed:order=margin,steps=16",
    "fixed:order=entropy,steps=16",
    "fixed:schedule=dream,steps=16",
    "any_of(threshold:tau=0.9 + fixed:steps=16)",
    "oracle",
    "fixed",
    "learned",
    "learned:name=official",
)
CACHES = ("prefix", "dual", "frozen")  # `block` is exact, and only of block-causal families
PAIRS = (*((each, "none") for each in POLICIES), *zip(POLICIES, itertools.cycle(CACHES), strict=False))
GEN_LENGTH, BLOCK_LENGTH, TEMPERATURE, SEED = 128, 32, 0.7, 0
TARGET = 1e-4  # near-ties in a decision
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Problem:
    """What every run decodes."""

    prompts: np.ndarray
    origin: np.ndarray
    temperature: np.ndarray
    keys: jax.Array


def problems(checkpoint: jaxdiff.Checkpoint, n: int) -> Problem:
    """The first `n` of the test split."""
    questions = [p.question for p in itertools.islice(task("gsm_symbolic").problems("test", SEED), n)]
    ids = [checkpoint.tokenizer_for("gsm_symbolic").prompt(question) for question in questions]
    config = checkpoint.model.config
    prompts, origin = pad_to_bucket(ids, config.eos_token_id, config.max_sequence_length - GEN_LENGTH)
    temperature = np.where(np.arange(n) % 2, TEMPERATURE, 0.0).astype(np.float32)
    return Problem(prompts, origin, temperature, request_keys(SEED, np.arange(n)))


def decoder(policy: str, temperature: np.ndarray, cache: str = "none") -> jaxdiff.Decoder:
    """What every run decodes with."""
    return jaxdiff.Decoder(
        policy=parse(policy, learned=functools.partial(learned_policy, SHIPPED)),
        cache=jaxdiff.caches.CACHES.parse(cache),
        stop=jaxdiff.stoppers.Eos(),
        sampling=jaxdiff.Sampling(temperature=temperature),
        block_length=BLOCK_LENGTH,
    )


def run(policy: str, cache: str, mesh: str, n: int) -> jaxdiff.Result:
    """One policy and cache on one mesh, all rows in one batch."""
    checkpoint = jaxdiff.load(mesh=parse_mesh(mesh))
    given = problems(checkpoint, n)
    result = jaxdiff.decode(
        checkpoint.model,
        checkpoint.params,
        given.prompts,
        decoder(policy, given.temperature, cache),
        origin=given.origin,
        key=given.keys,
        gen_length=GEN_LENGTH,
        mesh=parse_mesh(mesh),
    )
    return jax.tree.map(np.asarray, dataclasses.replace(result, policy=()))


def label(policy: str, cache: str) -> str:
    return policy if cache == "none" else f"{policy}, {cache}"


def compare(home: jaxdiff.Result, away: jaxdiff.Result) -> dict[str, Any]:
    """Rows that differ, and those of them in which neither run met a near-tie."""
    names = ("tokens", "commit_step", "nfe")
    differs = np.zeros(home.nfe.shape, bool)
    for name in names:
        differs |= (getattr(home, name) != getattr(away, name)).reshape(len(differs), -1).any(axis=1)
    unexplained = differs & (home.near_ties + away.near_ties == 0)
    return {
        "differ": int(differs.sum()),
        "unexplained": int(unexplained.sum()),
        "near_ties": int(away.near_ties.sum()),
        "decisions": int((away.commit_step >= 0).sum()),
        "rows": np.flatnonzero(differs).tolist(),
    }


def totals(policies: dict[str, Any]) -> dict[str, int]:
    """Over every policy, and every mesh of more than one device."""
    points = [meshes[mesh] for meshes in policies.values() for mesh in MESHES[1:]]
    return {name: sum(point[name] for point in points) for name in ("differ", "unexplained", "near_ties", "decisions")}


def markdown(results: dict[str, Any]) -> str:
    setting, policies = results["setting"], results["policies"]
    total = totals(policies)
    runs = setting["n"] * (len(MESHES) - 1) * len(policies)
    wanted = [label(*pair) for pair in PAIRS]
    missing = [name for name in wanted if name not in policies]
    lines = [
        "# The same tokens on every mesh",
        "",
        f"    python experiments/meshes.py --n {setting['n']}",
        "",
        f"{setting['model']}, {setting['n']} ragged prompts of gsm_symbolic/test, every other row at temperature "
        f"{TEMPERATURE}, length {GEN_LENGTH}, block {BLOCK_LENGTH}, stop eos, float32, jax {setting['jax']}, "
        "8 simulated devices.",
        *(["", f"Not in this run: {', '.join(missing)}."] if missing else []),
        "",
        f"Of {runs} rows on a mesh, {total['differ']} differ from what one device gives; {total['unexplained']} of "
        f"them met no near-tie. {total['near_ties']} of {total['decisions']:,} decisions were near-ties "
        f"(at most 1 in {1 / TARGET:,.0f} is the target).",
        "",
        "Rows that differ from one device; near-ties of the mesh's own run in parentheses.",
        "",
        "| policy | decisions | " + " | ".join(MESHES) + " |",
        "|" + "---|" * (len(MESHES) + 2),
    ]
    for name, meshes in policies.items():
        cells = [f"{point['differ']} ({point['near_ties']})" for point in meshes.values()]
        lines.append(f"| `{name}` | {meshes[MESHES[0]]['decisions']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    n: Annotated[int, typer.Option("--n", min=1, help="Prompts.")] = 64,
    policy: Annotated[list[str] | None, typer.Option("--policy", help="Default: all.")] = None,
) -> None:
    """Writes results/meshes.json and meshes.md after each policy."""
    setting: dict[str, Any] = {
        "n": n,
        "model": "gsm-1m",
        "gen_length": GEN_LENGTH,
        "block_length": BLOCK_LENGTH,
        "temperature": TEMPERATURE,
        "jax": jax.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "meshes.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    if results.get("setting") != setting:
        results = {"setting": setting, "policies": {}}
    for each, cache in PAIRS:
        name = label(each, cache)
        if name in results["policies"] or (policy and each not in policy):
            continue
        home = run(each, cache, MESHES[0], n)
        points = {MESHES[0]: compare(home, home)}
        for mesh in MESHES[1:]:
            points[mesh] = compare(home, run(each, cache, mesh, n))
            print(f"{name} on {mesh}: {points[mesh]}", flush=True)
        results["policies"][name] = points
        kept.write_text(json.dumps(results | {"totals": totals(results["policies"])}, indent=1) + "\n")
        (RESULTS / "meshes.md").write_text(markdown(results))
    print(totals(results["policies"]))


if __name__ == "__main__":
    typer.run(main)
