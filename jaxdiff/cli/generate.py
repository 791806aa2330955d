"""`jaxdiff generate`: one prompt to the terminal, or one JSONL file to another, on one host or on several."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdiff.checkpoint import SHIPPED, Checkpoint
from jaxdiff.cli import inserting, options, requests
from jaxdiff.cli.choosing import How, check
from jaxdiff.cli.hosts import Hosts
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.pages import write_page
from jaxdiff.cli.particles import check as check_particles
from jaxdiff.cli.requests import Job
from jaxdiff.cli.share import decode_file, print_file, share_file
from jaxdiff.cli.show import note, stderr
from jaxdiff.cli.tally import Tally, trusted
from jaxdiff.cli.watch import replay
from jaxdiff.decode.choose import METHODS
from jaxdiff.decode.estimates import MOST
from jaxdiff.decode.likelihood import SAMPLES
from jaxdiff.decode.particles import MOST as MOST_PARTICLES
from jaxdiff.files import check_writable, json_line
from jaxdiff.serve import Request
from jaxdiff.types import InputError


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to answer.", show_default=False)] = None,
    in_file: Annotated[
        Path | None,
        typer.Option("--in", metavar="JSONL", help="Rows of id and prompt, messages, prompt_ids, canvas_ids, insert."),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="JSONL",
            help="Rows of id, text, token_ids, nfe, cheap, guide_nfe, work, reason, commit_step, seconds (in its "
            "slot); or id, error. Stopped, the same command goes on from what lies in JSONL.parts. Default stdout, row "
            "by row.",
        ),
    ] = None,
    model: options.Model = SHIPPED,
    policy: options.Policy = "fixed",
    fill: options.Fill = "parallel",
    cache: options.Cache = None,
    stop: options.GenerateStop = None,
    stop_string: options.StopString = None,
    constraint: options.Constraint = None,
    gen_length: options.GenLength = 256,
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
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Slots: rows of a file in work at a time.")
    ] = 8,
    mesh: options.Mesh = "1x1",
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    guide: options.Guide = None,
    draft: options.Draft = None,
    distributed: options.Distributed = False,
    coordinator: options.Coordinator = None,
    processes: options.Processes = None,
    process_id: options.ProcessId = None,
    log_prob: Annotated[
        bool, typer.Option("--log-prob", help="Rows also hold log_prob, the log-softmax of each generated token.")
    ] = False,
    special: Annotated[
        bool,
        typer.Option(
            "--special", help="Names of special tokens in a text, such as <|user|>, are the tokens, not text."
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="The system turn, where a chat has none of its own.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat", help="A prompt is a user's turn of the model's chat template, or text as it stands."
        ),
    ] = True,
    prompt_text: Annotated[
        bool, typer.Option("--prompt-text", help="Rows also hold prompt_text, what the model was given, as text.")
    ] = False,
    for_show: Annotated[
        bool,
        typer.Option(
            "--for-show",
            help="Rows also hold what jaxdiff show draws: pieces (the text of each token), generated_tokens, decoder, "
            "prompt_text, log_prob.",
        ),
    ] = False,
    html: options.Html = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            "--choice",
            metavar="TEXT",
            help="The probability of each of these answers to PROMPT, the best first; given more than once. Rows of a "
            "file have choices of their own.",
        ),
    ] = None,
    choose_by: Annotated[
        str,
        typer.Option(
            "--choose-by",
            metavar="|".join(METHODS),
            help="order: a choice's probability as the policy would write it, token by token; likelihood: the Monte "
            "Carlo estimate of all orders.",
        ),
    ] = METHODS[0],
    samples: Annotated[
        int, typer.Option("--samples", min=2, max=MOST, help="Draws of --choose-by likelihood, for each choice.")
    ] = SAMPLES,
    particles: Annotated[
        int | None,
        typer.Option(
            "--particles",
            min=1,
            max=MOST_PARTICLES,
            metavar="N",
            help="Weighed draws of each prompt, under a constraint that draws by rejection (awrs+...); the answer is "
            "one of them, drawn by weight. Rows also hold particles, ess, log_normalizer ...",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the masks turn into text.")] = False,
    as_json: options.Json = False,
) -> int:
    """Generate text after a prompt, or after (or into) each row of a file."""
    if (prompt is None) == (in_file is None):
        raise InputError("give a PROMPT or --in FILE.jsonl, one of the two")
    if in_file is None and out_file is not None:
        raise InputError("--out is for the rows of a file; name it with --in, or leave --out out")
    if in_file is not None and out_file is None and as_json:
        raise InputError(
            "--json sums up a file on stdout, where its rows go without --out; give --out, or leave it out"
        )
    if watch and in_file is not None:
        raise InputError("--watch shows a single PROMPT; leave it out with --in")
    if log_prob and in_file is None and not as_json:
        raise InputError("--log-prob goes into the rows of a file and into --json; give one of them, or leave it out")
    if for_show and in_file is None and not as_json:
        raise InputError("--for-show goes into the rows of a file and into --json; or give --html for a page")
    if html is not None and in_file is not None:
        raise InputError("--html is a page of a single PROMPT; of a file give --for-show, and its rows to jaxdiff show")
    if html is not None:
        check_writable(html, what="html")
    if prompt_text and in_file is None:
        raise InputError("--prompt-text is for the rows of a file; --json of a PROMPT has it; leave it out")
    if system is not None and not chat:
        raise InputError("--system is a turn of the chat, and --no-chat asks for none; leave one of them out")
    if system is not None and not system.strip():
        raise InputError("--system: found an empty text, expected at least one word; leave it out")
    if choice is None and in_file is None and (choose_by, samples) != (METHODS[0], SAMPLES):
        raise InputError("--choose-by and --samples say how answers are compared; give --choice TEXT too")
    if choice is not None and in_file is not None:
        raise InputError("--choice is for a single PROMPT; the rows of a file have choices of their own")
    if choice is not None and (watch or html is not None or stop_string):
        raise InputError("--choice compares whole answers; leave --watch, --html and --stop-string out")
    if choice is not None and draft is not None:
        raise InputError("--choice compares given answers, and --draft guesses what follows; leave one of them out")
    if particles is not None and draft is not None:
        raise InputError("--particles are draws under a constraint, and --draft knows none; leave one of them out")
    make_decoding = functools.partial(Decoding.of, locals())
    check_particles(constraint, particles)
    if particles is not None and choice is not None:
        raise InputError("--particles are draws, and --choice compares given answers; leave one of them out")
    if particles is not None and (watch or html is not None):
        raise InputError("--particles are drawn again from each other; leave --watch and --html out")
    job = Job(
        seed=seed,
        slots=batch_size,
        log_prob=log_prob,
        special=special,
        system=system,
        chat=chat,
        prompt_text=prompt_text,
        for_show=for_show,
        choosing=How(choose_by, samples),
        particles=particles,
    )
    hosts = Hosts(coordinator, processes, process_id)
    if not distributed and hosts != Hosts():
        raise InputError("--coordinator, --processes and --process-id say where hosts meet; give --distributed too")
    if distributed and (in_file is None or out_file is None):
        raise InputError("--distributed shares a file between hosts; give --in and --out")
    if choice is not None:
        return _chosen(str(prompt), choice, make_decoding(), job, as_json)
    if in_file is None:
        return _one(str(prompt), make_decoding(), job, watch, html, as_json)
    if out_file is None:
        return print_file(in_file, make_decoding(), job)
    if distributed:
        return share_file(hosts, in_file, out_file, make_decoding, job, as_json)
    return decode_file(in_file, out_file, make_decoding(), job, as_json)


def _one(prompt: str, decoding: Decoding, job: Job, watch: bool, html: Path | None, as_json: bool) -> int:
    checkpoint = decoding.load()
    requests.check_decoding(checkpoint, decoding, dataclasses.replace(job, for_show=html is not None or job.for_show))
    request = Request(requests.prompt_ids(checkpoint, prompt, job), number=0)
    requests.check(checkpoint, request, decoding)
    tally = Tally()
    alone = dataclasses.replace(job, slots=1, prompt_text=as_json)
    if job.particles is not None:
        (line,) = requests.lines(checkpoint, [request], decoding, alone, tally.meter)
        tally.add(line)
        ess, normalizer = line["row"]["ess"], line["row"]["log_normalizer"]
        note(f"{job.particles} particles, worth {ess:.1f} · log normalizer {normalizer:.3f}")
        return _show(checkpoint, line, decoding, job, tally, as_json, line["row"]["text"])
    (answer,) = requests.answers(checkpoint, [request], decoding, alone, tally.meter)
    line = requests.line_of(checkpoint, answer, decoding, alone)
    tally.add(line)
    if watch:
        replay(answer.tokens, answer.commit_step, checkpoint.tokenizer, stderr())
    if html is not None:
        shown = requests.line_of(checkpoint, answer, decoding, dataclasses.replace(alone, for_show=True))
        write_page(html, [shown["row"]])
    return _show(checkpoint, line, decoding, job, tally, as_json, line["row"]["text"])


def _chosen(prompt: str, choices: list[str], decoding: Decoding, job: Job, as_json: bool) -> int:
    checkpoint = decoding.load()
    inserting.check(decoding, checkpoint.model)
    request = Request(requests.prompt_ids(checkpoint, prompt, job), number=0)
    row, tally = requests.asked(checkpoint, request, choices, job, is_chat=job.chat), Tally()
    check(checkpoint, row, decoding, job.choosing)
    alone = dataclasses.replace(job, prompt_text=as_json)
    (line,) = requests.lines(checkpoint, [row], decoding, alone, tally.meter)
    tally.add(line)
    ranked = sorted(line["row"]["choices"], key=lambda each: -each["prob"])
    shown = "\n".join(f"{each['prob']:.4f}  {each['text']}" for each in ranked)
    return _show(checkpoint, line, decoding, job, tally, as_json, shown)


def _show(
    checkpoint: Checkpoint, line: dict[str, Any], decoding: Decoding, job: Job, tally: Tally, as_json: bool, shown: str
) -> int:
    row = line["row"]
    if as_json:
        del row["id"]
        told = {"seed": job.seed, "revision": checkpoint.revision, "adapter": decoding.pinned_adapter}
        print(json_line(row | tally.numbers() | told))
    else:
        print(shown)
        note(tally.line())
    return 0 if trusted(decoding.model, "prompt", {0: row["not_finite"]}) else 1
