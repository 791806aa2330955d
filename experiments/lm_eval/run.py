"""Does lm-eval say what `jaxdiff eval` says? The same problems through both: `python -m experiments.lm_eval.run`.

Needs `pip install 'jaxdiff[lm-eval]'`; asks no hub. Writes `results/lm_eval.json`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from jaxdiff.cli.main import main
from jaxdiff.files import write_object

N, TASK_NAME = 200, "gsm_symbolic_local"
DECODER = ("--policy", "threshold:tau=0.9", "--stop", "eos", "--gen-length", "256")
RESULT = Path(__file__).parents[1] / "results" / "lm_eval.json"
# The verifier of gsm_symbolic as lm-eval's filters say it: the number behind the last ####.
TASK = r"""
task: gsm_symbolic_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], do_sample: false}}
filter_list:
  - name: last
    filter:
      - {{function: regex, regex_pattern: '####\s*(-?\d+)(?![\d.,]*\d)', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match}}
metadata: {{version: 1.0}}
"""


def run() -> None:
    from jaxdiff.tasks import task

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        os.environ["HF_DATASETS_CACHE"] = str(home / "cache")
        problems = [problem for problem, _ in zip(task("gsm_symbolic").problems("test", 0), range(N), strict=False)]
        lines = (json.dumps({"question": problem.question, "answer": problem.answer}) for problem in problems)
        (home / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (home / "task.yaml").write_text(TASK.format(data=home / "data.jsonl"), encoding="utf-8")
        ours, theirs = home / "rows.jsonl", home / "out.json"
        codes = [
            main(["eval", "--n", str(N), *DECODER, "--out", str(ours)]),
            main(
                ["lm-eval", "--tasks", TASK_NAME, "--include-path", scratch, "--chat", *DECODER, "--out", str(theirs)]
            ),
        ]
        if any(codes):
            sys.exit(max(codes))
        rows = [json.loads(line) for line in ours.read_text(encoding="utf-8").splitlines()]
        found = json.loads(theirs.read_text(encoding="utf-8"))
    took, requests = found["results"][TASK_NAME], found["requests"]
    told = {
        "n": N,
        "decoder": " ".join(DECODER),
        "eval": {
            "accuracy": float(np.mean([row["correct"] for row in rows])),
            "nfe": float(np.mean([row["nfe"] for row in rows])),
            "tpf": sum(row["length"] for row in rows) / sum(row["nfe"] for row in rows),
        },
        "lm-eval": {"accuracy": took["exact_match,last"], "nfe": took["nfe"], "tpf": took["tpf"]},
        "same_texts": sum(row["text"] == one["text"] for row, one in zip(rows, requests, strict=True)),
    }
    write_object(RESULT, told)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    run()
