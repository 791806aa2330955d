"""Decodes that are recorded beside an answer that was decoded before: what filters and judges are fitted from.

    prompts -> maybe a decode -> reference -> recording policies -> rows of one block at one forward -> a part each

All passes are compiled and batched. A part is one batch, written as a whole, so that a collection that was interrupted
goes on after the parts that it finished.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff import parts as prints
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket, request_keys
from jaxdiff.decode.checks import block_of, overhang_of
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Timed
from jaxdiff.files import replaced_file
from jaxdiff.protocols import Model, Policy
from jaxdiff.types import REFERENCE, InputError, Params

AGAIN = "free space there and give the same command again: the parts that are written stay"
Rows = dict[str, np.ndarray]  # columns of equal length


class Decoded(NamedTuple):
    """What a recording policy wrote, beside the answer."""

    tokens: Any  # [B L]
    origin: Any  # [B], the column of the first token
    reference: Any  # [B L], or None


def record(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    folder: Path,
    decoder: Decoder | None,
    *,
    what: str,
    policies: Callable[[int], Sequence[Policy]],
    rows_of: Callable[[Any, int, Decoded], Rows],
    gen_length: int,
    batch_size: int,
    setting: Mapping[str, Any],
    progress: Callable[[int, int, float], None] | None,
    answers: bool = True,
    seed: int = 0,
) -> Rows:
    """Decode each prompt, and again with each of some policies that record.

    Args:
        ids: one for each prompt, which its rows carry as `prompt`.
        decoder: of the answer; the others differ from it in their policy alone. Default one token a step.
        what: the folder's content, in a word.
        policies: the recording ones, from the number of blocks that a row may have.
        rows_of: from a policy's final state, a leaf [B ...] each, the policy's number, and what was decoded, to rows:
            columns that lead with rows, among them `row`, which row of the batch each is of.
        setting: what the parts depend on beside the rest.
        progress: called after each batch with the prompts, the rows and the seconds so far.
        answers: whether the prompts are decoded by `decoder` first, for policies that are told that, and for `rows_of`.
        seed: of the rows' randomness, with their place among the prompts.

    Raises InputError where the folder belongs to other prompts, weights or settings, what `decode` raises, and where
    the folder cannot be written.
    """
    decoder = decoder or Decoder()
    block = block_of(model, decoder.block_length)
    decoder = dataclasses.replace(decoder, block_length=block)
    if not prompts or len(prompts) != len(ids):
        raise InputError(f"collect: found {len(prompts)} prompts and {len(ids)} ids, expected as many, at least one")
    depends = prints.run_of(
        prompts=prints.digest_of_tree([np.asarray(prompt, np.int64) for prompt in prompts]),
        ids=prints.digest_of_tree(np.asarray(ids, np.int64)),
        weights=prints.digest_of_tree(params),
        model=repr(model),
        gen_length=gen_length,
        batch_size=batch_size,
        decoder=prints.digest_of_tree(decoder),
        seed=seed,
        **setting,
    )
    prints.claim(folder, what, depends)
    config, run = model.config, Timed()
    recorders = policies(-(-(gen_length + overhang_of(model)) // block))
    padded, origin = pad_to_bucket(prompts, fill=config.eos_token_id, room=config.max_sequence_length - gen_length)
    parts: list[Rows] = []
    done = 0
    for index, rows in enumerate(batches(len(prompts), batch_size)):
        path = folder / f"part-{index:05d}.npz"
        fresh = len(set(rows.tolist()))
        if not path.is_file():
            options = dict(origin=origin[rows], gen_length=gen_length, key=request_keys(seed, rows))
            decode = functools.partial(prepare, model, params, padded[rows], **options)
            reference = run.run(decode(decoder)).tokens if answers else None
            left = np.flatnonzero((np.asarray(reference)[:fresh] == config.mask_token_id).any(-1)) if answers else []
            if len(left):
                raise InputError(f"collect: the reference of prompt {np.asarray(ids)[rows][left[0]]} has masks left")
            made = []
            for number, policy in enumerate(recorders):
                towards = dataclasses.replace(decoder, policy=policy)
                result = run.run(decode(towards, reference=reference if REFERENCE in policy.needs else None))
                found = (result.policy, Decoded(result.tokens, origin[rows], reference))
                state, decoded = jax.tree.map(operator.itemgetter(slice(fresh)), jax.device_get(found))
                columns = rows_of(state, number, decoded)
                made.append(columns | {"prompt": np.asarray(ids)[rows][columns.pop("row")]})
            packed = io.BytesIO()  # a zip file that runs into a full disk writes its own traceback
            columns: Any = join(made)
            np.savez_compressed(packed, **columns)
            with replaced_file(path, AGAIN) as new:
                new.write_bytes(packed.getbuffer())
        parts.append(_read(path))
        done += fresh
        if progress is not None:
            progress(done, sum(part["prompt"].size for part in parts), max(run.seconds, 1e-9))
    return join(parts)


def forwards_of(forwards: Any, leaves: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Rows]:
    """Of leaves [B Q S ...] what lies in the first `forwards` of S: the rows' number in the batch; and columns, with
    `row`, `block` and `step`.
    """
    most = next(iter(leaves.values())).shape[2]
    row, block, step = np.nonzero(np.arange(most)[None, None] < forwards[..., None])
    picked = {name: np.asarray(leaf)[row, block, step] for name, leaf in leaves.items()}
    return row, picked | {"row": row, "block": block, "step": step}


def read_parts(folder: Path, names: Sequence[str], *, what: str) -> Rows:
    """All parts of a folder. Raises InputError where there is none, or one is damaged or holds other columns."""
    paths = sorted(folder.glob("part-*.npz"))
    if not paths:
        raise InputError(f"{what}: no part-*.npz in {folder}; collect some first")
    parts = [_read(path) for path in paths]
    if found := sorted(set(parts[0]) ^ set(names)):
        raise InputError(
            f"{what}: found columns of another kind in {folder} ({found[0]}), expected what `collect` wrote for this; "
            "name another folder"
        )
    return join(parts)


def join(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read(path: Path) -> Rows:
    try:
        with np.load(path) as part:
            return {name: part[name] for name in part.files}
    except Exception as error:
        raise InputError(f"{path}: damaged ({error}); remove it and collect again") from error
