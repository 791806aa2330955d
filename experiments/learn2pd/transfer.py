"""How a filter fares where it was not fitted: other block lengths, canvases, templates and tasks. A part of step 4."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxdiff
from experiments.learn2pd.common import (
    BLOCK,
    CHOSEN_ON,
    EOS,
    LENGTH,
    ROWS,
    SEED,
    TRAINED_ON,
    Results,
    learned,
    points,
)
from experiments.policies import decoder_of, measure
from jaxdiff.cli.show import progress
from jaxdiff.decode import Timed
from jaxdiff.decode.api import prepare_infill
from jaxdiff.decode.batches import batches
from jaxdiff.metrics import tpf, wilson
from jaxdiff.policies import Fixed, Learned, Oracle, Threshold
from jaxdiff.policies.filters import Filter
from jaxdiff.tasks import evaluate, gsm_symbolic
from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
from jaxdiff.train.traces import Traces

TAUS = (0.98, 0.95, 0.85, 0.7)
BLOCKS, LENGTHS = (8, 16, 64, 128), (512,)
APART, N_APART = (0, 1, 2), 200  # places of the templates kept apart, in their order; problems of all templates
HIDDEN, N_INFILL = 0.5, 200  # share of an answer's tokens that infilling masks; problems


def transfer(
    checkpoint: jaxdiff.Checkpoint, results: Results, traces: Sequence[Traces], recipe: FilterRecipe, local: Learned
) -> None:
    """All of it; `recipe` and `local` are those of the filter that ships."""
    to_templates(checkpoint, results, traces, recipe, local.filter)
    tau = Results("evaluate", checkpoint).entries["threshold, chosen"]["tau"]
    ways = {
        "standard": Fixed(),
        "oracle": Oracle(),
        f"threshold {tau:g}": Threshold(tau=tau),
        "learned local": local,
    }
    for gen_length, block in [*((LENGTH, block) for block in BLOCKS), *((n, BLOCK) for n in LENGTHS)]:
        for name, policy in ways.items():
            label = f"{name}, length {gen_length}, block {block}"
            results.once(
                label,
                lambda label=label, policy=policy, gen_length=gen_length, block=block: points(
                    checkpoint,
                    label,
                    lambda _: policy,
                    n=CHOSEN_ON,
                    split="validation",
                    gen_length=gen_length,
                    block_length=block,
                ),
            )
    for name, policy in ways.items():
        label = f"{name}, infilling {HIDDEN:.0%}"
        results.once(label, lambda label=label, policy=policy: [infilled(checkpoint, label, policy)])


def to_templates(
    checkpoint: jaxdiff.Checkpoint, results: Results, traces: Sequence[Traces], recipe: FilterRecipe, whole: Filter
) -> None:
    """Two filters on the problems of templates that only one of them was fitted to."""
    last = max(int(part.prompt.max()) for part in traces)
    templates = [p.template for p in itertools.islice(gsm_symbolic.problems("train", TRAINED_ON), last + 1)]
    apart = np.unique(templates)[list(APART)]
    others = [part.take(~np.isin(np.asarray(templates)[part.prompt], apart)) for part in traces]

    def make(judge: Filter) -> list[dict[str, Any]]:
        swept = evaluate.sweep(
            checkpoint,
            gsm_symbolic.NAME,
            functools.partial(decoder_of, learned(judge, quota=False), EOS),
            TAUS,
            n=N_APART,
            seed=SEED,
            split="validation",
            batch_size=ROWS,
        )
        kept = np.isin([problem.template for problem in swept[0].problems], apart)
        parts = [
            dataclasses.replace(
                report,
                correct=report.correct[kept],
                nfe=report.nfe[kept],
                lengths=report.lengths[kept],
                near_ties=report.near_ties[kept],
            )
            for report in swept
        ]
        return [point | {"n": int(kept.sum())} for point in measure(TAUS, parts)]

    results.once("local, all templates, on three of them", lambda: make(whole))
    results.once("local, the other templates, on these three", lambda: make(fit_filter(others, recipe).filter))


def infilled(checkpoint: jaxdiff.Checkpoint, label: str, policy: jaxdiff.Policy) -> dict[str, Any]:
    """Worked answers of validation problems, HIDDEN of their tokens masked at random: right is a row whose every mask
    got the token that stood there. TPF counts the masks.
    """
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = list(itertools.islice(gsm_symbolic.problems("validation", SEED), N_INFILL))
    texts = [(tokenizer.prompt(p.question), tokenizer.encode(p.worked)) for p in problems]
    width = -(-max(len(prompt) + len(answer) for prompt, answer in texts) // BLOCK) * BLOCK
    whole = np.full((N_INFILL, width), tokenizer.eos_id, np.int32)
    hidden, rng = np.zeros(whole.shape, bool), np.random.default_rng(SEED)
    for row, (prompt, answer) in enumerate(texts):
        end = len(prompt) + len(answer)
        whole[row, :end] = prompt + answer
        hidden[row, len(prompt) : end] = rng.random(len(answer)) < HIDDEN
    canvas = np.where(hidden, checkpoint.model.config.mask_token_id, whole)
    decoder = jaxdiff.Decoder(policy=policy, block_length=BLOCK)
    right, nfe, run = np.zeros(N_INFILL, bool), np.zeros(N_INFILL, np.int32), Timed()
    with progress(label, N_INFILL) as update:
        for rows in batches(N_INFILL, ROWS):
            result = run.run(prepare_infill(checkpoint.model, checkpoint.params, canvas[rows], decoder))
            right[rows], nfe[rows] = (np.asarray(result.tokens) == whole[rows]).all(1), result.nfe
            update(int(rows[-1]) + 1, 0, 1)
    return {
        "value": 0.0,
        "accuracy": 100 * float(right.mean()),
        "interval": [100 * end for end in wilson(int(right.sum()), N_INFILL)],
        "nfe": float(nfe.mean()),
        "tpf": tpf(hidden.sum(1), nfe),
        "correct": "".join(map(str, right.astype(int))),
        "n": N_INFILL,
    }
