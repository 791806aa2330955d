"""`insert`: check what can be checked before compilation, lay out the buffer, run the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.api import pad_prompts
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.program import Runs, direct
from jaxdiff.insertion import loop
from jaxdiff.insertion.loop import Inserted, Setup, Texts
from jaxdiff.insertion.ways import One, Way
from jaxdiff.protocols import Model, is_insertion
from jaxdiff.types import InputError, Params


@dataclasses.dataclass(frozen=True)
class Call:
    """Texts to complete, checked and laid out: what `loop.run` takes."""

    setup: Setup
    texts: Texts

    def run(self, call: Runs = direct) -> Inserted:
        return call(loop.run, self.setup, self.texts)


def insert(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    way: Way | None = None,
    *,
    sampling: Sampling | None = None,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    gaps: Bool[Array, "B P"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
) -> Inserted:
    """Insert tokens into texts until the model says that nothing is missing, `gen_length` of them at most, in one
    compiled program. A row's answer does not depend on its neighbours.

    Args:
        prompts: token ids, [B P], padded on the left up to `origin` (see `pad_prompts`; `join` for texts with holes).
        way: into how many gaps a forward inserts; default one. Its `stop` is the probability at which a row ends.
        sampling: temperature 0 takes the gap with most mass and its likeliest token; above, a pair of gap and token is
            drawn from all, of those that top-p, then top-k leave. The rest of a `Sampling` is of masks, and refused.
        gen_length: tokens that a row has room for; a row that has filled it and is not whole says so (`reason`).
        origin: column of each row's first token, [B]; default 0.
        gaps: the tokens behind which something may be missing; default each row's last. Behind what is inserted there,
            more may be.
        key: as of `decode`; only a temperature uses it.

    Source: ILM (arXiv 2505.05755); dhruvdcoder/ILM `diffusion/ilm_v2.py`.

    Raises InputError before compilation for a model without a stop head, lengths that do not fit, [MASK] or an empty
    row in the prompts, ids outside the vocabulary, a row without a gap, and what of `sampling` says nothing here.
    """
    return prepare_insert(
        model, params, prompts, way, sampling=sampling, gen_length=gen_length, origin=origin, gaps=gaps, key=key
    ).run()


def join(rows: Sequence[Sequence[Sequence[int]]], fill: int, multiple: int = 1) -> tuple[np.ndarray, ...]:
    """Texts in parts, between which something is missing, as `insert` takes them: (prompts [B P], origin [B], gaps
    [B P]), padded on the left with `fill` as by `pad_prompts`. A row of one part is a prompt, which is gone on with.

    Raises InputError for a row whose first part is empty: it has no token for a gap to be behind.
    """
    for number, parts in enumerate(rows):
        check_parts(parts, f"row {number} ")
    prompts, origin = pad_prompts([[token for part in parts for token in part] for parts in rows], fill, multiple)
    gaps = np.zeros(prompts.shape, bool)
    for row, first, parts in zip(gaps, origin, rows, strict=True):
        row[first + gaps_of(parts)] = True
    return prompts, origin, gaps


def check_parts(parts: Sequence[Sequence[int]], where: str = "") -> None:
    """Raises InputError for parts of a text that have no gap."""
    if not parts or not len(parts[0]):
        raise InputError(
            f"insert: {where}begins with an empty part, expected at least one token before the first gap; give a prompt"
        )


def gaps_of(parts: Sequence[Sequence[int]]) -> Int[np.ndarray, " n"]:
    """The tokens behind which something is missing, counted from a text's first; of one part the last."""
    ends = np.cumsum([len(part) for part in parts]) - 1
    return ends[: max(len(parts) - 1, 1)]


def prepare_insert(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    way: Way | None = None,
    *,
    sampling: Sampling | None = None,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    gaps: Bool[Array, "B P"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
) -> Call:
    """What `insert` of the same arguments runs. Raises as `insert`."""
    way, sampling = One() if way is None else way, Sampling() if sampling is None else sampling
    check_model(model)
    count, width = arrays.shape_of("prompts", prompts)
    if width < 1:
        raise InputError("prompts: found length 0, expected at least one token; give a prompt")
    check_lengths(model, width, gen_length)
    check_sampling(sampling)
    checks.check_numbers((way, sampling), count)
    origin = arrays.checked_origin(origin, count, width)
    arrays.check_ids(model, prompts, origin, masks_allowed=False)
    texts = Texts(
        tokens=jnp.asarray(prompts, jnp.int32),
        origin=origin,
        gaps=jax.device_put(_columns(gaps, np.asarray(origin), (count, width))),
        keys=arrays.checked_keys(key, count),
    )
    return Call(Setup(model=model, params=params, way=way, sampling=sampling, room=gen_length), texts)


def check_model(model: Model) -> None:
    """Raises InputError for a model that fills masks."""
    if not is_insertion(model):
        raise InputError(
            f"model: found a {type(model).__name__}, which has no stop head and fills masks, expected an insertion "
            "model; decode it, or train one (model.family: insertion)"
        )


def check_lengths(model: Model, prompt: int, generated: int) -> None:
    """What is inserted is something, and fits the context with the prompt; else InputError."""
    checks.check_whole("gen_length", generated)
    if generated < 1:
        raise InputError(f"gen_length: found {generated}, expected room for at least one token; raise it")
    checks.check_lengths(model, prompt, generated, generated)


def check_sampling(sampling: Sampling) -> None:
    """Raises InputError for what says how masks are filled."""
    set_to = {
        "cfg_scale": sampling.cfg_scale is not None,
        "forbid_eos": sampling.forbid_eos,
        "defer_eos": sampling.defer_eos,
        "end_think": sampling.end_think is not None,
    }
    if found := [name for name, is_set in set_to.items() if is_set]:
        raise InputError(
            f"{found[0]}: found it with an insertion model, which fills no masks and inserts no end-of-text, expected "
            "temperature, top_p and top_k alone; leave it out"
        )


def _columns(gaps: Any, origin: Int[np.ndarray, " B"], shape: tuple[int, int]) -> Int[np.ndarray, "B n"]:
    """The columns behind which something may be missing, -1 for none. Raises InputError for a row without one."""
    if gaps is None:
        return np.full((shape[0], 1), shape[1] - 1, np.int32)
    found = np.asarray(gaps)
    if found.shape != shape or found.dtype != bool:
        raise InputError(f"gaps: found {found.dtype} {found.shape}, expected bool {shape}, one for each token")
    found = found & (np.arange(shape[1])[None] >= origin[:, None])
    most = found.sum(axis=1)
    if not most.all():
        raise InputError(
            f"gaps: row {int(np.argmin(most))} has none, expected a token behind which something may be missing; mark "
            "one"
        )
    order = np.argsort(~found, axis=1, kind="stable")[:, : most.max()].astype(np.int32)
    return np.where(np.arange(most.max())[None] < most[:, None], order, -1).astype(np.int32)
