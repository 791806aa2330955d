"""`jaxdiff collect` and `jaxdiff fit`: traces of a model's own answers, and the filter that is learned from them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Annotated

import typer

from jaxdiff.checkpoint import FILTERS, SHIPPED, learned_policy, load, part_homes, save_filter
from jaxdiff.cli import options
from jaxdiff.cli.show import progress, tell
from jaxdiff.decode import Decoder
from jaxdiff.hub import origin_of
from jaxdiff.policies import Learned, parse
from jaxdiff.stoppers import STOPPERS
from jaxdiff.tasks import TASKS, task
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.types import InputError


def collect(
    out: Annotated[
        Path, typer.Option("--out", help="The traces' folder; the same command goes on with what it holds.")
    ],
    model: options.Model = SHIPPED,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    task_name: Annotated[str, typer.Option("--task", help=f"{' or '.join(TASKS)}: its training problems.")] = (
        "gsm_symbolic"
    ),
    n: Annotated[int, typer.Option("--n", min=1, help="Prompts.")] = 500,
    seed: options.Seed = 0,
    stop: options.Stop = "eos",
    gen_length: options.GenLength = 256,
    block_length: options.BlockLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts decoded together.")] = 16,
    features: Annotated[bool, typer.Option("--features", help="Hidden features too, for fit --kind hidden.")] = False,
    tau: Annotated[
        list[float],
        typer.Option(
            "--tau",
            min=0.0,
            max=1.0,
            help="A replay commits what is final and at least as sure. Given more than once: as many replays.",
        ),
    ] = [0.0],  # noqa: B006
    answer: Annotated[
        str,
        typer.Option("--answer", help="The policy whose answers are replayed: threshold:tau=0.99 is fast."),
    ] = "fixed",
    as_json: options.Json = False,
) -> None:
    """Decode training prompts, by default one token a step, replay the answers, and write what was seen."""
    from jaxdiff.train.traces import collect as run

    stopper, source = STOPPERS.parse(stop), task(task_name)
    pinned = options.pinned(model)
    adapter = options.pinned_adapter(adapter, pinned)
    policy = parse(answer, learned=functools.partial(learned_policy, pinned, adapter=adapter))
    checkpoint = load(pinned, ignore=ignore_config or (), adapter=adapter)
    tokenizer = checkpoint.tokenizer_for(task_name)
    problems = list(itertools.islice(source.problems("train", seed), n))
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    with progress("prompts", n, lambda rows, seconds: f"{rows / seconds:,.0f} rows/s") as update:
        traces = run(
            checkpoint.model,
            checkpoint.params,
            prompts,
            list(range(len(prompts))),
            out,
            Decoder(policy=policy, stop=stopper, block_length=block_length),
            gen_length=gen_length,
            batch_size=batch_size,
            features=features,
            taus=tau,
            progress=update,
        )
    numbers = {"prompts": len(prompts), "rows": int(traces.prompt.size), "seed": seed}
    numbers |= {"revision": checkpoint.revision, "adapter": adapter}
    tell(numbers, f"{numbers['rows']} rows of {numbers['prompts']} prompts in {out}", as_json=as_json)


def fit(
    traces: Annotated[
        list[Path],
        typer.Option("--traces", help="A folder that `collect` wrote. Given more than once: all, of one --seed."),
    ],
    name: Annotated[str, typer.Option("--name", help="What the policy is called: learned:name=NAME.")],
    model: options.Model = SHIPPED,
    adapter: options.Adapter = None,
    kind: Annotated[str, typer.Option("--kind", help="block (as published), local or hidden.")] = "local",
    layers: Annotated[int, typer.Option("--layers", min=1, help="Linear layers.")] = 2,
    hidden: Annotated[int | None, typer.Option("--hidden", min=1, help="Width between. Default the block.")] = None,
    wrong: Annotated[float, typer.Option("--wrong", min=0.0, help="What a wrong commit costs, in waits.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the optimizer.")] = 5000,
    tau: Annotated[float, typer.Option("--tau", min=0.0, max=1.0, help="The threshold of its card.")] = 0.96,
    quota: Annotated[bool, typer.Option("--quota", help="Join it with one token a step, as published.")] = False,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Fit a filter to traces, and put it into the model's folder, or into that of its adapter."""
    from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
    from jaxdiff.train.traces import load_traces

    if not name.isidentifier():
        raise InputError(f"name: found {name!r}, expected letters, digits and underscores")
    if not 0.0 <= tau <= 1.0:  # NaN is no option's mistake to the parser
        raise InputError(f"tau: found {tau}, expected a number from 0 to 1")
    recipe = FilterRecipe(kind=kind, layers=layers, hidden=hidden, wrong=wrong, steps=steps, seed=seed)
    home = part_homes(model, FILTERS, adapter=adapter)[0]
    if origin_of(home.parent) is not None:
        what, how = ("model", f"jaxdiff convert {model} DST") if adapter is None else ("adapter", "copy it")
        raise InputError(
            f"{what}: {adapter or model} lies in the hub's cache, which keeps no filter of yours; make a folder of "
            f"your own ({how}), and name that"
        )
    folder, rows = home / name, [load_traces(path) for path in traces]
    with progress("steps", steps, lambda loss, _: f"validation loss {loss:.4f}") as update:
        fitted = fit_filter(rows, recipe, update)
    save_filter(folder, Learned(fitted.filter, tau), quota=quota)
    numbers = {
        "filter": str(folder),
        "validation_loss": fitted.best,
        "rows": fitted.rows,
        "prompts": fitted.prompts,
        **dataclasses.asdict(recipe),
    }
    line = f"{folder}: validation loss {fitted.best:.4f} nats, {fitted.rows} rows of {fitted.prompts} prompts"
    tell(numbers, line, as_json=as_json)
