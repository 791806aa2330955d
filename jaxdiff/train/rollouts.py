"""Whole decodes of a policy that draws, in groups of one problem, and what they were worth.

prompts x group -> Explore, compiled and batched -> texts -> the task's verdicts -> rewards -> advantages
                                   |  what it saw and drew, step by step -> Steps
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxdiff.decode.api import pad_prompts, prepare
from jaxdiff.decode.batches import batches, request_keys
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.program import Timed
from jaxdiff.policies.explore import Draws
from jaxdiff.policies.filters import Evidence
from jaxdiff.protocols import Model
from jaxdiff.pytree import pytree
from jaxdiff.types import InputError, Params


@pytree
class Steps:
    """N steps of rows of the rollouts, each of one block of W positions: what was seen, what was drawn, what it is
    worth. A step of weight 0 counts nothing.
    """

    log_odds: Float[Any, "N W"]
    runner_up: Float[Any, "N W"]
    entropy: Float[Any, "N W"]
    masked: Bool[Any, "N W"]
    block_step: Int[Any, " N"]
    hidden: Float[Any, "N W D"]
    open: Bool[Any, "N W"]
    commit: Bool[Any, "N W"]
    coin: Float[Any, "N W"]  # log-odds of the policy that drew
    advantage: Float[Any, " N"]
    weight: Float[Any, " N"]

    @property
    def evidence(self) -> Evidence:
        """As a filter sees them when it decodes."""
        return Evidence(self.log_odds, self.runner_up, self.entropy, self.masked, self.block_step, self.hidden)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Decodes of Q problems in groups of K."""

    right: Bool[np.ndarray, "Q K"]
    nfe: Int[np.ndarray, "Q K"]
    seconds: float  # decoding alone, warm
    _parts: tuple[tuple[Int[np.ndarray, " B"], Draws], ...]  # of each batch: the rows' numbers, what they drew

    def rewards(self, price: float) -> Float[np.ndarray, "Q K"]:
        """The verdict, 0 or 1, less `price` for each forward."""
        return self.right - price * self.nfe.astype(np.float64)

    def steps(self, advantage: Float[np.ndarray, "Q K"]) -> Steps:
        """All steps that were recorded, as numpy, with the advantage of their decode."""
        return jax.tree.map(
            lambda *each: np.concatenate(each), *[_taken(*part, advantage.ravel()) for part in self._parts]
        )


def advantages(rewards: Float[np.ndarray, "Q K"]) -> Float[np.ndarray, "Q K"]:
    """What each decode was worth beside the others of its problem, in standard deviations of all.

    One deviation for all groups, not each group's own: that would make a forward in a group that is right throughout
    weigh as much as a wrong answer in another, and the price of a forward would say nothing.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / max(float(centred.std()), 1e-6)


def roll_out(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    decoder: Decoder,
    *,
    group: int,
    verdict: Callable[[int, Int[np.ndarray, " G"]], bool],
    first: int,
    seed: int,
    gen_length: int,
    batch_size: int,
    widths: Sequence[int],
    run: Timed,
) -> Rollouts:
    """Decode each prompt `group` times with draws of their own.

    Args:
        decoder: whose policy is an `Explore`.
        verdict: whether the answer to a prompt, by its number, is right; given the generated tokens.
        first: number of the first decode among all of the run: with `seed` it keys the draws.
        batch_size: decodes of one compiled call; `widths`: columns that prompts are padded to, ascending.
        run: which keeps the compiled programs.

    Raises InputError where the model's scores are no numbers.
    """
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    rows = np.repeat(np.asarray(order, np.int64) * group, group) + np.tile(np.arange(group), len(order))
    right, nfe = np.zeros(len(rows), bool), np.zeros(len(rows), np.int64)
    parts, before = [], run.seconds
    for picked in batches(len(rows), batch_size):
        numbers, fresh = rows[picked], len(set(picked.tolist()))
        own = [prompts[number // group] for number in numbers]
        width = next(width for width in widths if width >= max(map(len, own)))
        padded, origin = pad_prompts(own, model.config.eos_token_id, multiple=width)
        keys = request_keys(seed, first + numbers)
        call = prepare(model, params, padded, decoder, key=keys, origin=origin, gen_length=gen_length)
        result = jax.device_get(run.run(call))
        if result.not_finite[:fresh].any():
            raise InputError("fit: the model's scores are no numbers; its weights are damaged, or overflow")
        for row, number in enumerate(numbers[:fresh]):
            right[number] = verdict(int(number) // group, result.tokens[row, width:])
            nfe[number] = result.nfe[row]
        parts.append((numbers[:fresh], jax.tree.map(lambda leaf, fresh=fresh: leaf[:fresh], result.policy)))
    shape = (len(prompts), group)
    return Rollouts(right.reshape(shape), nfe.reshape(shape), run.seconds - before, tuple(parts))


def _taken(numbers: Int[np.ndarray, " B"], draws: Draws, advantage: Float[np.ndarray, " R"]) -> Steps:
    """The steps of one batch that happened."""
    row, step = np.nonzero(np.arange(draws.open.shape[1])[None] < np.asarray(draws.steps)[:, None])
    names = ("log_odds", "runner_up", "entropy", "masked", "block_step", "hidden", "open", "commit", "coin")
    picked = {name: np.asarray(getattr(draws, name))[row, step] for name in names}
    worth = advantage[numbers[row]].astype(np.float32)
    return Steps(**picked, advantage=worth, weight=np.ones(row.size, np.float32))
