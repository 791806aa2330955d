"""Models of the hub on the command line: every command takes them, and says which revision it was."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from jaxdiff import parts
from tests.convert import published as hf
from tests.hub import Repository, commit_of, files_of, serving

SHORT = ("--gen-length", 16, "--block-length", 8)
FIRST, SECOND = commit_of("first"), commit_of("second")


@pytest.fixture
def tiny(hub, folder):
    """The tiny model as org/tiny: main, and v1 before it, which differ in a file that no decode reads."""
    files = files_of(folder)
    hub.repositories["org/tiny"] = Repository(
        {FIRST: files, SECOND: files | {"README.md": b"better"}}, {"v1": FIRST, "main": SECOND}
    )
    return hub


def told(commit):
    return f"org/tiny: revision {commit}\n"


def test_generate_tells_the_revision(tiny, run, folder):
    ran = run("generate", "2 + 3", "--model", "org/tiny", *SHORT, "--json")
    plain = run("generate", "2 + 3", "--model", folder, *SHORT, "--json").json
    assert (ran.code, ran.err) == (0, told(SECOND))
    assert (ran.json["revision"], plain["revision"]) == (SECOND, None)
    assert ran.json["token_ids"] == plain["token_ids"]
    asked = [one.path.partition("?")[0] for one in tiny.sent if one.path.startswith("/api/models/")]
    assert asked == ["/api/models/org/tiny/revision/main", f"/api/models/org/tiny/tree/{SECOND}"]


def test_rows_of_another_revision_are_refused(tiny, run, refused, tmp_path, monkeypatch):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "2 + 3"}\n')
    job = ("generate", "--in", source, "--out", out, *SHORT, "--json", "--model")
    with monkeypatch.context() as patch:
        patch.setattr(parts, "remove", lambda out: None)  # as if it was killed before the output was whole
        assert run(*job, "org/tiny@v1").json["revision"] == FIRST
    ran = run(*job, "org/tiny")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(told(SECOND))
    assert "is of a run with another model; delete" in ran.err.removeprefix(told(SECOND))
    header = json.loads(parts.part_of(out, 0).read_text().splitlines()[0])
    assert header["run"]["model"] == FIRST
    snapshot = Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "snapshots" / FIRST
    (snapshot / "vocab.txt").write_text("of another program")  # into the cache that all share
    ran = run(*job, f"org/tiny@{FIRST}")
    assert (ran.code, ran.json["rows"], ran.json["nfe"]) == (0, 1, json.loads(out.read_text())["nfe"])


def test_an_adapters_commit_is_told_and_written(tiny, run, folder, adapter):
    tiny.repositories["org/lora"] = Repository.of(adapter, "second")
    few = ("--task", "copy", "--n", 1, "--batch-size", 1)
    for command in (("generate", "2 + 3", "--model", folder), ("eval", *few, "--model", folder)):
        tiny.sent.clear()
        ran = run(*command, *SHORT, "--adapter", "org/lora", "--json")
        assert (ran.code, ran.json["adapter"]) == (0, f"org/lora@{SECOND}")
        assert ran.err.startswith(f"org/lora: revision {SECOND}\n")
        assert [one.path for one in tiny.sent if "/revision/" in one.path] == ["/api/models/org/lora/revision/main"]
    ran = run("inspect", folder, "--adapter", "org/lora@main")
    assert (ran.code, ran.err) == (0, f"org/lora: revision {SECOND}\n")


def test_eval_and_bench_tell_the_revision(tiny, run, parity, ids_folder):
    few = ("--n", 3, "--batch-size", 2, "--policy", "threshold:tau=0.9")
    ran = run("eval", "--task", "parity", "--model", "org/tiny@v1", *SHORT, *few, "--json")
    assert (ran.code, ran.json["model"], ran.json["revision"], ran.err) == (0, "org/tiny@v1", FIRST, told(FIRST))
    tiny.repositories["org/ids"] = Repository.of(ids_folder)
    ran = run("bench", "--compile-only", "--model", "org/ids", *SHORT, "--json")
    assert (ran.code, ran.json["setting"]["revision"]) == (0, FIRST)


def test_convert_inspect_and_export(hub, run, refused, tmp_path):
    arrays = hf.tensors(hf.llada_shapes())
    hub.repositories["org/tiny"] = Repository.of(hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, arrays, shards=2))
    ran = run("inspect", "org/tiny", "--json")
    assert (ran.json["revision"], ran.json["family"], ran.err) == (FIRST, "llada", told(FIRST))
    ran = run("convert", "org/tiny", tmp_path / "ours")
    assert (ran.code, ran.out, ran.err) == (0, f"{tmp_path / 'ours'}\n", told(FIRST))
    hub.repositories["org/ours"] = Repository.of(tmp_path / "ours", "second")
    assert run("export", "org/ours", tmp_path / "back").code == 0
    found = hf.read_folder(tmp_path / "back")
    assert {key: array.tobytes() for key, array in found.items()} == {key: a.tobytes() for key, a in arrays.items()}
    sent = len(hub.sent)
    assert "ours: exists; name a new folder" in refused("convert", "org/none", tmp_path / "ours")
    assert len(hub.sent) == sent  # nothing is fetched for what cannot be written
    assert "neither a folder 'org/none' nor a repository" in refused("generate", "x", "--model", "org/none")
    assert "tau: found 2.0" in refused("generate", "x", "--model", "org/none", "--policy", "threshold:tau=2")


def test_a_filter_is_not_put_into_the_cache(tiny, run, tmp_path):
    ran = run("fit", "--traces", tmp_path, "--name", "mine", "--model", "org/tiny")
    assert (ran.code, ran.out) == (2, "")
    assert "model: org/tiny lies in the hub's cache, which keeps nothing of yours" in ran.err


def test_the_hubs_variables_hold_and_an_interrupted_program_leaves_nothing_half(tmp_path):
    """A process of its own: HF_ENDPOINT and HF_HOME are read when it starts. Ctrl-C comes in the middle of a file."""
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()), shards=2)
    cache, last = tmp_path / "home" / "hub", "model-00002-of-00002.safetensors"
    with serving() as hub:
        hub.repositories["org/tiny"] = Repository.of(source, token="secret")
        hub.stalled[last] = threading.Event()
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "secret",
        }
        command = [sys.executable, "-m", "jaxdiff_command", "convert", "org/tiny", str(tmp_path / "ours")]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as program:
            whole = f"snapshots/{FIRST}/{last.replace('00002-', '00001-')}"
            while not (list(cache.rglob("*.incomplete")) and list(cache.rglob(whole))):
                assert program.poll() is None, program.stderr.read()
                time.sleep(0.01)
            program.send_signal(signal.SIGINT)
            assert (program.wait(), program.stderr.read()) == (130, told(FIRST))
        hub.stalled.pop(last).set()
    assert list(cache.rglob("*.incomplete")) == []
    assert not (tmp_path / "ours").exists()
    held = {Path(path).name for path in (cache / "models--org--tiny" / "snapshots" / FIRST).iterdir()}
    assert held == {"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"}
    assert Path(constants.HF_HUB_CACHE) != cache
