"""Step 1: answers to training prompts, and their replays: the greedy one, and more careful ones.

python -m experiments.learn2pd.collect            # all sets
python -m experiments.learn2pd.collect careful    # one of them, say in a process of its own
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time

import jaxdiff
from experiments.learn2pd.common import BLOCK, EOS, LENGTH, LONG, MODEL, ROWS, TRACES, TRAINED_ON, Results
from jaxdiff.cli.show import progress
from jaxdiff.policies import Threshold
from jaxdiff.stoppers import SafeEotp
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.train.traces import collect

# Of the replays. Nothing below 0.5: what a filter of ours sees is the canvas of a more careful decode than that.
TAUS, CAREFUL = (0.0, 0.5, 0.8, 0.9, 0.97, 0.995), (0.5, 0.8, 0.9, 0.97)
SURE = jaxdiff.Decoder(policy=Threshold(0.99), stop=EOS, block_length=BLOCK)
# Prompts, from the first and how many; the replays; whose answer, and its length. No prompt is in two sets.
SETS: dict[str, tuple[int, int, tuple[float, ...], jaxdiff.Decoder, int]] = {
    "published": (0, 900, TAUS, jaxdiff.Decoder(stop=EOS, block_length=BLOCK), LENGTH),
    "careful": (900, 4000, CAREFUL, SURE, LENGTH),
    "long": (4900, 600, CAREFUL, dataclasses.replace(SURE, stop=SafeEotp()), LONG),
    "wide": (5500, 600, CAREFUL, dataclasses.replace(SURE, block_length=2 * BLOCK), LENGTH),
    "narrow": (6100, 400, CAREFUL, dataclasses.replace(SURE, block_length=BLOCK // 2), LENGTH),
}


def main(names: tuple[str, ...] = tuple(SETS)) -> None:
    checkpoint = jaxdiff.load(MODEL)
    tokenizer, results = checkpoint.tokenizer_for(gsm_symbolic.NAME), Results("collect", checkpoint)
    for name in names:
        first, prompts, taus, decoder, length = SETS[name]
        problems = itertools.islice(gsm_symbolic.problems("train", TRAINED_ON), first, first + prompts)
        since = time.perf_counter()
        with progress(name, prompts) as update:
            traces = collect(
                checkpoint.model,
                checkpoint.params,
                [tokenizer.prompt(problem.question) for problem in problems],
                range(first, first + prompts),
                TRACES / name,
                decoder,
                gen_length=length,
                taus=taus,
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
