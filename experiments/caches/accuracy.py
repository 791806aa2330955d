"""What each cache costs in accuracy under the learned policy, and what it gives: paired with no cache, in turn.

    python -m experiments.caches.accuracy

N test problems, stop `eos`, batches of ROWS; the ways of a batch run one after the other, beginning with another one
each time. Writes results/accuracy.json and results/accuracy.md beside this file. Run it on an idle machine.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdiff
from jaxdiff.cli.show import progress
from jaxdiff.decode import Timed
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket
from jaxdiff.filters import FILTERS, load_filter
from jaxdiff.metrics import paired_difference, tpf, wilson
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import gsm_symbolic

MODEL, POLICY = "gsm-1m", "local"
N, ROWS, SEED, LENGTH, BLOCK = 500, 4, 0, 256, 32
CACHES = ("none", "prefix", "dual", "dual:refresh=2", "frozen", "frozen:freeze=commit", "frozen:freeze=prompt")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    checkpoint = jaxdiff.load(MODEL)
    policy, _ = load_filter(checkpoint.path / FILTERS / POLICY)
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = list(itertools.islice(gsm_symbolic.problems("test", SEED), N))
    questions = [tokenizer.prompt(problem.question) for problem in problems]
    prompts, origin = pad_to_bucket(questions, tokenizer.eos_id, checkpoint.model.config.max_sequence_length - LENGTH)
    run, caches = Timed(), [jaxdiff.caches.CACHES.parse(name) for name in CACHES]
    nfe, lengths, right = (np.zeros((len(CACHES), N), np.int32) for _ in range(3))
    seconds = np.zeros((len(CACHES), -(-N // ROWS)))
    with progress("problems", N) as update:
        for index, rows in enumerate(batches(N, ROWS)):
            for turn in range(len(CACHES)):
                way = (index + turn) % len(CACHES)
                before = run.seconds
                call = prepare(
                    checkpoint.model,
                    checkpoint.params,
                    prompts[rows],
                    jaxdiff.Decoder(policy=policy, cache=caches[way], stop=Eos(), block_length=BLOCK),
                    origin=origin[rows],
                    gen_length=LENGTH,
                )
                result = run.run(call)
                seconds[way, index] = run.seconds - before
                nfe[way, rows], lengths[way, rows] = result.nfe, result.lengths
                generated = np.asarray(result.tokens)[:, prompts.shape[1] :]
                right[way, rows] = [
                    gsm_symbolic.verify(tokenizer.decode(ids), problems[i])
                    for ids, i in zip(generated, rows, strict=True)
                ]
            update(int(rows[-1]) + 1, 0, 1)
    found = {
        name: {
            "accuracy": 100 * float(right[way].mean()),
            "minus none": [100 * x for x in paired_difference(right[way].astype(bool), right[0].astype(bool))],
            "nfe": float(nfe[way].mean()),
            "tpf": tpf(lengths[way], nfe[way]),
            "times faster": float(seconds[0].sum() / seconds[way].sum()),
            "seconds": float(seconds[way].sum()),
            "correct": "".join(map(str, right[way])),
        }
        for way, name in enumerate(CACHES)
    }
    setting: dict[str, Any] = {"model": MODEL, "policy": f"learned {POLICY}", "tau": float(np.asarray(policy.tau))}
    setting |= {"n": N, "rows": ROWS, "seed": SEED, "gen_length": LENGTH, "block_length": BLOCK}
    setting |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "accuracy.json").write_text(json.dumps({"setting": setting, "caches": found}, indent=1) + "\n")
    (RESULTS / "accuracy.md").write_text(table(found))
    print(table(found))


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"Test split, n {N}, seed {SEED}, learned {POLICY}, stop eos; brackets: 95 % (Wilson; paired, Newcombe).",
        "",
        "| cache | accuracy % | minus none, paired | NFE | times as fast as none |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, each in found.items():
        low, high = (100 * end for end in wilson(each["correct"].count("1"), N))
        gap, least, most = each["minus none"]
        lines.append(
            f"| {name} | {each['accuracy']:.1f} [{low:.1f}, {high:.1f}] | {gap:+.1f} [{least:+.1f}, {most:+.1f}] "
            f"| {each['nfe']:.2f} | {each['times faster']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
