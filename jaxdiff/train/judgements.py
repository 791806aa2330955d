"""Judgements for a judge: what rash decodes committed, and which of it is wrong.

    prompts -> a careful decode -> reference -> Witness of each rash policy -> rows of one block at one forward

A token counts as wrong wherever the careful answer has another at its position: noisy where a rash decode says the same
in other words, and meaningless where each text is as good as another (a temperature, a task with many answers). There a
token can count as wrong where it is unlikely beside what was committed before it: a careful decode, one token at a time
in that order, would hardly have drawn it. That takes a forward for each position of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdiff import parts as prints
from jaxdiff.decode.batches import batches
from jaxdiff.decode.decoder import Decoder
from jaxdiff.files import read_object
from jaxdiff.policies.judge import Standing
from jaxdiff.policies.witness import Testimony, Witness
from jaxdiff.protocols import Model, Policy
from jaxdiff.train.network import Network
from jaxdiff.train.recordings import Decoded, Rows, forwards_of, read_parts, record
from jaxdiff.types import InputError, Inputs, Params

ROWS = 128  # in a pass that says what is unlikely
NEVER_HIDDEN = -(2**30)  # the order of what no other token is judged without


@dataclasses.dataclass(frozen=True)
class Judgements:
    """R rows: one block of W positions at one forward each; the columns are those of `Standing`, and these."""

    odds: Float[np.ndarray, "R W"]
    standing: Float[np.ndarray, "R W"]
    log_prob: Float[np.ndarray, "R W"]
    agrees: Bool[np.ndarray, "R W"]
    masked: Bool[np.ndarray, "R W"]
    judged: Bool[np.ndarray, "R W"]
    age: Int[np.ndarray, "R W"]
    repeats: Bool[np.ndarray, "R W"]
    hidden: Float[np.ndarray, "R W D"]  # in half precision; D = 0 where none were kept
    wrong: Bool[np.ndarray, "R W"]  # judged, and not the careful answer's token, or unlikely
    step: Int[np.ndarray, " R"]  # forwards that the block had before
    block: Int[np.ndarray, " R"]  # from 0, after the prompt
    prompt: Int[np.ndarray, " R"]  # the prompt's id
    rash: Int[np.ndarray, " R"]  # the number of the rash policy

    @property
    def seen(self) -> Standing:
        """The rows as a judge sees them when it decodes."""
        names = {field.name for field in dataclasses.fields(Standing)}
        columns = {name: jnp.asarray(column) for name, column in vars(self).items() if name in names}
        return Standing(**columns, block_step=jnp.asarray(self.step, jnp.int32))

    def take(self, rows: Any) -> Judgements:
        """Some of the rows, by index or by mask."""
        return Judgements(**{name: column[rows] for name, column in vars(self).items()})

    def check(self) -> None:
        """Raises InputError for rows in which nothing is judged, and for numbers that are none."""
        if not self.judged.any():
            raise InputError("judgements: found no commit to judge, expected at least one; collect more prompts")
        for name in ("odds", "standing", "log_prob", "hidden"):
            bad = np.flatnonzero(~np.isfinite(getattr(self, name)).reshape(self.prompt.size, -1).all(1))
            if bad.size:
                raise InputError(f"judgements: {name} of prompt {self.prompt[bad[0]]} is not finite; collect it again")


def collect(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[int],
    folder: Path,
    decoder: Decoder | None = None,
    *,
    rash: Sequence[Policy],
    gen_length: int = 256,
    batch_size: int = 16,
    features: bool = True,
    unlikely: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Judgements:
    """Decode each prompt with care, then with each rash policy, and keep what that committed.

    Args:
        decoder: the careful one; the rash ones differ from it in their policy alone.
        rash: at least one.
        features: keep the model's hidden features, 2 D bytes for each position of a row.
        unlikely: wrong is what has a probability under this beside what was committed before it in the block, or in the
            same forward and further left; there is no careful decode then, and the decoder may sample.
        seed: of the rows' randomness, with their place among the prompts.
        ids, folder, progress: as of `traces.collect`; what it raises, too.
    """
    if not rash:
        raise InputError("collect: found no rash policy, expected at least one whose commits are judged")
    kept = model.config.d_model if features else 0
    rows = record(
        *(model, params, prompts, ids, folder, decoder),
        what="judgements",
        policies=lambda blocks: [Witness(policy, blocks, features=kept) for policy in rash],
        rows_of=functools.partial(_rows_of, network=Network(params, model), unlikely=unlikely),
        gen_length=gen_length,
        batch_size=batch_size,
        setting=dict(features=features, rash=[prints.digest_of_tree(policy) for policy in rash], unlikely=unlikely),
        progress=progress,
        answers=unlikely is None,
        seed=seed,
    )
    judgements = Judgements(**rows)
    judgements.check()
    return judgements


def load_judgements(folder: Path, params: Params | None = None) -> Judgements:
    """All parts of a folder. Raises InputError where there is none, where one is damaged or of another kind, and where
    they are of other weights than `params` (None: not looked at).
    """
    if params is not None and (saved := folder / prints.SETTING).is_file():
        found, here = read_object(saved).get("weights"), prints.digest_of_tree(params)
        if found != here:
            raise InputError(
                f"judgements: found those of the weights {found} in {folder}, but these are {here}; collect with this "
                "model"
            )
    names = [field.name for field in dataclasses.fields(Judgements)]
    judgements = Judgements(**read_parts(folder, names, what="judgements"))
    judgements.check()
    return judgements


def _rows_of(found: Testimony, number: int, decoded: Decoded, *, network: Network, unlikely: float | None) -> Rows:
    """The forwards that found something to judge."""
    leaves = {name: np.asarray(leaf) for name, leaf in found.seen.items() if name != "block_step"}
    at, rows = forwards_of(found.forwards, leaves)
    some = rows["judged"].any(1)
    at, rows = at[some], {name: column[some] for name, column in rows.items()}
    rows["hidden"] = rows["hidden"].astype(np.float16)
    rows["rash"] = np.full(at.size, number, np.int32)
    tokens, start = rows.pop("tokens"), rows.pop("start")
    columns = start[:, None] + np.arange(tokens.shape[1])
    judged, length = rows["judged"] & (columns < decoded.tokens.shape[1]), decoded.tokens.shape[1]
    if unlikely is None:
        assert decoded.reference is not None
        answer = np.take_along_axis(decoded.reference[at], np.minimum(columns, length - 1), axis=1)
        return rows | {"wrong": judged & (tokens != answer)}
    mask = network.model.config.mask_token_id
    canvas = np.where(np.arange(length) < start[:, None], decoded.tokens[at], mask)
    order = np.where(judged, -rows["age"] * tokens.shape[1] + np.arange(tokens.shape[1]), NEVER_HIDDEN)
    given, log_prob = (canvas, decoded.origin[at], columns, tokens, order), np.zeros(tokens.shape)
    for part in batches(at.size, ROWS):
        log_prob[part] = _in_order(network, *(each[part] for each in given))
    return rows | {"wrong": judged & (np.exp(log_prob) < unlikely)}


@jax.jit
def _in_order(
    network: Network,
    canvas: Int[Array, "r L"],
    origin: Int[Array, " r"],
    columns: Int[Array, "r W"],
    tokens: Int[Array, "r W"],
    order: Int[Array, "r W"],
) -> Float[Array, "r W"]:
    """Log-probability of each token of a block beside those that come before it in an order; the others are hidden."""
    model, each = network.model, jnp.arange(canvas.shape[0])

    def one(position: Int[Array, ""]) -> Float[Array, " r"]:
        own, token, column = (x[:, position] for x in (order, tokens, columns))
        shown = jnp.where(order >= own[:, None], model.config.mask_token_id, tokens)
        seen = canvas.at[each[:, None], columns].set(shown, mode="drop")
        features = model.apply(network.params, Inputs.whole(seen, origin))[0]
        logits = network.logits(features[each, column - int(model.shifted)])
        return jax.nn.log_softmax(logits.at[:, model.config.mask_token_id].set(-jnp.inf))[each, token]

    return jax.lax.map(one, jnp.arange(tokens.shape[1])).T
