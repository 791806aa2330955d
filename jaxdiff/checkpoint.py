"""A model folder: config.json, params/ (orbax), and, unless the model speaks ids only, a tokenizer beside them.

jaxdiff.load("gsm-1m")      one of the models that ship
jaxdiff.load("runs/mine")   a folder that `jaxdiff train` wrote
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from jaxdiff.models import build, family_name
from jaxdiff.parallel import check_axes, shardings
from jaxdiff.policies import Fixed, Learned, any_of
from jaxdiff.policies.filters import Block, Local, init_layers
from jaxdiff.types import InputError, Model, Params, Policy

SHIPPED = "gsm-1m"
FILTERS, FILTER = "filters", "filter.json"  # <model>/filters/<name>/filter.json
BEST_FILTER = "local"  # what bare `learned` means


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back; the chat template comes from the folder, never from this code."""

    fast: Any  # transformers.PreTrainedTokenizerFast
    eos_id: int
    eot_id: int | None = None  # what else ends an answer: the model's end of a turn

    def encode(self, text: str) -> list[int]:
        return self.fast.encode(text, add_special_tokens=False)

    def prompt(self, text: str) -> list[int]:
        """One user turn through the folder's chat template; plain text where it has none."""
        if self.fast.chat_template is None:
            return self.fast.encode(text)
        message = [{"role": "user", "content": text}]
        return self.fast.apply_chat_template(message, add_generation_prompt=True, return_dict=False)

    def decode(self, ids: Any) -> str:
        """The text up to the first end-of-text or end of turn; special tokens left out."""
        ids = list(itertools.takewhile(lambda i: i not in (self.eos_id, self.eot_id), map(int, ids)))
        return self.fast.decode(ids, skip_special_tokens=True)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    model: Model
    params: Params
    tokenizer: Tokenizer | None
    path: Path

    def tokenizer_for(self, task: str) -> Tokenizer:
        """The tokenizer that a task of text needs. Raises InputError where the folder has none."""
        if self.tokenizer is None:
            raise InputError(f"model: {self.path} has no tokenizer, and {task} is text; add its tokenizer.json")
        return self.tokenizer


def shipped_folder() -> Path:
    """Where the checkpoints that ship lie: in the wheel beside this file, in a source tree one level up."""
    here = Path(__file__).resolve().parent
    return here / "checkpoints" if (here / "checkpoints").is_dir() else here.parent / "checkpoints"


def model_folder(path: str | Path) -> Path:
    """A folder, or the one of a shipped model's name. Raises InputError where it holds no config."""
    folder = Path(path)
    if not folder.is_dir():
        folder = shipped_folder() / str(path)
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(p.parent.name for p in shipped_folder().glob("*/config.json")))
        raise InputError(f"model: no config.json in {str(path)!r}; name a model folder or a shipped model ({known})")
    return folder


def load(path: str | Path = SHIPPED, *, dtype: str | None = None, mesh: Mesh | None = None) -> Checkpoint:
    """A model, its params and its tokenizer (None where the folder has none).

    Args:
        path: a folder, or the name of a model that ships.
        dtype: of the params and of the computation; default float32 on CPU (where bfloat16 is slower), else the
            config's.
        mesh: what the params are laid over (see `make_mesh`): each device reads its own part of each leaf.

    Raises InputError for a folder that is missing, incomplete or damaged, and for a mesh that the model does not spread
    over, in one line.
    """
    folder = model_folder(path)
    config = read_config(folder)
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    if dtype is not None:
        config["dtype"] = dtype
    try:
        model = build(config)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
    except (ArithmeticError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{folder / 'config.json'}: makes no model ({_first_line(error)}); restore the file"
        ) from error
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(config["dtype"])), shapes)
    laid = None
    if mesh is not None:
        check_axes(mesh)
        laid = shardings(model.config, target, mesh)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        tokenizer = dataclasses.replace(tokenizer, eot_id=getattr(model.config, "eot_token_id", None))
    return Checkpoint(model, _restore(folder / "params", target, laid), tokenizer, folder)


def load_tokenizer(folder: Path) -> Tokenizer | None:
    if not (folder / "tokenizer.json").is_file():
        return None
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch: none is needed
    from transformers import PreTrainedTokenizerFast  # slow to import, and not needed for ids

    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:
        raise InputError(f"{folder / 'tokenizer.json'}: damaged ({_first_line(error)}); restore the file") from error
    if fast.eos_token_id is None:
        raise InputError(f"{folder / 'tokenizer_config.json'}: names no eos_token; add the one that ends an answer")
    return Tokenizer(fast, int(fast.eos_token_id))


def read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError(f"found {type(config).__name__}, expected an object")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: damaged ({_first_line(error)}); restore the file") from error
    return config


def save(folder: Path, model: Model, params: Params, *, tokenizer_from: Path | None = None) -> None:
    """Write a model folder as a whole or not at all: params in bfloat16, the config, a copy of the tokenizer."""
    with _replaced(folder) as new:
        config = dataclasses.asdict(model.config) | {"dtype": "bfloat16", "family": family_name(model)}
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        small = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), params)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((new / "params").absolute(), small)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if tokenizer_from is not None and (tokenizer_from / name).is_file():
                shutil.copy(tokenizer_from / name, new / name)


def save_filter(folder: Path, learned: Learned, *, quota: bool) -> None:
    """Write a learned filter with its threshold to `folder`, as a whole or not at all.

    `quota`: whether the policy joins it with one token a step, as the published decode does.
    """
    judge = learned.filter
    config = {
        "kind": type(judge).__name__.lower(),
        "widths": [judge.layers[0].kernel.shape[0], *(layer.kernel.shape[1] for layer in judge.layers)],
        "reach": getattr(judge, "reach", None),
        "tau": float(np.asarray(learned.tau)),
        "quota": quota,
    }
    with _replaced(folder) as new:
        (new / FILTER).write_text(json.dumps(config, indent=2) + "\n")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((new / "params").absolute(), judge.layers)
        if (folder / "README.md").is_file():
            shutil.copy(folder / "README.md", new / "README.md")


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder`: as a whole, or not at all where writing fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def learned_policy(model: str | Path, name: str | None = None, tau: float | None = None) -> Policy:
    """What `learned:name=NAME,tau=TAU` means for a model: one of the filters in its folder, the best one by default.

    `tau` replaces the threshold of the filter's card; a filter of the published kind is joined with one token a step.

    Raises InputError for a filter that the model has not, or that is damaged.
    """
    home = model_folder(model) / FILTERS
    name = BEST_FILTER if name is None else name
    if not (home / name / FILTER).is_file():
        known = ", ".join(sorted(path.parent.name for path in home.glob(f"*/{FILTER}"))) or "none"
        raise InputError(f"policy learned: found name {name!r}, but {home} holds {known}; name one, or fit a filter")
    learned, quota = load_filter(home / name)
    if tau is not None:
        learned = dataclasses.replace(learned, tau=tau)
    return any_of(learned, Fixed()) if quota else learned


def load_filter(folder: Path) -> tuple[Learned, bool]:
    """A learned policy with the threshold of its card, and whether it is joined with the fixed quota.

    Raises InputError for a folder that is missing or damaged.
    """
    try:
        config = json.loads((folder / FILTER).read_text())
        layers = jax.eval_shape(lambda key: init_layers(key, tuple(config["widths"])), jax.random.key(0))
        make = {"block": Block, "local": functools.partial(Local, reach=config["reach"])}[config["kind"]]
        tau, quota = float(config["tau"]), bool(config["quota"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / FILTER}: missing or damaged ({_first_line(error)}); fit it again") from error
    return Learned(make(_restore(folder / "params", layers)), tau), quota


def _restore(path: Path, target: Any, laid: Any = None) -> Params:
    """The arrays of shapes `target`; where `laid` is given, padded with zeros and spread over devices as it says."""
    if not path.is_dir():
        raise InputError(f"{path}: missing; the folder holds a config but no parameters")
    hook = sys.unraisablehook

    def silence_readers(report: Any) -> None:
        """After the first failed read, orbax's other readers report a closed event loop: that one is enough."""
        if str(report.exc_value) != "Event loop is closed":
            hook(report)

    sys.unraisablehook = silence_readers  # they may still report after an error has left this function, so it stays
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            if laid is None:
                params = checkpointer.restore(path.absolute(), target)
                _check_shapes(params, target)
            else:
                _check_shapes(checkpointer.metadata(path.absolute()).item_metadata.tree, target)
                params = checkpointer.restore(path.absolute(), laid, strict=False)  # pads, and would cut as well
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({_first_line(error)}); restore or convert it again") from error
    sys.unraisablehook = hook
    return jax.tree.map(jnp.asarray, params)  # on the device once, not at each call


def _check_shapes(found: Any, wanted: Any) -> None:
    for (name, leaf), there in zip(jax.tree.leaves_with_path(wanted), jax.tree.leaves(found), strict=True):
        if there.shape != leaf.shape:
            raise ValueError(f"{jax.tree_util.keystr(name)}: {there.shape}, config.json says {leaf.shape}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
