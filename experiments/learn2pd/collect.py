"""Step 1: answers to training prompts, and their replays: the greedy one, and more careful ones.

python -m experiments.learn2pd.collect            # all sets
python -m experiments.learn2pd.collect careful    # one of them, say in a process of its own
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

import jaxdiff
from experiments.learn2pd.common import BLOCK, EOS, LENGTH, LONG, MODEL, ROWS, TRACES, TRAINED_ON, Results
from jaxdiff.cli.show import progress
from jaxdiff.policies import Threshold
from jaxdiff.stoppers import SafeEotp
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.train.traces import collect

# Of the replays. Nothing below 0.5: what a filter of ours sees is the canvas of a more careful decode than that.
TAUS, CAREFUL = (0.0, 0.5, 0.8, 0.9, 0.97, 0.995), (0.5, 0.8, 0.9, 0.97)
# Prompts, from the first and how many; whose answer (None: one token a step); setting. No prompt is in two sets.
SETS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "published": (0, 900, {"taus": TAUS}),
    "careful": (900, 4000, {"taus": CAREFUL, "answer": Threshold(0.99)}),
    "long": (4900, 600, {"taus": CAREFUL, "answer": Threshold(0.99), "gen_length": LONG, "stop": SafeEotp()}),
    "wide": (5500, 600, {"taus": CAREFUL, "answer": Threshold(0.99), "block_length": 2 * BLOCK}),
    "narrow": (6100, 400, {"taus": CAREFUL, "answer": Threshold(0.99), "block_length": BLOCK // 2}),
}


def main(names: tuple[str, ...] = tuple(SETS)) -> None:
    checkpoint = jaxdiff.load(MODEL)
    tokenizer, results = checkpoint.tokenizer_for(gsm_symbolic.NAME), Results("collect", checkpoint)
    for name in names:
        first, prompts, setting = SETS[name]
        problems = itertools.islice(gsm_symbolic.problems("train", TRAINED_ON), first, first + prompts)
        whole: dict[str, Any] = {"gen_length": LENGTH, "block_length": BLOCK, "stop": EOS} | setting
        since = time.perf_counter()
        with progress(name, prompts) as update:
            traces = collect(
                checkpoint.model,
                checkpoint.params,
                [tokenizer.prompt(problem.question) for problem in problems],
                range(first, first + prompts),
                TRACES / name,
                **whole,
                batch_size=ROWS,
                features=True,
                progress=update,
            )
        facts = {"prompts": prompts, "rows": traces.prompt.size, "share final": float(traces.final.mean())}
        seconds = time.perf_counter() - since
        results.once(name, lambda facts=facts, seconds=seconds: facts | {"seconds of this call": seconds})
        print(f"{facts['rows']} rows of {prompts} prompts in {TRACES / name}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or tuple(SETS))
