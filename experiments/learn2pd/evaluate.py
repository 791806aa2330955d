"""Step 3: every policy once on the test split, with its number chosen on the validation split.

    python -m experiments.learn2pd.evaluate

Length 256: accuracy, NFE and TPF of n = 500 problems, paired with standard decoding. Length 1024: the same of n = 100,
and of the first 32 the wall-clock of standard decoding and of the fast ways, interleaved batch by batch in one process.
Last, what a filter costs inside a step.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff
from experiments.learn2pd.common import (
    BLOCK,
    EOS,
    HEURISTICS,
    LENGTH,
    LONG,
    MODEL,
    N_LONG,
    RESULTS,
    ROWS,
    SEED,
    TIMED,
    N,
    Results,
    chosen_of,
    points,
    standard_on_validation,
    swept_on_validation,
)
from experiments.learn2pd.report import draw_frontier, draw_order, report
from jaxdiff.bench.clock import in_turn, ratio
from jaxdiff.bench.measure import Work
from jaxdiff.caches import CACHES
from jaxdiff.cli.show import progress
from jaxdiff.decode import Timed
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches
from jaxdiff.filters import learned_policy
from jaxdiff.policies import AnyOf, Fixed, Learned, Oracle
from jaxdiff.policies.filters import Evidence, Filter
from jaxdiff.stoppers import BlockEotp, NoStop, OfficialEotp, SafeEotp
from jaxdiff.tasks import gsm_symbolic

REPEATS = 15  # of the cost of a filter
STOPS = {
    "none": NoStop(),
    "eos": EOS,
    "eotp official": OfficialEotp(),
    "eotp block": BlockEotp(),
    "eotp safe": SafeEotp(),
}
WAYS = (  # at 1024: policy, stopper, cache; standard decoding first
    ("standard", "none", "none"),
    ("standard", "eos", "none"),
    ("standard", "eotp safe", "none"),
    ("threshold", "eos", "none"),
    ("threshold", "eotp safe", "none"),
    ("oracle", "eos", "none"),
    ("learned official", "eotp official", "none"),
    ("learned local", "none", "none"),
    ("learned local", "eos", "none"),
    ("learned local", "eotp safe", "none"),
    ("learned local", "eos", "dual"),
    ("learned local", "eotp safe", "prefix"),
    ("learned local", "eotp safe", "frozen"),
)
STOPPED = (  # at 256, next to every policy with `eos`
    ("learned official", "none"),
    ("learned official", "eotp official"),
    ("threshold", "eotp safe"),
    ("learned local", "none"),
    ("learned local", "eotp official"),
    ("learned local", "eotp block"),
    ("learned local", "eotp safe"),
)


def main() -> None:
    checkpoint = jaxdiff.load(MODEL)
    results = Results("evaluate", checkpoint)
    policies = chosen(checkpoint, results)
    at_256(checkpoint, results, policies)
    tau = Results("fit", checkpoint).content["taus"][str(LONG)]
    at_1024(checkpoint, results, policies | {"learned local": learned_policy(MODEL, "local", tau)})
    cost(checkpoint, results, policies)
    (RESULTS / "evaluate.md").write_text(report(results))
    draw_frontier(results, Results("fit", checkpoint))
    draw_order(checkpoint, policies)
    print(report(results))


def chosen(checkpoint: jaxdiff.Checkpoint, results: Results) -> dict[str, jaxdiff.Policy]:
    """Every policy with the number that it had its highest TPF with, no less accurate than standard on validation."""
    standard = standard_on_validation(checkpoint, results)
    policies: dict[str, jaxdiff.Policy] = {"standard": Fixed(), "oracle": Oracle()}
    for sweep in HEURISTICS:
        swept = swept_on_validation(checkpoint, results, sweep)
        point = chosen_of(swept, standard)
        policies[sweep.name] = sweep.policy(np.asarray(point["value"], np.float32))
        results.once(f"{sweep.name}, chosen", lambda sweep=sweep, point=point: {sweep.number: point["value"]})
    for name in ("official", "local"):
        policies[f"learned {name}"] = learned_policy(MODEL, name)
    return policies


def at_256(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """All policies until the end of the text; the fast ones also over the whole canvas and with end-of-text prediction.

    Standard decoding of the whole canvas takes 256 forwards and gives the text that it gives under `eos`.
    """
    for name, stop in [*((name, "eos") for name in policies), *STOPPED]:
        label = f"{LENGTH}, {name}, {stop}"
        results.once(
            label,
            lambda label=label, name=name, stop=stop: points(
                checkpoint, label, lambda _: policies[name], n=N, split="test", stop=STOPS[stop]
            )[0],
        )


def at_1024(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """Every way batch by batch in turn, for wall-clock; a batch that was measured is kept.

    After the first TIMED problems the ways without a stopper are left out: `eos` gives the same text in fewer forwards.
    """
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = list(itertools.islice(gsm_symbolic.problems("test", SEED), N_LONG))
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(p.question) for p in problems], fill=tokenizer.eos_id)
    run = Timed()

    def measured(rows: np.ndarray) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        answer: Any = None
        for policy, stop, cache in WAYS:
            if stop == "none" and rows[0] >= TIMED:
                continue
            chosen, before = policies[policy], run.seconds
            call = prepare(
                checkpoint.model,
                checkpoint.params,
                prompts[rows],
                jaxdiff.Decoder(policy=chosen, cache=CACHES.parse(cache), stop=STOPS[stop], block_length=BLOCK),
                origin=origin[rows],
                gen_length=LONG,
                reference=answer if isinstance(chosen, Oracle) else None,
            )
            result = run.run(call)
            if (policy, stop) == ("standard", "eos"):
                answer = result.tokens
            generated = np.asarray(result.tokens)[:, prompts.shape[1] :]
            right = [
                gsm_symbolic.verify(tokenizer.decode(ids), problems[i]) for ids, i in zip(generated, rows, strict=True)
            ]
            batch[f"{policy}, {stop}, {cache}"] = {
                "seconds": run.seconds - before,
                "nfe": np.asarray(result.nfe).tolist(),
                "lengths": np.asarray(result.lengths).tolist(),
                "correct": "".join(str(int(mark)) for mark in right),
            }
        return batch

    with progress(f"length {LONG}", N_LONG) as update:
        for rows in batches(N_LONG, ROWS):
            results.once(f"{LONG}, problems from {rows[0]}", lambda rows=rows: measured(rows))
            update(int(rows[-1]) + 1, 0, 1)


def cost(checkpoint: jaxdiff.Checkpoint, results: Results, policies: dict[str, jaxdiff.Policy]) -> None:
    """What the filters cost inside a step: their seconds, many in a row in one program, over those of the step."""
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problem = next(gsm_symbolic.problems("test", SEED))
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(problem.question)], fill=tokenizer.eos_id)
    work = Work(
        model=checkpoint.model,
        params=checkpoint.params,
        prompts=prompts,
        origin=origin,
        decoder=jaxdiff.Decoder(block_length=BLOCK),
        gen_length=LENGTH,
        block_length=BLOCK,
        rounds=REPEATS,
    )

    def measured(policy: Learned) -> dict[str, Any]:
        program = work.program()
        steps = program.steps
        shape = jnp.zeros((1, BLOCK), jnp.float32)
        hidden = jnp.zeros((1, BLOCK, checkpoint.model.config.d_model), jnp.float32)
        seen = Evidence(shape, shape, shape, jnp.ones(shape.shape, bool), jnp.zeros((1,), jnp.int32), hidden)

        @jax.jit
        def many(judge: Filter, seen: Evidence) -> Evidence:
            def one(_: Any, seen: Evidence) -> Evidence:  # fed to the next one, so that no part of it can be left out
                return jax.lax.optimization_barrier(dataclasses.replace(seen, log_odds=judge(seen)))

            return jax.lax.fori_loop(0, steps, one, seen)

        seconds = in_turn(
            {"step": program.program, "filter": lambda: jax.block_until_ready(many(policy.filter, seen))}, REPEATS
        )
        return {
            "share of the step": dataclasses.asdict(ratio(seconds["filter"], seconds["step"])),
            "microseconds": float(np.median(seconds["filter"]) / steps * 1e6),
            "step, microseconds": float(np.median(seconds["step"]) / steps * 1e6),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(policy.filter)),
        }

    for name, policy in policies.items():
        judge = policy.parts[0] if isinstance(policy, AnyOf) else policy
        if isinstance(judge, Learned):
            results.once(f"cost, {name}", lambda judge=judge: measured(judge))


if __name__ == "__main__":
    main()
