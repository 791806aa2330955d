"""Fit a judge to what rash decodes committed (`judgements.py`), as ELECTRA's detector is fitted to replaced tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxdiff.policies.filters import init_layers
from jaxdiff.policies.judge import Judge
from jaxdiff.pytree import InputError
from jaxdiff.train.fit_filter import Labelled, fit_layers, kept_apart
from jaxdiff.train.judgements import Judgements


@dataclasses.dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is made: fields as of `FilterRecipe`; `positions` are committed ones."""

    layers: int = 2
    hidden: int = 64
    reach: int = 3
    repeats: int = 1
    steps: int = 5000
    positions: int = 2**13
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "steps", "positions"):
            if getattr(self, name) < 1:
                raise InputError(f"judge {name}: found {getattr(self, name)}, expected at least 1")
        if self.reach < 0 or self.repeats not in (0, 1):
            raise InputError(
                f"judge reach, repeats: found {self.reach}, {self.repeats}, expected 0 or more, and 0 or 1"
            )


@dataclasses.dataclass(frozen=True)
class FittedJudge:
    """A judge and how it does on the prompts kept apart: loss in nats, area under the ROC curve, share of wrong."""

    judge: Judge
    losses: list[float]
    best: float
    auc: float
    wrong: float
    commits: int
    prompts: int


def fit_judge(
    judgements: Judgements | Sequence[Judgements],
    recipe: JudgeRecipe,
    *,
    fitted_to: str | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FittedJudge:
    """The judge of lowest validation loss; a tenth of the prompts, chosen by their ids, is kept for that.

    `fitted_to`: the fingerprint of the model whose commits these are (`leaves.fingerprint`); None: it may judge any.

    Cross entropy on every committed position of every recorded forward, all alike: what it says are probabilities.

    Raises InputError for judgements that are empty, not finite, of too few prompts to split, or without a wrong commit
    or a right one among those that check it.
    """
    parts = [judgements] if isinstance(judgements, Judgements) else list(judgements)
    for part in parts:
        part.check()
    ids = np.unique(np.concatenate([part.prompt for part in parts]))
    held = kept_apart(ids)
    if held.all() or not held.any():
        raise InputError(f"judgements: found {ids.size} prompts, too few to keep a tenth apart; collect more")
    features = min(part.hidden.shape[-1] for part in parts)
    empty = Judge((), recipe.reach, features, recipe.repeats, fitted_to)
    rows, checked = (_labelled(parts, empty, apart=apart) for apart in (False, True))
    widths = (empty.width, *[recipe.hidden] * (recipe.layers - 1), 1)
    layers = init_layers(jax.random.key(recipe.seed), widths)
    best = fit_layers(layers, rows, checked, recipe, recipe.positions, progress)
    judge = dataclasses.replace(empty, layers=best.layers)
    logits = np.concatenate([logits_of(judge, part.take(kept_apart(part.prompt))) for part in parts])
    wrong = np.asarray(checked.label) > 0
    return FittedJudge(
        judge=judge,
        losses=best.losses,
        best=best.loss,
        auc=auc(logits, wrong),
        wrong=float(wrong.mean()),
        commits=int(rows.label.size + checked.label.size),
        prompts=ids.size,
    )


def logits_of(judge: Judge, found: Judgements) -> Float[np.ndarray, " n"]:
    """What a judge says of each committed position, row after row."""
    return np.asarray(judge(found.seen))[found.judged]


def auc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: how often one of the positives scores above one of the others; ties count a half."""
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del values
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
    many = int(positive.sum())
    others = positive.size - many
    if not many or not others:
        raise InputError(
            "auc: found commits of one kind alone, expected wrong ones and right ones; collect more prompts"
        )
    return float((rank[positive].sum() - many * (many + 1) / 2) / (many * others))


def _labelled(parts: Sequence[Judgements], empty: Judge, *, apart: bool) -> Labelled:
    made = []
    for part in (each.take(kept_apart(each.prompt) == apart) for each in parts):
        inputs = np.asarray(empty.inputs(part.seen))[part.judged]
        made.append(
            Labelled(jnp.asarray(inputs), jnp.asarray(part.wrong[part.judged], jnp.float32), jnp.ones(len(inputs)))
        )
    return jax.tree.map(lambda *columns: jnp.concatenate(columns), *made)
