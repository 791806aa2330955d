"""`jaxdiff bench`: what a decode costs on this machine, as ratios of ways that run in turn."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.table import Table

from jaxdiff import fills
from jaxdiff.bench import measure
from jaxdiff.bench.cost import step_cost
from jaxdiff.bench.peers import ONE_ROW, PEERS, STANDARD, against_pytorch, parse_peers
from jaxdiff.bench.pytorch.client import check_pytorch
from jaxdiff.bench.shapes import SHAPES, abstract_params, random_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.caches import CACHES, NoCache
from jaxdiff.checkpoint import SHIPPED, Checkpoint, load, model_folder
from jaxdiff.cli import options
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note, progress, tell
from jaxdiff.decode import Program
from jaxdiff.decode.batches import pad_to_bucket
from jaxdiff.decode.checks import block_of
from jaxdiff.drafters import unfitted
from jaxdiff.filters import FILTERS, load_filter
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.policies import Learned
from jaxdiff.protocols import is_causal, is_encoding
from jaxdiff.tasks import task
from jaxdiff.types import InputError, Params
from jaxdiff.weights import quantised

PROMPT_LENGTH = 64  # of random ids, where the model has no tokenizer
ROUNDS = 5
WAYS = ("eager", "compiled")  # of PyTorch
OFFICIAL = "official"  # Learn2PD's filter as published, of a model's own


def bench(
    model: options.Model = SHIPPED,
    shape: Annotated[
        str | None, typer.Option("--shape", help=f"Random weights of a published shape: {', '.join(SHAPES)}.")
    ] = None,
    policy: options.Policy = "fixed",
    fill: options.Fill = "parallel",
    gen_length: options.GenLength = 256,
    block_length: options.BlockLength = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows decoded together.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each way runs once a round, in turn.")] = ROUNDS,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="NAME[,NAME...]",
            help=f"Which published loops, in PyTorch, eager and compiled: {', '.join(PEERS)}.",
        ),
    ] = STANDARD,
    pytorch: Annotated[bool, typer.Option(help="Against PyTorch at all (dense LLaDA alone).")] = True,
    roofline: Annotated[bool, typer.Option("--roofline", help="Against this machine's measured ceilings.")] = False,
    compile_only: Annotated[
        bool, typer.Option("--compile-only", help="Compile time and memory alone: no weights are made.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="With --compile-only: for a TPU slice that is not here: v5e:1x1, v5e:2x4 (needs libtpu).",
        ),
    ] = None,
    spread: options.Mesh = "1x1",
    cache: Annotated[
        str, typer.Option("--cache", help="With --compile-only: of the decode; else each is measured against none.")
    ] = "none",
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
    guide: options.Guide = None,
    plain: Annotated[
        bool, typer.Option(help="With --weights: against the plain ones, which must then fit beside them.")
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Measure a decode: step over bare forward, caches over none, PyTorch over jaxdiff, compiling, memory."""
    decoding = Decoding.of(locals())
    for name, given, default in (("target", target, None), ("mesh", spread, "1x1"), ("cache", cache, "none")):
        if given != default and not compile_only:
            raise InputError(f"{name}: found {given!r} where the decode is run, expected --compile-only beside it")
    peers = parse_peers(against, batch_size)
    without = (
        (not pytorch and "--no-pytorch")
        or (compile_only and "--compile-only, which runs nothing")
        or (shape is not None and "--shape, which PyTorch has no weights of")
    )
    idle = {
        "roofline": roofline and compile_only and "--compile-only, which runs nothing",
        "rounds": rounds != ROUNDS and compile_only and "--compile-only, which runs nothing",
        "no-plain": not plain and weights is None and "no --weights, which alone has the plain ones beside it",
        "against": against != STANDARD and without,
        "model": model != SHIPPED and shape is not None and "--shape, which makes a model of its own",
        "ignore-config": bool(ignore_config) and shape is not None and "--shape, which reads no config.json",
        "adapter": adapter is not None and shape is not None and "--shape, which makes a model of its own",
        "guide": guide is not None
        and (
            (shape is not None and "--shape, whose ids no guide reads")
            or (not without and "PyTorch's loops, which have none (--no-pytorch)")
        ),
    }
    for name, beside in idle.items():
        if beside:
            raise InputError(f"{name}: found it beside {beside}; leave one of the two out")
    chips = parse_mesh(spread) if target is None else tpu(target, spread)
    dtype = dtype or (None if target is None else "bfloat16")  # not what is fast on the device at hand
    compared = weights is not None and plain and not compile_only
    first = None if compared else weights
    further = {"ignore": decoding.ignore_config, "adapter": decoding.pinned_adapter}
    checkpoint = None if shape else load(decoding.pinned, dtype=dtype, weights=first, **further)
    if checkpoint is None:
        made = shaped(str(shape), dtype or "bfloat16")
        params = abstract_params(made, first) if compile_only else random_params(made, first)
    else:
        made, params = checkpoint.model, checkpoint.params
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params) if compile_only else params
    whole, params = (params, quantised(params)) if compared else (None, params)
    learned = None
    if not without:
        check_pytorch(made, params)
        home = model_folder(decoding.pinned, weights=False) / FILTERS
        learned = load_filter(home / OFFICIAL)[0] if set(peers) & set(ONE_ROW) else None
    decoder = decoding.decoder(made, gen_length)
    if shape is not None:
        make = abstract_params if compile_only else random_params
        own = fills.parse(fill, drafted=lambda kind, _: unfitted(kind, made, make))
        decoder = dataclasses.replace(decoder, fill=own)
    beside = None if checkpoint is None else decoding.beside(checkpoint)
    if beside is not None and compile_only:
        beside = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), beside)
    prompts, origin = _prompts(checkpoint, made, batch_size, gen_length)
    work = measure.Work(
        model=made,
        params=params,
        prompts=prompts,
        origin=origin,
        decoder=dataclasses.replace(decoder, cache=NoCache()),
        gen_length=gen_length,
        block_length=block_of(made, block_length),
        rounds=rounds,
        target=chips,
        guide=beside,
    )
    device = chips.devices.flat[0] if chips else jax.devices()[0]
    note("compiling")
    if compile_only:
        program = work.program(cache=decoder.cache).program
        seen = device.platform != "gpu"  # whose products are calls into libraries
        found = _facts(program) | (_of_each_chip(program) if seen else {})
    else:
        found = _measured(work, whole, roofline=roofline)
        if not without:
            found = _beside_pytorch(found, work, peers, learned)
    setting = {
        "model": shape or model,
        "revision": None if checkpoint is None else checkpoint.revision,
        "adapter": decoding.pinned_adapter,
        "guide": decoding.pinned_guide,
        "device": device.device_kind,
        "target": target,
        "mesh": spread if compile_only else None,
        "cache": cache if compile_only else None,
        "dtype": made.config.dtype,
        "weights": weights,
        "policy": policy,
        "fill": fill,
        "batch_size": batch_size,
        "canvas": prompts.shape[1] + gen_length,
        "gen_length": gen_length,
        "block_length": work.block_length,
        "rounds": rounds,
        "jax": jax.__version__,
    }
    tell(found | {"setting": setting}, _table(found, setting), as_json=as_json)


def _facts(program: Program) -> dict[str, Any]:
    """Of the program, before it runs."""
    return {
        "compile_seconds": program.compile_seconds,
        "argument_bytes": program.argument_bytes,
        "peak_temp_bytes": program.temp_bytes,
    }


def _of_each_chip(program: Program) -> dict[str, Any]:
    """Of each device of a mesh: the memory that it needs at most, and what it does in a step."""
    return {
        "peak_bytes": program.argument_bytes + program.temp_bytes,
        "step": step_cost(program.compiled.as_text() or ""),
    }


def _measured(work: measure.Work, whole: Params | None, *, roofline: bool) -> dict[str, Any]:
    """The medians that scripts read, and under `details` their intervals and what they are ratios of.

    `whole`: the plain params, where the work's are to be compared with them.
    """
    program = work.program()
    found = _facts(program.program)
    details: dict[str, Any] = {}
    with progress("step over forward", work.rounds) as update:
        details["step_over_forward"] = measure.step_over_forward(work, program, update)
    names = ("prefix", "dual", "frozen") if work.model.attention_block is None else ("block",)
    names = ("seeded",) if is_causal(work.model) else ("encoded",) if is_encoding(work.model) else names
    with progress("caches", work.rounds) as update:
        caches = {name: CACHES.parse(name) for name in names}
        details["cache_speedup"] = measure.cache_speedups(work, program, caches, update)
    found["cache_speedup"] = {name: each["ratio"]["median"] for name, each in details["cache_speedup"].items()}
    if whole is not None:
        with progress("int8", work.rounds) as update:
            each = details["int8"] = measure.against_plain(work, program, whole, update)
        found["int8"] = {"speedup": each["ratio"]["median"], "logit_error": each["logit_error"]}
    found["step_over_forward"] = details["step_over_forward"]["ratio"]["median"]
    if roofline:
        details["roofline"] = measure.roofline(work)
    return found | {"details": details}


def _beside_pytorch(
    found: dict[str, Any], work: measure.Work, peers: tuple[str, ...], learned: Learned | None
) -> dict[str, Any]:
    """What was found, and the comparison with PyTorch in it: its ratios, and all else under `details`."""
    with progress("pytorch", work.rounds * len(peers)) as update:
        each = against_pytorch(work, peers, learned=learned, progress=update)
    for why in sorted({one["not_compiled"] for one in each.values() if one["not_compiled"]}):
        note(f"eager alone, without torch.compile: {why}")
    ratios = {name: {way: one[way] and one[way]["ratio"]["median"] for way in WAYS} for name, one in each.items()}
    found |= {"against": ratios, "details": found["details"] | {"against": each}}
    return found | ({"pytorch_ratio": ratios[STANDARD]["eager"]} if STANDARD in ratios else {})


def _prompts(checkpoint: Checkpoint | None, model: Any, rows: int, gen_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Test problems of the default task; random ids for a model without a tokenizer."""
    if checkpoint is None or checkpoint.tokenizer is None:
        special = {model.config.mask_token_id, *model.config.eos_ids}
        allowed = np.asarray([i for i in range(min(model.config.vocab_size, 10_000)) if i not in special])
        ids = np.random.default_rng(0).choice(allowed, (rows, PROMPT_LENGTH))
        return ids.astype(np.int32), np.zeros(rows, np.int32)
    context = model.config.max_sequence_length
    if gen_length >= context:
        raise InputError(f"gen_length: found {gen_length}, expected less than the model's context {context}")
    problems = itertools.islice(task("gsm_symbolic").problems("test", 0), rows)
    prompts = [checkpoint.tokenizer.prompt(problem.question) for problem in problems]
    return pad_to_bucket(prompts, checkpoint.tokenizer.eos_id, context - gen_length)


def _table(found: dict[str, Any], setting: dict[str, Any]) -> Table:
    """Ratios first."""
    table = Table(
        "measure",
        "median",
        "interval",
        title=f"{setting['model']} on {setting['device']}, {setting['dtype']}, batch {setting['batch_size']}, canvas "
        f"{setting['canvas']}, {setting['policy']}, fill {setting['fill']}"
        + (f", {setting['weights']} weights" if setting["weights"] else "")
        + (f", guide {setting['guide']}" if setting["guide"] else ""),
        box=None,
        title_justify="left",
    )
    details = found.get("details", {})

    def row(says: str, of: dict[str, Any], *, same: bool = False) -> None:
        at, tokens = of["ratio"], f", {of['same_tokens']:.0%} of the tokens the same" if same else ""
        table.add_row(says + tokens, f"{at['median']:.3f}x", f"{at['low']:.3f} to {at['high']:.3f}")

    if "step_over_forward" in details:
        row("a decoding step / a bare forward with its head", details["step_over_forward"])
    for name, each in details.get("against", {}).items():
        for way in WAYS:
            if each[way] is not None:
                row(f"{way} PyTorch / jaxdiff, {name}", each[way], same=True)
    for name, each in details.get("cache_speedup", {}).items():
        row(f"no cache / cache {name}", each, same=True)
    if "int8" in details:
        row("plain weights / int8", details["int8"])
        same = f"{details['int8']['same_argmax']:.1%} of the first block's argmax the same"
        table.add_row("error of the logits", f"{details['int8']['logit_error']:.2%}", same)
    if "roofline" in details:
        at = details["roofline"]
        table.add_row("forward / measured matmul ceiling", f"{at['share_of_matmul']:.0%}", "")
        table.add_row("forward / roofline", f"{at['share_of_roofline']:.0%}", "")
    if "step_over_forward" in details:
        table.add_row("a step", f"{details['step_over_forward']['step_seconds']['median'] * 1e3:.2f} ms", "")
    for name, each in details.get("against", {}).items():
        for way in ("jaxdiff", *WAYS):
            if each[way] is not None:
                table.add_row(f"{name}, {way}: a decode", f"{each[way]['seconds']['median']:.3f} s", _starts(each[way]))
    table.add_row("compiling", f"{found['compile_seconds']:.1f} s", "")
    table.add_row("arguments", f"{found['argument_bytes'] / 1e6:,.1f} MB", "")
    table.add_row("temporaries", f"{found['peak_temp_bytes'] / 1e6:,.1f} MB", "")
    if "step" in found:
        table.add_row("peak, on each chip as all of these", f"{found['peak_bytes'] / 1e6:,.1f} MB", "")
        for part, each in _parts(found["step"]).items():
            table.add_row(f"{part}: products", f"{each['flops'] / 1e12:,.3f} TFLOP", "")
            table.add_row(f"{part}: memory traffic", f"{each['bytes_accessed'] / 1e6:,.1f} MB", "")
            for kind, exchanged in each["collectives"].items():
                table.add_row(f"{part}: {kind}", f"{exchanged['bytes'] / 1e6:,.3f} MB", f"in {exchanged['count']}")
    return table


def _parts(step: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a step does, by the name of a row of the table: a fill's passes at each width that is compiled."""
    parts = {"every step": step["always"]}
    for number, one in enumerate(step["passes"], start=1):
        for each in one["rungs"] if one["fill"] else [one]:
            columns = f", {each['columns']} columns of a row" if each["columns"] else ""
            parts[f"pass {number}{' (fill)' if one['fill'] else ''}{columns}"] = each
    return parts


def _starts(way: dict[str, Any]) -> str:
    """Forwards of a decode, and what the first one of a process takes."""
    warm = f", compiling {way['warm_compile_seconds']:.1f} s from disk" if "warm_compile_seconds" in way else ""
    return f"{way['forwards']} forwards; the first {way['first_seconds']:.1f} s{warm}"
