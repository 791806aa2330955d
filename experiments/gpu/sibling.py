"""A larger sibling of the model that ships, trained for as long as there is time; and its checkpoint as a model folder.

    python -m experiments.gpu.sibling OUT FOLDER     # afterwards: FOLDER is what `jaxdiff.load` reads

The recipe is `checkpoints/gsm-1m/recipe.json`'s (its objective, its optimizer, packed steps and drills first), with
larger widths, all templates, bfloat16 and larger batches; the learning rate falls by the clock and not by the step, to
0 when the time is over. The data are those that `problems.py` has made before. A later call starts from the weights of
the checkpoint with a fresh optimizer, as the stages of the model that ships did.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import jaxdiff
from experiments.gpu import problems
from experiments.gpu.job import CARRIED, RESULTS, ROOT, Job
from jaxdiff import checkpoint
from jaxdiff.decode.batches import pad_to_bucket
from jaxdiff.policies import Fixed, Threshold
from jaxdiff.tasks.base import Problem
from jaxdiff.train.data import Batch
from jaxdiff.train.loop import Frozen, make_optimizer, make_step
from jaxdiff.train.recipe import Recipe

MODEL = {
    "d_model": 384,
    "n_layers": 8,
    "n_heads": 6,
    "n_kv_heads": 6,
    "mlp_hidden_size": 1024,
}  # 15.7 M parameters with the vocabulary
SMALL_MODEL = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
COMMON = {"family": "llada", "rope_theta": 10000.0, "max_sequence_length": 1280, "dtype": "bfloat16"}
TOKENS, SMALL_TOKENS = 32_768, 960  # of a batch, about
LEARNING_RATE, WARMUP, DECAY = 0.002, 200, 0.5  # the last is a share of the time
SAVE_EVERY, RESERVE = 120.0, 75.0  # seconds: between checkpoints; kept for the last one and for scoring
SMALL_RESERVE = 25.0
LONG = 300  # training does not wait until the steps of longer rows are compiled
SHARD = 15_000_000  # bytes of a file, at most
NAME = "sibling"  # sibling-0.safetensors and so on
EVERY = 20  # steps between two looks at the loss
TRIES = 100  # steps of a small run
Steps = dict[int, concurrent.futures.Future[Any]]  # a bucket's length -> its step, compiled in the background


@dataclasses.dataclass(frozen=True)
class Bucket:
    """As `jaxdiff.train.data.Bucket`, but `since` and `until` are shares of the time."""

    name: str
    length: int
    weight: float
    shortest: int = 0
    since: float = 0.0
    until: float = 1.0


BUCKETS = (
    Bucket("drills", problems.PACKED, 0.30, until=0.3),
    Bucket("steps", problems.PACKED, 0.25, until=0.5),
    Bucket("steps", problems.PACKED, 0.08, since=0.5),
    Bucket("problems", 128, 0.17),
    Bucket("problems", 192, 0.32, shortest=112),
    Bucket("problems", 320, 0.22, shortest=176),
    Bucket("problems", 1120, 0.03),
)


class Rows:
    """The problems as arrays, and batches of a bucket drawn from them."""

    def __init__(self, folder: Path, eos: int, tokens: int) -> None:
        """`tokens`: of a batch, about."""
        with np.load(folder / "rows.npz") as file:
            self._held = dict(file)
        self._eos, self._tokens = eos, tokens
        self._lengths = self._held["prompts"].astype(np.int64) + self._held["answers"]
        self._first = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._members = {b: np.flatnonzero((self._lengths >= b.shortest) & (self._lengths < b.length)) for b in BUCKETS}

    def batch(self, bucket: Bucket, rng: np.random.Generator) -> Batch:
        rows = max(1, self._tokens // bucket.length)
        if bucket.name != "problems":
            packed = self._held[f"{bucket.name}_tokens"], self._held[f"{bucket.name}_answers"]
            chosen = rng.integers(0, len(packed[0]), rows)
            nothing = np.zeros(rows, np.int32)
            return Batch(packed[0][chosen].astype(np.int32), packed[1][chosen], nothing, nothing)
        chosen = rng.choice(self._members[bucket], rows)
        column = np.arange(bucket.length)[None]
        there = column < self._lengths[chosen, None]
        at = np.where(there, self._first[chosen, None] + column, 0)
        tokens = np.where(there, self._held["tokens"][at], self._eos).astype(np.int32)
        prompts = self._held["prompts"][chosen].astype(np.int32)
        return Batch(tokens, column >= prompts[:, None], prompts, self._held["answers"][chosen].astype(np.int32) + 1)


def train(job: Job) -> None:
    """Train until the stage's time is nearly over; save every two minutes and at the end; score held-out problems."""
    job.device()
    tokenizer = checkpoint.load_tokenizer(CARRIED)
    if tokenizer is None or not (CARRIED / "rows.npz").is_file():
        raise FileNotFoundError(f"{CARRIED}: no problems; run python -m experiments.gpu.problems first, and carry them")
    config: dict[str, Any] = COMMON | {
        "vocab_size": problems.VOCABULARY,
        "mask_token_id": 0,
        "eos_token_id": tokenizer.eos_id,
    }
    model = jaxdiff.build(config | (SMALL_MODEL if job.small else MODEL))
    rows = Rows(CARRIED, tokenizer.eos_id, SMALL_TOKENS if job.small else TOKENS)
    before, params = resumed(job.out, model)
    recipe, optimizer = rules(config["vocab_size"])
    state: Any = {"params": params, "optimizer": optimizer.init(params)}
    steps = compiled(model, optimizer, recipe, state, rows)
    concurrent.futures.wait([steps[b.length] for b in BUCKETS if b.name == "problems" and b.length < LONG])
    job.put(parameters=sum(x.size for x in jax.tree.leaves(params)), left_when_training_begins=job.left)

    rng = np.random.default_rng([before["steps"], 1])
    seconds, since, saved, seen = job.left - (SMALL_RESERVE if job.small else RESERVE), time.monotonic(), 0.0, 0
    done = 0
    curve: list[dict[str, Any]] = []
    losses: dict[int, list[Any]] = {}
    for step in range(TRIES if job.small else 10**9):
        spent = time.monotonic() - since
        share = spent / max(seconds, 1e-9)
        if share >= 1.0:
            break
        batch = rows.batch(drawn(share, rng, steps), rng)
        rate = min(1.0, (1.0 - share) / DECAY)
        state["optimizer"][1].hyperparams["step_size"] = jnp.float32(rate)
        state, loss = steps[batch.tokens.shape[1]].result()(state, jnp.int32(before["steps"] + step), batch, Frozen())
        losses.setdefault(batch.tokens.shape[1], []).append(loss)
        seen, done = seen + batch.tokens.size, step + 1
        if done % EVERY == 0:
            means = {length: float(jnp.stack(values).mean()) for length, values in sorted(losses.items())}
            curve.append({"step": done, "seconds": round(spent, 1), "rate": round(rate, 3), "loss": means})
            losses = {}
            if not all(map(np.isfinite, means.values())):
                raise FloatingPointError(f"step {done}: loss {means}; the checkpoint before it stands")
            if spent - saved > SAVE_EVERY:
                saved = spent
                save(job.out, state["params"], told(before, done, seen, spent))
                report(job, before, done, seen, spent, curve)
    spent = time.monotonic() - since
    save(job.out, state["params"], told(before, done, seen, spent))
    report(job, before, done, seen, spent, curve)
    job.put(
        not_compiled={n: str(step.exception())[:300] for n, step in steps.items() if step.done() and step.exception()}
    )
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["params"])
    del state
    job.part("threshold 0.9", lambda: scored(job, model, params, tokenizer, Threshold(0.9)))
    if job.left > 30:
        job.part("one token a step", lambda: scored(job, model, params, tokenizer, Fixed()))


def rules(vocabulary: int) -> tuple[Recipe, optax.GradientTransformation]:
    """The shipped model's recipe with a plateau that does not end, and its optimizer, scaled from outside."""
    recipe = Recipe.read(ROOT / "checkpoints" / "gsm-1m" / "recipe.json")
    model = recipe.model | MODEL | {"vocab_size": vocabulary, "dtype": "bfloat16"}
    recipe = dataclasses.replace(
        recipe, model=model, steps=10**9, warmup=WARMUP, decay=1, learning_rate=LEARNING_RATE, buckets=()
    )
    return recipe, optax.chain(make_optimizer(recipe), optax.inject_hyperparams(optax.scale)(step_size=1.0))


def compiled(model: Any, optimizer: Any, recipe: Recipe, state: Any, rows: Rows) -> Steps:
    """The step for each bucket's shape, compiled all at a time in the background."""
    step, rng = make_step(model, optimizer, recipe), np.random.default_rng(0)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, jnp.int32(0)))
    batches = {batch.tokens.shape: batch for batch in (rows.batch(bucket, rng) for bucket in BUCKETS)}
    pool = concurrent.futures.ThreadPoolExecutor(len(batches))
    make = lambda batch: step.lower(*given, batch, Frozen()).compile()  # type: ignore[attr-defined]  # noqa: E731
    return {shape[1]: pool.submit(make, batch) for shape, batch in batches.items()}


def drawn(share: float, rng: np.random.Generator, steps: Steps) -> Bucket:
    """A bucket of this share of the time whose step is compiled."""
    ready = {length for length, step in steps.items() if step.done() and step.exception() is None}
    weights = np.asarray([b.weight * (b.since <= share < b.until) * (b.length in ready) for b in BUCKETS])
    return BUCKETS[int(rng.choice(len(BUCKETS), p=weights / weights.sum()))]


def told(before: dict[str, Any], steps: int, tokens: int, seconds: float) -> dict[str, Any]:
    """What was trained so far, earlier calls with it."""
    return {
        "steps": before["steps"] + steps,
        "tokens": before["tokens"] + tokens,
        "seconds": before["seconds"] + seconds,
        "calls": before["calls"] + 1,
    }


def report(
    job: Job, before: dict[str, Any], steps: int, tokens: int, seconds: float, curve: list[dict[str, Any]]
) -> None:
    thin = curve[:: max(1, len(curve) // 40)] + curve[-1:]
    job.put(trained=told(before, steps, tokens, seconds), tokens_per_second=tokens / max(seconds, 1e-9), curve=thin)


# --- checkpoint -----------------------------------------------------------------------------------------------------


def save(folder: Path, params: Any, facts: dict[str, Any]) -> None:
    """The params in bfloat16, in files of at most SHARD bytes; each is there as a whole, the facts are in all."""
    leaves = {name: np.asarray(x.astype(jnp.bfloat16)) for name, x in _flat(params).items()}
    files, size = [{}], 0
    for name, leaf in leaves.items():
        if files[-1] and size + leaf.nbytes > SHARD:
            files, size = [*files, {}], 0
        files[-1][name] = leaf
        size += leaf.nbytes
    facts = {"facts": json.dumps(facts), "files": str(len(files))}
    scratch = folder / f"{NAME}.new"
    for number, part in enumerate(files):
        save_file(part, scratch, metadata=facts)
        scratch.replace(folder / f"{NAME}-{number}.safetensors")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The facts and leaves of a folder's checkpoint; None where it has none, or files of different saves."""
    from safetensors import safe_open

    files, leaves, facts = sorted(folder.glob(f"{NAME}-*.safetensors")), {}, set()
    for file in files:
        with safe_open(file, "np") as opened:
            facts.add((opened.metadata()["facts"], int(opened.metadata()["files"])))
        leaves |= load_file(file)
    if len(facts) != 1 or next(iter(facts))[1] != len(files):
        return None
    return json.loads(next(iter(facts))[0]), leaves


def resumed(out: Path, model: Any) -> tuple[dict[str, Any], Any]:
    """What was trained before, with its weights in float32; else nothing, with fresh ones."""
    fresh = model.init(jax.random.key(0))
    shapes = {name: leaf.shape for name, leaf in _flat(fresh).items()}
    for folder in (out, RESULTS):
        found = read(folder)
        if found is not None and {name: leaf.shape for name, leaf in found[1].items()} == shapes:
            return found[0], _tree(found[1], jnp.float32)
    return {"steps": 0, "tokens": 0, "seconds": 0.0, "calls": 0}, fresh


def _flat(params: Any) -> dict[str, Any]:
    return cast(dict[str, Any], flatten_dict(params, sep="/"))


def _tree(leaves: dict[str, np.ndarray], dtype: Any) -> Any:
    return unflatten_dict({name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items()}, sep="/")


def scored(job: Job, model: Any, params: Any, tokenizer: Any, policy: Any) -> dict[str, Any]:
    """Held-out problems of all templates, in one batch."""
    held = [Problem(**raw) for raw in json.loads((CARRIED / "held_out.json").read_text())][: 8 if job.small else None]
    generated = 64 if job.small else 256
    prompts = [tokenizer.prompt(problem.question) for problem in held]
    padded, origin = pad_to_bucket(prompts, tokenizer.eos_id, model.config.max_sequence_length - generated)
    decoder = jaxdiff.Decoder(policy=policy, stop=jaxdiff.stoppers.Eos())
    since = time.perf_counter()
    result = jaxdiff.decode(model, params, padded, decoder, gen_length=generated, origin=origin)
    answers = np.asarray(result.tokens)[:, padded.shape[1] :]
    right = [problems.verify(tokenizer.decode(row), one) for row, one in zip(answers, held, strict=True)]
    known = sorted({problem.template for problem in held})
    by = {k: float(np.mean([r for r, p in zip(right, held, strict=True) if p.template == k])) for k in known}
    return {
        "accuracy": float(np.mean(right)),
        "n": len(held),
        "nfe": float(np.mean(np.asarray(result.nfe))),
        "seconds_with_compiling": time.perf_counter() - since,
        "templates_without_a_right_answer": [k for k, share in by.items() if share == 0.0],
    }


def main() -> None:
    """Make a model folder of what came back: safetensors as its family publishes them, in files of at most SHARD."""
    out, target = map(Path, sys.argv[1:])
    found = read(out)
    if found is None:
        raise SystemExit(f"{out}: no checkpoint that is whole ({NAME}-*.safetensors)")
    facts, leaves = found
    tokenizer = checkpoint.load_tokenizer(CARRIED)
    assert tokenizer is not None
    (vocabulary, width), depth = leaves["wte"].shape, leaves["layers/ff_norm/weight"].shape[0]
    shape = next(model for model in (MODEL, SMALL_MODEL) if (model["d_model"], model["n_layers"]) == (width, depth))
    ids = {"vocab_size": vocabulary, "mask_token_id": 0, "eos_token_id": tokenizer.eos_id}
    with tempfile.TemporaryDirectory() as scratch:
        params = _tree(leaves, ml_dtypes.bfloat16)
        checkpoint.save(Path(scratch, "ours"), jaxdiff.build(COMMON | ids | shape), params, tokenizer_from=CARRIED)
        jaxdiff.convert.folder.export(Path(scratch, "ours"), target, shard_bytes=SHARD)
    (target / "trained.json").write_text(json.dumps(facts) + "\n")
    print(f"{target}: {sum(x.size for x in leaves.values()):,} parameters, {facts}")


if __name__ == "__main__":
    main()
