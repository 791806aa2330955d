"""Whether a GPU gives a CPU's tokens: the README's decode against a recording, and a part of the test suite.

JAX_PLATFORMS=cpu python -m experiments.gpu.parity     # records expected.json
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np

from experiments.gpu.job import HERE, ROOT, WORK, Job
from experiments.gpu.stages import gpu

EXPECTED = HERE / "expected.json"
PROMPTS, GENERATED = 16, 256
SMALL_PROMPTS = 2
TESTS = ("tests/test_kvcache.py", "tests/conformance/test_conformance.py")
CHOSEN = (
    "writing or repadded or "
    "((rules_1_and_2 or rule_3_rows or rule_3_padding) and (fixed-none or threshold or learned-local or dual))"
)
SMALL_CHOSEN = "repadded"
WORKERS = 8
NEEDED = ("pytest", "hypothesis", "beartype", "jaxtyping")


def decode(job: Job) -> None:
    """The recorded prompts on this device: in float32 with exact products, and in bfloat16, the default there."""
    import jax

    job.device()
    said = json.loads(EXPECTED.read_text())
    count = SMALL_PROMPTS if job.small else PROMPTS
    job.put(recorded_on=said["environment"])
    with jax.default_matmul_precision("highest"):
        job.part("float32", lambda: compared(said, decoded(said["prompts"][:count], "float32")))
    job.part("bfloat16", lambda: compared(said, decoded(said["prompts"][:count], "bfloat16")))


def decoded(prompts: list[list[int]], dtype: str) -> dict[str, Any]:
    """Rows of the shipped model under the learned filter, each until its end of text."""
    import jax

    import jaxdiff

    checkpoint = jaxdiff.load(dtype=dtype)
    padded, origin = jaxdiff.pad_prompts(prompts, fill=checkpoint.model.config.eos_token_id)
    decoder = jaxdiff.Decoder(policy=jaxdiff.learned_policy("gsm-1m"), stop=jaxdiff.stoppers.Eos())

    def once() -> tuple[Any, float]:
        since = time.perf_counter()
        result = jax.block_until_ready(
            jaxdiff.decode(checkpoint.model, checkpoint.params, padded, decoder, gen_length=GENERATED, origin=origin)
        )
        return result, time.perf_counter() - since

    _, first = once()
    result, warm = once()
    answers = np.asarray(result.tokens)[:, padded.shape[1] :]
    return {
        "tokens": [row[:length].tolist() for row, length in zip(answers, np.asarray(result.lengths), strict=True)],
        "nfe": np.asarray(result.nfe).tolist(),
        "near_ties": np.asarray(result.near_ties).tolist(),
        "first_seconds": first,
        "warm_seconds": warm,
    }


def compared(said: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """How many rows are the recording's; of those that differ, where, and the near-ties of both."""
    differ = [
        {
            "row": row,
            "first_difference": next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None),
            "lengths": [len(want), len(got)],
            "nfe": [said["nfe"][row], found["nfe"][row]],
            "near_ties": [said["near_ties"][row], found["near_ties"][row]],
        }
        for row, (want, got) in enumerate(zip(said["tokens"], found["tokens"], strict=False))
        if want != got or said["nfe"][row] != found["nfe"][row]
    ]
    rows = len(found["tokens"])
    seconds = {name: found[name] for name in ("first_seconds", "warm_seconds")}
    return {"rows": rows, "same": rows - len(differ), "differ": differ} | seconds


def suite(job: Job) -> None:
    """A part of the tests on this device; where a package lacks, which one."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    device = os.environ.get("JAX_PLATFORMS") or ("cpu" if gpu() == "none" else "cuda,cpu")
    job.put(missing=missing, platform=device, tests=TESTS, chosen=SMALL_CHOSEN if job.small else CHOSEN)
    if missing:
        return
    parallel = [] if job.small or importlib.util.find_spec("xdist") is None else ["-n", str(WORKERS)]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "--tb=short", "-p", "no:cacheprovider"]
    command += [*parallel, "-k", job.found["chosen"], *TESTS]
    env = os.environ | {
        "JAX_PLATFORMS": device,
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    output, said = WORK / "suite.txt", "not over when the stage was"
    with output.open("w") as file, contextlib.suppress(subprocess.TimeoutExpired):
        call = {"stdout": file, "stderr": subprocess.STDOUT, "timeout": max(5.0, job.left - 5.0), "check": False}
        subprocess.run(command, cwd=ROOT, env=env, **call)
        said = output.read_text().strip().splitlines()[-1]
    text = output.read_text()
    print(text[-20_000:])
    lines = [line for line in text.splitlines() if "::" in line]
    # "[gw0] [ 5%] FAILED test" of pytest-xdist, else "test FAILED [ 5%]"
    bad = [line.split(" FAILED") for line in lines if " FAILED" in line]
    failed = sorted({(after if before.startswith("[gw") else before).strip() for before, after in bad})
    job.put(last_line=said, passed=sum(" PASSED" in line for line in lines), failed=failed[:40])
    errors = [line for line in text.splitlines() if line.startswith("E  ")]
    job.put(errors=[line[:200] for line in errors[:40]])


def main() -> None:
    """Record what this machine's CPU gives in float32."""
    import jax

    import jaxdiff
    from jaxdiff.tasks import gsm_symbolic

    tokenizer = jaxdiff.load().tokenizer_for(gsm_symbolic.NAME)
    questions = itertools.islice(gsm_symbolic.problems("test", 0), PROMPTS)
    prompts = [tokenizer.prompt(problem.question) for problem in questions]
    found = decoded(prompts, "float32")
    kept = {name: found[name] for name in ("tokens", "nfe", "near_ties")}
    where = {"jax": jax.__version__, "cpu": platform.machine(), "platform": jax.default_backend()}
    lines = [f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n ]" for name, rows in _rows(prompts, kept)]
    EXPECTED.write_text("{\n" + ",\n".join([*lines, f' "environment": {json.dumps(where)}']) + "\n}\n")
    print(f"{EXPECTED}: nfe {found['nfe']}, near-ties {found['near_ties']}")


def _rows(prompts: list[list[int]], kept: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    return [("prompts", prompts), *kept.items()]


if __name__ == "__main__":
    main()
