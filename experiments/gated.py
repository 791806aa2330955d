"""A gated adapter beside one that is on everywhere: where keys and values stay the base's, how far others drift, and
what cache `dual` costs.

    python experiments/gated.py

First random models of each kind of attention with random adapters: which keys and values are equal to the bit. Then the
model that ships with adapters of a few steps (the active block is masked, what follows it too): the drift of visible
tokens on validation problems, and the loss of a block's masked tokens by a pass over the whole canvas and by one over
the block, whose other keys and values are of the block's first step, as `dual` has them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdiff
from jaxdiff import Inputs
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.models import Llada, LladaConfig, Sdar, SdarConfig
from jaxdiff.models.lora import LoraRecipe, adapt, join, split
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.base import Split

RANK, ALPHA, STEPS, RATE, ROWS = 8, 16.0, 80, 1e-3, 8
LENGTH, BLOCK, PROMPT = 224, 32, 8
VALIDATION, SEED = 128, 0
SHAPE: dict[str, Any] = dict(vocab_size=64, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, mlp_hidden_size=48)
SHAPE |= dict(mask_token_id=3, eos_token_id=1, max_sequence_length=64, dtype="float32")
RESULTS = Path(__file__).parent / "results"

Params = Any


def main() -> None:
    found = {"attention": attention(), "shipped": shipped()}
    print(json.dumps(found, indent=1))
    setting = dict(model=SHIPPED, rank=RANK, alpha=ALPHA, steps=STEPS, rate=RATE, rows=ROWS, problems=VALIDATION)
    (RESULTS / "gated.json").write_text(json.dumps({"setting": setting} | found, indent=1) + "\n")


def attention() -> dict[str, Any]:
    """Of each kind: which share of keys and values of an adapted model is its base's to the bit, layer by layer, where
    no mask is seen from and at the other visible tokens.
    """
    kinds = {
        "causal": Sdar(SdarConfig(**SHAPE, attention_block=1)),
        "blocks of 4": Sdar(SdarConfig(**SHAPE, attention_block=4)),
        "prefix_lm": Llada(LladaConfig(**SHAPE, prefix_lm=True)),
        "all see all": Llada(LladaConfig(**SHAPE)),
    }
    visible = np.arange(24) % 3 != 2  # every third token is masked, from the prompt's end on
    visible[:PROMPT] = True
    tokens = jnp.asarray(np.where(visible, np.arange(24) + 8, SHAPE["mask_token_id"])[None], jnp.int32)
    found = {}
    for name, model in kinds.items():
        unaware = np.zeros(24, bool)
        unaware[: {"all see all": 0}.get(name, PROMPT)] = True
        params = jax.jit(model.init)(jax.random.key(0))
        base = stored(model, params, tokens)
        for way in ("gated", "everywhere"):
            own = stored(model, moved(params, gated=way == "gated"), tokens)
            same = np.all(own == base, axis=(0, 2, 3, 5))  # layer, position; of keys and of values
            found[f"{name}, {way}"] = {
                "no mask is seen": [share(layer[unaware]) for layer in same],
                "other visible tokens": [share(layer[visible & ~unaware]) for layer in same],
            }
    return found


def stored(model: Any, params: Params, tokens: Any) -> np.ndarray:
    """Keys and values [2 N B K M E] of a pass over the canvas."""

    @jax.jit
    def run(params: Params, tokens: Any) -> Any:
        inputs = Inputs.whole(tokens, prompt_length=jnp.full((tokens.shape[0],), PROMPT))
        return model.apply(params, inputs, model.empty_kv(*tokens.shape))[1]

    return np.stack(run(params, tokens)["layers"])


def moved(params: Params, *, gated: bool) -> Params:
    """With an adapter of random numbers."""
    recipe = LoraRecipe(RANK, ALPHA, gated=gated)
    own, frozen = split(adapt(params, jax.random.key(1), recipe))
    generator = np.random.default_rng(0)
    return join(jax.tree.map(lambda x: generator.normal(0, 0.1, x.shape).astype(np.float32), own), frozen)


def share(same: np.ndarray) -> float | None:
    return round(float(same.mean()), 4) if same.size else None


def shipped() -> dict[str, Any]:
    """Of the model that ships: an adapter of each kind after the same steps, beside the base."""
    checkpoint = jaxdiff.load(SHIPPED, dtype="float32")
    model = checkpoint.model
    rows = {"train": data(checkpoint, "train"), "validation": data(checkpoint, "validation")}
    ways = {"base": checkpoint.params}
    for name, gated in (("gated", True), ("everywhere", False)):
        ways[name] = trained(model, checkpoint.params, rows["train"], gated=gated)
    states = [view(rows["validation"], np.arange(first, first + ROWS), first) for first in range(0, VALIDATION, ROWS)]
    found: dict[str, Any] = {}
    kept = [np.asarray(measure(model)(ways["base"], *state)["kv"]) for state in states]
    for name, params in ways.items():
        run = measure(model)
        numbers = [jax.tree.map(np.asarray, run(params, *state)) for state in states]
        same, drift = [], []
        for state, own, base in zip(states, numbers, kept, strict=True):
            visible = np.asarray(state[0] != model.config.mask_token_id)
            gap, size = (np.sum(np.square(x), axis=(0, 3, 5)) for x in (own["kv"] - base, base))
            same.append([np.mean((gap == 0)[n][visible]) for n in range(len(gap))])
            drift.append([np.sqrt(np.sum(gap[n][visible]) / np.sum(size[n][visible])) for n in range(len(gap))])
        found[name] = {
            "loss, no cache": float(np.mean([one["none"] for one in numbers])),
            "loss, dual": float(np.mean([one["dual"] for one in numbers])),
            "equal to the bit by layer": np.mean(same, axis=0).round(4).tolist(),
            "drift by layer": np.mean(drift, axis=0).round(6).tolist(),
        }
    return found


def data(checkpoint: Any, of: Split) -> tuple[np.ndarray, np.ndarray]:
    """Problems with their worked answers: ids [n L], filled with end-of-text, and where the answers begin."""
    count = VALIDATION if of == "validation" else STEPS * ROWS
    tokens, firsts = np.full((count, LENGTH), checkpoint.tokenizer.eos_id, np.int32), np.zeros(count, np.int32)
    for row, problem in enumerate(itertools.islice(gsm_symbolic.problems(of, SEED), count)):
        prompt = checkpoint.tokenizer.prompt(problem.question)
        line = [*prompt, *checkpoint.tokenizer.encode(problem.worked)][:LENGTH]
        tokens[row, : len(line)], firsts[row] = line, len(prompt)
    return tokens, firsts


def view(rows: tuple[np.ndarray, np.ndarray], which: np.ndarray, seed: int) -> tuple[Any, Any, Any, Any]:
    """A batch as a decode sees it: the first block of the answer or the second is active, a share of it is masked, and
    all that follows. Noisy ids, clean ids, the column of the block, the share.
    """
    generator, (tokens, firsts) = np.random.default_rng(seed), (rows[0][which], rows[1][which])
    start = firsts + BLOCK * generator.integers(0, 2, len(which)).astype(np.int32)
    start = np.minimum(start, LENGTH - BLOCK).astype(np.int32)
    column, level = np.arange(LENGTH)[None], generator.uniform(0.3, 1.0, (len(which), 1))
    inside = (column >= start[:, None]) & (column < start[:, None] + BLOCK)
    masked = (inside & (generator.uniform(size=tokens.shape) < level)) | (column >= start[:, None] + BLOCK)
    return jnp.asarray(np.where(masked, 0, tokens)), jnp.asarray(tokens), jnp.asarray(start), jnp.asarray(level)


def block_loss(model: Any, params: Params, hidden: Any, noisy: Any, clean: Any, start: Any) -> Any:
    """Cross entropy of the block's masked tokens from its features [B W D], the mean over them."""
    at = start[:, None] + jnp.arange(BLOCK)[None]
    logits = hidden @ model.head(params)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.take_along_axis(clean, at, axis=1))
    masked = jnp.take_along_axis(noisy, at, axis=1) == model.config.mask_token_id
    return jnp.sum(entropy * masked) / jnp.sum(masked)


def trained(model: Any, params: Params, rows: tuple[np.ndarray, np.ndarray], *, gated: bool) -> Params:
    """An adapter of STEPS steps of Adam on the same batches, the base frozen."""
    own, frozen = split(adapt(params, jax.random.key(SEED), LoraRecipe(RANK, ALPHA, gated=gated)))
    optimizer = optax.adam(RATE)
    state = optimizer.init(own)

    @jax.jit
    def step(own: Params, state: Any, noisy: Any, clean: Any, start: Any) -> Any:
        def loss(own: Params) -> Any:
            whole = join(own, frozen)
            features, _ = model.apply(whole, Inputs.whole(noisy))
            at = start[:, None, None] + jnp.arange(BLOCK)[None, :, None]
            return block_loss(model, whole, jnp.take_along_axis(features, at, axis=1), noisy, clean, start)

        value, gradient = jax.value_and_grad(loss)(own)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(own, updates), state, value

    for number in range(STEPS):
        which = np.arange(number * ROWS, (number + 1) * ROWS)
        own, state, value = step(own, state, *view(rows, which, number)[:3])
        if number % 20 == 0:
            print(f"gated {gated}, step {number}: {float(value):.4f}")
    return join(own, frozen)


@functools.cache
def measure(model: Any) -> Any:
    """Of a batch: the block's loss by a pass over the canvas and by one over the block; the first's keys and values."""

    @jax.jit
    def run(params: Params, noisy: Any, clean: Any, start: Any, level: Any) -> dict[str, Any]:
        del level
        inside = jnp.arange(LENGTH)[None] >= start[:, None]
        first = jnp.where(inside, model.config.mask_token_id, noisy)  # the canvas as the block's first step sees it
        rows, empty = Inputs.whole(noisy), model.empty_kv(*noisy.shape)
        features, kv = model.apply(params, rows, empty)
        at = start[:, None] + jnp.arange(BLOCK, dtype=jnp.int32)[None]
        whole = jnp.take_along_axis(features, at[..., None], axis=1)
        _, before = model.apply(params, dataclasses.replace(rows, tokens=first), empty)
        window = jnp.take_along_axis(noisy, at, axis=1)
        block = dataclasses.replace(rows, tokens=window, positions=at)
        over, _ = model.apply(params, block, before, start)
        losses = (block_loss(model, params, hidden, noisy, clean, start) for hidden in (whole, over))
        none, dual = losses
        return {"none": none, "dual": dual, "kv": jnp.stack(kv["layers"])}

    return run


if __name__ == "__main__":
    main()
