"""What does an autoregressive guide buy a denoiser? And does a contiguous run commit better than scattered positions?

    python -m experiments.guide --guide checkpoints/gsm-ar
    python -m experiments.guide --guide checkpoints/gsm-ar --only shape

Test problems of gsm_symbolic, greedy, stop `eos`. What is kept in results/guide.json, entry by entry; the same call
made again goes on after what is there:

- `same NAME`: are the texts of `agree:on_reject=guide` the guide's own, token for token, with this denoiser and with
  one of random weights?
- `alone`, `guide`, `fixed`, `agree ...`: accuracy, forwards, passes of the guide and work, of the denoiser one token a
  step, of the guide alone, of a fixed number of tokens a step, and of each rule.
- `threshold`, `contiguous`: the same for sweeps of tau.
- `seconds`: a guided and a speculative decode of one batch, against the denoiser and the guide alone, in turn.
- `shape`: what a step of an 8B denoiser with a 1.5B guide does, compiled and not run.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import jaxdiff
from experiments.kept import Kept
from experiments.policies import BLOCK_LENGTH, GEN_LENGTH, describe, measure
from jaxdiff import policies
from jaxdiff.bench.clock import Median, in_turn, ratio
from jaxdiff.bench.cost import step_cost
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.caches import NoCache, Seeded
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.cli.show import progress
from jaxdiff.decode.batches import pad_to_bucket
from jaxdiff.models import build
from jaxdiff.serve import Meter, Request, decode_stream
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import evaluate, gsm_symbolic, task

N, PROMPTS, ROWS, SEED, ROUNDS = 500, 1000, 16, 0, 5
STEPS = (2, 3, 4, 6, 8, 12, 16)  # of a block of 32, of `fixed`
TAUS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
TIMED = 8  # rows of the batch that is timed
RULES = {
    "agree argmax": policies.Agree(),
    "agree topk 5": policies.AgreeTopK(),
    "agree ratio 0.5": policies.AgreeRatio(),
    "agree threshold 0.1": policies.AgreeThreshold(),
}
SPECULATE = policies.Agree(on_reject="guide")
ALONE = jaxdiff.Decoder(cache=Seeded(), stop=Eos())  # of the guide
PARTS = ("same", "rules", "sweeps", "seconds", "shape")
# Qwen2.5-1.5B; the denoiser is LLaDA-8B with its vocabulary, since both must read one tokenizer's ids.
GUIDE_SHAPE = {
    "family": "qwen2",
    "vocab_size": 151936,
    "d_model": 1536,
    "n_layers": 28,
    "n_heads": 12,
    "n_kv_heads": 2,
    "mlp_hidden_size": 8960,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "max_sequence_length": 32768,
    "eos_token_id": 151645,
    "dtype": "bfloat16",
}
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A denoiser and its guide."""

    denoiser: jaxdiff.Checkpoint
    guide: jaxdiff.Checkpoint

    @property
    def beside(self) -> jaxdiff.Guide:
        return jaxdiff.guide_of(self.guide, self.denoiser)


def decoder(policy: jaxdiff.Policy) -> jaxdiff.Decoder:
    return jaxdiff.Decoder(policy=policy, stop=Eos(), block_length=BLOCK_LENGTH)


def guided(policy: jaxdiff.Policy, value: Any) -> jaxdiff.Decoder:
    """Of a sweep of one point."""
    del value
    return decoder(policy)


def prompts_of(pair: Pair, count: int) -> list[list[int]]:
    tokenizer = pair.denoiser.tokenizer_for(gsm_symbolic.NAME)
    problems = itertools.islice(task(gsm_symbolic.NAME).problems("test", SEED), count)
    return [evaluate.prompt_ids(tokenizer, problem) for problem in problems]


def texts(model: jaxdiff.Model, params: Any, prompts: Sequence[Any], made: jaxdiff.Decoder, **options: Any) -> Any:
    """The answer of each prompt."""
    requests = [Request(prompt, number=number) for number, prompt in enumerate(prompts)]
    found: dict[int, Any] = {}
    with progress("prompts", len(prompts)) as update:
        for answer in decode_stream(model, params, requests, made, slots=ROWS, gen_length=GEN_LENGTH, **options):
            if isinstance(answer, jaxdiff.Refusal):
                raise jaxdiff.InputError(answer.error)
            found[answer.request.number] = answer
            update(len(found))
    return [found[number] for number in range(len(prompts))]


def same(pair: Pair, params: Any, prompts: Sequence[Any], expected: Sequence[Any]) -> dict[str, Any]:
    """How many texts of a speculative decode are the guide's own, up to the end of the text."""
    made, other, near = decoder(SPECULATE), [], 0
    found = texts(pair.denoiser.model, params, prompts, made, guide=pair.beside, meter=Meter())
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.tokens[: ours.length].tolist() != theirs.tokens[: theirs.length].tolist():
            other.append(number)
            near += ours.near_ties + theirs.near_ties > 0
    passes, tokens = (sum(getattr(answer, name) for answer in found) for name in ("guide_nfe", "length"))
    return {"prompts": len(found), "other": other, "of these with a near-tie": near, "tokens a pass": tokens / passes}


def points(
    checkpoint: jaxdiff.Checkpoint, made: Callable[[Any], jaxdiff.Decoder], values: Sequence[float], n: int, **more: Any
) -> list[dict[str, Any]]:
    """A point for each value."""
    with progress("problems", n * len(values)) as update:
        reports = evaluate.sweep(
            *(checkpoint, gsm_symbolic.NAME, made, values),
            n=n,
            seed=SEED,
            batch_size=ROWS,
            gen_length=GEN_LENGTH,
            progress=update,
            **more,
        )
    return [
        point | {"guide_nfe": float(report.guide_nfe.mean()), "work": float(report.work.mean())}
        for point, report in zip(measure(values, reports), reports, strict=True)
    ]


def at(wanted: float, by: str, entry: Sequence[dict[str, Any]]) -> float | None:
    """The accuracy of a sweep where its `by` is as wanted, between two of its points; None outside of them."""
    ordered = sorted(entry, key=lambda point: point[by])
    costs, right = ([point[name] for point in ordered] for name in (by, "accuracy"))
    return float(np.interp(wanted, costs, right)) if costs[0] <= wanted <= costs[-1] else None


def compared(entries: dict[str, Any]) -> dict[str, Any]:
    """What the targets ask: guided decodes against `fixed` at the same forwards, contiguous at the same work."""
    found: dict[str, Any] = {}
    if "alone" in entries and "fixed" in entries:
        own = entries["alone"][0]
        for name, (point,) in ((name, entry) for name, entry in entries.items() if name in RULES):
            found[name] = {
                "points lost": own["accuracy"] - point["accuracy"],
                "fewer forwards": own["nfe"] / point["nfe"],
                "fixed at the same forwards": at(point["nfe"], "nfe", entries["fixed"]),
                "threshold at the same work": at(point["work"], "work", entries.get("threshold", entries["fixed"])),
            }
    if "threshold" in entries and "contiguous" in entries:
        found["contiguous"] = [
            {name: point[name] for name in ("value", "work", "accuracy")}
            | {"threshold at the same work": at(point["work"], "work", entries["threshold"])}
            for point in entries["contiguous"]
        ]
    return found


def seconds(pair: Pair, rounds: int) -> dict[str, Any]:
    """Of one batch: medians, and the ratios that count, round by round."""
    model, guide = pair.denoiser.model, pair.beside
    prompts, origin = pad_to_bucket(prompts_of(pair, TIMED), model.config.eos_token_id, 1024)
    options: dict[str, Any] = dict(origin=origin, gen_length=GEN_LENGTH)
    ways: dict[str, Any] = {
        "denoiser": jaxdiff.lower(model, pair.denoiser.params, prompts, decoder(policies.Fixed()), **options),
        "guide": jaxdiff.lower(guide.model, guide.params, prompts, ALONE, **options),
    }
    for name, policy in (*RULES.items(), ("speculate", SPECULATE)):
        ways[name] = jaxdiff.lower(model, pair.denoiser.params, prompts, decoder(policy), guide=guide, **options)
    with progress("rounds", rounds) as update:
        took = in_turn(ways, rounds, update)
    over = {f"denoiser / {name}": ratio(took["denoiser"], took[name]) for name in RULES}
    over["guide / speculate"] = ratio(took["guide"], took["speculate"])
    told = {name: Median.of(each) for name, each in took.items()} | over
    return {name: dataclasses.asdict(each) for name, each in told.items()} | {"rows": TIMED}


def shape() -> dict[str, Any]:
    """Products and bytes of a step, and the memory, with the guide and without."""
    model, beside = shaped("llada-8b", vocab_size=GUIDE_SHAPE["vocab_size"]), build(GUIDE_SHAPE)
    prompts, guide = np.full((1, 64), 5, np.int32), jaxdiff.Guide(beside, abstract_params(beside))
    found: dict[str, Any] = {}
    for name, policy, asked in (("alone", policies.Threshold(), None), ("guided", policies.Agree(), guide)):
        made = jaxdiff.Decoder(policy=policy, cache=NoCache(), stop=Eos(), block_length=BLOCK_LENGTH)
        program = jaxdiff.lower(model, abstract_params(model), prompts, made, gen_length=1216, guide=asked)
        found[name] = {
            "argument_bytes": program.argument_bytes,
            "temp_bytes": program.temp_bytes,
            "compile_seconds": program.compile_seconds,
            "step": step_cost(program.compiled.as_text() or ""),
        }
    return found


def main(
    guide: Annotated[str, typer.Option(help="A folder or a name: the guide, of the denoiser's tokenizer.")],
    n: Annotated[int, typer.Option(min=1, help="Test problems, the same for every point.")] = N,
    prompts: Annotated[int, typer.Option(min=1, help="Of the comparison with the guide's own text.")] = PROMPTS,
    model: Annotated[str, typer.Option(help="The denoiser.")] = SHIPPED,
    rounds: Annotated[int, typer.Option(min=1, help="Of what is timed.")] = ROUNDS,
    only: Annotated[str | None, typer.Option(help=f"{', '.join(PARTS)}; default all but the last.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    if only not in (None, *PARTS):
        raise typer.BadParameter(f"only: found {only!r}, expected one of {', '.join(PARTS)}")
    pair = Pair(jaxdiff.load(model), jaxdiff.load(guide))
    beside = pair.beside
    setting = describe(pair.denoiser, model, n, "eos", SEED)
    theirs = describe(pair.guide, guide, n, "eos", SEED)
    results = Kept(out / "guide.json", setting | {"guide": guide, "guide_weights": theirs["weights"]})

    def wanted(part: str) -> bool:
        return only == part or (only is None and part != PARTS[-1])

    if wanted("same"):
        asked = prompts_of(pair, prompts)
        own: list[Any] = []

        def compare(params: Any) -> dict[str, Any]:
            if not own:
                own.extend(texts(pair.guide.model, pair.guide.params, asked, ALONE))
            return same(pair, params, asked, own)

        random = jax.jit(pair.denoiser.model.init)
        results.once(f"same {model}, {prompts}", lambda: compare(pair.denoiser.params))
        results.once(f"same random, {prompts}", lambda: compare(random(jax.random.key(SEED))))
    if wanted("rules"):
        results.once("alone", lambda: points(pair.denoiser, lambda _: decoder(policies.Fixed()), (0.0,), n))
        results.once("guide", lambda: points(pair.guide, lambda _: ALONE, (0.0,), n))
        for name, policy in (*RULES.items(), ("speculate", SPECULATE)):
            made = functools.partial(guided, policy)
            results.once(name, functools.partial(points, pair.denoiser, made, (0.0,), n, guide=beside))
        results.once("fixed", lambda: points(pair.denoiser, lambda v: decoder(policies.Fixed(steps=v)), STEPS, n))
    if wanted("sweeps"):
        results.once("threshold", lambda: points(pair.denoiser, lambda v: decoder(policies.Threshold(v)), TAUS, n))
        results.once("contiguous", lambda: points(pair.denoiser, lambda v: decoder(policies.Contiguous(v)), TAUS, n))
    if wanted("seconds"):
        results.once("seconds", lambda: seconds(pair, rounds))
    if wanted("shape"):
        results.once("shape", shape)
    results.content["compared"] = compared(results.entries)
    results.write()
    for name, entry in results.content["compared"].items():
        print(name, entry)


if __name__ == "__main__":
    typer.run(main)
