"""Fit a learned filter to traces: it returns the pytree that is a policy's heart.

The published recipe (ims-kdks/Learning-to-Parallel-Decoding `train.ipynb`) is `official`: two layers of the block's
width on raw probabilities, binary cross entropy on every position, AdamW at 0.003. What differs on purpose: prompts,
not rows, are split, so that no prompt is on both sides; and a step takes a minibatch, not all rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.policies.filters import BlockFilter, ConfidenceFilter, Filter, Layers, LocalFilter, init_layers, mlp
from jaxdiff.pytree import InputError, pytree
from jaxdiff.train.traces import Traces

# `hidden` is local, with the model's hidden features; `confidence` sees the neighbours' confidences alone.
KINDS = ("block", "local", "hidden", "confidence")
CHUNK = 250  # steps in one compiled call: how often the validation loss is looked at


@dataclasses.dataclass(frozen=True)
class FilterRecipe:
    """How a filter is made."""

    kind: str = "block"  # one of KINDS
    layers: int = 2
    hidden: int | None = None  # width between layers; None: the block's length, as published
    reach: int = 3  # neighbours on each side that a filter sees, but for one of kind block
    wrong: float = 1.0  # what a wrong commit costs, in waits
    steps: int = 5000
    positions: int = 2**15  # of a minibatch: blocks of so many in all; for a local filter they are masked ones
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"filter kind: found {self.kind!r}, expected {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        for name in ("layers", "steps", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"filter {name}: found {getattr(self, name)}, expected at least 1")
        if self.reach < 0:
            raise InputError(f"filter reach: found {self.reach}, expected 0 or more")
        if not 0.0 <= self.wrong < np.inf:
            raise InputError(f"filter wrong: found {self.wrong}, expected a number of 0 or more")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A filter and how the fit went; losses are the recipe's own, on the validation prompts."""

    filter: Filter
    losses: list[float]  # after each chunk of steps
    best: float
    rows: int
    prompts: int


@pytree
class Labelled:
    """Blocks [R W], or the positions of all blocks that are judged [R]."""

    inputs: Float[Array, "R F"]
    label: Float[Array, "R ..."]
    weight: Float[Array, "R ..."]


def fit_filter(
    traces: Traces | Sequence[Traces], recipe: FilterRecipe, progress: Callable[[int, float], None] | None = None
) -> Fitted:
    """The filter of lowest validation loss; a tenth of the prompts, chosen by their ids, is kept for that.

    The published loss counts every position of the block alike; a local filter is fitted to masked ones alone, since
    only they can be committed, and `wrong` weighs a wrong commit against a wait.

    Args:
        traces: several collections, for a local filter of any block lengths; a prompt's id means the same in all.

    Raises InputError for traces that are empty, not finite, or of too few prompts to split; for a block filter, of
    several block lengths; and where no loss was a number.
    """
    parts = [traces] if isinstance(traces, Traces) else list(traces)
    windows = sorted({part.final.shape[1] for part in parts})
    if recipe.kind == "block" and len(windows) > 1:
        raise InputError(f"traces: found blocks of {windows}, but a filter of kind block judges one length; name one")
    for part in parts:
        part.check()
    ids = np.concatenate([part.prompt for part in parts])
    held = kept_apart(ids)
    if held.all() or not held.any():
        raise InputError(f"traces: found {len(np.unique(ids))} prompts, too few to keep a tenth apart; collect more")
    features = min(part.hidden.shape[-1] for part in parts) if recipe.kind == "hidden" else 0
    if recipe.kind == "hidden" and not features:
        raise InputError("traces: hold no hidden features, which kind hidden reads; collect them with --features")
    hidden = windows[0] if recipe.hidden is None else recipe.hidden
    made: Any = {
        "block": BlockFilter(()),
        "confidence": ConfidenceFilter((), recipe.reach),
    }.get(recipe.kind, LocalFilter((), recipe.reach, features))
    ends = (windows[0], windows[0]) if recipe.kind == "block" else (made.width, 1)
    rows, checked = (
        jax.tree.map(
            lambda *columns: jnp.concatenate(columns),
            *[_rows_of(part.take(kept_apart(part.prompt) == apart), recipe, made) for part in parts],
        )
        for apart in (False, True)
    )
    size = max(1, recipe.positions // windows[0]) if recipe.kind == "block" else recipe.positions
    layers = init_layers(jax.random.key(recipe.seed), (ends[0], *[hidden] * (recipe.layers - 1), ends[1]))
    best = fit_layers(layers, rows, checked, recipe, size, progress)
    return Fitted(
        dataclasses.replace(made, layers=best.layers),
        losses=best.losses,
        best=best.loss,
        rows=int((~held).sum()),
        prompts=len(np.unique(ids)),
    )


@dataclasses.dataclass(frozen=True)
class Best:
    """The layers of lowest validation loss, that loss, and those after each chunk of steps."""

    layers: Layers
    loss: float
    losses: list[float]


def fit_layers(
    layers: Layers,
    rows: Labelled,
    checked: Labelled,
    recipe: Any,
    size: int,
    progress: Callable[[int, float], None] | None = None,
) -> Best:
    """Binary cross entropy by AdamW with a cosine schedule, in minibatches of `size` rows.

    `checked`: the rows that say which layers are best. `recipe`: has steps, learning_rate, weight_decay and seed.
    Raises InputError where no validation loss was a number.
    """
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps), weight_decay=recipe.weight_decay
    )
    state: Any = (layers, optimizer.init(layers))  # type: ignore[arg-type]

    def loss(layers: Any, batch: Labelled) -> Float[Array, ""]:
        logits = mlp(layers, batch.inputs)
        logits = logits if logits.ndim == batch.label.ndim else logits[..., 0]
        nats = optax.sigmoid_binary_cross_entropy(logits, batch.label)
        return jnp.sum(nats * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)

    @functools.partial(jax.jit, static_argnums=2)
    def chunk(state: Any, first: Array, steps: int, rows: Labelled) -> Any:
        def one(state: Any, step: Array) -> tuple[Any, None]:
            layers, optimizer_state = state
            key = jax.random.fold_in(jax.random.key(recipe.seed), step)
            at = jax.random.randint(key, (min(size, rows.label.shape[0]),), 0, rows.label.shape[0])
            gradient = jax.grad(loss)(layers, jax.tree.map(lambda x: x[at], rows))
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, layers)
            return (optax.apply_updates(layers, updates), optimizer_state), None

        return jax.lax.scan(one, state, first + jnp.arange(steps))[0]

    judge = jax.jit(loss)
    losses: list[float] = []
    best, best_layers = np.inf, layers
    for first in range(0, recipe.steps, CHUNK):
        state = chunk(state, jnp.int32(first), min(CHUNK, recipe.steps - first), rows)
        losses.append(float(judge(state[0], checked)))
        if losses[-1] < best:
            best, best_layers = losses[-1], state[0]
        if progress is not None:
            progress(min(first + CHUNK, recipe.steps), losses[-1])
    if not np.isfinite(best):
        raise InputError(
            f"fit: the validation loss is {losses[-1]}, expected a number; take a smaller --learning-rate or --wrong"
        )
    return Best(best_layers, best, losses)


def kept_apart(prompts: Int[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
    """A tenth of the prompts, spread evenly over their ids and the same in every fit: they validate it."""
    return (prompts.astype(np.uint64) * np.uint64(2654435761) >> np.uint64(7)) % np.uint64(10) == 0


def _rows_of(traces: Traces, recipe: FilterRecipe, made: Any) -> Labelled:
    """`made`: the filter, without its layers."""
    seen = traces.evidence
    final = jnp.asarray(traces.final, jnp.float32)
    weight = jnp.where(final > 0, 1.0, recipe.wrong)
    if recipe.kind == "block":
        return Labelled(seen.prob, final, weight)
    inputs = made.inputs(seen)
    return Labelled(inputs[seen.masked], final[seen.masked], weight[seen.masked])
