"""`jaxdiff collect` and `jaxdiff fit`: traces of a model's own answers, and the filter or drafter learned from them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.checkpoint import SHIPPED, Checkpoint, load, part_homes
from jaxdiff.cli import options, reward
from jaxdiff.cli.show import progress, tell
from jaxdiff.decode import Decoder, Sampling
from jaxdiff.drafters import DRAFTERS, KINDS, save_drafter
from jaxdiff.filters import FILTERS, learned_policy, save_filter
from jaxdiff.hub import holder_of
from jaxdiff.judges import JUDGES, named_judge, save_judge
from jaxdiff.leaves import fingerprint
from jaxdiff.policies import Learned, parse
from jaxdiff.stoppers import STOPPERS
from jaxdiff.tasks import TASKS, task
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.types import InputError

FILTER_KINDS, JUDGE_KIND = ("block", "local", "hidden", "confidence"), "judge"


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
    rash: Annotated[
        list[str],
        typer.Option(
            "--rash",
            metavar="POLICY",
            help="In the place of replays, decodes by this policy too, and which of its commits the answer has "
            "otherwise: what fit --kind judge learns from. Given more than once: as many decodes.",
        ),
    ] = [],  # noqa: B006
    unlikely: Annotated[
        float | None,
        typer.Option(
            "--unlikely",
            min=0.0,
            max=1.0,
            help="With --rash: wrong is what has a probability under this beside what was committed before it, and "
            "there is no answer. For texts of which one is as good as another.",
        ),
    ] = None,
    trajectories: Annotated[
        bool,
        typer.Option(
            "--trajectories",
            help="The decodes themselves, without a replay: what fit --kind adjust and head learn from.",
        ),
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="With --trajectories or --unlikely: 0 is greedy.")
    ] = 0.0,
    as_json: options.Json = False,
) -> None:
    """Decode training prompts, by default one token a step, replay the answers, and write what was seen."""
    if trajectories and (features or tau != [0.0] or rash):
        raise InputError(
            "collect: found --features, --tau or --rash beside --trajectories, which has no replay; leave it out"
        )
    if rash and tau != [0.0]:
        raise InputError("collect: found --tau, which is of replays, beside --rash, which has none; leave one out")
    if unlikely is not None and (not rash or answer != "fixed"):
        raise InputError(
            "unlikely: found it without --rash, whose commits it says are wrong, or beside --answer, which it stands "
            "in for; mend that"
        )
    if temperature and not trajectories and unlikely is None:
        raise InputError(
            "temperature: found it without --trajectories and --unlikely; answers that are replayed are greedy: leave "
            "it out"
        )

    from jaxdiff.train import judgements, traces
    from jaxdiff.train import trajectories as trajectory

    stopper, source = STOPPERS.parse(stop), task(task_name)
    pinned = options.pinned(model)
    adapter = options.pinned_adapter(adapter, pinned)
    parsed = functools.partial(
        parse,
        learned=functools.partial(learned_policy, pinned, adapter=adapter),
        judge=functools.partial(named_judge, pinned, adapter=adapter),
    )
    policy, judged = parsed(answer), [parsed(each) for each in rash]
    checkpoint = load(pinned, ignore=ignore_config or (), adapter=adapter)
    tokenizer = checkpoint.tokenizer_for(task_name)
    problems = list(itertools.islice(source.problems("train", seed), n))
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    sampling = Sampling(temperature=temperature)
    decoder = Decoder(policy=policy, stop=stopper, sampling=sampling, block_length=block_length)
    given = (checkpoint.model, checkpoint.params, prompts, list(range(len(prompts))), out, decoder)
    sizes = dict(gen_length=gen_length, batch_size=batch_size)
    with progress("prompts", n, lambda rows, seconds: f"{rows / seconds:,.0f} rows/s") as update:
        if trajectories:
            rows = len(trajectory.record(*given, **sizes, seed=seed, progress=update).prompt)
        elif rash:
            told = dict(features=features, unlikely=unlikely, seed=seed)
            found = judgements.collect(*given, **sizes, rash=judged, **told, progress=update)
            rows = found.prompt.size
        else:
            rows = traces.collect(*given, **sizes, features=features, taus=tau, progress=update).prompt.size
    numbers = {"prompts": len(prompts), "rows": int(rows), "seed": seed}
    numbers |= {"revision": checkpoint.revision, "adapter": adapter}
    tell(numbers, f"{numbers['rows']} rows of {numbers['prompts']} prompts in {out}", as_json=as_json)


def fit(
    name: Annotated[
        str,
        typer.Option(
            "--name",
            help="What is fitted is called: learned:name=NAME, judge:name=NAME, adjust:name=NAME, head:name=NAME.",
        ),
    ],
    traces: Annotated[
        list[Path],
        typer.Option("--traces", help="A folder that `collect` wrote. Given more than once: all, of one --seed."),
    ] = [],  # noqa: B006
    model: options.Model = SHIPPED,
    adapter: options.Adapter = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="A filter: block (as published), local, hidden or confidence. A judge of commits, of --rash: judge. "
            "Or a drafter, of --trajectories: adjust, head. Default local.",
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Linear layers of a filter. Default 2.")] = None,
    hidden: Annotated[
        int | None, typer.Option("--hidden", min=1, help="Width between a filter's layers. Default the block.")
    ] = None,
    reach: Annotated[
        int | None,
        typer.Option(
            "--reach",
            min=0,
            help="Neighbours on each side that a filter sees; block sees all. Default 3, with --reward that of --from.",
        ),
    ] = None,
    wrong: Annotated[
        float | None, typer.Option("--wrong", min=0.0, help="What a filter's wrong commit costs, in waits. Default 1.")
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            "--tau",
            min=0.0,
            max=1.0,
            help="The threshold of a filter's card. Default 0.96; of --reward that of --from.",
        ),
    ] = None,
    quota: Annotated[bool, typer.Option("--quota", help="Join a filter with one token a step, as published.")] = False,
    k: Annotated[
        int | None, typer.Option("--k", min=2, help="Tokens of a forward that a drafter is fitted for. Default 8.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Of a drafter's step. Default 32.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the optimizer. Default 5000, of a drafter 3000.")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", min=0.0, help="At its highest. Default 0.003, with --reward 0.001."),
    ] = None,
    price: reward.Price = None,
    begin: reward.From = None,
    task_name: reward.Task = None,
    rounds: reward.Rounds = None,
    problems: reward.Problems = None,
    group: reward.Group = None,
    temperature: reward.Temperature = None,
    kl: reward.Kl = None,
    every: reward.Every = None,
    validation: reward.Validation = None,
    batch_size: reward.BatchSize = None,
    gen_length: reward.GenLength = None,
    block_length: options.BlockLength = None,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Fit a filter or a drafter to traces, or a filter to what its decodes are worth; into the model's folder."""
    if not name.isidentifier():
        raise InputError(f"name: found {name!r}, expected letters, digits and underscores")
    if kind is not None and kind not in (known := (*FILTER_KINDS, JUDGE_KIND, *KINDS)):
        raise InputError(f"kind: found {kind!r}, expected {', '.join(known[:-1])} or {known[-1]}")
    of_filters = {"layers": layers, "hidden": hidden, "reach": reach, "wrong": wrong, "quota": quota or None}
    of_rewards = {"from": begin, "task": task_name, "rounds": rounds, "problems": problems, "group": group}
    of_rewards |= {"temperature": temperature, "kl": kl, "every": every, "validation": validation}
    of_rewards |= {"batch_size": batch_size, "gen_length": gen_length, "block_length": block_length}
    of_traces = {"traces": traces or None, "kind": kind, "steps": steps}
    fitted = "drafter" if kind in KINDS else kind if kind == JUDGE_KIND else "filter"
    beside = f"--kind {kind or 'local'}"
    if price is not None:
        fitted, beside = "reward", "--reward"
    elif any(value is not None for value in of_rewards.values()):
        beside = "no --reward"
    takes = {
        "filter": of_traces | of_filters | {"tau": tau},
        "judge": of_traces | {"layers": layers, "hidden": hidden, "reach": reach, "tau": tau},
        "drafter": of_traces | {"k": k, "rows": rows},
        "reward": of_rewards | {"tau": tau, "reach": reach},
    }
    idle = {option: value for other in takes.values() for option, value in other.items() if option not in takes[fitted]}
    if found := [option for option, value in idle.items() if value is not None]:
        raise InputError(
            f"{found[0].replace('_', '-')}: found it beside {beside}, which takes no such option; leave one of the two "
            "out"
        )
    if fitted != "reward" and not traces:
        raise InputError("traces: found none, expected a folder that `jaxdiff collect` wrote; or give --reward")
    given = takes[fitted] | {"learning_rate": learning_rate, "seed": seed}
    given = {option: value for option, value in given.items() if value is not None and option != "traces"}
    part = {"drafter": DRAFTERS, "judge": JUDGES}.get(fitted, FILTERS)
    home = part_homes(model, part, adapter=adapter)[0]
    if holder_of(home) is not None:
        what, how = ("model", f"jaxdiff convert {model} DST") if adapter is None else ("adapter", "copy it")
        raise InputError(
            f"{what}: {adapter or model} lies in the hub's cache, which keeps nothing of yours; make a folder of your "
            f"own ({how}), and name that"
        )
    if price is not None:
        numbers, line = reward.run(model, adapter, home / name, price, given)
    elif fitted == "drafter":
        numbers, line = _drafter(load(model, adapter=adapter), home / name, traces, given)
    elif fitted == "judge":
        numbers, line = _judge(load(model, adapter=adapter), home / name, traces, given)
    else:
        numbers, line = _filter(home / name, traces, {"kind": "local"} | given)
    tell(numbers, line, as_json=as_json)


def _filter(folder: Path, traces: list[Path], given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Fits a filter and saves it: its numbers, and a line of them."""
    from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
    from jaxdiff.train.traces import load_traces

    tau, quota = given.pop("tau", 0.96), given.pop("quota", False)
    if not 0.0 <= tau <= 1.0:  # NaN is no option's mistake to the parser
        raise InputError(f"tau: found {tau}, expected a number from 0 to 1")
    recipe = FilterRecipe(**given)
    rows = [load_traces(path) for path in traces]
    with progress("steps", recipe.steps, lambda loss, _: f"validation loss {loss:.4f}") as update:
        fitted = fit_filter(rows, recipe, update)
    save_filter(folder, Learned(fitted.filter, tau), quota=quota)
    numbers = {"filter": str(folder), "validation_loss": fitted.best, "rows": fitted.rows, "prompts": fitted.prompts}
    line = f"{folder}: validation loss {fitted.best:.4f} nats, {fitted.rows} rows of {fitted.prompts} prompts"
    return numbers | dataclasses.asdict(recipe), line


def _judge(
    checkpoint: Checkpoint, folder: Path, traces: list[Path], given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fits a judge and saves it: its numbers, and a line of them."""
    from jaxdiff.train.fit_judge import JudgeRecipe, fit_judge
    from jaxdiff.train.judgements import load_judgements

    given.pop("kind")
    tau = given.pop("tau", 0.5)
    if not 0.0 <= tau <= 1.0:  # NaN is no option's mistake to the parser
        raise InputError(f"tau: found {tau}, expected a number from 0 to 1")
    recipe = JudgeRecipe(**given)
    rows = [load_judgements(path, checkpoint.params) for path in traces]
    with progress("steps", recipe.steps, lambda loss, _: f"validation loss {loss:.4f}") as update:
        fitted = fit_judge(rows, recipe, fitted_to=fingerprint(checkpoint.params), progress=update)
    save_judge(folder, fitted.judge, tau)
    measured = {"validation_loss": fitted.best, "auc": fitted.auc, "wrong": fitted.wrong}
    numbers = {"judge": str(folder), **measured, "commits": fitted.commits, "prompts": fitted.prompts}
    line = (
        f"{folder}: area under the ROC curve {fitted.auc:.4f}, validation loss {fitted.best:.4f} nats, "
        f"{fitted.wrong:.2%} wrong; {fitted.commits} commits of {fitted.prompts} prompts"
    )
    return numbers | dataclasses.asdict(recipe), line


def _drafter(
    checkpoint: Checkpoint, folder: Path, traces: list[Path], given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fits a drafter and saves it: its numbers, and a line of them. One that a signal stops is gone on with later."""
    from jaxdiff.train.fit_drafter import DrafterRecipe, fit_drafter
    from jaxdiff.train.trajectories import load_trajectories

    recipe, saved = DrafterRecipe(**given), traces[0] / f"fit-{folder.name}.npz"
    rows = load_trajectories(traces, checkpoint.model, checkpoint.params)
    with progress("steps", recipe.steps, lambda loss, _: f"validation KL {loss:.4f}") as update:
        fitted = fit_drafter(checkpoint.model, checkpoint.params, rows, recipe, saved=saved, progress=update)
    told = {
        "drafter": str(folder),
        "adapter": checkpoint.adapter and str(checkpoint.adapter),
        **dataclasses.asdict(recipe),
    }
    if fitted is None:  # what a pre-empted machine asks for: not a failure
        return told | {"stopped": True}, f"stopped early; the same command goes on from {saved}"
    save_drafter(folder, fitted.fill)
    saved.unlink(missing_ok=True)
    numbers = {"validation_kl": fitted.best, "before": fitted.before, "rows": fitted.rows, "prompts": fitted.prompts}
    line = (
        f"{folder}: validation KL {fitted.best:.4f} nats a position, the model's own marginals {fitted.before:.4f}; "
        f"{fitted.rows} decodes of {fitted.prompts} prompts"
    )
    return told | numbers, line
