"""`jaxdiff serve`: an OpenAI-compatible HTTP server over slots that are refilled."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from jaxdiff.checkpoint import SHIPPED, Checkpoint
from jaxdiff.cli import options
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import note
from jaxdiff.decode import Decoder
from jaxdiff.parallel.mesh import parse_mesh
from jaxdiff.serve import Meter, Request, decode_stream
from jaxdiff.types import REFERENCE, InputError


def serve(
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
    slots: Annotated[int, typer.Option("--slots", min=1, help="Requests in work at a time.")] = 16,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Requests that may wait for a slot; one more is refused (429).")
    ] = 256,
    most: Annotated[
        int, typer.Option("--most", min=1, help="Forwards after which text leaves the slots and requests enter them.")
    ] = 8,
    width: Annotated[
        list[int] | None,
        typer.Option(
            "--width",
            min=1,
            help="Tokens that prompts are padded to; may be given more than once. Their programs are compiled before "
            "the server is ready, and a longer prompt is refused. Default 32, doubled when a prompt needs it.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that a request may take.")] = 600.0,
    max_body: Annotated[float, typer.Option("--max-body", min=0.001, help="Megabytes of a request.")] = 1.0,
    host: Annotated[str, typer.Option("--host", help="The address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="JAXDIFF_API_KEY", help="What clients must send; default nothing."),
    ] = None,
    mesh: options.Mesh = "1x1",
    dtype: options.Dtype = None,
    weights: options.Weights = None,
    ignore_config: options.IgnoreConfig = None,
    adapter: options.Adapter = None,
) -> int:
    """Serve a model over HTTP, as OpenAI's API has completions and chats. SIGTERM finishes what was taken."""
    from jaxdiff.serve.http import Limits, Server, application
    from jaxdiff.serve.metrics import Metrics
    from jaxdiff.serve.openai import Served
    from jaxdiff.serve.service import Service

    decoding = Decoding.of(locals())
    if api_key == "":
        raise InputError("--api-key: found an empty text, expected a key; leave it out to ask for none")
    with _bound(host, port) as listening:
        checkpoint = decoding.load()
        decoder = _decoder(checkpoint, decoding)
        widths, meter = tuple(sorted(width or ())), Meter()
        _check_widths(checkpoint, widths, gen_length)
        stream = functools.partial(
            *(decode_stream, checkpoint.model, checkpoint.params),
            decoder=decoder,
            slots=slots,
            gen_length=gen_length,
            mesh=parse_mesh(mesh),
            most=most,
            widths=widths,
            meter=meter,
        )
        eos = checkpoint.model.config.eos_token_id
        service = Service(
            stream,
            slots=slots,
            most_waiting=queue,
            # Each change from one width to another is a program of its own. No text of a constraint may be so short.
            warm_up=[
                Request([eos] * columns, max_tokens=1 if decoder.constraint is None else None)
                for pair in itertools.product(widths or (1,), repeat=2)
                for columns in pair
            ],
            broken=lambda: setattr(server, "should_exit", True),
        )
        served = Served(_name(model), checkpoint, decoder, gen_length, longest=widths[-1] if widths else None)
        limits = Limits(seconds=timeout, body_bytes=int(max_body * 2**20))
        app = application(served, service, Metrics(service, meter), limits, api_key=api_key)
        server = Server(app, limits)
        where = f"[{host}]" if ":" in host else host
        note(f"{served.name}: http://{where}:{listening.getsockname()[1]}/v1, {slots} slots of {gen_length} tokens")
        with _on_sigterm(server):
            server.run(sockets=[listening])
    if service.error is not None:
        raise service.error
    return 0


def _decoder(checkpoint: Checkpoint, decoding: Decoding) -> Decoder:
    """With room for the stop strings of clients, where the tokenizer is of a kind that they can be looked for with, and
    no constraint says where a text ends.
    """
    decoder = decoding.decoder(checkpoint.model, decoding.gen_length, tokenizer=checkpoint.tokenizer)
    if REFERENCE in decoder.policy.needs:
        raise InputError(f"policy: found {decoding.policy}, which decodes each request twice, and is not served")
    tokenizer = checkpoint.tokenizer_for("a completion")
    if decoder.constraint is not None:
        return decoder
    try:
        return dataclasses.replace(decoder, stop_strings=tokenizer.stop_strings(decoding.stop_string))
    except InputError as error:
        if decoding.stop_string:
            raise
        note(f"requests with stop are refused: {error}")
        return decoder


def _check_widths(checkpoint: Checkpoint, widths: tuple[int, ...], gen_length: int) -> None:
    room = checkpoint.model.config.max_sequence_length - gen_length
    if widths and widths[-1] > room:
        raise InputError(
            f"--width: found {widths[-1]}, expected at most {room}: what the context leaves beside {gen_length} tokens"
        )


def _name(model: str) -> str:
    """As clients say it: a repository's name, a folder's last."""
    return Path(model).name if Path(model).exists() else model


@contextlib.contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket of this address, before a model is read. Raises InputError for one that is taken, or not this host's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
        except OSError as error:
            raise InputError(f"--host, --port: found {host}, {port} ({error.strerror}); name others") from error
        yield made


@contextlib.contextmanager
def _on_sigterm(server: object) -> Iterator[None]:
    """SIGTERM ends the server once what it has taken is finished."""
    before = signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
