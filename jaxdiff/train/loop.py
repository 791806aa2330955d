"""The training loop. A run is a folder; killing it loses only the steps since the last checkpoint.

The step's batch and noise depend on (seed, step) alone, and parameters and optimizer state are restored exactly:
a run that was killed and started again ends with the bits of one that was not.

`scratch.py` and `distill.py` say what is trained on what; here is how the steps are taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdiff.files import Lines, parse_json, saving, whole_lines, without_patterns
from jaxdiff.leaves import kind_of, leaf_name
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.embedding import Vary, as_they_are
from jaxdiff.train.objectives import Network
from jaxdiff.train.recipe import Schedule
from jaxdiff.types import InputError, Params

SAVED_RECIPE = "recipe.json"
MODEL, CHECKPOINTS, LOG = "model", "checkpoints", "log.jsonl"
VARIES = 2**20  # folded into a step's key for `Run.vary`: no noise splits it so
LOSSES = "loss_by_length"  # in a line of the log that tells of steps, not of what was watched


@pytree
class Frozen:
    """What a step reads and never changes: the teacher, and what is not trained of the model itself."""

    teacher: Network | None = None
    base: Params | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What is trained, on what.

    Attributes:
        params: the parameters that are trained, before the first step.
        batch: of each step, the same whenever it is asked.
        given: the model's parameters out of those that are trained and `frozen.base`.
        vary: what stands in their place in a step, by the step's key (`embedding.varied_by`).
        watch: called every `watch_every` steps and after the last one with the model's parameters, which are saved
            before; what it returns is logged.
    """

    recipe: Schedule
    model: Model
    params: Params
    batch: Callable[[int], Batch]
    frozen: Frozen = dataclasses.field(default_factory=Frozen)
    given: Callable[[Params, Params | None], Params] = lambda trained, base: trained
    vary: Vary = as_they_are
    watch: Callable[[Params], dict[str, Any]] | None = None
    watch_every: int = 1

    def is_watched(self, done: int) -> bool:
        """Whether the model is watched after so many steps."""
        return self.watch is not None and done > 0 and (done == self.recipe.steps or done % self.watch_every == 0)


def take_steps(run: Run, folder: Path, asked: threading.Event) -> Params | None:
    """The steps that are left of a run, from the folder's newest checkpoint if it has one; the model's parameters.

    None where `asked` to stop: it saves, and returns early. What should have been watched then is when the run goes on.

    Raises InputError where the folder has done more steps, is written by another program, or cannot be written; and
    where the weights end as no numbers.
    """
    recipe, optimizer = run.recipe, make_optimizer(run.recipe)
    step_fn = make_step(run.model, optimizer, recipe, run.given, run.vary)
    state = {"params": run.params, "optimizer": optimizer.init(run.params)}
    with Lines(folder / LOG) as lines, _manager(folder / CHECKPOINTS, recipe.save_every) as manager:
        done = manager.latest_step()
        if done is not None:
            state = manager.restore(
                done, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
            )
        first = 0 if done is None else done
        if first > recipe.steps:
            raise InputError(f"steps: found {recipe.steps}, but {folder} has done {first}; raise --steps")
        recipe.write(folder / SAVED_RECIPE)  # from here on the folder is this recipe's
        with _Log(lines, recipe.steps, first) as log:
            for done in range(first, recipe.steps + 1):
                stops, watch = False, run.watch if run.is_watched(done) else None
                if done > first:
                    batch = run.batch(done - 1)
                    state, value = step_fn(state, jnp.int32(done - 1), batch, run.frozen)
                    log(done - 1, value, batch)
                    stops = asked.is_set()  # looked at once: it may be set at any time
                    if stops or watch is not None or done == recipe.steps or done % recipe.save_every == 0:
                        manager.save(done, args=ocp.args.StandardSave(state), force=True)
                if watch is not None and not stops and done != log.last_watched:
                    log.watched(done, watch(run.given(state["params"], run.frozen.base)))
                    stops = asked.is_set()
                if stops:
                    manager.wait_until_finished()
                    log.note(f"stopped by a signal after step {done}; run the same command to go on")
                    return None
    _check_finite(state["params"], folder)
    return run.given(state["params"], run.frozen.base)


def _check_finite(params: Params, folder: Path) -> None:
    """Raises InputError for the weights of a run that diverged."""
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise InputError(
            f"{folder}: the run ended with weights that are no numbers (NaN or infinity), which make no model; train "
            f"anew in another folder with a smaller learning_rate; {folder / LOG} has the losses"
        )


@contextlib.contextmanager
def _manager(folder: Path, save_every: int) -> Iterator[ocp.CheckpointManager]:
    """Of a run's checkpoints; what a save that was killed or failed has left half is removed.

    Raises InputError where they cannot be written; those that were written stay.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=save_every, cleanup_tmp_directories=True)
    try:
        with saving(folder, Lines.MEND):
            folder.mkdir(exist_ok=True)
            with without_patterns(folder) as there, ocp.CheckpointManager(there, options=options) as manager:
                yield manager
    except InputError:
        for half in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(half, ignore_errors=True)
        raise


def make_optimizer(recipe: Schedule) -> optax.GradientTransformation:
    """Muon on the matrices, Adam on embeddings, head and norms; warm-up, plateau, linear decay; clipped.

    Which leaf is whose says `leaves.LEAVES`; what is not in the groups `layers` and `decoder` (LLaDA2's `dense` layers)
    is Adam's. The optimizer's functions raise InputError for a leaf without a kind.
    """
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, 0.0, recipe.decay),
        ],
        [recipe.warmup, recipe.steps - recipe.decay],
    )
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    def numbers(path: Any, _: Any) -> optax.contrib.MuonDimensionNumbers | None:
        muon = kind_of(leaf_name(path)).optimizer == "muon"
        return matrix if muon and path[0].key in ("layers", "decoder") else None

    muon = optax.contrib.muon(
        schedule,
        weight_decay=recipe.weight_decay,
        consistent_rms=0.2,  # updates of Adam's size, so that one learning rate serves both
        adam_b2=0.98,
        muon_weight_dimension_numbers=functools.partial(jax.tree.map_with_path, numbers),
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip), muon)


def make_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    recipe: Schedule,
    given: Callable[[Params, Params | None], Params] = lambda trained, base: trained,
    vary: Vary = as_they_are,
) -> Callable[..., Any]:
    """One compiled training step for each shape of a batch; the state is donated.

    `step(state, number of the step, batch, frozen)` gives the new state and the loss.
    """
    objective, noise = recipe.parts()

    @functools.partial(jax.jit, donate_argnums=0)
    def step_fn(
        state: dict[str, Any], step: Int[Array, ""], batch: Batch, frozen: Frozen
    ) -> tuple[dict[str, Any], Float[Array, ""]]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), step)

        def network_of(trained: Params) -> Network:
            return Network(vary(jax.random.fold_in(key, VARIES), given(trained, frozen.base)), model)

        views = noise.views(key, batch, network_of(state["params"]), step / recipe.steps)

        def loss(trained: Params) -> Float[Array, ""]:
            network = network_of(trained)
            return objective.loss(network, batch, views, frozen.teacher)

        value, gradients = jax.value_and_grad(loss)(state["params"])
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}, value

    return step_fn


def check_model(recipe: Schedule, model: Model) -> None:
    """Raises InputError for a model that the recipe's objective or noise does not go with."""
    for part in recipe.parts():
        part.check_model(model)


@contextlib.contextmanager
def until_sigterm() -> Iterator[threading.Event]:
    """Turns SIGTERM into a flag that the loop reads between steps; elsewhere than in the main thread nobody sets it."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Log:
    """A progress bar with loss and tokens/s on stderr, and a line of JSON for every twentieth step.

    Lines of steps that were done after the last checkpoint are taken off first: those steps are done again.
    """

    EVERY = 20

    def __init__(self, lines: Lines, steps: int, first: int) -> None:
        there = _lines_until(first, lines.path)
        lines.keep(len(there))
        self.last_watched = max((line["step"] for line in there if LOSSES not in line), default=0)
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("train", total=steps, completed=first, text="")
        self._lines, self._tokens, self._since = lines, 0, time.perf_counter()
        self._losses: dict[int, list[Float[Array, ""]]] = {}

    def __enter__(self) -> _Log:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._bar.console.print(text)

    def __call__(self, step: int, value: Float[Array, ""], batch: Batch) -> None:
        self._tokens += batch.tokens.size
        self._losses.setdefault(batch.tokens.shape[1], []).append(value)
        if (step + 1) % self.EVERY:
            return
        losses = {length: float(jnp.stack(v).mean()) for length, v in sorted(self._losses.items())}
        rate = self._tokens / (time.perf_counter() - self._since)
        self._lines.write({"step": step + 1, "tokens_per_second": rate, LOSSES: losses})
        text = " ".join(f"{k}:{v:.3f}" for k, v in losses.items()) + f"  {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=step + 1, text=text)
        self._tokens, self._since, self._losses = 0, time.perf_counter(), {}

    def watched(self, done: int, numbers: dict[str, Any]) -> None:
        """A line of what was measured after so many steps; its seconds are none of the training's."""
        self._lines.write({"step": done, **numbers})
        self.note(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        self._tokens, self._since = 0, time.perf_counter()


def _lines_until(step: int, log: Path) -> list[dict[str, Any]]:
    """The lines of a log that are of steps up to this one. Raises InputError for a damaged log."""
    try:
        return [line for line in map(parse_json, map(bytes.decode, whole_lines(log))) if line["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{log}: damaged ({error}); delete it: the run goes on without") from error
