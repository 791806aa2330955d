"""The model's own decodes, recorded so that every state on their way can be rebuilt: what a drafter learns from.

prompts -> a decode -> tokens, commit steps -> trajectory-00000.npz ...
state i = the first i tokens that were written, all else [MASK]
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxdiff import parts as prints
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys
from jaxdiff.decode.checks import block_of, overhang_of
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.layout import layout_of
from jaxdiff.decode.program import Timed
from jaxdiff.files import read_object, replaced_file
from jaxdiff.protocols import Model
from jaxdiff.train.recordings import AGAIN
from jaxdiff.types import InputError, Params

LATER = 2**30  # the rank of what is never written


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """R decodes, prompts ending at one column.

    `rank` says when a column was written: -1 what was given, 0 first, 1 second ... LATER never. Tokens of one step are
    ranked from left to right. What overhangs the end of the canvas in a model that attends in blocks is LATER.
    """

    tokens: Int[np.ndarray, "R L"]
    rank: Int[np.ndarray, "R L"]
    origin: Int[np.ndarray, " R"]  # column of each row's first token
    start: Int[np.ndarray, "R L"]  # the first column of the block that each column lies in; of what was given -1
    prompt: Int[np.ndarray, " R"]  # its id
    block_length: int

    def take(self, rows: Any) -> Trajectories:
        """Some of the rows, by index or by mask."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})


_ARRAYS = tuple(field.name for field in dataclasses.fields(Trajectories) if field.name != "block_length")


def record(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    folder: Path,
    decoder: Decoder | None = None,
    *,
    gen_length: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trajectories:
    """Decode each prompt, and keep its tokens and the steps at which they were written.

    Args:
        ids: one for each prompt; rows of one prompt must not be split between fitting and validation.
        folder: of the parts; parts that it holds from the same call are not made again.
        decoder: default one token a step; the finer its steps, the more a drafter is told of their order.
        seed: of the rows' randomness, with their place among the prompts.
        progress: called after each batch with the prompts, the tokens and the seconds so far.

    Raises InputError where the folder belongs to other prompts, weights or lengths, what `decode` raises, and where the
    folder cannot be written.
    """
    decoder = decoder or Decoder()
    block = block_of(model, decoder.block_length)
    decoder = dataclasses.replace(decoder, block_length=block)
    if not prompts or len(prompts) != len(ids):
        raise InputError(f"collect: found {len(prompts)} prompts and {len(ids)} ids, expected as many, at least one")
    setting = prints.run_of(
        prompts=prints.digest_of_tree([np.asarray(prompt, np.int64) for prompt in prompts]),
        ids=prints.digest_of_tree(np.asarray(ids, np.int64)),
        weights=prints.digest_of_tree(params),
        model=repr(model),
        gen_length=gen_length,
        batch_size=batch_size,
        trajectories=True,
        seed=seed,
        decoder=prints.digest_of_tree(decoder),
    )
    prints.claim(folder, "trajectories", setting)
    config, run = model.config, Timed()
    padded, origin = pad_to_bucket(prompts, fill=config.eos_token_id, room=config.max_sequence_length - gen_length)
    done = tokens = 0
    for index, rows in enumerate(batches(len(prompts), batch_size)):
        path, fresh = folder / f"trajectory-{index:05d}.npz", len(set(rows.tolist()))
        if not path.is_file():
            keys, options = request_keys(seed, rows), dict(origin=origin[rows], gen_length=gen_length)
            result = jax.device_get(run.run(prepare(model, params, padded[rows], decoder, key=keys, **options)))
            if result.not_finite[:fresh].any():
                raise InputError("collect: the model's scores are no numbers; its weights are damaged, or overflow")
            row = {name: getattr(result, name)[:fresh] for name in ("tokens", "origin", "commit_step")}
            row |= {"prompt": np.asarray(ids)[rows][:fresh], "block_length": np.int64(block)}
            packed = io.BytesIO()  # a zip file that runs into a full disk writes its own traceback
            np.savez_compressed(packed, **row)
            with replaced_file(path, AGAIN) as new:
                new.write_bytes(packed.getbuffer())
        part = _read(path, model)
        done, tokens = done + fresh, tokens + int((part.rank < LATER).sum() - (part.rank < 0).sum())
        if progress is not None:
            progress(done, tokens, max(run.seconds, 1e-9))
    return load_trajectories([folder], model, params)


def load_trajectories(folders: Sequence[Path], model: Model, params: Params) -> Trajectories:
    """All parts of the folders, prompts padded on the left to the longest.

    Raises InputError where a folder holds none or a damaged one, for trajectories of another model or other weights,
    where they are of several block lengths, lengths generated or seeds, and for ids that are not the model's.
    """
    parts, seeds = [], set()
    own = prints.run_of(weights=prints.digest_of_tree(params), model=repr(model))
    for folder in folders:
        paths = sorted(folder.glob("trajectory-*.npz"))
        if not paths:
            raise InputError(f"traces: no trajectory-*.npz in {folder}; collect some with --trajectories")
        setting = read_object(folder / prints.SETTING)
        if differs := [name for name, value in own.items() if setting.get(name) != value]:
            raise InputError(
                f"traces: found trajectories of other {' and '.join(differs)} in {folder}, expected this model's own; "
                "collect some with it, and with its adapter if it has one"
            )
        seeds.add(setting.get("seed"))
        parts += [_read(path, model) for path in paths]
    width = max(part.tokens.shape[1] for part in parts)
    for name, found in (
        ("seed", seeds),  # a prompt's id means another prompt under another
        ("block_length", {part.block_length for part in parts}),
        ("gen_length", {int((part.start[0] >= 0).sum()) for part in parts}),
    ):
        if len(found) > 1:
            raise InputError(
                f"traces: found {name} {sorted(found)}, expected one; name folders that were collected alike"
            )
    wide = [_wider(part, width - part.tokens.shape[1]) for part in parts]
    joined = {name: np.concatenate([getattr(part, name) for part in wide]) for name in _ARRAYS}
    return Trajectories(**joined, block_length=parts[0].block_length)


def _wider(part: Trajectories, by: int) -> Trajectories:
    """With so many more columns of padding on the left."""

    def pad(rows: Int[np.ndarray, "R L"], fill: int) -> Int[np.ndarray, "R L"]:
        return np.pad(rows, ((0, 0), (by, 0)), constant_values=fill)

    start = pad(np.where(part.start < 0, part.start, part.start + by), -1)
    return dataclasses.replace(
        part, tokens=pad(part.tokens, 0), rank=pad(part.rank, -1), origin=part.origin + by, start=start
    )


def _read(path: Path, model: Model) -> Trajectories:
    try:
        with np.load(path) as part:
            tokens, origin, step = part["tokens"], part["origin"], part["commit_step"]
            prompt, block = part["prompt"], int(part["block_length"])
        first = tokens.shape[1] - step.shape[1]
        shapes = (step.shape[0], origin.shape, prompt.shape) == (len(tokens), (len(tokens),), (len(tokens),))
        if not shapes or first < 1 or block < 1:
            raise ValueError("its arrays do not fit each other")
    except Exception as error:
        raise InputError(f"{path}: damaged ({error}); remove it and collect again") from error
    if tokens.min() < 0 or tokens.max() >= model.config.vocab_size:
        raise InputError(
            f"{path}: found ids up to {tokens.max()}, expected some under the model's {model.config.vocab_size}; these "
            "are trajectories of another model: name those of this one"
        )
    overhang = overhang_of(model)
    rank = np.full((len(tokens), tokens.shape[1] + overhang), -1)
    order = np.argsort(np.where(step < 0, LATER, step), axis=1, kind="stable")
    rank[:, first : tokens.shape[1]] = np.where(step < 0, LATER, np.argsort(order, axis=1, kind="stable"))
    rank[:, tokens.shape[1] :] = LATER
    tokens = np.pad(tokens, ((0, 0), (0, overhang)), constant_values=model.config.mask_token_id)
    layout = layout_of(model, Decoder(), first=first, generated=step.shape[1], block=block_of(model, block))
    begin, column = (
        np.asarray(layout.first_block(jnp.asarray(origin, jnp.int32)))[:, None],
        np.arange(rank.shape[1])[None],
    )
    start = np.where(rank < 0, -1, begin + (column - begin) // block * block)
    return Trajectories(tokens, rank, origin, start, prompt, block)
