"""The training loop. A run is a folder; killing it loses only the steps since the last checkpoint.

The step's batch and noise depend on (seed, step) alone, and parameters and optimizer state are restored exactly:
a run that was killed and started again ends with the bits of one that was not.
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
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdiff import checkpoint
from jaxdiff.files import Lines, added, parse_json, saving, whole_lines, without_patterns
from jaxdiff.leaves import kind_of, leaf_name
from jaxdiff.models import build
from jaxdiff.protocols import Model
from jaxdiff.train.data import Batch, Corpus
from jaxdiff.train.objective import corrupt, loss
from jaxdiff.train.recipe import Recipe
from jaxdiff.train.tokenizer import train_tokenizer
from jaxdiff.types import InputError, Params

SAVED_RECIPE = "recipe.json"
MODEL, CHECKPOINTS, LOG = "model", "checkpoints", "log.jsonl"


def train(recipe: Recipe, folder: Path) -> Path | None:
    """Run a recipe to its last step, from the folder's newest checkpoint if it has one.

    Writes `folder/checkpoints/` (orbax, resumable), `log.jsonl`, and at the end `folder/model/`, which
    `jaxdiff.load` reads. SIGTERM (a Cloud TPU pre-emption) saves and returns early.

    Returns the model folder, or None where a signal ended the run early.

    Raises InputError where the folder belongs to another recipe, is written by another program, or cannot be written;
    and where the weights end as no numbers.
    """
    with _sigterm() as asked:
        return _run(recipe, folder, asked)


def _run(recipe: Recipe, folder: Path, asked: threading.Event) -> Path | None:
    fresh = _is_fresh(folder, recipe)
    with added(folder) as new:
        if recipe.init is not None:
            _copy_tokenizer(Path(recipe.init), new)
        elif fresh:
            train_tokenizer(recipe.task, recipe.tokenizer_problems, recipe.model["vocab_size"], recipe.seed, new)
    tokenizer = checkpoint.load_tokenizer(folder)
    assert tokenizer is not None
    model = build({"family": "llada", "mask_token_id": 0, "eos_token_id": tokenizer.eos_id, **recipe.model})
    if (tokens := tokenizer.backend.get_vocab_size(with_added_tokens=True)) > model.config.vocab_size:
        raise InputError(
            f"model.vocab_size: found {model.config.vocab_size}, expected at least the tokenizer's {tokens}"
        )
    corpus = Corpus(recipe.buckets, recipe.problems, recipe.seed, tokenizer)
    optimizer = make_optimizer(recipe)
    step_fn = make_step(model, optimizer, recipe)

    params = model.init(jax.random.key(recipe.seed))
    if recipe.init is not None:
        params = _newest_params(Path(recipe.init), params)
    state = {"params": params, "optimizer": optimizer.init(params)}
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
            for step in range(first, recipe.steps):
                batch = corpus.batch(step)
                state, value = step_fn(state, jnp.int32(step), *dataclasses.astuple(batch))
                log(step, value, batch)
                last = step + 1 == recipe.steps
                if asked.is_set() or last or (step + 1) % recipe.save_every == 0:
                    manager.save(step + 1, args=ocp.args.StandardSave(state), force=True)
                if asked.is_set():
                    manager.wait_until_finished()
                    log.note(f"stopped by a signal after step {step + 1}; run the same command to go on")
                    return None
    _check_finite(state["params"], folder)
    checkpoint.save(folder / MODEL, model, state["params"], tokenizer_from=folder)
    return folder / MODEL


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


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon on the matrices, Adam on embeddings, head and norms; warm-up, plateau, linear decay; clipped.

    Which leaf is whose says `leaves.LEAVES`; what is not in the group `layers` (LLaDA2's `dense` layers) is Adam's. The
    optimizer's functions raise InputError for a leaf without a kind.
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
        return matrix if muon and path[0].key == "layers" else None

    muon = optax.contrib.muon(
        schedule,
        weight_decay=recipe.weight_decay,
        consistent_rms=0.2,  # updates of Adam's size, so that one learning rate serves both
        adam_b2=0.98,
        muon_weight_dimension_numbers=functools.partial(jax.tree.map_with_path, numbers),
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip), muon)


def make_step(model: Model, optimizer: optax.GradientTransformation, recipe: Recipe) -> Callable[..., Any]:
    """One compiled training step for each bucket's shape; the state is donated."""
    corruption = functools.partial(
        corrupt,
        mask_id=model.config.mask_token_id,
        semi_ar=recipe.semi_ar,
        in_order=recipe.in_order,
        block_length=recipe.block_length,
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step_fn(
        state: dict[str, Any],
        step: Int[Array, ""],
        tokens: Int[Array, "B T"],
        answers: Bool[Array, "B T"],
        prompt_lengths: Int[Array, " B"],
        answer_lengths: Int[Array, " B"],
    ) -> tuple[dict[str, Any], Float[Array, ""]]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), step)
        noisy, weight = corruption(key, tokens, answers, prompt_lengths, answer_lengths)
        gradient = jax.value_and_grad(loss, argnums=1)
        value, gradients = gradient(model, state["params"], noisy, tokens, weight, prompt_lengths)
        updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}, value

    return step_fn


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if not (source / "tokenizer.json").is_file():
        raise InputError(f"init: no tokenizer.json in {source}; name the folder of a run or of a model")
    for path in (*source.glob("tokenizer*.json"), *source.glob("chat_template.jinja")):
        shutil.copy(path, folder / path.name)


def _newest_params(source: Path, like: Params) -> Params:
    """The parameters of a run's newest checkpoint, or of a model folder; the optimizer starts afresh."""
    if not (source / CHECKPOINTS).is_dir():
        params = checkpoint.load(source, dtype="float32").params
    else:
        with without_patterns(source / CHECKPOINTS) as there, ocp.CheckpointManager(there) as manager:
            step = manager.latest_step()
            if step is None:
                raise InputError(f"init: no checkpoint in {source}; name a run that has saved one, or a model folder")
            params = manager.restore(step, args=ocp.args.StandardRestore())["params"]
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (params, like)]
    if shapes[0] != shapes[1]:
        raise InputError(f"init: the parameters in {source} have other shapes than the recipe's model")
    return jax.tree.map(jnp.asarray, params)


def _is_fresh(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds no run; one that it holds is this recipe's: only the plateau's length may change."""
    saved = folder / SAVED_RECIPE
    if not saved.is_file():
        return True
    old = Recipe.read(saved)
    changed = [
        f.name
        for f in dataclasses.fields(recipe)
        if f.name not in ("steps", "decay") and getattr(old, f.name) != getattr(recipe, f.name)
    ]
    if changed:
        raise InputError(f"{folder}: holds a run of another recipe ({', '.join(changed)} differ); name a new folder")
    return False


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Turns SIGTERM into a flag that the loop reads between steps."""
    asked = threading.Event()
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
        lines.keep(_lines_until(first, lines.path))
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
        self._lines.write({"step": step + 1, "tokens_per_second": rate, "loss_by_length": losses})
        text = " ".join(f"{k}:{v:.3f}" for k, v in losses.items()) + f"  {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=step + 1, text=text)
        self._tokens, self._since, self._losses = 0, time.perf_counter(), {}


def _lines_until(step: int, log: Path) -> int:
    """How many lines of a log are of steps up to this one. Raises InputError for a damaged log."""
    try:
        return sum(parse_json(line.decode())["step"] <= step for line in whole_lines(log))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{log}: damaged ({error}); delete it: the run goes on without") from error
