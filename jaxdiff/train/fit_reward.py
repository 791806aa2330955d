"""Fit a learned filter further to what its decodes are worth: right answers, less a price for each forward.

    a fitted filter -> [ rollouts (`rollouts.py`) -> advantages -> steps of Adam ] -> the best on validation problems

The recipe is GRPO's with a frozen model: groups of decodes of one problem, the group's mean as baseline, a clipped
ratio, and a penalty for leaving the filter that it began from. dUltra (arXiv 2512.21446, chinsengi/dUltra-os) does this
to head and model together, Apple's learned policies (2512.09106) to a policy that sees confidences alone. What differs
on purpose: the model is frozen; the deviation that advantages are divided by is that of all groups
(`rollouts.advantages`); the ratio is clipped coin by coin, not for a whole decode.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.batches import widths_of
from jaxdiff.decode.checks import block_of, check_lengths
from jaxdiff.decode.decoder import Decoder
from jaxdiff.policies import Learned
from jaxdiff.policies.explore import Explore
from jaxdiff.protocols import Stopper
from jaxdiff.serve import Meter
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import lengths, task
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import evaluate, prompt_ids
from jaxdiff.train.loop import until_sigterm
from jaxdiff.train.rollouts import Steps, advantages, roll_out
from jaxdiff.types import InputError

LARGEST = 20.0  # nats that a coin is taken to have moved by: finite, whatever a minibatch did


@dataclasses.dataclass(frozen=True)
class RewardRecipe:
    """How a filter is fitted to rewards.

    Attributes:
        price: what a forward costs, in right answers.
        rounds: of rollouts, each of `problems` training problems decoded `group` times.
        temperature: of the draws (`policies.explore`), low enough for them to be near the decode that draws nothing.
        epochs: times that each step of a round's rollouts is learned from; `steps`: in a minibatch.
        clip: how far a coin's probability may leave that of the rollout, as a ratio less 1, before it stops counting.
        kl: what a nat costs by which a coin leaves the filter that the fit began from, in units of the advantage.
        every: rounds between two looks at the first `validation` problems; the best filter there is kept.
        recorded: forwards of a row that are learned from; later ones draw nothing.
    """

    price: float
    task: str = "gsm_symbolic"
    rounds: int = 50
    problems: int = 32
    group: int = 8
    temperature: float = 0.25
    learning_rate: float = 1e-3
    epochs: int = 2
    steps: int = 256
    clip: float = 0.2
    kl: float = 0.01
    every: int = 5
    validation: int = 200
    recorded: int = 16
    batch_size: int = 32
    gen_length: int | None = None
    block_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("price", 0.0), ("kl", 0.0)):
            if not least <= getattr(self, name) < np.inf:
                raise InputError(f"{name}: found {getattr(self, name)}, expected a number of 0 or more")
        for name in ("temperature", "learning_rate", "clip"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise InputError(f"{name}: found {getattr(self, name)}, expected a number above 0")
        least = {"group": 2}  # the mean of one decode is itself
        for name in ("rounds", "problems", "group", "epochs", "steps", "every", "validation", "recorded", "batch_size"):
            if getattr(self, name) < least.get(name, 1):
                raise InputError(f"{name}: found {getattr(self, name)}, expected at least {least.get(name, 1)}")


@dataclasses.dataclass(frozen=True)
class Looked:
    """What decoding with a filter, without draws, gave on the validation problems after so many rounds."""

    round: int
    accuracy: float
    nfe: float
    tpf: float
    reward: float


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round's rollouts gave."""

    reward: float
    accuracy: float
    nfe: float
    rate: float  # decodes a second, compiling and learning left out


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """The filter of highest reward on the validation problems, and how the fit went: `curve[0]` is where it began."""

    learned: Learned
    best: Looked
    curve: list[Looked]
    rounds: list[Round]
    decodes: int
    stopped: bool  # by a signal, before the last round


def fit_reward(
    checkpoint: Checkpoint,
    learned: Learned,
    recipe: RewardRecipe,
    *,
    stop: Stopper | None = None,
    progress: Callable[[int, Round], None] | None = None,
    looked: Callable[[Looked], None] = lambda look: None,
) -> Rewarded:
    """Go on from a fitted filter, towards its task's verdicts and few forwards.

    The draws depend on (seed, number of the decode) alone, so that the same call gives the same filter. SIGTERM ends
    the fit after the round that is under way, with the best filter so far.

    Args:
        learned: the filter, and the threshold of its card, which stays.
        stop: the decode's stopper; default `Eos`.
        progress: called after each round; `looked`: after each look at the validation problems.

    Raises InputError, before the first rollout, for a task that is not known, has no validation problems or too few,
    for a model without a tokenizer, for lengths that do not fit, for a filter of another block length or model.
    """
    with until_sigterm() as asked:
        return _Fit(checkpoint, learned, recipe, stop).run(asked, progress, looked)


def surrogate(
    learned: Learned,
    start: Learned,
    batch: Steps,
    *,
    temperature: Float[Array, ""] | float,
    clip: float,
    kl: float,
) -> Float[Array, ""]:
    """What is minimised: the mean over the batch's steps of -min(ratio A, clipped ratio A) + kl KL, summed over coins.

    Where the filter is the one that drew, its gradient is that of policy gradient, -A d log P(coins).
    KL is of each coin's Bernoulli, this filter's from that of `start`.
    """
    coin, first = learned.slack(batch.evidence) / temperature, start.slack(batch.evidence) / temperature
    moved = log_prob(coin, batch.commit) - log_prob(batch.coin, batch.commit)
    ratio = jnp.exp(jnp.clip(moved, -LARGEST, LARGEST))
    worth = batch.advantage[:, None]
    gain = jnp.minimum(ratio * worth, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * worth)
    p = jax.nn.sigmoid(coin)
    away = p * (jax.nn.log_sigmoid(coin) - jax.nn.log_sigmoid(first))
    away += (1.0 - p) * (jax.nn.log_sigmoid(-coin) - jax.nn.log_sigmoid(-first))
    each = jnp.sum(jnp.where(batch.open, kl * away - gain, 0.0), axis=1)
    return jnp.sum(each * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)


def log_prob(coin: Float[Array, "N W"], commit: Any) -> Float[Array, "N W"]:
    """Of each draw, given its log-odds."""
    return jax.nn.log_sigmoid(jnp.where(commit, coin, -coin))


def minibatches(steps: Steps, size: int, epochs: int, seed: list[int]) -> Iterator[Steps]:
    """The steps, shuffled anew in each epoch, in batches of one size; the last one is filled up with weight 0."""
    rng, count = np.random.default_rng(seed), len(steps.weight)
    for _ in range(epochs):
        order = rng.permutation(count)
        for first in range(0, count, size):
            at = order[first : first + size]
            filled = np.resize(at, size)
            batch: Steps = jax.tree.map(lambda leaf, filled=filled: leaf[filled], steps)
            yield dataclasses.replace(batch, weight=batch.weight * (np.arange(size) < at.size))


class _Fit:
    """One call of `fit_reward`: what all its rounds share."""

    def __init__(self, checkpoint: Checkpoint, learned: Learned, recipe: RewardRecipe, stop: Stopper | None) -> None:
        self._checkpoint, self._start, self._recipe = checkpoint, learned, recipe
        self._features = getattr(learned.filter, "features", 0)
        Explore(learned, recipe.temperature)  # refuses a threshold at which nothing is drawn
        self._module = task(recipe.task)
        self._tokenizer = checkpoint.tokenizer_for(recipe.task)
        length, block = lengths(recipe.task, recipe.gen_length, recipe.block_length, checkpoint.model.attention_block)
        self._problems = self._pool()
        self._prompts = [prompt_ids(self._tokenizer, problem) for problem in self._problems]
        check_lengths(checkpoint.model, max(map(len, self._prompts)), length, block_of(checkpoint.model, block))
        self._decoder = Decoder(policy=learned, stop=Eos() if stop is None else stop, block_length=block)
        self._length = length
        room = checkpoint.model.config.max_sequence_length - length
        self._widths = widths_of(map(len, self._prompts), length, room)
        self._meter = Meter()
        self._optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(recipe.learning_rate))
        self._step = jax.jit(self._stepped)

    def _pool(self) -> list[Problem]:
        """The training problems of all rounds; where the task has fewer, they come again."""
        wanted = self._recipe.rounds * self._recipe.problems
        found = list(itertools.islice(self._module.problems("train", self._recipe.seed), wanted))
        if len(found) < self._recipe.problems:
            raise InputError(
                f"problems: found {self._recipe.problems}, but {self._recipe.task} has {len(found)} training problems; "
                "ask for fewer"
            )
        return found

    def run(
        self,
        asked: threading.Event,
        progress: Callable[[int, Round], None] | None,
        looked: Callable[[Looked], None],
    ) -> Rewarded:
        recipe, learned = self._recipe, self._start
        state: Any = (learned.filter, self._optimizer.init(learned.filter))  # type: ignore[arg-type]
        curve, rounds = [self._look(0, learned)], []
        best, kept = curve[0], learned
        looked(best)
        for number in range(recipe.rounds):
            state, done = self._round(number, state)
            learned = dataclasses.replace(learned, filter=state[0])
            rounds.append(done)
            if progress is not None:
                progress(number + 1, done)
            stops = asked.is_set()
            if stops or number + 1 == recipe.rounds or (number + 1) % recipe.every == 0:
                curve.append(self._look(number + 1, learned))
                looked(curve[-1])
                if curve[-1].reward > best.reward:
                    best, kept = curve[-1], learned
            if stops:
                break
        decodes = len(rounds) * recipe.problems * recipe.group
        return Rewarded(kept, best, curve, rounds, decodes, len(rounds) < recipe.rounds)

    def _round(self, number: int, state: Any) -> tuple[Any, Round]:
        """Rollouts with the filter as it stands, and what is learned from them."""
        recipe, count = self._recipe, len(self._prompts)
        picked = [(number * recipe.problems + n) % count for n in range(recipe.problems)]
        learned = dataclasses.replace(self._start, filter=state[0])
        policy = Explore(learned, recipe.temperature, steps=recipe.recorded, features=self._features)
        rollouts = roll_out(
            self._checkpoint.model,
            self._checkpoint.params,
            [self._prompts[n] for n in picked],
            dataclasses.replace(self._decoder, policy=policy),
            group=recipe.group,
            verdict=lambda n, tokens: bool(
                self._module.verify(self._tokenizer.decode(tokens), self._problems[picked[n]])
            ),
            first=number * recipe.problems * recipe.group,
            seed=recipe.seed,
            gen_length=self._length,
            batch_size=recipe.batch_size,
            widths=self._widths,
            run=self._meter,
        )
        rewards = rollouts.rewards(recipe.price)
        steps = rollouts.steps(advantages(rewards))
        for batch in minibatches(steps, recipe.steps, recipe.epochs, [recipe.seed, number]):
            state = self._step(state, batch)
        decodes = rewards.size / max(rollouts.seconds, 1e-9)
        return state, Round(float(rewards.mean()), float(rollouts.right.mean()), float(rollouts.nfe.mean()), decodes)

    def _stepped(self, state: Any, batch: Steps) -> Any:
        """A step of the optimizer."""
        recipe, start = self._recipe, self._start

        def loss(judge: Any) -> Float[Array, ""]:
            learned = dataclasses.replace(start, filter=judge)
            return surrogate(learned, start, batch, temperature=recipe.temperature, clip=recipe.clip, kl=recipe.kl)

        gradient = jax.grad(loss)(state[0])
        updates, optimizer_state = self._optimizer.update(gradient, state[1], state[0])
        return optax.apply_updates(state[0], updates), optimizer_state

    def _look(self, number: int, learned: Learned) -> Looked:
        recipe = self._recipe
        report = evaluate(
            self._checkpoint,
            recipe.task,
            dataclasses.replace(self._decoder, policy=learned),
            n=recipe.validation,
            split="validation",
            batch_size=recipe.batch_size,
            gen_length=self._length,
            meter=self._meter,
        )
        found = report.summary()
        accuracy, nfe = float(found["accuracy"]), float(found["nfe"])
        return Looked(number, accuracy, nfe, float(found["tpf"]), accuracy - recipe.price * nfe)
