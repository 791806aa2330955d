"""What the HTTP server gives: answers, throughput, and what faults do to it. `python -m experiments.serving.run [PART]`

answers: 200 requests of mixed lengths, 64 at a time, streams and not, against `jaxdiff generate`; with the `openai`
client for every second one where it is installed. throughput: the same 500 requests through `decode_stream` in this
process and through the server, in turns. faults: 2,000 requests of which most are broken in some way, then a SIGTERM
while 100 are under way. Each part starts its server; all write into results/serving.json.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import typer

import jaxdiff
from jaxdiff.cli.main import main as command
from jaxdiff.files import write_object
from jaxdiff.tasks import gsm_symbolic

ANSWERS, AT_ONCE, SEEDS, COPIES = 200, 64, 10, 4
QUEUE, ROUNDS = 500, 3
FAULTS, WARM, LAST = 2000, 400, 100
SLOTS = 16
POLICY = "threshold:tau=0.9"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
RESULTS = Path(__file__).parent / "results" / "serving.json"


class Server:
    """`jaxdiff serve` in a process of its own, ready."""

    def __init__(self, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        asked = ("serve", "--policy", POLICY, "--slots", str(SLOTS), "--port", str(self.port), *options)
        self.process = subprocess.Popen([sys.executable, "-m", "jaxdiff_command", *asked])
        while not self._ready():
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.2)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.send("/ready")[0] == 200
        return False

    def send(self, path: str, body: Any = None) -> tuple[int, str]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)) as line:
            line.request("GET" if body is None else "POST", path, data)
            answer = line.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.send("/metrics")[1], re.MULTILINE)
        assert found is not None
        return float(found[1])

    def memory(self) -> float:
        """Anonymous memory of the process, in MB."""
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1000

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300)


def texts(count: int) -> list[str]:
    problems = itertools.islice(gsm_symbolic.problems("test", 0), count)
    return [problem.question for problem in problems]


def generated(rows: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """The rows of `jaxdiff generate`."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "in.jsonl"
        given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = command(["generate", "--in", str(given), "--policy", POLICY, "--batch-size", str(SLOTS), *options])
        assert code == 0, code
    return [json.loads(line) for line in out.getvalue().splitlines()]


def joined(text: str) -> tuple[list[str], bool]:
    """The texts of a stream's choices, and whether it came to its end."""
    found: dict[int, str] = {}
    parts = [part.removeprefix("data: ") for part in text.split("\n\n")]
    for part in parts:
        if part and part != "[DONE]":
            for choice in json.loads(part).get("choices", ()):
                piece = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                found[choice["index"]] = found.get(choice["index"], "") + piece
    return [found[index] for index in sorted(found)], parts[-2:] == ["[DONE]", ""]


def asked(server: Server, path: str, body: dict[str, Any], *, by_client: bool) -> list[str]:
    """The texts of a call's choices: by plain HTTP, or by the `openai` client."""
    if not by_client:
        status, text = server.send(path, body)
        assert status == 200, text
        if body.get("stream"):
            return joined(text)[0]
        return [
            choice["text"] if path == PLAIN else choice["message"]["content"] for choice in json.loads(text)["choices"]
        ]
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=300)
    make: Any = client.completions.create if path == PLAIN else client.chat.completions.create
    answer = make(model="gsm-1m", **body)
    if not body.get("stream"):
        return [choice.text if path == PLAIN else choice.message.content for choice in answer.choices]
    found: dict[int, str] = {}
    for chunk in answer:
        for choice in chunk.choices:
            piece = choice.text if path == PLAIN else choice.delta.content or ""
            found[choice.index] = found.get(choice.index, "") + piece
    return [found[index] for index in sorted(found)]


def answers(scale: float) -> dict[str, Any]:
    """Greedy requests, half of them chats, half streamed; and some that draw, with n choices for a seed."""
    count, seeds = max(8, int(ANSWERS * scale)), max(1, int(SEEDS * scale))
    questions = texts(count)
    greedy = questions[: count - 2 * seeds]
    by_chat = generated([{"prompt": text} for text in greedy])
    by_text = generated([{"prompt": text} for text in greedy], "--no-chat")
    drawing = ("--temperature", "0.7")
    drawn = [generated([{"prompt": questions[s]}] * COPIES, *drawing, "--seed", str(s)) for s in range(seeds)]
    calls: list[tuple[str, dict[str, Any], list[str]]] = []
    for i, text in enumerate(greedy):
        plain, stream = i % 2 == 1, i % 4 > 1
        body = {"prompt": text} if plain else {"messages": [{"role": "user", "content": text}]}
        calls.append(
            (PLAIN if plain else CHAT, body | {"stream": stream}, [(by_text if plain else by_chat)[i]["text"]])
        )
    for seed, stream in itertools.product(range(seeds), (False, True)):
        body = {"messages": [{"role": "user", "content": questions[seed]}], "seed": seed, "n": COPIES}
        calls.append((CHAT, body | {"temperature": 0.7, "stream": stream}, [row["text"] for row in drawn[seed]]))
    random.Random(0).shuffle(calls)
    client = find_spec("openai") is not None
    server = Server()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda c: asked(server, *c[1][:2], by_client=client and c[0] % 2 == 0), enumerate(calls)))
    differ = sum(one != call[2] for one, call in zip(found, calls, strict=True))
    return {"requests": len(calls), "differ": differ, "openai_client": client, "exit": server.end()}


def throughput(scale: float) -> dict[str, Any]:
    """Seconds for the same requests in this process and through the server, the best of some rounds in turn."""
    count, rounds = max(32, int(QUEUE * scale)), ROUNDS if scale == 1 else 1
    questions, checkpoint, meter = texts(count), jaxdiff.load(), jaxdiff.Meter()
    prompts = [checkpoint.tokenizer_for("chat").prompt(text) for text in questions]
    decoder = jaxdiff.Decoder(policy=jaxdiff.policies.Threshold(0.9), stop=jaxdiff.stoppers.Eos(), block_length=32)
    made: dict[int, Any] = {}

    def in_process() -> tuple[float, float]:
        before, since = (meter.busy, meter.slot_steps), time.perf_counter()
        for answer in jaxdiff.decode_stream(
            *(checkpoint.model, checkpoint.params, prompts, decoder), slots=SLOTS, gen_length=256, meter=meter
        ):
            assert isinstance(answer, jaxdiff.Answer)
            made[answer.request.number] = checkpoint.tokenizer_for("chat").decode(answer.tokens)
        return time.perf_counter() - since, (meter.busy - before[0]) / (meter.slot_steps - before[1])

    server = Server()

    def by_server() -> tuple[float, float]:
        names = ("jaxdiff_row_steps_busy_total", "jaxdiff_row_steps_total")
        before, since = [server.metric(name) for name in names], time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            bodies = ({"messages": [{"role": "user", "content": text}]} for text in questions)
            found = list(pool.map(lambda body: asked(server, CHAT, body, by_client=False)[0], bodies))
        seconds = time.perf_counter() - since
        assert found == [made[number] for number in range(count)]
        busy, steps = (server.metric(name) - at for name, at in zip(names, before, strict=True))
        return seconds, busy / steps

    in_process()  # compiles
    by_server()
    pairs = [(in_process(), by_server()) for _ in range(rounds)]
    ours, theirs = (min(pair[i][0] for pair in pairs) for i in range(2))
    return {
        "requests": count,
        "in_process_seconds": ours,
        "server_seconds": theirs,
        "ratio": ours / theirs,
        "in_process_occupancy": pairs[-1][0][1],
        "server_occupancy": pairs[-1][1][1],
        "exit": server.end(),
    }


def faulty(server: Server, kind: str, text: str) -> str:
    """Sends one request of a kind; how it ended: `whole`, `error object`, `hung up`, or what is wrong with it."""
    body: Any = {"prompt": text, "stream": kind in ("stream", "slow", "leaves a stream"), "max_tokens": 64}
    if kind in ("leaves", "leaves a stream", "slow"):
        data = json.dumps(body)
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as line:
            line.sendall(f"POST {PLAIN} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode())
            if kind == "leaves":
                return "hung up"
            if kind == "leaves a stream":
                line.recv(64)
                return "hung up"
            seen = b""
            while b"[DONE]" not in seen and (part := line.recv(64)):
                seen += part
                time.sleep(0.02)
            return "whole" if b"[DONE]" in seen or b" 429 " in seen else f"slow: {seen[-80:]!r}"
    sent = {
        "bad JSON": b'{"prompt": ',
        "10 MB": b"x" * 10_000_000,
        "wrong type": {"prompt": {"a": 1}},
        "unknown field": {"prompt": text, "tempo": 1},
    }.get(kind, body)
    status, answer = server.send(PLAIN, sent)
    if status == 200:
        fine = joined(answer)[1] if body["stream"] else bool(json.loads(answer)["choices"][0]["finish_reason"])
        return "whole" if fine and kind in ("whole", "stream") else f"{kind}: 200 {answer[-80:]}"
    error = json.loads(answer)["error"]
    expected = {"10 MB": 413}.get(kind, 429 if kind in ("whole", "stream") else 400)
    good = status == expected and error.keys() == {"message", "type", "param", "code"}
    return "error object" if good else f"{kind}: {status} {answer[:80]}"


KINDS = ("whole", "stream", "slow", "leaves", "leaves a stream", "bad JSON", "10 MB", "wrong type", "unknown field")


def faults(scale: float) -> dict[str, Any]:
    """How requests of all kinds end, the memory that grew, and a SIGTERM while whole ones are under way."""
    count, warm = max(45, int(FAULTS * scale)), max(20, int(WARM * scale))
    questions, draw = texts(64), random.Random(0)
    kinds = [draw.choice(KINDS) for _ in range(count)]
    server, found = Server(), Counter()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        send: Callable[..., str] = lambda pair: faulty(server, pair[1], questions[pair[0] % 64])  # noqa: E731
        found.update(pool.map(send, enumerate(kinds[:warm])))
        at_warm = server.memory()
        found.update(pool.map(send, enumerate(kinds[warm:])))
    end = time.monotonic() + 60
    while server.metric("jaxdiff_slots_busy") + server.metric("jaxdiff_queue_length") and time.monotonic() < end:
        time.sleep(0.1)
    left = server.metric("jaxdiff_slots_busy") + server.metric("jaxdiff_queue_length")
    grown = server.memory() - at_warm

    ended: Counter[str] = Counter()
    last = max(16, int(LAST * scale))
    begun = threading.Barrier(last + 1)

    def whole(number: int) -> str:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)) as line:
            line.request("POST", PLAIN, json.dumps({"prompt": questions[number % 64], "stream": number % 2 == 0}))
            begun.wait()
            answer = line.getresponse()
            text = answer.read().decode()
            fine = joined(text)[1] if number % 2 == 0 else '"finish_reason": "' in text
            return "whole" if answer.status == 200 and fine else f"{answer.status} {text[-80:]}"

    with concurrent.futures.ThreadPoolExecutor(last) as pool:
        futures = [pool.submit(whole, number) for number in range(last)]
        begun.wait()
        while server.metric("jaxdiff_slots_busy") + server.metric("jaxdiff_queue_length") == 0:
            time.sleep(0.01)
        code = server.end()
        ended.update(future.result() if future.exception() is None else repr(future.exception()) for future in futures)
    wrong = {how: n for how, n in (found + ended).items() if how not in ("whole", "error object", "hung up")}
    return {
        "requests": count,
        "ended": dict(found),
        "grown_mb": grown,
        "memory_mb": at_warm,
        "left_in_slots": left,
        "at_sigterm": dict(ended),
        "wrong": wrong,
        "exit": code,
    }


PARTS: dict[str, Callable[[float], dict[str, Any]]] = {"answers": answers, "throughput": throughput, "faults": faults}


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends this process, and the server with it, where a part takes longer."""

    def late() -> None:
        print(f"took more than {seconds} s", file=sys.stderr)
        os.killpg(0, signal.SIGKILL)

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def main(
    part: Annotated[Literal["answers", "throughput", "faults", "all"], typer.Argument()] = "all",
    scale: Annotated[float, typer.Option(help="of the number of requests, for a try")] = 1.0,
    seconds: Annotated[int, typer.Option(help="that a part may take")] = 1200,
) -> None:
    """Measure one part or all; write results/serving.json unless it is a try; print what was found."""
    with contextlib.suppress(PermissionError):
        os.setpgrp()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in PARTS if part == "all" else (part,):
        with limited(seconds):
            results[name] = PARTS[name](scale) | {"load": os.getloadavg()[0]}
        print(json.dumps({name: results[name]}, indent=1))
    results["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    if scale == 1:
        RESULTS.parent.mkdir(exist_ok=True)
        write_object(RESULTS, results)


if __name__ == "__main__":
    typer.run(main)
