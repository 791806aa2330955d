"""`jaxdiff train`: a model from random weights, or from those of another run, on the tasks' training problems."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxdiff import checkpoint
from jaxdiff.files import added, without_patterns
from jaxdiff.models import build
from jaxdiff.train.data import Corpus, training_rows
from jaxdiff.train.embedding import varied_by
from jaxdiff.train.loop import CHECKPOINTS, MODEL, SAVED_RECIPE, Run, check_model, take_steps, until_sigterm
from jaxdiff.train.recipe import Recipe
from jaxdiff.train.tokenizer import train_tokenizer
from jaxdiff.types import InputError, Params


def train(recipe: Recipe, folder: Path) -> Path | None:
    """Run a recipe to its last step, from the folder's newest checkpoint if it has one.

    Writes `folder/checkpoints/` (orbax, resumable), `log.jsonl`, and at the end `folder/model/`, which
    `jaxdiff.load` reads. SIGTERM (a Cloud TPU pre-emption) saves and returns early.

    Returns the model folder, or None where a signal ended the run early.

    Raises InputError where the folder belongs to another recipe, is written by another program, or cannot be written;
    and where the weights end as no numbers.
    """
    with until_sigterm() as asked:
        return _run(recipe, folder, asked)


def _run(recipe: Recipe, folder: Path, asked: threading.Event) -> Path | None:
    saved = folder / SAVED_RECIPE
    fresh = not saved.is_file()
    if not fresh:
        recipe.check_same(saved)
    with added(folder) as new:
        if recipe.init is not None:
            _copy_tokenizer("init", Path(recipe.init), new)
        elif recipe.tokenizer is not None:
            _copy_tokenizer("tokenizer", _home(recipe.tokenizer), new)
        elif fresh:
            train_tokenizer(recipe.task, recipe.tokenizer_problems, recipe.model["vocab_size"], recipe.seed, new)
    tokenizer = checkpoint.load_tokenizer(folder)
    assert tokenizer is not None
    model = build({"family": "llada", "mask_token_id": 0, "eos_token_id": tokenizer.eos_id, **recipe.model})
    check_model(recipe, model)
    vary = varied_by(recipe.embedding, model)
    if (tokens := tokenizer.backend.get_vocab_size(with_added_tokens=True)) > model.config.vocab_size:
        raise InputError(
            f"model.vocab_size: found {model.config.vocab_size}, expected at least the tokenizer's {tokens}"
        )
    rows = {name: training_rows(name, size, recipe.seed, tokenizer) for name, size in recipe.problems.items()}
    corpus = Corpus(recipe.buckets, rows, recipe.seed, tokenizer)
    params = model.init(jax.random.key(recipe.seed))
    if recipe.init is not None:
        params = _newest_params(Path(recipe.init), params)
    trained = take_steps(Run(recipe, model, params, corpus.batch, vary=vary), folder, asked)
    if trained is None:
        return None
    made = vary(jax.random.key(recipe.seed), trained)
    checkpoint.save(folder / MODEL, model, made, tokenizer_from=folder)
    return folder / MODEL


def _home(name: str) -> Path:
    """The folder of a run, or that of a model by whatever name `load` knows it."""
    return Path(name) if (Path(name) / "tokenizer.json").is_file() else checkpoint.model_folder(name, weights=False)


def _copy_tokenizer(what: str, source: Path, folder: Path) -> None:
    if not (source / "tokenizer.json").is_file():
        raise InputError(f"{what}: no tokenizer.json in {source}; name the folder of a run or of a model")
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
