"""A model folder: config.json, params/ (orbax), and, unless the model speaks ids only, a tokenizer beside them.

jaxdiff.load("gsm-1m")      one of the models that ship
jaxdiff.load("runs/mine")   a folder that `jaxdiff train` or `jaxdiff convert` wrote
jaxdiff.load("LLaDA-8B")    a folder as its authors publish it: config.json and safetensors
jaxdiff.load("org/name")    where no such folder is, a repository of the Hugging Face hub (`jaxdiff.hub`)
jaxdiff.load("LLaDA-8B", adapter="runs/lora")    with a LoRA adapter in it, or, gated, beside it
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from jaxdiff import hub
from jaxdiff.convert import kinds, published, stream, text
from jaxdiff.convert.description import Description, check_config, describe
from jaxdiff.convert.engine import Sharded, assemble, params_from
from jaxdiff.convert.lora import CONFIG, Lora
from jaxdiff.convert.prompts import Tokenizer
from jaxdiff.convert.survey import survey as survey_folder
from jaxdiff.files import (
    copy_present,
    refusing,
    replaced,
    saving,
    without_user,
    write_object,
)
from jaxdiff.models import family_name, in_dtype, leaf_dtype, lora
from jaxdiff.parallel.mesh import check_axes
from jaxdiff.parallel.rules import place, shardings
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params
from jaxdiff.weights import check_weights, plain, quantised

SHIPPED = "gsm-1m"
# <model>/adapters/<name>/: an adapter by its name, or a whole model whose every weight was trained on from this one's;
# and `filters` of its own in it.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    model: Model
    params: Params
    tokenizer: Tokenizer | None
    path: Path
    adapter: Path | None = None  # the folder of the adapter that its params hold, have beside them, or are

    @property
    def revision(self) -> str | None:
        """The commit of a model that came from the hub; None for a folder elsewhere."""
        origin = hub.origin_of(self.path)
        return None if origin is None else origin.revision

    def tokenizer_for(self, task: str) -> Tokenizer:
        """The tokenizer that a task of text needs. Raises InputError where the folder has none."""
        if self.tokenizer is None:
            raise InputError(f"model: {self.path} has no tokenizer, and {task} is text; add its tokenizer.json")
        return self.tokenizer


def shipped_folder() -> Path:
    """Where the checkpoints that ship lie: in the wheel beside this file, in a source tree one level up."""
    here = Path(__file__).resolve().parent
    return here / "checkpoints" if (here / "checkpoints").is_dir() else here.parent / "checkpoints"


def model_folder(
    path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    weights: bool = True,
    ignore: Iterable[str] = (),
) -> Path:
    """The folder of a model by its name: the one place that says what a name means.

    For a text the name of a model that ships comes first (`./gsm-1m` is a folder), then a folder on the disk that holds
    a config, then, for `org/name` or `org/name@revision`, a repository of the hub, which is fetched as far as the hub's
    cache does not hold it.

    Args:
        path: the name; a `Path` is a folder.
        revision: a branch, a tag or a commit of a repository of the hub.
        token: of the hub; default that of HF_TOKEN or of `hf auth login`.
        weights: False for what describes a model alone, as far as it is to be fetched.
        ignore: as of `load`; a config.json that is refused is refused before weights are fetched.

    Raises InputError where there is none, and for whatever keeps it from being fetched.
    """
    _check_path("model", path)
    folder, shipped = Path(path), shipped_folder() / Path(path).name
    here = folder if (folder / "config.json").is_file() else None
    ships = folder.name == str(path) and (shipped / "config.json").is_file()
    if ships and (here is None or isinstance(path, str)):
        here = shipped
    if here is None and folder.is_dir():
        kinds.check_kind(folder)
        raise InputError(kinds.without_config(folder))
    if here is not None:
        if revision is not None:
            raise InputError(f"revision: found {revision!r}, but {here} is a folder, which has one alone; leave it out")
        return here
    if folder.suffix == ".gguf":
        raise InputError(f"model: {folder} is a GGUF file, which llama.cpp reads; get the model's safetensors")
    if isinstance(path, str) and not folder.is_file() and (name := hub.Name.of(path, revision)) is not None:
        check = functools.partial(check_config, ignore=ignore)
        return hub.fetch(name, token=token, weights=weights, check=check)
    known = ", ".join(sorted(p.parent.name for p in shipped_folder().glob("*/config.json")))
    mend = f"name the folder that holds {folder.name}" if folder.is_file() else "name a model folder"
    raise InputError(
        f"model: no config.json in {without_user(str(path))!r}; {mend}, a shipped model ({known}) or a repository of "
        "the hub as org/name"
    )


def _check_path(what: str, path: Any) -> None:
    """Raises InputError for what names no place on a disk: no text and no path, an empty text, one that is too long."""
    if not isinstance(path, str | Path) or path == "":
        raise InputError(f"{what}: found {path!r:.80}, expected the name of a folder, or org/name of the hub")
    with refusing(f"{what}: found {str(path)[:80]!r}, expected the name of a folder, or org/name of the hub"):
        Path(path).exists()


def inspect(
    path: str | Path = SHIPPED,
    *,
    ignore: Iterable[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    adapter: str | Path | None = None,
) -> Description:
    """What a model folder holds, as `load` understands it, without reading a number of its weights. Of safetensors at
    the hub the headers are fetched alone, and a file when a number of it is asked for (`Description.unsound`).

    `ignore`, `revision`, `token` and `adapter` as of `load`. Raises InputError for whatever `load` refuses before it
    reads weights.
    """
    there = adapter_folder(adapter, token, model=path, revision=revision)
    if there is not None and is_model(there):
        return describe(there, ignore=ignore)
    folder, beyond = _without_weights(path, revision, token)
    return describe(folder, ignore=ignore, adapter=there, beyond=beyond)


def survey(
    path: str | Path = SHIPPED,
    *,
    ignore: Iterable[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    adapter: str | Path | None = None,
    mesh: str = "1x1",
) -> dict[str, Any]:
    """What `jaxdiff inspect` shows: as `inspect(...).facts()`, but of a folder that cannot be loaded too, as far as it
    can be read; `faults` says why not. `revision`: the commit of a repository of the hub.

    `mesh`: `DxM`, of devices that need not be here. Raises InputError where there is no config.json that can be read,
    and for a mesh that the model does not spread over.
    """
    there = adapter_folder(adapter, token, model=path, revision=revision)
    if there is not None and is_model(there):
        return survey(there, ignore=ignore, mesh=mesh)
    folder, beyond = _without_weights(path, revision, token)
    origin = hub.origin_of(folder)
    facts = survey_folder(folder, ignore=ignore, adapter=there, mesh=mesh, beyond=beyond)
    return facts | {"revision": None if origin is None else origin.revision}


def _without_weights(
    path: str | Path, revision: str | None, token: str | bool | None
) -> tuple[Path, dict[str, published.Open]]:
    """A model's folder, and how the files of weights are opened that it lacks: of one of the hub, those not cached."""
    folder = model_folder(path, revision=revision, token=token, weights=False)
    origin = hub.origin_of(folder, path)
    return folder, {} if origin is None else hub.unfetched(origin, folder, token=token)


def load(
    path: str | Path = SHIPPED,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    weights: str | None = None,
    ignore: Iterable[str] = (),
    check: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    adapter: str | Path | None = None,
    beside: bool = False,
) -> Checkpoint:
    """A model, its params and its tokenizer (None where the folder has none).

    Args:
        path: a folder of ours or as Hugging Face publishes it, the name of a model that ships, or `org/name` or
            `org/name@revision` of the hub, which is fetched into the hub's cache.
        dtype: of the params (but a router's, which are float32) and of the computation; default float32 on CPU (where
            bfloat16 is slower), else the config's (of a published folder, its tensors').
        mesh: what the params are laid over (see `make_mesh`): each device reads its own part of each leaf.
        weights: "int8" for matrices in int8 (`weights.quantised`), which takes qwix: each leaf is quantised as soon as
            it is read, so that no device holds more than one of them in `dtype`.
        ignore: keys of config.json that the family does not know, to be left alone. Without it they are refused, since
            they may change what the model computes; a key that the family knows cannot be ignored.
        check: refuse weights that hold NaN or infinity, by name; all are read once more for it.
        revision: a branch, a tag or a commit of a repository of the hub; default its main branch.
        token: of the hub; default that of HF_TOKEN or of `hf auth login`.
        adapter: a LoRA adapter: the name of one in the model's folder, or a folder as peft saves it. It is merged into
            the weights as they are read: they are what its merge_and_unload would give in float32, in `dtype`. A gated
            one (`models.lora`), which is on at [MASK] alone, stays beside them in float32. The name may also stand for
            a whole model in the model's folder, trained on from it, which is then loaded in its place.
        beside: keep any adapter beside the weights, as it is trained (`models.lora.Adapted`).

    Raises InputError for a folder that is missing, incomplete or damaged, for a config that the family's code does not
    do in full, for a mesh that the model does not spread over, for weights that are not known or whose package is
    missing, and for an adapter that is damaged, of another kind, not the model's by its tensors' names and shapes, or
    trained beside other weights as it says (`save_adapter`), in one line.
    """
    check_weights(weights)
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    if mesh is not None:
        check_axes(mesh)
    there = adapter_folder(adapter, token, model=path, revision=revision)
    if there is not None and is_model(there):
        if beside:
            raise InputError(f"beside: found adapter {there.name}, which is a whole model; leave beside out")
        whole = load(there, dtype=dtype, mesh=mesh, weights=weights, ignore=ignore, check=check)
        return dataclasses.replace(whole, adapter=there)
    folder = model_folder(path, revision=revision, token=token, ignore=ignore)
    described = describe(folder, dtype=dtype, ignore=ignore, adapter=there)
    described.check_base()
    if check:
        described.check_numbers()
    kept = described.adapter if described.adapter is not None and (beside or described.adapter.gated) else None
    if kept is not None:
        described = dataclasses.replace(described, adapter=None)
    model, shapes = described.model, described.shapes
    folder, then = described.path / "params", None if weights is None else quantised
    if described.published or described.adapter is not None:
        laid, asked = _sharding(model, shapes, mesh), dtype if described.published else model.config.dtype
        tensors, dtypes = described.tensors, described.dtypes
        params = params_from(described.plan, tensors, dtype=asked, dtypes=dtypes, sharding=laid, then=then)
    else:
        target = in_dtype(shapes, model.config.dtype)
        if then is None:
            params = stream.restore(folder, target, None if mesh is None else shardings(model.config, target, mesh))
        else:
            made = functools.partial(_read, folder, model.config.dtype)
            params = assemble(stream.stored(folder, target), made, sharding=_sharding(model, target, mesh), then=then)
    if kept is not None:
        params = kept.beside(params, described.plan)
    if mesh is not None:
        params = place(model.config, params, mesh)
    return Checkpoint(model, params, described.tokenizer, described.path, there)


def adapter_folder(
    path: str | Path | None,
    token: str | bool | None = None,
    *,
    model: str | Path,
    revision: str | None = None,
) -> Path | None:
    """Where an adapter lies: for a text the name of one in the model's folder comes first, then a folder, then, for
    `org/name`, a repository of the hub. `model`, `revision` and `token` as of `load`.

    Raises InputError for one that holds none, before the model's weights are looked for.
    """
    if path is None:
        return None
    _check_path("adapter", path)
    folder = Path(path)
    if isinstance(path, str) and folder.name == path:
        home = model_folder(model, revision=revision, token=token, weights=False) / ADAPTERS
        if (home / path / CONFIG).is_file() or is_model(home / path):
            folder = hub.completed(home / path, token=token)
        elif not folder.exists():
            held = sorted(each.name for each in home.glob("*") if (each / CONFIG).is_file() or is_model(each))
            known = ", ".join(held) or "none"
            raise InputError(
                f"adapter: found {path!r:.80}, but {home} holds {known}; name one, or the folder of a LoRA adapter"
            )
    if isinstance(path, str) and not folder.exists() and (name := hub.Name.of(path)) is not None:
        folder = hub.fetch(name, token=token, check=Lora.read)
    if not (is_model(folder) and folder.parent.name == ADAPTERS):
        Lora.read(folder)
    return folder


def is_model(adapter: Path) -> bool:
    """Whether what a model's adapter is called stands for a whole model."""
    return (adapter / "config.json").is_file() and not (adapter / CONFIG).is_file()


def _read(params: Path, dtype: str, leaf: str) -> np.ndarray:
    return stream.read(params, [leaf])[leaf].astype(jnp.dtype(leaf_dtype(leaf, dtype)))


def _sharding(model: Model, shapes: Params, mesh: Mesh | None) -> Sharded:
    """Where leaves go when they are read, by path; None for one that is laid out after that."""
    laid: dict[str, Sharding] = {}
    if mesh is None:
        return laid.get
    targets = jax.tree.leaves(shardings(model.config, shapes, mesh))
    for (path, leaf), there in zip(jax.tree.leaves_with_path(shapes), targets, strict=True):
        if there.shape == leaf.shape:  # a vocabulary is to be padded first
            laid[jax.tree_util.keystr(path, simple=True, separator="/")] = there.sharding
    return laid.get


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """A tokenizer that lies in a folder without a model; None where there is none."""
    fast = text.open_tokenizer(folder)
    if fast is None:
        return None
    if fast.eos_token_id is None:
        raise InputError(f"{folder / 'tokenizer_config.json'}: names no eos_token; add the one that ends an answer")
    return Tokenizer(fast, int(fast.eos_token_id), backend=fast.backend_tokenizer, template=text.template_file(folder))


def save(folder: str | Path, model: Model, params: Params, *, tokenizer_from: str | Path | None = None) -> None:
    """Write a model folder as a whole or not at all: params in bfloat16 (int8 weights multiplied out, an adapter
    merged, a router's in float32), the config, a copy of the tokenizer.

    Raises InputError for a gated adapter, which `save_adapter` writes.
    """
    from jaxdiff.convert import writer

    folder, params = Path(folder), plain(lora.merged(params))
    with replaced(folder) as new:
        config = dataclasses.asdict(model.config) | {"dtype": "bfloat16", "family": family_name(model)}
        write_object(new / "config.json", config)
        small = jax.tree.map(lambda x, s: np.asarray(x.astype(s.dtype)), params, in_dtype(params, "bfloat16"))
        with saving(folder):
            writer.save(new / "params", small)
        if tokenizer_from is not None:
            source = Path(tokenizer_from)
            copy_present(text.tokenizer_files(source), source, new)


def part_homes(model: str | Path, part: str, *, adapter: str | Path | None = None) -> list[Path]:
    """The folders in which what is fitted for a model lies (`part`: filters or drafters), first to last: the adapter's,
    if one is given, and the model's own. Of one at the hub they hold what describes each (`named_part` fetches the
    rest). Raises InputError where one of them is none.
    """
    there = adapter_folder(adapter, model=model)
    homes = [model_folder(model, weights=False)]
    return [home / part for home in (homes if there is None else [there, *homes])]


def named_part(what: str, homes: list[Path], name: str, card: str, *, mend: str) -> Path:
    """The folder `name` in the first of the `homes` where it has such a card; of one in the hub's cache, what it lacks
    is fetched. Raises InputError where none has it, and where it cannot be fetched.
    """
    for home in homes:
        if (home / name / card).is_file():
            return hub.completed(home / name)
    held = ((home, ", ".join(sorted(path.parent.name for path in home.glob(f"*/{card}")))) for home in homes)
    known = " and ".join(f"{home} holds {names or 'none'}" for home, names in held)
    raise InputError(f"{what}: found name {name!r}, but {known}; name one, or {mend}")
