"""Safe end-of-text prediction against `eos`: texts that it changes, accuracy, forwards and seconds.

    python experiments/ends.py

Validation problems, the learned policy that ships. A shorter tail costs less, and is further from what the model saw.
"""

from __future__ import annotations

import json
from pathlib import Path

import jaxdiff
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.cli.show import progress
from jaxdiff.filters import learned_policy
from jaxdiff.stoppers import Eos, SafeEotp
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.evaluate import evaluate

PROBLEMS = {256: 100, 1024: 32}  # by length
KEPT = (32, 64, 128)
ROWS, SEED = 4, 0
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    checkpoint, policy, lines = jaxdiff.load(SHIPPED), learned_policy(SHIPPED), []
    ways = {"eos": Eos()} | {f"eotp, keep {keep}": SafeEotp(keep=keep) for keep in KEPT}
    for length, n in PROBLEMS.items():
        home: tuple[str, ...] = ()
        for name, stop in ways.items():
            with progress(f"{length}, {name}", n) as update:
                report = evaluate(
                    checkpoint,
                    gsm_symbolic.NAME,
                    jaxdiff.Decoder(policy=policy, stop=stop),
                    n=n,
                    seed=SEED,
                    split="validation",
                    batch_size=ROWS,
                    gen_length=length,
                    progress=update,
                )
            home = home or report.texts
            changed = sum(text != other for text, other in zip(report.texts, home, strict=True))
            line = {"length": length, "stop": name, "texts_changed": changed} | report.summary()
            print(json.dumps(line))
            lines.append(line)
    (RESULTS / "ends.json").write_text(json.dumps({"model": SHIPPED, "seed": SEED, "ways": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
