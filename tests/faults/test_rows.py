"""Nothing that was finished is lost: rows are appended as they are done, whoever ends the program, and gone on with."""

import functools
import json
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError, files, parts
from jaxdiff.checkpoint import Tokenizer
from jaxdiff.cli import requests
from jaxdiff.cli.options import Decoding
from jaxdiff.serve import Answer, Request
from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
from jaxdiff.train.loop import _Log
from jaxdiff.train.traces import Traces, collect
from tests import small

OPTIONS = ("--gen-length", 8, "--block-length", 8, "--temperature", 0.7, "--batch-size", 2)
COUNT = 20
DECODING, JOB = Decoding(model="any", gen_length=16, block_length=8), requests.Job(seed=0, slots=8)
SLOWLY = (  # a line every fifth of a second, so that a signal finds the program at work
    "import sys, time; from jaxdiff.files import Lines; from jaxdiff.cli.main import main; plain = Lines.write; "
    "Lines.write = lambda *a: (plain(*a), time.sleep(0.2))[0]; sys.exit(main())"
)


@pytest.fixture
def source(tmp_path):
    """Rows of ids, and one that is refused."""
    lines = [json.dumps({"id": f"r{i}", "prompt_ids": list(range(5, 6 + i % 9))}) for i in range(COUNT - 1)]
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in [*lines[:4], "not JSON", *lines[4:]]))
    return tmp_path / "in.jsonl"


@pytest.fixture
def command(source, ids_folder):
    """The job that writes to `out`, as words."""
    return lambda out: ("generate", "--in", source, "--out", out, "--model", ids_folder, *OPTIONS)


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def whole(out):
    """The rows, not the header, of the one part of `out`."""
    return files.whole_lines(parts.part_of(out, 0))[1:] if parts.part_of(out, 0).exists() else []


def stop_after(lines, monkeypatch):
    """Ctrl-C as this line is being written, in this process."""
    plain, left = files.Lines.write, iter(range(lines))

    def write(self, value):
        if next(left, None) is None:
            raise KeyboardInterrupt
        plain(self, value)

    monkeypatch.setattr(files.Lines, "write", write)


def test_signals_end_the_program_and_the_next_run_goes_on(command, run, tmp_path):
    """Ctrl-C, SIGTERM and SIGKILL, one after another; then the rest, in this process."""
    out, one = tmp_path / "out.jsonl", tmp_path / "one.jsonl"
    alone = run(*command(one), "--json")
    out.write_text("what an earlier run left\n")
    kept = []
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        words = [sys.executable, "-c", SLOWLY, *map(str, command(out))]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(whole(out)) < len(kept) + 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert "Traceback" not in said
        assert whole(out)[: len(kept)] == kept
        kept = whole(out)
        assert out.read_text() == "what an earlier run left\n"
        assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "one.jsonl", "out.jsonl", "out.jsonl.parts"}
    assert 6 <= len(kept) < COUNT
    with parts.part_of(out, 0).open("ab") as file:
        file.write(b'{"number": 9, "row": {"id"')  # as a kill in the midst of a line leaves it
    ran = run(*command(out), "--json")
    assert ran.code == 1  # a row was refused, by an earlier run
    assert rows_of(out) == rows_of(one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "one.jsonl", "out.jsonl"]
    times = ("seconds", "compile_seconds")
    assert {name: ran.json[name] for name in ran.json if name not in times} == {
        name: alone.json[name] for name in alone.json if name not in times
    }
    assert [json.loads(line)["row"]["seconds"] for line in kept if b"error" not in line] == [
        row["seconds"]
        for line in kept
        for row in map(json.loads, out.read_text().splitlines())
        if row["id"] == json.loads(line)["row"]["id"] and "error" not in row
    ]


def test_parts_of_another_run_are_refused_by_name(command, run, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        stop_after(1, patch)  # the header alone: nothing is lost, so nothing is in the way
        assert run(*command(out)).code == 130
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert run(*command(out), "--seed", 1).code == 130
    ran = run(*command(out), "--seed", 2, "--top-k", 3)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"another settings (seed, top_k); delete {out}.parts, or name another --out" in ran.err
    assert len(whole(out)) == 2
    with files.Lines(parts.part_of(out, 0)):
        ran = run(*command(out), "--seed", 1)
    assert (ran.code, "is being written by another program" in ran.err) == (2, True)
    assert run(*command(out), "--seed", 1).code == 1
    assert not parts.folder_of(out).exists()


def test_a_disk_that_fills_up(command, run, full, tmp_path):
    """Once at a row, once at the output, once at the header; each time the file is named, and rows stay."""
    out, one = tmp_path / "out.jsonl", tmp_path / "one.jsonl"
    assert run(*command(one)).code == 1
    size = one.stat().st_size
    for limit, named, least in ((100, ".parts/part-00000.jsonl", 0), (2000, ".parts/part-00000.jsonl", 2)):
        full(limit)
        ran = run(*command(out))
        full()
        assert (ran.code, ran.out) == (2, "")
        assert f"{out}{named}: cannot be written (File too large" in ran.err.splitlines()[-1]
        assert "free space there and give the same command again" in ran.err
        assert "Traceback" not in ran.err
        assert len(whole(out)) >= least
        assert not out.exists()
    assert parts.part_of(out, 0).read_bytes().endswith(b"\n")
    assert run(*command(out)).code == 1
    assert rows_of(out) == rows_of(one)
    rows = list(map(json.loads, one.read_text().splitlines()))
    full(size - 1)
    with pytest.raises(InputError, match=r"one.jsonl: cannot be written \(File too large"):
        files.write_lines(one, rows)
    full()
    assert one.stat().st_size == size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "one.jsonl", "out.jsonl"]


def test_a_full_disk_is_known_when_a_file_is_closed(tmp_path):
    def write():
        with files.replaced_file(tmp_path / "file") as new, open("/dev/full", "w") as device:
            new.write_text("half")
            device.write("x")

    with pytest.raises(InputError, match=r"file: cannot be written \(No space left on device\); free space there"):
        write()
    assert list(tmp_path.iterdir()) == []


FULL = "No space left on device"
ERRORS = [
    (RuntimeError(f'Failed writing: "/x": {FULL} [os_error_code=28]'), InputError, rf"folder: .* \({FULL}\); free"),
    (OSError(28, FULL, "source", None, "target"), InputError, rf"folder: .* \({FULL}\); free"),  # as shutil.copy has it
    (FileNotFoundError(2, "No such file", "source"), FileNotFoundError, "source"),  # what could not be read
]


@pytest.mark.parametrize(("error", "kind", "words"), ERRORS)
def test_a_full_disk_is_known_by_its_words(error, kind, words, tmp_path):
    def write():
        with files.replaced(tmp_path / "folder") as new:
            (new / "half").write_text("half")
            raise error

    with pytest.raises(kind, match=words):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_program_left_is_removed_by_the_next(tmp_path, monkeypatch):
    """Not what one that runs is writing, nor what a user called nearly so."""
    for name in (".model-jaxdiff-killed", ".model-12345678", ".other-jaxdiff-killed"):
        (tmp_path / name / "new").mkdir(parents=True)
    (tmp_path / ".rows-jaxdiff-1").write_text("half")
    (tmp_path / ".model-jaxdiff-killed" / "old").mkdir()  # what was there before, killed between two renamings
    monkeypatch.setattr(files, "FRESH", -1.0)
    with files.replaced(tmp_path / "model") as mine:
        assert (tmp_path / "model").is_dir()
        with files.replaced(tmp_path / "model"):
            assert mine.is_dir()
        with files.replaced_file(tmp_path / "rows") as new:
            new.write_text("whole")
    kept = [".model-12345678", ".other-jaxdiff-killed", "model", "rows"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert (tmp_path / "rows").read_text() == "whole"


def test_stdout_on_a_full_disk(run, folder, monkeypatch, capsys):
    with open("/dev/full", "w") as device, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", device)
        ran = run("--version")
    assert (ran.code, "jaxdiff: stdout: No space left on device; free space" in ran.err) == (2, True)


def test_traces_and_models_on_a_full_disk(full, tmp_path):
    """Parts that were written stay; a model's folder is there as a whole or not at all."""
    given = small.MODEL, small.params(), small.PROMPTS, [0, 1, 2, 3], tmp_path / "traces", small.decoder()
    gather = functools.partial(collect, *given, gen_length=small.GEN, batch_size=2)
    gather()  # compiles
    (tmp_path / "traces" / "part-00001.npz").unlink()
    jaxdiff.save(tmp_path / "first", small.MODEL, small.params())
    full(1000)
    with pytest.raises(InputError, match=r"part-00001.npz: cannot be written \(File too large.*; free space there"):
        gather()
    with pytest.raises(InputError, match=r"model: cannot be written \(File too large"):
        jaxdiff.save(tmp_path / "model", small.MODEL, small.params())
    full()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "traces"]
    assert sorted(path.name for path in (tmp_path / "traces").iterdir()) == ["part-00000.npz", "setting.json"]


def test_writers_that_outlive_an_error_leave_nothing(tmp_path):
    """Threads of orbax write on, and make their folder anew, after the error of one of them has been raised."""
    writers = []

    def write_on(folder):
        for _ in range(5):
            time.sleep(0.05)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "data").write_text("late")

    def fail():
        with files.replaced(tmp_path / "model") as new:
            writers.append(threading.Thread(target=write_on, args=(new,)))
            writers[0].start()
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    writers[0].join()
    assert not any(tmp_path.iterdir())


def test_a_log_holds_each_step_once(tmp_path):
    """Killed after step 40 with a checkpoint of step 30, the run does steps 31 to 40 again."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 20, "loss": null}\n{"step": 40}\n{"ste')
    with files.Lines(path) as lines, _Log(lines, 100, 30):
        lines.write({"step": 40, "loss": float("nan")})
    assert path.read_text() == '{"step": 20, "loss": null}\n{"step": 40, "loss": null}\n'
    path.write_text("x\n")
    with pytest.raises(InputError, match=r"log.jsonl: damaged \(.*\); delete it"), files.Lines(path) as lines:
        _Log(lines, 100, 30)


def test_a_fit_without_a_number_is_refused():
    rows, width = 60, 4
    values = np.zeros((rows, width), np.float32)
    seen = np.ones((rows, width), bool)
    place = np.arange(rows)
    traces = Traces(
        values, values, values, seen, seen, np.zeros((rows, width, 0), np.float16), *[place] * 3, values[:, 0]
    )
    with pytest.raises(InputError, match="fit: the validation loss is nan, expected a number"):
        fit_filter(traces, FilterRecipe(steps=1, learning_rate=float("nan")))


def test_a_folder_of_large_files_is_told_apart_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "LARGE", 1000)
    monkeypatch.setattr(parts, "SAMPLES", 4)
    monkeypatch.setattr(parts, "SAMPLE", 10)
    file = tmp_path / "model.safetensors"
    seen = set()
    for at in (None, 0, 1999, 665):
        data = bytearray(2000)
        if at is not None:
            data[at] = 1
        file.write_bytes(data)
        seen.add(parts.digest_of_folder(tmp_path))
    file.write_bytes(bytes(2001))
    assert len(seen | {parts.digest_of_folder(tmp_path)}) == 5
    weights = np.zeros((3, 500), np.float32)
    before = parts.digest_of_tree({"a": weights})
    weights[1, 6] = 1
    assert parts.digest_of_tree({"a": weights}) != before
    assert parts.digest_of_tree({"a": weights.astype(np.float16)}) != before


def test_a_row_says_why_it_ended_and_what_was_filled(checkpoint):
    """An end-of-text that was given cuts nothing; one that was generated does."""
    mask, end = checkpoint.model.config.mask_token_id, checkpoint.tokenizer.eos_id
    a, b, c, d = checkpoint.tokenizer.encode("2 6 + 4")[:4]

    def row_of(canvas, tokens, reason=0):
        request = Request(canvas, "x", 3, is_canvas=True)
        numbers = dict(length=2, nfe=2, cheap=0, work=2.0, reason=reason, near_ties=1, not_finite=0, seconds=0.5)
        column, zeros = np.asarray(tokens, np.int32), np.zeros(len(tokens), np.float32)
        answer = Answer(request=request, tokens=column, commit_step=column, log_prob=zeros, **numbers)
        return requests.line_of(checkpoint, answer, DECODING, JOB)["row"]

    text = checkpoint.tokenizer.fast.decode
    row = row_of([a, end, mask, mask, d, mask], [a, end, b, c, d, c])
    assert row["text"] == text([a, b, c, d, c])
    assert row["reason"] == "full"
    assert row["filled"] == [
        {"start": 2, "end": 4, "token_ids": [b, c], "text": text([b, c])},
        {"start": 5, "end": 6, "token_ids": [c], "text": text([c])},
    ]
    row = row_of([mask, end, mask, mask, d], [a, end, b, end, d], reason=1)
    assert row["text"] == text([a, b])
    assert row["reason"] == "stopped"
    assert [span["text"] for span in row["filled"]] == [text([a]), text([b])]
    assert row_of([a, end, b], [a, end, b])["filled"] == []


BAD = [
    ('{"id": NaN, "prompt_ids": [5]}', r"found NaN, which JSON does not have"),
    ('{"id": {"a": [-Infinity]}, "prompt_ids": [5]}', r"found -Infinity"),
    ('{"id": 1e999, "prompt_ids": [5]}', r"found 1e999, expected a number that float64 holds"),
    ('{"id": 1, "id": 2, "prompt_ids": [5]}', r"found key 'id' twice"),
    ('{"id": {"a": 1, "a": 1}, "prompt_ids": [5]}', r"found key 'a' twice"),
    ('{"id": "\\ud800", "prompt_ids": [5]}', r"id: found '\\ud800', expected text that UTF-8 can hold"),
    ('{"id": {"\\ud800": 1}, "prompt_ids": [5]}', r"id: found '\\ud800'"),
    ('{"id": ' + "[" * 200 + "]" * 200 + ', "prompt_ids": [5]}', r"id: found more than 100 lists or objects"),
    ("[" * 100_000, r"not JSON"),
    ('{"id": ' + "9" * 5000 + ', "prompt_ids": [5]}', r"not JSON \(Exceeds the limit"),
    (
        '{"promt": "x"}',
        r"found key 'promt', expected id, stop_strings, choices and one of prompt, messages, prompt_ids, canvas_ids",
    ),
    ('{"prompt": "x", "temperature": 1}', r"found key 'temperature'"),
    ('{"prompt": "x"', r"not JSON \(.*, at character 15\)"),
    (b'{"prompt": "\xff"}', r"not JSON \(not UTF-8: found byte 0xff at byte 13 of the line\)"),
    ('{"prompt_ids": [5, [6]]}', r"prompt_ids: found \[6\] in place 1, expected a list of whole numbers"),
    ('{"prompt_ids": [5.0]}', r"found 5.0 in place 0"),
    ('{"canvas_ids": [true, 0]}', r"canvas_ids: found true in place 0"),
    ('{"prompt_ids": null}', r"prompt_ids: found NoneType, expected a list of whole numbers"),
    ('{"prompt_ids": "5 6"}', r"prompt_ids: found str"),
    ('{"prompt_ids": [-1]}', r"^token 0: found id -1, expected 0 to 279"),
    ('{"prompt_ids": [5, 0]}', r"^prompt: holds \[MASK\] \(id 0\) in column 1"),
]


@pytest.mark.parametrize(("line", "words"), BAD)
def test_what_is_half_understood_is_refused(line, words, checkpoint):
    data = b'{"id": {"a": [1, "\xc3\xa9"]}, "prompt_ids": [5]}\n' + (line if isinstance(line, bytes) else line.encode())
    fine, bad = requests.read(b"\xef\xbb\xbf" + data, checkpoint, DECODING, JOB)
    assert fine.id == {"a": [1, "é"]}
    assert re.search(words, bad.error), bad.error
    assert "row 0" not in bad.error
    json.loads(files.json_line({"id": bad.id, "error": bad.error}), parse_constant=pytest.fail)


def test_json_that_is_written_is_json():
    line = files.json_line({"a": [1.5, float("nan"), {"b": (float("inf"),)}], "c": "é"})
    assert json.loads(line, parse_constant=pytest.fail) == {"a": [1.5, None, {"b": [None]}], "c": "é"}


def test_special_reaches_the_tokenizer(run, folder, source, monkeypatch):
    asked = []  # a prompt that is too long, so that nothing is compiled
    monkeypatch.setattr(
        Tokenizer, "prompt", lambda self, text, special=False: asked.append((text, special)) or [5] * 99
    )
    options = ("--model", folder, "--gen-length", 8, "--block-length", 8)
    source.write_text('{"prompt": "b"}\n')
    assert run("generate", "a", *options).code == 2
    assert run("generate", "--in", source, "--out", source.with_name("o"), *options, "--special").code == 1
    assert asked == [("a", False), ("b", True)]
