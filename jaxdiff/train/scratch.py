"""`jaxdiff train`: a model from random weights, or from those of another run, on the tasks' training problems."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jaxdiff import checkpoint
from jaxdiff.files import added, without_patterns
from jaxdiff.models import build
from jaxdiff.train.data import Corpus, training_rows
from jaxdiff.train.embedding import varied_by
from jaxdiff.train.loop import CHECKPOINTS, MODEL, SAVED_RECIPE, Run, check_model, take_steps, until_sigterm
from jaxdiff.train.recipe import Recipe
from jaxdiff.train.tokenizer import train_tokenizer
from jaxdiff.types import InputError, Params

STOP = "['stop']"  # the leaves of an insertion model's stop head


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
            _copy_tokenizer("init", _home(recipe.init), new)
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
        params = _begun(_newest_params(_home(recipe.init)), params, recipe.init)
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


def _newest_params(source: Path) -> Params:
    """The parameters of a run's newest checkpoint, or of a model folder; the optimizer starts afresh."""
    if not (source / CHECKPOINTS).is_dir():
        return checkpoint.load(source, dtype="float32").params
    with without_patterns(source / CHECKPOINTS) as there, ocp.CheckpointManager(there) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"init: no checkpoint in {source}; name a run that has saved one, or a model folder")
        return manager.restore(step, args=ocp.args.StandardRestore())["params"]


def _begun(given: Params, fresh: Params, source: str) -> Params:
    """The parameters that are given. A stop head, which a model that fills masks has none of, starts as without `init`.

    Raises InputError, which names the leaf, for others than the recipe's model has.
    """
    leaves, expected = ({keystr(path): leaf for path, leaf in tree_leaves_with_path(tree)} for tree in (given, fresh))
    shapes, wanted = ({name: jnp.shape(leaf) for name, leaf in tree.items()} for tree in (leaves, expected))
    for name in shapes | wanted:
        found, shape = shapes.get(name, "none"), wanted.get(name, "none")
        if found != shape and not (name.startswith(STOP) and name not in shapes):
            raise InputError(
                f"init: {name} has shape {found} in {source}, expected {shape}, as the recipe's model has it; change "
                "the recipe's model, or start from another one"
            )
    return tree_map_with_path(lambda path, leaf: jnp.asarray(leaves.get(keystr(path), leaf)), fresh)
