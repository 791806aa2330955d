"""`jaxdiff eval`: accuracy, NFE, TPF and seconds of a policy on a task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jaxdiff.checkpoint import SHIPPED, Checkpoint
from jaxdiff.cli import inserting, options
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.record import Record, run_of
from jaxdiff.cli.show import note, progress, tell
from jaxdiff.cli.tally import trusted
from jaxdiff.insertion import WAYS
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.protocols import is_insertion
from jaxdiff.pytree import numbers_of
from jaxdiff.tasks import TASKS, lengths, task
from jaxdiff.tasks.evaluate import Report, evaluate_insertion, fingerprints, held_out
from jaxdiff.tasks.evaluate import evaluate as evaluate_task

OF_MASKS = (  # what `--json` says of how masks were filled
    *("policy", "stop", "stop_strings", "constraint", "fill", "cache", "block_length", "length"),
    *("end_think", "end_think_boost", "end_think_power"),
)


def evaluate(
    context: typer.Context,
    task_name: Annotated[str, typer.Option("--task", help=f"{' or '.join(TASKS)}.")] = "gsm_symbolic",
    n: Annotated[int, typer.Option("--n", min=1, help="Problems.")] = 100,
    split: Annotated[str, typer.Option("--split", help="test or validation.")] = "test",
    model: options.Model = SHIPPED,
    policy: options.Policy = "fixed",
    fill: options.Fill = "parallel",
    cache: options.Cache = None,
    stop: options.Stop = "none",
    stop_string: options.StopString = None,
    constraint: options.Constraint = None,
    gen_length: Annotated[
        int | None,
        typer.Option("--gen-length", min=1, help="Tokens to generate. Default the task's own: 256; a puzzle's."),
    ] = None,
    block_length: options.BlockLength = None,
    steps: options.Steps = None,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    cfg_scale: options.CfgScale = None,
    forbid_eos: options.ForbidEos = False,
    defer_eos: options.DeferEos = False,
    length: options.Length = "fixed",
    end_think: options.EndThink = None,
    end_think_boost: options.EndThinkBoost = None,
    end_think_power: options.EndThinkPower = None,
    insert: options.Insert = None,
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Problems decoded together.")] = 16,
    mesh: options.Mesh = "1x1",
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    guide: options.Guide = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="JSONL",
            help="A row for each problem: number, question, text, correct, nfe, cheap, guide_nfe, work, length, "
            "near_ties, not_finite. Stopped, the same command goes on from what lies in JSONL.parts.",
        ),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Repeat what an eval --json wrote and say whether it agrees; exit code 1 if not. Beside it go --json, "
            "--out, --mesh, --batch-size, and --model, --adapter and --guide where these lie elsewhere.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Decode a task's held-out problems and score them with its verifier."""
    if from_file is not None:
        record = Record.read(from_file)
        again = record.asked(context)
        return _show_again(record, *_evaluated(again, out_file, record), as_json)
    numbers, table, sound = _evaluated(dict(context.params), out_file)
    tell(numbers, table, as_json=as_json)
    return 0 if sound else 1


def _evaluated(
    asked: dict[str, Any], out_file: Path | None, record: Record | None = None
) -> tuple[dict[str, Any], Table, bool]:
    """What `--json` says of an evaluation, its table, and whether all scores were numbers.

    Args:
        asked: the command's parameters.
        record: what is repeated: other weights or problems than its own are refused before anything is decoded.
    """
    task_name, n, split, seed = (asked[name] for name in ("task_name", "n", "split", "seed"))
    if asked["gen_length"] is None:
        asked["gen_length"] = task(task_name).LENGTH  # named before the model is read
    decoding = Decoding.of(asked)
    checkpoint, pinned, adapter = decoding.load(), decoding.pinned, decoding.pinned_adapter
    inserting.check(decoding, checkpoint.model)
    if is_insertion(checkpoint.model):
        return _inserted(decoding, checkpoint, asked, out_file, record)
    _, block = lengths(task_name, decoding.gen_length, decoding.block_length, checkpoint.model.attention_block)
    decoding = dataclasses.replace(decoding, block_length=block, cache=decoding.cache_of(checkpoint.model))
    decoder = decoding.decoder(checkpoint.model, decoding.gen_length, tokenizer=checkpoint.tokenizer)
    guide = decoding.beside(checkpoint)
    if decoding.stop_string:
        strings = checkpoint.tokenizer_for(task_name).stop_strings(decoding.stop_string)
        decoder = dataclasses.replace(decoder, stop_strings=strings)
    problems = held_out(task_name, n, split=split, seed=seed)
    here = {"model": pinned, "adapter": adapter, "guide": decoding.pinned_guide, "dtype": checkpoint.model.config.dtype}
    here |= {name: getattr(decoding, name) for name in ("gen_length", "cache")} | {"block_length": decoder.block_length}
    run = run_of(asked | here, fingerprints(checkpoint, decoder, problems, guide))
    if record is not None:
        record.check(run)
    with progress("problems", n) as update:
        report = evaluate_task(
            checkpoint,
            task_name,
            decoder,
            n=n,
            seed=seed,
            split=split,
            batch_size=asked["batch_size"],
            gen_length=decoding.gen_length,
            mesh=parse_mesh(decoding.mesh),
            progress=update,
            out=out_file,
            guide=guide,
        )
    push = decoder.sampling.end_think
    boost, power = (None, None) if push is None else map(float, numbers_of(push))
    setting = {
        "adapter": adapter,
        "guide": here["guide"],
        "policy": decoding.policy,
        "insert": None,
        "stop": decoding.stop,
        "stop_strings": decoding.stop_string,
        "constraint": decoding.constraint,
        "fill": decoding.fill,
        "cache": decoding.cache,
        "gen_length": decoding.gen_length,
        "block_length": decoder.block_length,
        "length": decoding.length,
        "end_think": decoding.end_think,
        "end_think_boost": boost,
        "end_think_power": power,
    }
    shape = f"{decoding.length} length {decoding.gen_length}, block {decoder.block_length}"
    how = f"{decoding.policy}, fill {decoding.fill}, stop {decoding.stop}, cache {decoding.cache}, {shape}"
    return _told(report, decoding, checkpoint, setting, ("policy", how), run)


def _inserted(
    decoding: Decoding, checkpoint: Checkpoint, asked: dict[str, Any], out_file: Path | None, record: Record | None
) -> tuple[dict[str, Any], Table, bool]:
    """As `_evaluated`, of an insertion model."""
    name, n, split, seed = (asked[key] for key in ("task_name", "n", "split", "seed"))
    way, sampling = inserting.way(decoding), inserting.sampling(decoding)
    insert = decoding.insert or WAYS.name_of(way)
    here = {"model": decoding.pinned, "adapter": decoding.pinned_adapter, "dtype": checkpoint.model.config.dtype}
    here |= {"gen_length": decoding.gen_length, "insert": insert}
    problems = held_out(name, n, split=split, seed=seed)
    run = run_of(asked | here, fingerprints(checkpoint, (way, sampling), problems))
    if record is not None:
        record.check(run)
    with progress("problems", n) as update:
        report = evaluate_insertion(
            *(checkpoint, name, way, sampling),
            n=n,
            seed=seed,
            split=split,
            batch_size=asked["batch_size"],
            gen_length=decoding.gen_length,
            progress=update,
            out=out_file,
        )
    setting = dict.fromkeys(OF_MASKS) | {"insert": insert, "gen_length": decoding.gen_length}
    setting |= {"adapter": decoding.pinned_adapter, "guide": None}
    return _told(report, decoding, checkpoint, setting, ("insert", f"{insert}, {decoding.gen_length} at most"), run)


def _told(
    report: Report,
    decoding: Decoding,
    checkpoint: Checkpoint,
    setting: dict[str, Any],
    how: tuple[str, str],
    run: dict[str, Any],
) -> tuple[dict[str, Any], Table, bool]:
    """What `_evaluated` returns. `setting`: how it was decoded, in numbers, and with what beside the model; `how`: in
    words.
    """
    numbers, adapter, guide = report.summary(), setting["adapter"], setting["guide"]
    setting |= {
        "task": report.task,
        "split": report.split,
        "seed": report.seed,
        "model": decoding.model,
        "revision": checkpoint.revision,
        "weights": decoding.weights,
        "near_ties": int(report.near_ties.sum()),
    }
    title = f"{report.task}/{report.split}, n {report.correct.size}, seed {report.seed}"
    table = Table(title=title, box=None, show_header=False, title_justify="left")
    further = [f"adapter {adapter}"] * (adapter is not None)
    further += [f"guide {guide}"] * (guide is not None)
    further += [f"{decoding.weights} weights"] * (decoding.weights is not None)
    table.add_row("model", ", ".join([decoding.model, *further]))
    table.add_row(*how)
    interval = f"{numbers['accuracy_low']:.1%} to {numbers['accuracy_high']:.1%}"
    table.add_row("accuracy", f"{numbers['accuracy']:.1%}  (95 %: {interval})")
    table.add_row("NFE", f"{numbers['nfe']:.1f} on average" + _beside(numbers))
    table.add_row("TPF", f"{numbers['tpf']:.2f} tokens per forward")
    table.add_row("seconds", f"{numbers['seconds']:.2f}, and {numbers['compile_seconds']:.2f} of compiling")
    verdicts = {"verdicts": "".join(str(int(one)) for one in report.correct), "nfe_each": report.nfe.tolist()}
    sound = trusted(decoding.model, "problem", dict(enumerate(report.not_finite.tolist())))
    return numbers | setting | verdicts | {"run": run}, table, sound


def _show_again(record: Record, now: dict[str, Any], table: Table, sound: bool, as_json: bool) -> int:
    """Tell whether a repeated evaluation agrees. Returns the exit code."""
    compared = record.compared(now)
    tell(compared, table, as_json=as_json)
    note(record.line(compared), style="dim" if compared["agrees"] else "red")
    return 0 if compared["agrees"] and sound else 1


def _beside(numbers: dict[str, float | int]) -> str:
    """The passes besides the forwards, where there are any, and what all cost."""
    cheap = f", {numbers['cheap']:.1f} cheap passes" if numbers["cheap"] else ""
    cheap += f", {numbers['guide_nfe']:.1f} passes of the guide" if numbers["guide_nfe"] else ""
    return f"{cheap}; work {numbers['work']:.1f}"
