"""The HTTP server: OpenAI's paths over a `Service`, as a Starlette application.

    /v1/models  /v1/completions  /v1/chat/completions      with the key, where there is one
    /health  /ready  /metrics                              without

Each refusal is an error object as OpenAI's, with the status that its clients expect. A thread reads bodies (tokenizing
a long one takes a while), another runs the slots, and the event loop is told what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxdiff.files import json_line, parse_json
from jaxdiff.serve.metrics import Metrics
from jaxdiff.serve.openai import Call, Choice, Served, UnknownModel, body, usage
from jaxdiff.serve.queue import Answer, Partial, Refusal
from jaxdiff.serve.service import Closed, Full, Service, Told, Work
from jaxdiff.types import InputError

GRACE = 10.0  # seconds for the last of a stream to be read, after its deadline
READ_AND_DROPPED = (
    64 * 2**20
)  # bytes of a body that is too large: who sends them hears why, which a cut line would not say


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        seconds: from when a request is taken until it is given up; a request may ask for less.
        body_bytes: of a request.
        body_seconds: for a request to be sent.
    """

    seconds: float = 600.0
    body_bytes: int = 2**20
    body_seconds: float = 60.0


class Problem(Exception):
    """What a request is refused with: a status, and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.error = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def application(
    served: Served, service: Service, metrics: Metrics, limits: Limits | None = None, *, api_key: str | None = None
) -> ASGIApp:
    """The application, whose lifespan starts the service, and closes it once the last response is sent.

    `api_key`: what clients must send as `Authorization: Bearer KEY` for /v1; None: nothing.
    """
    at = _Endpoints(served, service, metrics, limits or Limits(), api_key)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return _json(error.error, error.status, error.headers)

    async def refuse_path(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        problem = Problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        return _json(problem.error, error.status_code, error.headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it

    async def fail(request: Request, error: Exception) -> Response:
        return _json(Problem(500, f"a mistake in the server: {error!r}", "server_error").error, 500)

    return _Counted(
        Starlette(
            routes=[
                Route("/v1/models", at.models),
                Route("/v1/models/{name:path}", at.model),
                Route("/v1/completions", functools.partial(at.complete, chat=False), methods=["POST"]),
                Route("/v1/chat/completions", functools.partial(at.complete, chat=True), methods=["POST"]),
                Route("/health", at.health),
                Route("/ready", at.ready),
                Route("/metrics", at.metrics_text),
            ],
            lifespan=at.lifespan,
            exception_handlers={Problem: refuse, HTTPException: refuse_path, ClientDisconnect: gone, Exception: fail},
        ),
        metrics,
    )


class Server(uvicorn.Server):
    """Runs an application until `should_exit`, and then until what was taken is answered. Signals are its caller's."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        end = int(limits.seconds + GRACE) + 1
        # Without uvicorn's own configuration of logging, which would close the handlers of everybody else.
        config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=end)
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Endpoints:
    def __init__(self, served: Served, service: Service, metrics: Metrics, limits: Limits, api_key: str | None) -> None:
        self.served, self.service, self.metrics, self.limits, self.api_key = served, service, metrics, limits, api_key
        self.reader = ThreadPoolExecutor(1, "read")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.service.start()
        yield
        await asyncio.to_thread(self.service.close)
        self.reader.shutdown()

    async def health(self, request: Request) -> Response:
        if self.service.error is not None:
            raise Problem(500, f"the decoding broke: {self.service.error}", "server_error")
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self.service.error is not None or not self.service.ready.is_set():
            raise Problem(503, "the first programs are being compiled", "server_error", headers={"Retry-After": "5"})
        return _json({"status": "ready"})

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return _json({"object": "list", "data": [self.served.card()]})

    async def model(self, request: Request) -> Response:
        self._check_key(request)
        if request.path_params["name"] != self.served.name:
            raise _unknown(f"model: found {request.path_params['name']!r:.80}, expected {self.served.name}")
        return _json(self.served.card())

    async def complete(self, request: Request, *, chat: bool) -> Response:
        """One of the two, streamed or not."""
        self._check_key(request)
        data = await self._body(request)
        call = await asyncio.get_running_loop().run_in_executor(self.reader, self._read, data, chat)
        seconds = self.limits.seconds if call.timeout is None else min(call.timeout, self.limits.seconds)
        job = _Job(self.service, call, time.monotonic() + seconds)
        if call.stream:
            return _Events(self._chunks(job), job, seconds + GRACE)
        left, answers = asyncio.ensure_future(_left(request.receive)), asyncio.ensure_future(self._answers(job))
        try:
            await asyncio.wait({left, answers}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientDisconnect
            return _json(answers.result())
        finally:
            left.cancel()
            answers.cancel()
            job.cancel()

    async def _answers(self, job: _Job) -> dict[str, Any]:
        found: dict[int, Answer] = {}
        async for index, item in job:
            if isinstance(item, Answer):
                found[index] = item
                self.metrics.answered(job.works[index], item, time.monotonic())
        answers = [found[index] for index in range(len(found))]
        choices = [Choice(self.served, job.call, index).whole(answer) for index, answer in enumerate(answers)]
        return body(self.served, job.call, choices, usage=usage(job.call, answers))

    async def _chunks(self, job: _Job) -> AsyncIterator[str]:
        """Server-sent events: what of the choices is certain, as it comes; in the end `[DONE]`, or an error."""
        call = job.call
        choices = [Choice(self.served, call, index) for index in range(len(call.requests))]
        answers: list[Answer] = []
        silent = True
        if call.chat:
            for choice in choices:
                yield _event(body(self.served, call, [choice.first()]))
        try:
            async for index, item in job:
                now = time.monotonic()
                if isinstance(item, Answer):
                    answers.append(item)
                    self.metrics.answered(job.works[index], item, now)
                if (told := choices[index].more(item)) is not None:
                    if silent and choices[index].text:
                        silent = False
                        self.metrics.first_text.observe(now - job.works[index].submitted)
                    yield _event(body(self.served, call, [told]))
        except (Problem, InputError) as error:
            problem = error if isinstance(error, Problem) else Problem(500, str(error), "server_error")
            yield _event(problem.error)
            return
        if call.usage:
            yield _event(body(self.served, call, [], usage=usage(call, answers)))
        yield "data: [DONE]\n\n"

    def _check_key(self, request: Request) -> None:
        if self.api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.api_key}".encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            message = "Authorization: found no key, or another; send Authorization: Bearer KEY"
            raise Problem(401, message, code="invalid_api_key", headers=headers)

    async def _body(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size, most = 0, self.limits.body_bytes
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > READ_AND_DROPPED:
                        break
        except TimeoutError:
            raise Problem(408, f"body: it took more than {self.limits.body_seconds:g} s") from None
        if size > most:
            raise Problem(413, f"body: found more than {most} bytes, which is the limit of this server")
        return b"".join(parts)

    def _read(self, data: bytes, chat: bool) -> Call:
        """What a body asks for. Raises Problem."""
        found: Any = None
        try:
            found = parse_json(data.decode())
            with jax.enable_x64(False):  # a setting of each thread's own
                return self.served.read(found, chat=chat)
        except UnknownModel as error:
            raise _unknown(str(error)) from error
        except InputError as error:
            name = str(error).partition(":")[0].partition(" ")[0]
            param = name if isinstance(found, dict) and name in found else None
            raise Problem(400, str(error), param=param) from error
        except json.JSONDecodeError as error:
            raise Problem(400, f"body: not JSON ({error.msg}, at character {error.pos + 1})") from error
        except RecursionError as error:
            raise Problem(400, "body: not JSON that can be read (too many lists or objects in each other)") from error
        except ValueError as error:  # not UTF-8, NaN, a key twice
            raise Problem(400, f"body: not JSON ({error})") from error


class _Job:
    """The requests of a call on their way, and what the stream's thread tells of them: (index, item), until all are
    answered.
    """

    def __init__(self, service: Service, call: Call, expires: float) -> None:
        """Raises Problem where the service takes no more."""
        self.service, self.call, self.expires = service, call, expires
        self.items: asyncio.Queue[tuple[int, Told]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def teller(index: int) -> Callable[[Told], None]:
            return lambda item: _call_soon(loop, self.items.put_nowait, (index, item))

        pairs = enumerate(call.requests)
        most = service.most_waiting + service.slots
        if len(call.requests) > most:
            message = f"n: found {len(call.requests)} choices, expected at most {most}, the server's slots and queue"
            raise Problem(400, message, param="n")
        self.works = [Work(request, call.seed, expires, teller(index), call.stream) for index, request in pairs]
        try:
            service.submit(self.works)
        except Full as error:
            headers = {"Retry-After": str(error.seconds)}
            raise Problem(429, str(error), "rate_limit_error", code="queue_full", headers=headers) from error
        except Closed as error:
            raise Problem(503, str(error), "server_error", headers={"Retry-After": "10"}) from error

    async def __aiter__(self) -> AsyncIterator[tuple[int, Partial | Answer]]:
        left = len(self.works)
        while left:
            try:
                async with asyncio.timeout(self.expires - time.monotonic()):
                    index, item = await self.items.get()
            except TimeoutError:
                raise _late() from None
            if item is None:
                raise Problem(500, "the decoding broke; the server ends", "server_error")
            if isinstance(item, Refusal):
                raise _late() if self.works[index].late else Problem(400, item.error)
            if isinstance(item, Answer):
                left -= 1
                if item.not_finite:
                    raise Problem(500, "the model's scores were no numbers; check its weights", "server_error")
            yield index, item

    def cancel(self) -> None:
        self.service.cancel(self.works)


class _Events(StreamingResponse):
    """A stream of server-sent events. When it ends in whatever way, its job is off; a reader who is slower than
    `seconds` is cut off.
    """

    def __init__(self, chunks: AsyncIterator[str], job: _Job, seconds: float) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job, self.seconds = job, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


class _Counted:
    """An application whose responses are counted, by endpoint and status."""

    def __init__(self, app: Starlette, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self.paths = {route.path for route in app.routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.responses.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)


async def _left(receive: Callable[[], Awaitable[Message]]) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed while a client was cut off: nobody listens
        loop.call_soon_threadsafe(call, *arguments)


def _late() -> Problem:
    return Problem(504, "the request was not done by its deadline", "timeout_error", code="timeout")


def _unknown(message: str) -> Problem:
    return Problem(404, message, param="model", code="model_not_found")


def _event(value: dict[str, Any]) -> str:
    return f"data: {json_line(value)}\n\n"


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json_line(value), status, headers, media_type="application/json")
