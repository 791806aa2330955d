"""Traces for a learned filter: what replays of the model's own answers saw, forward by forward.

prompts -> a decode -> reference -> Replay -> rows of one block at one forward -> part-00000.npz ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdiff.decode.decoder import Decoder
from jaxdiff.policies.filters import Evidence
from jaxdiff.policies.replay import Recording, Replay
from jaxdiff.protocols import Model
from jaxdiff.train.recordings import Rows, forwards_of, read_parts, record
from jaxdiff.types import InputError, Params


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
    if not taus or not all(0.0 <= tau <= 1.0 for tau in taus):
        raise InputError(
            f"collect taus: found {list(taus)}, expected one from 0 to 1 for each replay; 0 is the published"
        )
    replay = functools.partial(Replay, features=model.config.d_model if features else 0)
    rows = record(
        *(model, params, prompts, ids, folder, decoder),
        what="traces",
        policies=lambda blocks: [replay(blocks=blocks, tau=tau) for tau in taus],
        rows_of=lambda recording, number, _: _rows_of(recording, taus[number]),
        gen_length=gen_length,
        batch_size=batch_size,
        setting=dict(features=features, taus=list(taus)),
        progress=progress,
    )
    traces = Traces(**rows)
    traces.check()
    return traces


def load_traces(folder: Path) -> Traces:
    """All parts of a folder. Raises InputError where there is none, or one is damaged."""
    traces = Traces(**read_parts(folder, [field.name for field in dataclasses.fields(Traces)], what="traces"))
    traces.check()
    return traces


def _rows_of(recording: Recording, tau: float) -> Rows:
    """The forwards that happened."""
    names = ("log_odds", "runner_up", "entropy", "masked", "final", "hidden")
    at, rows = forwards_of(recording.forwards, {name: np.asarray(getattr(recording, name)) for name in names})
    rows["hidden"] = rows["hidden"].astype(np.float16)
    return rows | {"tau": np.full(at.size, tau, np.float32)}
