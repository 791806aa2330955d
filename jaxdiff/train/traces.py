"""Traces for a learned filter: what replays of the model's own answers saw, forward by forward.

    prompts -> a decode -> reference -> Replay -> rows of one block at one forward -> part-00000.npz ...

Both passes are compiled and batched. A part is one batch, written as a whole, so that a collection that was interrupted
goes on after the parts that it finished.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdiff import parts as prints
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket
from jaxdiff.decode.checks import block_of, overhang_of
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Timed
from jaxdiff.files import replaced_file
from jaxdiff.policies.filters import Evidence
from jaxdiff.policies.replay import Recording, Replay
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params

AGAIN = "free space there and give the same command again: the parts that are written stay"


@dataclasses.dataclass(frozen=True)
class Traces:
    """R rows: one block of W positions at one forward each. Visible positions carry the model's own belief."""

    log_odds: Float[np.ndarray, "R W"]
    runner_up: Float[np.ndarray, "R W"]
    entropy: Float[np.ndarray, "R W"]
    masked: Bool[np.ndarray, "R W"]
    final: Bool[np.ndarray, "R W"]  # the candidate is the reference's token
    hidden: Float[np.ndarray, "R W D"]  # the model's features in half precision; D = 0 where none were kept
    step: Int[np.ndarray, " R"]  # forwards that the block had before
    block: Int[np.ndarray, " R"]  # from 0, after the prompt
    prompt: Int[np.ndarray, " R"]  # the prompt's id
    tau: Float[np.ndarray, " R"]  # of the replay: 0 is the published one

    @property
    def evidence(self) -> Evidence:
        """The rows as a filter sees them when it decodes."""
        columns = (self.log_odds, self.runner_up, self.entropy, self.masked, self.step.astype(np.int32), self.hidden)
        return Evidence(*map(jnp.asarray, columns))

    def take(self, rows: Any) -> Traces:
        """Some of the rows, by index or by mask."""
        return Traces(**{name: column[rows] for name, column in vars(self).items()})

    def check(self) -> None:
        """Raises InputError for traces that are empty or hold a NaN, with the prompt's id."""
        if not self.prompt.size:
            raise InputError("traces: found no rows, expected at least one; collect more prompts")
        for name in ("log_odds", "runner_up", "entropy", "hidden"):
            bad = np.flatnonzero(~np.isfinite(getattr(self, name)).reshape(self.prompt.size, -1).all(1))
            if bad.size:
                raise InputError(f"traces: {name} of prompt {self.prompt[bad[0]]} is not finite; collect it again")


def collect(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    folder: Path,
    decoder: Decoder | None = None,
    *,
    gen_length: int = 256,
    batch_size: int = 16,
    features: bool = False,
    taus: Sequence[float] = (0.0,),
    progress: Callable[[int, int, float], None] | None = None,
) -> Traces:
    """Decode each prompt, replay its answer, and keep what the replay saw.

    Args:
        ids: one for each prompt; rows of one prompt must not be split between fitting and validation.
        folder: of the parts; parts that it holds from the same call are not made again.
        decoder: whose decode is replayed; default one token a step to the end of the canvas, as published. A careful
            threshold gives answers as good in a fifteenth of the forwards, and `Eos` leaves out what follows the end of
            the text.
        features: keep the model's hidden features too, 2 D bytes for each position that a row sees.
        taus: a replay for each, which commits what is final and at least as sure; 0 is the published one, and the
            others show what a more careful decode sees on its way.
        progress: called after each batch with the prompts, the rows and the seconds so far.

    Raises InputError for no taus or one outside 0 to 1, where the folder belongs to other prompts, weights or lengths,
    what `decode` raises, and where the folder cannot be written.
    """
    decoder = decoder or Decoder()
    block_length = block_of(model, decoder.block_length)
    decoder = dataclasses.replace(decoder, block_length=block_length)
    if not taus or not all(0.0 <= tau <= 1.0 for tau in taus):
        raise InputError(
            f"collect taus: found {list(taus)}, expected one from 0 to 1 for each replay; 0 is the published"
        )
    if not prompts or len(prompts) != len(ids):
        raise InputError(f"collect: found {len(prompts)} prompts and {len(ids)} ids, expected as many, at least one")
    setting = prints.run_of(
        prompts=prints.digest_of_tree([np.asarray(prompt, np.int64) for prompt in prompts]),
        ids=prints.digest_of_tree(np.asarray(ids, np.int64)),
        weights=prints.digest_of_tree(params),
        model=repr(model),
        gen_length=gen_length,
        batch_size=batch_size,
        features=features,
        taus=list(taus),
        decoder=prints.digest_of_tree(decoder),
    )
    prints.claim(folder, "traces", setting)
    config, run = model.config, Timed()
    blocks = -(-(gen_length + overhang_of(model)) // block_length)
    replay = functools.partial(Replay, blocks=blocks, features=config.d_model if features else 0)
    padded, origin = pad_to_bucket(prompts, fill=config.eos_token_id, room=config.max_sequence_length - gen_length)
    parts: list[Traces] = []
    done = 0
    for index, rows in enumerate(batches(len(prompts), batch_size)):
        path = folder / f"part-{index:05d}.npz"
        fresh = len(set(rows.tolist()))
        if not path.is_file():
            decode = functools.partial(prepare, model, params, padded[rows], origin=origin[rows], gen_length=gen_length)
            reference = run.run(decode(decoder)).tokens
            left = np.flatnonzero((np.asarray(reference)[:fresh] == config.mask_token_id).any(1))
            if left.size:
                raise InputError(f"collect: the reference of prompt {np.asarray(ids)[rows][left[0]]} has masks left")
            replays = []
            for tau in taus:
                towards = dataclasses.replace(decoder, policy=replay(tau=tau))
                recording = run.run(decode(towards, reference=reference)).policy
                replays.append(_rows_of(jax.device_get(recording), np.asarray(ids)[rows], fresh, tau))
            packed = io.BytesIO()  # a zip file that runs into a full disk writes its own traceback
            np.savez_compressed(packed, **vars(join(replays)))
            with replaced_file(path, AGAIN) as new:
                new.write_bytes(packed.getbuffer())
        parts.append(_read(path))
        done += fresh
        if progress is not None:
            progress(done, sum(part.prompt.size for part in parts), max(run.seconds, 1e-9))
    traces = join(parts)
    traces.check()
    return traces


def load_traces(folder: Path) -> Traces:
    """All parts of a folder. Raises InputError where there is none, or one is damaged."""
    paths = sorted(folder.glob("part-*.npz"))
    if not paths:
        raise InputError(f"traces: no part-*.npz in {folder}; collect some first")
    traces = join([_read(path) for path in paths])
    traces.check()
    return traces


def join(parts: Sequence[Traces]) -> Traces:
    return Traces(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _rows_of(recording: Recording, ids: Int[np.ndarray, " B"], rows: int, tau: float) -> Traces:
    """The forwards that happened, of the first `rows` rows."""
    forwards = np.asarray(recording.forwards)[:rows]
    row, block, step = np.nonzero(np.arange(recording.final.shape[2])[None, None] < forwards[..., None])
    picked = {
        name: np.asarray(getattr(recording, name))[row, block, step]
        for name in ("log_odds", "runner_up", "entropy", "masked", "final", "hidden")
    }
    picked["hidden"] = picked["hidden"].astype(np.float16)
    return Traces(**picked, step=step, block=block, prompt=ids[row], tau=np.full(row.size, tau, np.float32))


def _read(path: Path) -> Traces:
    try:
        with np.load(path) as part:
            return Traces(**{field.name: part[field.name] for field in dataclasses.fields(Traces)})
    except Exception as error:
        raise InputError(f"{path}: damaged ({error}); remove it and collect again") from error
