"""Fit a drafter to a model's own trajectories: what it says of a later state, seen from an earlier one.

    state i -> the frozen model -> features -> the drafter, told of tokens i+1 ... i+j -> the frozen head
                                                        KL (the model at state i+j || that), at what is still masked

Of ADJUST's code (arXiv 2509.22738) are the teacher-forced unroll over the recorded tokens, the depth j drawn from
softmax(0.5^j), the pure KL, AdamW without decay, the clipping and the warm-up. What differs on purpose: the unroll is
over the block that is decoded, prompts (not windows) are kept apart, and the rate decays, for fits of minutes.

The sampler head is fitted to the same windows: at each position whose left neighbour is among the tokens told of.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdiff import parts
from jaxdiff.decode.checks import block_of
from jaxdiff.drafters import KINDS
from jaxdiff.files import json_line, parse_json, replaced_file
from jaxdiff.fills import Adjust, Head
from jaxdiff.leaves import fingerprint
from jaxdiff.models.drafter import Adjuster, SamplerHead, one_layer_of
from jaxdiff.protocols import Model, is_encoding
from jaxdiff.pytree import InputError
from jaxdiff.train.loop import until_sigterm
from jaxdiff.train.states import Source, Windows
from jaxdiff.train.trajectories import Trajectories
from jaxdiff.types import Inputs, Params, Span
from jaxdiff.weights import full

CHUNK = 250  # steps between two looks at the validation loss, after which the fit is saved
CHECKED = 16  # batches that the validation loss is over
POSITIONS = 256  # whose logits are held at once


@dataclasses.dataclass(frozen=True)
class DrafterRecipe:
    """How a drafter is made.

    Attributes:
        kind: `adjust` or `head`.
        k: tokens of a full pass that it is fitted for: it is unrolled over k - 1 of them at most.
        rows: windows of a step.
        learning_rate: at its highest; a large model takes less (the published one 5e-5).
    """

    kind: str = "adjust"
    k: int = 8
    steps: int = 3000
    rows: int = 32
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"drafter kind: found {self.kind!r}, expected {' or '.join(KINDS)}")
        for name, least in (("k", 2), ("steps", 1), ("rows", 1)):
            if getattr(self, name) < least:
                raise InputError(f"drafter {name}: found {getattr(self, name)}, expected at least {least}")
        if not 0.0 < self.learning_rate < np.inf:
            raise InputError(f"drafter learning_rate: found {self.learning_rate}, expected a number above 0")


@dataclasses.dataclass(frozen=True)
class FittedDrafter:
    """A fill and how the fit went: KL in nats a position, on windows of the prompts kept apart.

    Attributes:
        before: of the model's own belief at the earlier state: what `parallel` draws from.
        losses: after each chunk of steps.
        best: the least of these and `before`, whose weights the fill has: a drafter begins as one that changes nothing.
    """

    fill: Adjust | Head
    before: float
    losses: list[float]
    best: float
    rows: int
    prompts: int


def fit_drafter(
    model: Model,
    params: Params,
    trajectories: Trajectories,
    recipe: DrafterRecipe,
    *,
    saved: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FittedDrafter | None:
    """The drafter of lowest validation loss; a tenth of the prompts, chosen by their ids, is kept for that.

    The batch of a step hangs on the seed and the step alone, so that a fit that was stopped and goes on ends as one
    that was not.

    Args:
        trajectories: of this model, as `load_trajectories` checks; of another one the fit is of no use.
        saved: a file that holds the fit so far, written at each look at the loss and on SIGTERM. Who has written the
            drafter may remove it.
        progress: called at each look with the steps done and the loss.

    Returns None where SIGTERM ended it early.

    Raises InputError for a model that goes with no such fill, for trajectories with too few prompts to split or without
    two masks in a block, for a file of another fit, and where no loss was a number.
    """
    if is_encoding(model):
        raise InputError(
            f"fit: found a model that encodes visible tokens once ({type(model).__name__}), expected one that fills "
            "with a drafter's help; it takes fill parallel alone"
        )
    windows = Source(trajectories, block_of(model, trajectories.block_length), recipe.k, recipe.rows, recipe.seed)
    definition: Any = KINDS[recipe.kind][1](one_layer_of(model.config))
    warmup = min(250, -(-recipe.steps // 10))
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, max(recipe.steps, warmup + 1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.0))
    loss = functools.partial(_loss, functools.partial(UNROLLED[recipe.kind], definition, recipe.k), model)

    @functools.partial(jax.jit, donate_argnums=0)
    def step_fn(state: Any, params: Params, batch: Windows) -> Any:
        drafter, optimizer_state = state
        gradient = jax.grad(lambda drafter: _mean(loss(drafter, params, batch)))(drafter)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, drafter)
        return optax.apply_updates(drafter, updates), optimizer_state

    look = jax.jit(loss)

    def judged(drafter: Params) -> float:
        sums = [look(drafter, params, windows.checked(i)) for i in range(CHECKED)]
        nats, count = np.sum(jax.device_get(sums), axis=0)
        if not np.isfinite(nats):
            raise InputError("fit: the validation loss is no number; take a smaller --learning-rate, or a sound model")
        return float(nats / max(count, 1.0))

    fresh = jax.jit(definition.init)(jax.random.key(recipe.seed))
    state = (fresh, optimizer.init(fresh))
    kept = None if saved is None else _Kept(saved, _setting(model, params, trajectories, recipe))
    at = None if kept is None else kept.read(fresh, state)
    at = _Progress(0, fresh, state, judged(fresh), []) if at is None else at
    state = jax.tree.map(jnp.array, at.state)  # copies: a step donates them
    with until_sigterm() as asked:
        for step in range(at.step, recipe.steps):
            state = step_fn(state, params, windows.fitted(step))
            looks = step + 1 == recipe.steps or (step + 1) % CHUNK == 0
            if looks:
                value = judged(state[0])
                best = jax.device_get(state[0]) if value < min([at.before, *at.losses]) else at.best
                at = dataclasses.replace(at, best=best, losses=[*at.losses, value])
                if progress is not None:
                    progress(step + 1, value)
            if kept is not None and (looks or asked.is_set()):
                at = dataclasses.replace(at, step=step + 1, state=jax.device_get(state))
                kept.write(at)
            if asked.is_set() and step + 1 < recipe.steps:
                return None
    fill = KINDS[recipe.kind][0](definition, jax.tree.map(jnp.asarray, at.best), fingerprint(params), recipe.k)
    return FittedDrafter(fill, at.before, at.losses, min(at.before, *at.losses), windows.rows, windows.prompts)


def _loss(
    unrolled: Any, model: Model, drafter: Params, params: Params, batch: Windows
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The KL in nats, summed over the positions it is taken at, and how many they are."""
    config = model.config
    mask = config.mask_token_id

    def features(canvas: Int[Array, "B L"]) -> Float[Array, "B W D"]:
        first = jnp.min(jnp.where(batch.rank >= 0, jnp.arange(canvas.shape[1])[None], canvas.shape[1]), axis=1)
        inputs = Inputs.whole(canvas, batch.origin, prompt_length=first - batch.origin)
        read = Span(batch.start, batch.block)
        return jax.lax.stop_gradient(model.apply(params, inputs, read=read)[0])

    hidden, target = features(batch.canvas(0, mask)), features(batch.canvas(batch.told, mask))
    drafted, at = unrolled(drafter, functools.partial(model.embed, params), batch, hidden, mask)
    return _divergence(target, drafted, at, model.head(params), config)


def _adjusted(
    definition: Adjuster, k: int, drafter: Params, embed: Any, batch: Windows, hidden: Float[Array, "B W D"], mask: int
) -> tuple[Float[Array, "B W D"], Bool[Array, "B W"]]:
    """The features after `told` passes, each of which sees a token more; at all that is masked then."""
    positions = batch.start[:, None] + jnp.arange(batch.block, dtype=jnp.int32)[None] - batch.origin[:, None]

    def one(hidden: Float[Array, "B W D"], depth: Int[Array, ""]) -> tuple[Float[Array, "B W D"], None]:
        seen = embed(batch.block_of(batch.canvas(depth, mask)))
        moved = definition.apply(drafter, hidden, seen, positions, positions >= 0)
        return jnp.where((depth <= batch.told)[:, None, None], moved, hidden), None

    return jax.lax.scan(one, hidden, jnp.arange(1, k, dtype=jnp.int32))[0], batch.masked()


def _corrected(
    definition: SamplerHead,
    k: int,
    drafter: Params,
    embed: Any,
    batch: Windows,
    hidden: Float[Array, "B W D"],
    mask: int,
) -> tuple[Float[Array, "B W D"], Bool[Array, "B W"]]:
    """The features corrected by the token to the left; where that is among those told of."""
    del k, mask
    rank = jnp.pad(batch.block_of(batch.rank), ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    told = (rank >= batch.first[:, None]) & (rank < (batch.first + batch.told)[:, None])
    left = jnp.pad(batch.block_of(batch.tokens), ((0, 0), (1, 0)))[:, :-1]
    return definition.apply(drafter, hidden, embed(left)), batch.masked() & told


UNROLLED: dict[str, Callable[..., Any]] = {"adjust": _adjusted, "head": _corrected}


def _divergence(
    target: Float[Array, "B W D"],
    drafted: Float[Array, "B W D"],
    at: Bool[Array, "B W"],
    head: Float[Any, "D V"],
    config: Any,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """KL (target || drafted) of what may be predicted, summed over the positions; POSITIONS of them at once."""
    wide, count = full(head, drafted.dtype), at.size
    allowed = (jnp.arange(wide.shape[1]) < config.vocab_size) & (jnp.arange(wide.shape[1]) != config.mask_token_id)

    def log_probs(features: Float[Array, "n D"]) -> Float[Array, "n V"]:
        logits = jnp.matmul(features, wide, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(jnp.where(allowed[None], logits, -1e30), axis=-1)

    @jax.checkpoint
    def piece(parts: tuple[Array, Array, Array]) -> Float[Array, ""]:
        target, drafted, weight = parts
        p, q = log_probs(target), log_probs(drafted)
        return jnp.sum(weight * jnp.sum(jnp.exp(p) * (p - q), axis=-1))

    size = min(POSITIONS, count)
    flat = (target.reshape(count, -1), drafted.reshape(count, -1), at.reshape(count).astype(jnp.float32))
    padded = [jnp.pad(x, [(0, -count % size)] + [(0, 0)] * (x.ndim - 1)) for x in flat]
    pieces = tuple(x.reshape(-1, size, *x.shape[1:]) for x in padded)
    return jnp.sum(jax.lax.map(piece, pieces)), jnp.sum(flat[2])


def _mean(sums: tuple[Float[Array, ""], Float[Array, ""]]) -> Float[Array, ""]:
    return sums[0] / jnp.maximum(sums[1], 1.0)


@dataclasses.dataclass(frozen=True)
class _Progress:
    step: int
    best: Params
    state: Any
    before: float
    losses: list[float]


class _Kept:
    """The file of a fit that is not done."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self._path, self._setting = path, setting

    def read(self, best: Params, state: Any) -> _Progress | None:
        """How far the fit has come, in pytrees as these; None where there is no file. Raises InputError for one of
        another fit.
        """
        if not self._path.is_file():
            return None
        again = "delete it, and the fit begins anew"
        try:
            with np.load(self._path) as file:
                told = parse_json(str(file["told"]))
                arrays = [file[f"{index}"] for index in range(len(file.files) - 1)]
            setting, done = told["setting"], told["done"]
            best, state = jax.tree.unflatten(jax.tree.structure((best, state)), arrays)
            found = _Progress(int(done["step"]), best, state, float(done["before"]), list(done["losses"]))
        except Exception as error:
            raise InputError(f"{self._path}: damaged ({error}); {again}") from error
        if differs := parts.differences(setting, self._setting):
            raise InputError(f"{self._path}: holds the beginning of a fit with another {differs}; {again}")
        return found

    def write(self, at: _Progress) -> None:
        done = {"step": at.step, "before": at.before, "losses": at.losses}
        told = json_line({"setting": self._setting, "done": done})
        leaves = {f"{index}": leaf for index, leaf in enumerate(jax.tree.leaves((at.best, at.state)))}
        packed = io.BytesIO()
        np.savez(packed, told=np.asarray(told), **leaves)
        with replaced_file(self._path) as new:
            new.write_bytes(packed.getbuffer())


def _setting(model: Model, params: Params, trajectories: Trajectories, recipe: DrafterRecipe) -> dict[str, Any]:
    """What a fit hangs on."""
    return parts.run_of(
        recipe=dataclasses.asdict(recipe),
        model=repr(model),
        weights=parts.digest_of_tree(params),
        traces=parts.digest_of_tree([trajectories.tokens, trajectories.rank, trajectories.origin, trajectories.prompt]),
    )
