"""The HTTP server, by the command: answers are those of `generate`, faults harm nobody, SIGTERM loses nothing."""

import concurrent.futures
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import time

import pytest

from jaxdiff.cli import serve
from jaxdiff.cli.options import Decoding

DECODING = ("--policy", "threshold:tau=0.3", "--temperature", "0.8", "--gen-length", "32", "--block-length", "8")
DECODING += ("--stop-string", "zz")  # room for stop strings, as the server has, so that they share their programs
TEXTS = ["12 + 7", "26 + 48", "9 - 5"]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
SLOTS, QUEUE = 2, 60
MOST = SLOTS + QUEUE  # choices that the server takes at a time
KEY = {"Authorization": "Bearer sesame"}


def send(port, path, body=None, headers=KEY):
    """(status, headers, body) of a request: a GET without a body; a body that is no text is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, data, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def ask(port, path, **body):
    status, _, text = send(port, path, body)
    assert status == 200, text
    return json.loads(text)


def streamed(port, path, **body):
    """The chunks of a stream, which must end with [DONE]."""
    status, headers, text = send(port, path, body | {"stream": True})
    assert status == 200, text
    assert headers["Content-Type"].startswith("text/event-stream")
    *chunks, end, rest = [part.removeprefix("data: ") for part in text.split("\n\n")]
    assert (end, rest) == ("[DONE]", "")
    return [json.loads(chunk) for chunk in chunks]


def metric(port, name):
    (value,) = re.findall(rf"^{name} (\S+)$", send(port, "/metrics")[2], re.MULTILINE)
    return float(value)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def serving(run, folder):
    """Runs `jaxdiff serve` in this thread, `scenario(port)` in another, and then sends SIGTERM."""

    def call(scenario, *options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def is_ready():
            with contextlib.suppress(OSError):
                return send(port, "/ready")[0] == 200
            return False

        def client():
            until(is_ready)
            try:
                return scenario(port)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, lambda *_: None)  # where the server is not there to take it
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                done = pool.submit(client)
                ran = run("serve", "--model", folder, *DECODING, "--slots", SLOTS, "--port", port, *options)
                done.result()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert (ran.code, ran.out) == (0, ""), ran.err
        return ran

    return call


@pytest.fixture
def generated(run, folder, tmp_path):
    """The rows of `jaxdiff generate --seed 5` for these rows."""

    def call(rows, *options):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = ("generate", "--in", tmp_path / "in.jsonl", "--model", folder, *DECODING, "--log-prob")
        ran = run(*source, "--seed", 5, "--batch-size", 2, *options)
        assert ran.code == 0, ran.err
        return [json.loads(line) for line in ran.out.splitlines()]

    return call


def test_answers_are_those_of_generate(serving, generated, checkpoint):
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    by_chat = [generated([{"messages": chat}] * 2) for chat in chats]
    by_text = generated([{"prompt": text} for text in TEXTS], "--no-chat")
    string = re.search("[!-~]{2}", by_text[0]["text"])[0]
    strings = generated([{"prompt": TEXTS[0], "stop_strings": [string]}], "--no-chat")[0]
    other = generated([{"prompt": TEXTS[1]}], "--no-chat", "--policy", "threshold:tau=0.9", "--temperature", 0)[0]
    show = checkpoint.tokenizer.show

    def scenario(port):
        card = json.loads(send(port, "/v1/models")[2])["data"][0]
        assert (card["id"], card["max_tokens"]) == ("tiny", 32)
        assert card["numbers"] == pytest.approx({"policy.tau": 0.3, "sampling.temperature": 0.8})
        with concurrent.futures.ThreadPoolExecutor(6) as pool:  # at a time, so that all share the two slots
            whole = [pool.submit(ask, port, CHAT, messages=chat, n=2, seed=5) for chat in chats]
            parts = [pool.submit(streamed, port, CHAT, messages=chat, n=2, seed=5) for chat in chats]
            both = pool.submit(ask, port, PLAIN, model="tiny", prompt=TEXTS, seed=5, user="me", n=None)
            for rows, one, chunks in zip(by_chat, whole, parts, strict=True):
                one = one.result()
                for index, (row, choice) in enumerate(zip(rows, one["choices"], strict=True)):
                    assert choice["message"] == {"role": "assistant", "content": row["text"]}
                    own = [c for chunk in chunks.result() for c in chunk["choices"] if c["index"] == index]
                    assert "".join(c["delta"].get("content", "") for c in own) == row["text"]
                    assert [c["finish_reason"] for c in own][-1] == choice["finish_reason"]
                assert (one["object"], one["seed"]) == ("chat.completion", 5)
                assert one["usage"]["nfe"] == sum(row["nfe"] for row in rows)
                assert one["usage"]["work"] == pytest.approx(sum(row["work"] for row in rows))
            assert [choice["text"] for choice in both.result()["choices"]] == [row["text"] for row in by_text]

        # Stop strings and numbers of its own; a stream never sends what they cut off.
        body = dict(prompt=TEXTS[0], seed=5, stop=string)
        choice = ask(port, PLAIN, **body)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (strings["text"], "stop")
        assert "".join(c["choices"][0]["text"] for c in streamed(port, PLAIN, **body)) == strings["text"]
        own = dict(prompt=TEXTS[1], seed=5, temperature=0, top_p=1.0, numbers={"policy.tau": 0.9})
        answer = ask(port, PLAIN, **own)
        assert (answer["choices"][0]["text"], answer["usage"]["nfe"]) == (other["text"], other["nfe"])

        # Log-probabilities and events, whole and in a stream, of which several chunks are told.
        row, body = by_text[0], dict(prompt=TEXTS[0], seed=5, logprobs=0, events=True)
        choice = ask(port, PLAIN, **body)["choices"][0]
        *chunks, last = streamed(port, PLAIN, **body, stream_options={"include_usage": True})
        assert (last["choices"], last["usage"]["nfe"]) == ([], row["nfe"])
        assert len(chunks) > 3
        told = [c["choices"][0] for c in chunks]
        count = len(choice["logprobs"]["tokens"])
        assert choice["logprobs"]["tokens"] == [show([i]) for i in row["token_ids"][:count]]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(row["log_prob"][:count], abs=1e-4)
        pieces = [c["logprobs"]["token_logprobs"] for c in told if c["logprobs"]]
        assert [value for piece in pieces for value in piece] == choice["logprobs"]["token_logprobs"]
        want = {
            i: (token, step) for i, (token, step) in enumerate(zip(row["token_ids"], row["commit_step"], strict=True))
        }
        for events in (choice["events"], [event for c in told for event in c["events"]]):
            last_of = {event["position"]: (event["token_id"], event["step"]) for event in events}
            assert {i: one for i, one in last_of.items() if one[1] is not None} == {
                i: one for i, one in want.items() if one[1] >= 0
            }
            steps = [event["step"] for event in events if event["step"] is not None]
            assert steps == sorted(steps)
        seeds = {ask(port, PLAIN, prompt="1", max_tokens=1)["seed"] for _ in range(2)}
        assert len(seeds) == 2  # drawn where none is given, and told

    serving(scenario, "--most", 1)


BAD = [  # path, body, status, param
    (CHAT, b"{", 400, None),
    (CHAT, b"\xff{}", 400, None),
    (CHAT, b"[" * 100_000, 400, None),
    (CHAT, b'{"seed": 1, "seed": 2}', 400, None),
    (PLAIN, [1], 400, None),
    (CHAT, {}, 400, None),
    (CHAT, {"messages": "hi"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, "messages"),
    (PLAIN, {"prompt": "1", "tempo": 3}, 400, "tempo"),
    (PLAIN, {"prompt": "1", "presence_penalty": 0.5}, 400, "presence_penalty"),
    (PLAIN, {"prompt": ["1", 2]}, 400, "prompt"),
    (PLAIN, {"prompt": [100_000]}, 400, None),
    (PLAIN, {"prompt": "\ud800"}, 400, "prompt"),
    (PLAIN, {"prompt": [5] * 90}, 400, "prompt"),
    (PLAIN, {"prompt": [5] * 60}, 400, "prompt"),  # fits the context, and no --width
    (PLAIN, {"prompt": "1", "max_tokens": 33}, 400, "max_tokens"),
    (PLAIN, {"prompt": "1", "max_tokens": True}, 400, "max_tokens"),
    (PLAIN, {"prompt": "1", "n": 0}, 400, "n"),
    (PLAIN, {"prompt": "1", "seed": 2**32}, 400, "seed"),
    (PLAIN, {"prompt": "1", "temperature": -1}, 400, "temperature"),
    (PLAIN, {"prompt": "1", "top_p": 0.5}, 400, "top_p"),
    (PLAIN, {"prompt": "1", "numbers": {"policy.tau": 2}}, 400, "numbers"),
    (PLAIN, {"prompt": "1", "numbers": {"tau": 1}}, 400, "numbers"),
    (PLAIN, {"prompt": "1", "stop": ["a"] * 5}, 400, "stop"),
    (PLAIN, {"prompt": "1", "stop": "a" * 40}, 400, "stop"),
    (PLAIN, {"prompt": "1", "logprobs": 3}, 400, "logprobs"),
    (CHAT, {"messages": [{"role": "user", "content": "1"}], "logprobs": True, "top_logprobs": 2}, 400, "top_logprobs"),
    (PLAIN, {"prompt": "1", "stream": "yes"}, 400, "stream"),
    (PLAIN, {"prompt": "1", "model": "gpt"}, 404, "model"),
    (PLAIN, {"prompt": "1", "n": MOST + 1}, 400, "n"),
    (PLAIN, {"prompt": "1", "timeout": 0}, 400, "timeout"),
    (PLAIN, {"prompt": "1", "timeout": 1e-9}, 504, None),
    (PLAIN, b" " * 10_000_000, 413, None),
    (PLAIN, None, 405, None),
    ("/v1/nowhere", None, 404, None),
    ("/v1/models/gpt", None, 404, "model"),
]


def test_faults_are_told_and_harm_nobody_and_sigterm_loses_nothing(serving, generated):
    row = generated([{"prompt": TEXTS[0]}], "--no-chat")[0]

    def scenario(port):
        for path, body, status, param in BAD:
            found, _, text = send(port, path, body)
            error = json.loads(text)["error"]
            assert (found, error["param"]) == (status, param), text
            assert error["message"]
            assert error.keys() == {"message", "type", "param", "code"}
        for headers in ({}, {"Authorization": "Bearer nothing"}):
            assert send(port, CHAT, {}, headers)[0] == send(port, "/v1/models", headers=headers)[0] == 401
            assert send(port, "/health", headers=headers)[0] == 200

        # Clients that hang up: before their body is whole, in the queue, in a slot, in a stream. At a token a step each
        # of the two that are taken would keep the slots for MOST * 32 / SLOTS steps.
        before = metric(port, "jaxdiff_steps_total")
        head = f"POST {PLAIN} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sesame\r\nContent-Length: "
        for stream in (False, True, None):
            until(lambda: metric(port, "jaxdiff_slots_busy") == metric(port, "jaxdiff_queue_length") == 0)
            steps = metric(port, "jaxdiff_steps_total")
            body = json.dumps({"prompt": TEXTS[0], "stream": stream, "n": MOST, "numbers": {"policy.tau": 1}})
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(f"{head}{len(body) + (stream is None)}\r\n\r\n{body}".encode())
                if stream:
                    assert line.recv(1000).startswith(b"HTTP/1.1 200 ")
                    found, headers, _ = send(port, PLAIN, {"prompt": "1", "n": MOST})
                    assert found == 429
                    assert 1 <= int(headers["Retry-After"]) <= 60
                elif stream is not None:
                    until(lambda before=steps: metric(port, "jaxdiff_steps_total") > before)
        until(lambda: metric(port, "jaxdiff_slots_busy") == metric(port, "jaxdiff_queue_length") == 0)
        assert metric(port, "jaxdiff_steps_total") - before < MOST * 32 / SLOTS / 4
        assert ask(port, PLAIN, prompt=TEXTS[0], seed=5)["choices"][0]["text"] == row["text"]
        assert metric(port, 'jaxdiff_responses_total{endpoint="/v1/completions",status="413"}') == 1
        assert 0 < metric(port, "jaxdiff_occupancy") <= 1
        assert metric(port, "jaxdiff_nfe_total") >= row["nfe"]

        pool, steps = concurrent.futures.ThreadPoolExecutor(1), metric(port, "jaxdiff_steps_total")
        last = pool.submit(ask, port, PLAIN, prompt=[TEXTS[0]] * 4, seed=5)
        until(lambda: metric(port, "jaxdiff_steps_total") > steps)
        os.kill(os.getpid(), signal.SIGTERM)
        answers = last.result()["choices"]
        assert (len(answers), answers[0]["text"]) == (4, row["text"])
        with pytest.raises((ConnectionError, http.client.HTTPException)):  # nothing new is taken
            send(port, "/health")

    serving(scenario, "--most", 1, "--queue", QUEUE, "--width", 56, "--api-key", "sesame")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "oracle"), "policy: found oracle, which decodes each request twice"),
        (("--width", 80), "--width: found 80, expected at most 64"),
        (("--host", "192.0.2.1"), "--host, --port: found 192.0.2.1, 8000"),
        (("--api-key", ""), "--api-key: found an empty text"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(refused, folder, options, words):
    assert words in refused("serve", "--model", folder, "--gen-length", 32, *options)


def test_a_model_without_a_tokenizer_is_not_served(refused, ids_folder):
    assert "has no tokenizer" in refused("serve", "--model", ids_folder, "--gen-length", 32)


def test_a_constraint_takes_the_place_of_stop_strings(checkpoint):
    """Which would end a text before it matches: there is no room for those of requests."""
    decoding = Decoding(model="gsm-1m", gen_length=16, block_length=8, constraint="regex:[0-9]+")
    decoder = serve._decoder(checkpoint, decoding)
    assert decoder.constraint is checkpoint.tokenizer.regex("[0-9]+")
    assert decoder.stop_strings is None
    free = serve._decoder(checkpoint, Decoding(model="gsm-1m", gen_length=16, block_length=8))
    assert free.constraint is None
    assert free.stop_strings is not None
