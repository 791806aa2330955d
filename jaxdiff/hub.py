"""Models of the Hugging Face hub: what is read of a repository, fetched into the hub's cache, and no other file.

    "org/name@revision" -> its configs and tokenizer -> checked -> its weights -> a folder at one commit

huggingface_hub does the fetching: its cache, its progress bars, and its variables hold (HF_HUB_OFFLINE, HF_ENDPOINT,
HF_TOKEN, HF_HOME ...). A file is in the cache as a whole or not at all. No code of a repository is fetched, and no
pickle where there are safetensors.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdiff.convert import published, text
from jaxdiff.convert.engine import Spec
from jaxdiff.files import first_line, read_object, without_user, writing
from jaxdiff.types import InputError

ADAPTER = "adapter_config.json"
# What a model is described by, and what lies beside it: filters and judges of policies, a few problems, what drafters
# and adapters there are. All are small.
DESCRIBED = (
    *(published.CONFIG, published.GENERATION, f"{published.SAFETENSORS}.index.json"),
    *(*text.FILES, f"{text.NAMED_TEMPLATES}/*.jinja"),
    *(ADAPTER, "model_index.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    *("filters/*", "judges/*", "demo.json", "drafters/*/drafter.json", f"adapters/*/{ADAPTER}"),
)
OURS = ("params/*", "published/*.json")  # what a folder of ours has besides
OF_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PART = (*DESCRIBED, "drafter.json", "params/*")  # of a drafter or an adapter, which is fetched when it is named
_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(@(?P<revision>[^@\s]+))?")
_ADDRESS = re.compile(rf"(https?://[^/]+/|hf://)(models/)?{_NAME.pattern}/?(tree/.*|blob/.*)?")
_SNAPSHOT = re.compile(r".*/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})", re.DOTALL)
_UNFINISHED = ".incomplete"  # how huggingface_hub calls a file that it is fetching
_NO_SUCH_CALL = (404, 405, 501)  # what a server answers that does not speak a part of the hub's API
_AGAIN = "give the same command again: what was fetched stays"


class Name(NamedTuple):
    """A repository, and the revision that is asked for: a branch, a tag or a commit; None is its main branch."""

    repo: str
    revision: str | None

    @classmethod
    def of(cls, name: str, revision: str | None = None) -> Name | None:
        """What `org/name` or `org/name@revision` says; None for a text that is no such name.

        Raises InputError for another revision beside the name's, for none behind its @, and for a repository's address
        in place of its name.
        """
        if (address := _ADDRESS.fullmatch(name)) is not None:
            there = without_user(name)
            raise InputError(f"model: found the address {there!r}, expected a name; say {address['repo']}")
        if name.endswith("@") and _NAME.fullmatch(name[:-1]):
            raise InputError(f"model: found no revision behind @ in {name!r}, expected a branch, a tag or a commit")
        if (found := _NAME.fullmatch(name)) is None:
            return None
        if revision is not None and found["revision"] not in (None, revision):
            raise InputError(f"revision: found {revision!r} beside the model {name!r}; leave one of the two out")
        return cls(found["repo"], found["revision"] or revision)

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def origin_of(folder: Path, named: str | Path | None = None) -> Name | None:
    """The repository and the commit that a folder in the hub's cache is, as its path says; None for one elsewhere.

    `named`: the model's name that led to the folder; None too where that is the folder itself, and no repository's.
    """
    found = _SNAPSHOT.fullmatch(folder.absolute().as_posix())
    if found is None:
        return None
    origin = Name(found["repo"].replace("--", "/", 1), found["commit"])
    asked = Name.of(named) if isinstance(named, str) else None
    return origin if named is None or (asked is not None and asked.repo == origin.repo) else None


def holder_of(part: Path) -> Path | None:
    """The folder of a commit in the hub's cache in which this folder lies, or which it is; None for one elsewhere."""
    here = part.absolute()
    return next((folder for folder in (here, *here.parents) if origin_of(folder) is not None), None)


def fetch(
    name: Name,
    *,
    token: str | bool | None = None,
    weights: bool = True,
    check: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """The folder of a repository's files in the hub's cache; those that are not there are fetched.

    Args:
        name: a revision that is a commit is not asked for again.
        token: of the hub; default that of HF_TOKEN or of `hf auth login`.
        weights: False for what describes the model alone: configs, tokenizer, filters, the cards of what else it has.
        check: called with the folder before any weight is fetched, and raises for one that is of no use.

    Raises InputError for a repository, a revision or a file that is missing or closed, for one without weights that are
    read here, for a hub that cannot be reached where the cache does not have them all, and for a full disk.
    """
    folder = _snapshot(name, DESCRIBED, token)
    at = Name(name.repo, folder.name)
    files = _listed(at, folder, token)
    if not {published.CONFIG, ADAPTER} & files:
        raise InputError(
            f"model: no config.json in {name} at the hub, which holds {_some(files)}; name a repository of a model"
        )
    if weights:
        check(folder)
        wanted = _weights(at, folder, files, token)
        _complete(at, folder, [file for file in wanted if file in files], token)
    return folder


def completed(part: Path, *, token: str | bool | None = None) -> Path:
    """A drafter's or an adapter's folder within a model's; of one in the hub's cache, what it lacks is fetched first.

    `token` as of `fetch`. Raises InputError as that.
    """
    from huggingface_hub import constants

    folder = holder_of(part)
    at = None if folder is None else origin_of(folder)
    if folder is None or at is None or not folder.is_relative_to(Path(constants.HF_HUB_CACHE).absolute()):
        return part
    within = part.absolute().relative_to(folder).as_posix() + "/"
    files = [file for file in sorted(_listed(at, folder, token)) if file.startswith(within)]
    tensors = [file for name in OF_ADAPTERS if (file := within + name) in files][:1]
    wanted = [file for file in files if _matches(file.removeprefix(within), PART)]
    _complete(at, folder, wanted + tensors, token)
    return part


def unfetched(at: Name, folder: Path, *, token: str | bool | None = None) -> dict[str, published.Open]:
    """How the files of weights are opened that a commit's folder in the cache lacks: safetensors by their headers,
    which are fetched then, and the file itself when a number of it is asked for; a pickle is fetched when it is opened.
    The params of a folder of ours are fetched at once.

    Raises InputError, now or when one is opened or read, as `fetch`.
    """
    from huggingface_hub import HfApi

    files = _listed(at, folder, token)
    wanted = [file for file in _weights(at, folder, files, token) if file in files]
    if not all(Path(file).suffix in published.OPEN for file in wanted):
        _complete(at, folder, wanted, token)

    def opened(path: Path) -> tuple[dict[str, Spec], published.Read]:
        if path.suffix != ".safetensors":
            _complete(at, folder, [path.name], token)
            return published.OPEN[path.suffix](path)
        with _told(at):
            header = HfApi().parse_safetensors_file_metadata(at.repo, path.name, revision=at.revision, token=token)
        tensors = [(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in header.tensors.items()]
        return published.announced(path, tensors, lambda: _complete(at, folder, [path.name], token))

    return {file: opened for file in wanted if not (folder / file).is_file()}


def _weights(at: Name, folder: Path, files: set[str], token: str | bool | None) -> list[str]:
    """The names of the files that hold a repository's weights, by the index of those in shards."""
    adapter = [file for file in OF_ADAPTERS if file in files][:1]
    if "family" in read_object(folder / published.CONFIG, optional=True):
        return sorted(file for file in files if _matches(file, OURS))
    for name in (published.SAFETENSORS, published.PICKLE):
        if name in files:
            return [*adapter, name]
        index = f"{name}.index.json"
        if index in files:
            _complete(at, folder, [index], token)
            listed = read_object(folder / index).get("weight_map")
            named = {str(file) for file in listed.values()} if isinstance(listed, dict) else set()  # else refused later
            return adapter + sorted(file for file in named if file.endswith(Path(name).suffix))
    if adapter:
        return adapter
    raise InputError(
        f"model: {at.repo} at the hub holds no weights that are read here, found {_some(files)}; expected "
        f"{published.SAFETENSORS} or {published.PICKLE}, or the index of one in shards"
    )


def _complete(at: Name, folder: Path, wanted: Sequence[str], token: str | bool | None) -> None:
    """Fetch those files of a commit that its folder lacks. Raises InputError where one cannot be had."""
    if all((folder / file).is_file() for file in wanted):
        return
    _snapshot(at, wanted, token)
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        raise InputError(f"model: {at}: {_some(missing)} cannot be had; {_AGAIN}")


def _some(files: Iterable[str]) -> str:
    names = sorted(file for file in files if not file.startswith("."))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def _listed(at: Name, folder: Path, token: str | bool | None) -> set[str]:
    """The names of all files at a commit; of those in the cache where nothing else is known."""
    if (names := _tree(at)) is not None:
        return names
    with contextlib.suppress(InputError):
        return _info(at, token)[1]
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _tree(at: Name) -> set[str] | None:
    """The names of all files at a commit, as `_snapshot` has left them in the cache, if it has."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path for file in get_cached_repo_tree(at.repo, revision=at.revision)}
    except CachedRepoTreeNotFoundError:
        return None


def _info(name: Name, token: str | bool | None) -> tuple[str, set[str]]:
    """The commit that a revision stands for, and the names of its files. Raises InputError where they cannot be had."""
    from huggingface_hub import HfApi

    with _told(name):
        found = HfApi().model_info(name.repo, revision=name.revision, token=token)
    return str(found.sha), {file.rfilename for file in found.siblings or ()}


def _snapshot(name: Name, wanted: Iterable[str], token: str | bool | None) -> Path:
    """The folder with the files of these names (patterns with a `*`) at a revision, as far as the repository has them.

    Raises InputError where they cannot be had.
    """
    from huggingface_hub import errors, snapshot_download

    patterns, folder = [file if "*" in file else glob.escape(file) for file in wanted], None
    with _told(name):
        try:
            folder = Path(snapshot_download(name.repo, revision=name.revision, token=token, allow_patterns=patterns))
        except errors.LocalEntryNotFoundError as error:
            why = error.__cause__
            if not isinstance(why, errors.HfHubHTTPError) or why.response.status_code not in _NO_SUCH_CALL:
                raise
    if folder is not None and _tree(Name(name.repo, folder.name)) is not None:
        return folder
    try:  # a hub (a mirror, say) that lists no trees, or one that cannot be reached, and another program's cache
        commit, files = _info(name, token)
    except InputError:
        if folder is None:
            raise
        return folder
    return _one_by_one(name, commit, [file for file in sorted(files) if _matches(file, patterns)], token)


def _matches(file: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


def _one_by_one(name: Name, commit: str, files: Sequence[str], token: str | bool | None) -> Path:
    """`_snapshot` of files that are known, without a tree. The first is asked for by the revision's name, so that the
    cache knows what it stood for.
    """
    from huggingface_hub import hf_hub_download

    folder = None
    for file in files:
        with _told(name):
            revision = name.revision if folder is None else commit
            folder = Path(hf_hub_download(name.repo, file, revision=revision, token=token)).parents[file.count("/")]
    if folder is None:
        raise InputError(f"model: {name} at the hub holds no model; name a repository of one")
    return folder


def clear_unfinished() -> None:
    """Remove the beginnings of files that this process is fetching, in a program that ends at once: nobody goes on with
    them. Where the system does not show a process its open files, they stay.
    """
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            if (file := Path(os.readlink(descriptor))).suffix == _UNFINISHED:
                file.unlink()


@contextlib.contextmanager
def _told(name: Name) -> Iterator[None]:
    """Raises as an InputError of one line what huggingface_hub cannot do for a repository: errors of its own, of its
    HTTP client, of the system.
    """
    from huggingface_hub import constants

    try:
        with _quiet(), writing(Path(constants.HF_HUB_CACHE), "free space there, or name another place with HF_HOME"):
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(without_user(_line_of(error, name))) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub tells of each new try and of what it cannot do in its log: the error says it. That a file does
    not fit the disk is a warning there, and an error here.
    """
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    if "HF_HUB_VERBOSITY" not in os.environ and "HF_DEBUG" not in os.environ:
        logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough free disk space", UserWarning)
        try:
            yield
        finally:
            logging.set_verbosity(before)


def _line_of(error: Exception, name: Name) -> str:
    """Why a repository's files cannot be had, and the mend."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    why = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    short = f"{type(why).__name__}: {first_line(why)}"
    match why:
        case errors.GatedRepoError():
            return (
                f"model: {name.repo} is gated at {hub}, found no token that may read it; ask for access at "
                f"{hub}/{name.repo}, then `hf auth login` or set HF_TOKEN"
            )
        case errors.RepositoryNotFoundError():
            return (
                f"model: found neither a folder {name.repo!r} nor a repository of that name at {hub}; correct the "
                "name, or, if it is private, `hf auth login` or set HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return f"model: {name.repo} has no revision {name.revision!r} at {hub}; name a branch, a tag or a commit"
        case errors.RemoteEntryNotFoundError():
            return f"model: a file of {name} is gone from {hub} ({first_line(why)}); {_AGAIN}"
        case errors.OfflineModeIsEnabled():
            return (
                f"model: found no folder {name.repo!r}, and not all files of {name} in the hub's cache {cache}, while "
                "HF_HUB_OFFLINE forbids to fetch them; unset it, or name a folder"
            )
        case errors.HFValidationError():
            return f"model: found {name.repo!r}, expected a folder or a hub's org/name ({first_line(why)})"
        case errors.HfHubHTTPError():
            status = why.response.status_code
            closed = status in (401, 403)
            mend = "set HF_TOKEN to a token that may read it" if closed else f"wait, or see HF_ENDPOINT; {_AGAIN}"
            return f"model: {hub} answered {status} for {name}, and the cache does not hold it all; {mend}"
        case UserWarning():
            return f"model: {first_line(why)}; free space, or name another place with HF_HOME"
    return (
        f"model: found no folder {name.repo!r}, and {name} cannot be fetched from {hub} ({short}); check the network "
        f"and HF_ENDPOINT, then {_AGAIN}"
    )
