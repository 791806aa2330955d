"""Step 1: standard decodes of training prompts, and their replays: the greedy one, and more careful ones.

python -m experiments.learn2pd.collect
"""

from __future__ import annotations

import itertools
import time

import jaxdiff
from experiments.learn2pd.common import BLOCK, EOS, LENGTH, MODEL, ROWS, TRACES, TRAINED_ON, Results
from jaxdiff.cli.show import progress
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.train.traces import collect

PROMPTS = 900
TAUS = (0.0, 0.5, 0.8, 0.9, 0.97, 0.995)  # of the replays


def main() -> None:
    checkpoint = jaxdiff.load(MODEL)
    problems = itertools.islice(gsm_symbolic.problems("train", TRAINED_ON), PROMPTS)
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    prompts = [tokenizer.prompt(problem.question) for problem in problems]
    since = time.perf_counter()
    with progress("prompts", PROMPTS) as update:
        traces = collect(
            checkpoint.model,
            checkpoint.params,
            prompts,
            range(PROMPTS),
            TRACES,
            gen_length=LENGTH,
            block_length=BLOCK,
            stop=EOS,
            batch_size=ROWS,
            features=True,
            taus=TAUS,
            progress=update,
        )
    seconds = time.perf_counter() - since
    facts = {"prompts": PROMPTS, "rows": int(traces.prompt.size), "share final": float(traces.final.mean())}
    Results("collect", checkpoint).once("traces", lambda: facts | {"seconds of this call": seconds})
    print(f"{facts['rows']} rows of {PROMPTS} prompts in {TRACES}")


if __name__ == "__main__":
    main()
