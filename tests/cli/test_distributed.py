"""Real processes over loopback: they write what one process writes, whoever is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxdiff import parts

OPTIONS = ("--gen-length", 8, "--block-length", 8, "--temperature", 0.7, "--batch-size", 2)
ROWS = [{"id": f"r{i}", "prompt_ids": list(range(5, 6 + i % 9))} for i in range(24)]
SLOWLY = (  # a row every fifth of a second, so that a kill finds the process at work
    "import sys, time; from jaxdiff.files import Lines; from jaxdiff.cli.main import main; plain = Lines.write; "
    "Lines.write = lambda *a: (time.sleep(0.2), plain(*a))[1]; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def start(ids_folder, tmp_path):
    """Starts a job of `count` processes; more options for one of them by its number."""
    started = []

    def call(count, **more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]  # a device each
        environment = os.environ | {"XLA_FLAGS": " ".join(flags)}
        files = ("--in", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl", "--model", ids_folder)
        meet = ("--distributed", "--coordinator", f"127.0.0.1:{port}", "--processes", count)
        job = []
        for i in range(count):
            words = ("generate", *files, *OPTIONS, *meet, "--process-id", i, *more.get(f"p{i}", ()))
            command = [sys.executable, "-c", SLOWLY, *map(str, words)]
            job.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        started.extend(job)
        return job

    yield call
    for process in started:
        process.kill()
        process.communicate()


def ended(job):
    """The exit code and what was said on stderr, for each process."""
    said = [process.communicate(timeout=240)[1] for process in job]
    return [(process.returncode, text) for process, text in zip(job, said, strict=True)]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_job_that_lost_a_process_is_ended_by_the_next_with_what_one_process_writes(start, run, ids_folder, tmp_path):
    """Three processes, one of them killed; then two. No finished row is lost, none is decoded twice."""
    out = tmp_path / "out.jsonl"
    lines = [json.dumps(row) for row in ROWS]
    lines[5:5] = ["not JSON", ""]
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))

    job = start(3)
    victim = parts.part_of(out, 2)
    deadline = time.monotonic() + 240
    while not victim.exists() or victim.read_bytes().count(b"\n") < 3:  # the header and two rows
        assert job[2].poll() is None, job[2].communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job[2].send_signal(signal.SIGKILL)
    codes = [code for code, _ in ended(job)]
    assert sorted(codes) == [-signal.SIGKILL, 0, 1]  # 1: the process whose share holds the bad row
    assert not out.exists()
    with victim.open("ab") as file:
        file.write(b'{"number": 9, "row": {"id"')  # as a kill in the midst of a line leaves it
    before = {line["number"]: line["row"] for i in range(3) for line in rows_of_part(out, i)}
    assert 18 <= len(before) < 25

    again = ended(start(2))
    assert sorted(code for code, _ in again) == [0, 1], again
    assert "out.jsonl is whole" in again[0][1] + again[1][1]
    found = [line for i in range(3) for line in rows_of_part(out, i)]
    assert sorted(line["number"] for line in found) == [i for i in range(26) if i != 6]  # each once
    assert {line["number"]: line["row"] for line in found if line["number"] in before} == before  # to the second

    files = ("--in", tmp_path / "in.jsonl", "--out", tmp_path / "one", "--model", ids_folder)
    assert run("generate", *files, *OPTIONS).code == 1
    assert without_seconds(rows_of(out)) == without_seconds(rows_of(tmp_path / "one"))


def rows_of_part(out, process):
    text = parts.part_of(out, process).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n")].splitlines()[1:]]


def test_processes_that_differ_are_refused_and_nothing_is_written(start, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt_ids": [5]}\n')
    for code, text in ended(start(2, p1=("--seed", 1))):
        assert code == 2
        assert "distributed: process 1 has another settings than process 0; give all hosts the same" in text
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
