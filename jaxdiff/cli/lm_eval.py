"""`jaxdiff lm-eval`: a model and a decoder on the tasks of lm-eval, as published or of local files.

python -m jaxdiff.cli.lm_eval run --model jaxdiff --model_args model=gsm-1m,policy=threshold:tau=0.9 --tasks ...

is lm-eval's own command line, with this model registered: its registry knows none of other packages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import itertools
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import jaxdiff
from jaxdiff import parts
from jaxdiff.checkpoint import SHIPPED, Checkpoint
from jaxdiff.cli import options
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import progress, tell
from jaxdiff.cli.tally import trusted
from jaxdiff.decode.checks import block_of
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.likelihood import SAMPLES
from jaxdiff.files import check_writable, replaced_file, write_object
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.tasks import code_eval, human_eval
from jaxdiff.types import InputError

OURS = ("samples", "likelihood_block", "batch_size", "seed")  # of `Harness`, as its own arguments
THEIRS = ("device", "max_batch_size")  # what lm-eval hands to every model


def lm_eval(
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B,...", help="Names of tasks or groups of lm-eval.")],
    include_path: Annotated[
        Path | None, typer.Option("--include-path", metavar="DIR", help="A folder of task files (YAML) of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Documents of each task. Default all.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before each. Default the task's.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Contexts as turns of the model's chat template, or as text.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system turn, or the text, before each context.")
    ] = None,
    multiturn: Annotated[
        bool, typer.Option("--multiturn/--no-multiturn", help="Examples as turns of a chat, or all in one user's turn.")
    ] = True,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Run what the model wrote, where a task's score asks for it (HumanEval, MBPP): in processes without "
            "network, with limits of time and memory. Without it such a task is refused.",
        ),
    ] = False,
    samples: Annotated[
        int, typer.Option("--samples", min=2, help="Of masks, for each block of a text whose likelihood is asked.")
    ] = SAMPLES,
    likelihood_block: Annotated[
        int | None,
        typer.Option("--likelihood-block", min=1, help="Its tokens. Default the model's own, else the whole text."),
    ] = None,
    model: options.Model = SHIPPED,
    policy: options.Policy = "fixed",
    fill: options.Fill = "parallel",
    cache: options.Cache = None,
    stop: options.GenerateStop = None,
    gen_length: Annotated[
        int | None, typer.Option("--gen-length", min=1, help="Tokens to generate. Default each task's own, else 256.")
    ] = None,
    block_length: options.BlockLength = None,
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
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests in work at a time.")] = 16,
    mesh: options.Mesh = "1x1",
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="JSON",
            help="Results, settings, and a row for each request. Stopped, the same command goes on from what lies in "
            "JSON.parts.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Score a model on tasks of lm-eval (pip install 'jaxdiff[lm-eval]')."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    manager = _manager(names, include_path)
    decoding = Decoding.of(locals())
    if out_file is not None:
        check_writable(out_file)
    read_tasks = _tasks(manager, names, run_code)
    checkpoint, decoder = _read(decoding, gen_length)
    ours = dict(samples=samples, likelihood_block=likelihood_block, batch_size=batch_size, seed=seed)
    with contextlib.ExitStack() as stack:
        keeping: dict[str, Any] = {}
        if out_file is not None:
            depends = _run_of(checkpoint, decoder, gen_length, ours)
            lines = parts.written(out_file, depends)
            # Opened for the first row: what is refused before that leaves nothing behind.
            part = functools.cache(lambda: stack.enter_context(parts.Part(out_file, 0, depends)))
            numbers = itertools.count(len(lines))
            known = {line["row"]["digest"]: line["row"] for line in lines.values()}
            keeping = dict(known=known, keep=lambda row: part().write({"number": next(numbers), "row": row}))
        harness = _harness(checkpoint, decoder, decoding, gen_length, progress=progress, **ours, **keeping)
        found = _evaluated(
            model=harness,
            tasks=read_tasks,
            num_fewshot=num_fewshot,
            limit=limit,
            system_instruction=system,
            apply_chat_template=chat,
            fewshot_as_multiturn=multiturn,
            task_manager=manager,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            confirm_run_unsafe_code=run_code,
        )
    told = _told(found, harness.summary()) | {
        "setting": dataclasses.asdict(decoding)
        | ours
        | dict(cache=decoding.cache_of(checkpoint.model))
        | dict(tasks=names, limit=limit, num_fewshot=num_fewshot, gen_length=gen_length)
        | dict(chat=chat, system=system, multiturn=multiturn, run_code=run_code)
        | dict(revision=checkpoint.revision, adapter=decoding.pinned_adapter),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "lm_eval")}
        | {"jaxdiff": jaxdiff.__version__},
    }
    rows = sorted(harness.rows.values(), key=lambda row: (row["task"], row["doc"], row["request"], row["digest"]))
    if out_file is not None:
        with replaced_file(out_file) as new:
            write_object(new, told | {"requests": rows})
        parts.remove(out_file)
    tell(told, _table(told["results"]), as_json=as_json)
    return 0 if trusted(model, "request", {place: row["not_finite"] for place, row in enumerate(rows)}) else 1


def _manager(names: list[str], include_path: Path | None) -> Any:
    """lm-eval's index of tasks: of our folders alone where these have them all, for its own takes seconds to read.

    Raises InputError for a folder that is none, and for names that are no tasks.
    """
    from lm_eval.tasks import TaskManager

    if not names:
        raise InputError("tasks: found none, expected names with commas between them")
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"include-path: {include_path} is no folder; name the one that holds the task files")
    folders = [str(folder) for folder in (human_eval.TASKS, include_path) if folder is not None]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if set(names) <= set(manager.all_tasks):
        return manager
    manager = TaskManager(include_path=folders)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        near = ", ".join(difflib.get_close_matches(unknown[0], manager.all_tasks)) or "lm-eval ls tasks"
        raise InputError(f"tasks: found {unknown[0]!r}, expected a task of lm-eval or of --include-path; try {near}")
    return manager


def _evaluated(**given: Any) -> Any:
    from lm_eval import simple_evaluate

    return simple_evaluate(**given)


def _tasks(manager: Any, names: list[str], run_code: bool) -> list[Any]:
    """The tasks and groups of these names, with their documents.

    Raises InputError for one that runs what the model wrote, unless `run_code` and it can be confined.
    """
    logging.getLogger("lm_eval.api.task").addFilter(_of_this_command)
    for name in names:
        code_eval.check_config(manager.task_index[name].cfg, run_code)  # before any document is fetched
    found = []
    with code_eval.instead(run_code):
        for name in names:
            loaded = manager.load(name)
            for task in loaded["tasks"].values():
                code_eval.check_task(task, run_code)
            found += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return found


def _of_this_command(record: logging.LogRecord) -> bool:
    """Not so what lm-eval says of every data set that is made by a function: it names an option of its own command."""
    return "Custom kwargs can be passed" not in str(record.msg)


def _read(decoding: Decoding, gen_length: int | None) -> tuple[Checkpoint, Decoder]:
    checkpoint = decoding.load()
    block = block_of(checkpoint.model, decoding.block_length)
    return checkpoint, decoding.decoder(checkpoint.model, gen_length or block, tokenizer=checkpoint.tokenizer)


def _harness(
    checkpoint: Checkpoint, decoder: Decoder, decoding: Decoding, gen_length: int | None, **further: Any
) -> Any:
    from jaxdiff.tasks.harness import Harness

    return Harness(checkpoint, decoder, gen_length=gen_length, mesh=parse_mesh(decoding.mesh), **further)


def _run_of(checkpoint: Checkpoint, decoder: Decoder, gen_length: int | None, ours: dict[str, Any]) -> dict[str, Any]:
    """What a request's row depends on beside the request; not its batch, nor which others are asked."""
    return parts.run_of(
        fields=parts.FIELDS,
        model=parts.digest(repr(checkpoint.model).encode(), parts.digest_of_tree(checkpoint.params).encode()),
        decoder=parts.digest_of_tree(decoder),
        gen_length=gen_length,
        settings={name: value for name, value in ours.items() if name != "batch_size"},
        versions={package: version(package) for package in ("jax", "jaxlib", "flax", "lm_eval")},
    )


def _told(found: Any, took: dict[str, dict[str, float | int]]) -> dict[str, Any]:
    """lm-eval's results as JSON holds them, with what each task's requests took beside its metrics."""
    from lm_eval.utils import handle_non_serializable

    wanted = ("results", "groups", "group_subtasks", "n-shot", "n-samples", "higher_is_better", "configs")
    text = json.dumps({name: found[name] for name in wanted if name in found}, default=handle_non_serializable)
    plain = json.loads(text, parse_constant=lambda _: None)  # JSON has no NaN
    for task, numbers in took.items():
        plain["results"].setdefault(task, {}).update(numbers)
    return plain


def _table(results: dict[str, dict[str, Any]]) -> Table:
    table = Table("task", "metric", "value", "NFE", "TPF", box=None)
    for task, numbers in results.items():
        nfe, tpf = (f"{numbers[name]:.2f}" if name in numbers else "" for name in ("nfe", "tpf"))
        for name, value in numbers.items():
            metric, comma, chosen = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, float | int):
                error = numbers.get(f"{metric}_stderr,{chosen}")
                beside = f" ± {error:.4f}" if isinstance(error, float) else ""
                table.add_row(task, metric if chosen == "none" else name, f"{value:.4f}{beside}", nfe, tpf)
    return table


def register() -> None:
    """Make lm-eval know `--model jaxdiff`, whose `--model_args` are the options of `jaxdiff lm-eval` as Python writes
    them: model, policy, fill, cache, stop, gen_length, ..., samples, likelihood_block, seed.
    """
    from lm_eval.api.registry import register_model

    from jaxdiff.tasks.harness import Harness

    @register_model("jaxdiff")
    class Registered(Harness):
        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Any:
            given: dict[str, Any] = {"model": SHIPPED, "stop": None}
            given |= {k: v for k, v in (additional_config or {}).items() if v} | arg_dict
            if given.get("batch_size") == 1:  # lm-eval's own default
                given.pop("batch_size")
            elif not str(given.get("batch_size", 1)).isdigit():
                raise InputError(f"batch_size: found {given['batch_size']!r}, expected a whole number of rows")
            elif "batch_size" in given:
                given["batch_size"] = int(given["batch_size"])
            known = {field.name for field in dataclasses.fields(Decoding)} - {
                "steps",
                "stop_string",
                "constraint",
                "shape",
            }
            if unknown := set(given) - known - {*OURS, *THEIRS}:
                raise InputError(f"model_args: found {min(unknown)!r}, expected {', '.join(sorted(known | {*OURS}))}")
            decoding, gen_length = Decoding.of(given), given.get("gen_length")
            checkpoint, decoder = _read(decoding, gen_length)
            ours = {name: given[name] for name in OURS if name in given}
            return _harness(checkpoint, decoder, decoding, gen_length, progress=progress, **ours)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    register()
    with code_eval.instead(run_code=True):  # for --confirm_run_unsafe_code
        cli_evaluate()
