"""`jaxdiff eval`: its report, and that the task's verifier is who decides."""

import json
import shutil
import subprocess
from importlib.metadata import version

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff.cli import evaluate as cli
from jaxdiff.cli.record import commit_of
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import Report
from jaxdiff.types import ENDS

SHORT = ("--gen-length", 16, "--block-length", 8)


def test_report(run, refused, parity, folder, tmp_path):
    light = ("--weights", "int8")
    asked = ("eval", "--task", "parity", "--model", folder, *SHORT)
    light = (*light, "--out", tmp_path / "rows.jsonl", "--stop-string", "e", "--stop-string", "\n")
    parts = ("--policy", "threshold:tau=0.1", "--fill", "recap:slices=3", "--cache", "dual")
    ran = run(*asked, "--n", 5, "--batch-size", 4, *parts, *light, "--json")
    got = ran.json
    assert (ran.code, ran.err) == (0, "")
    assert list(got)[:10] == [
        *("accuracy", "accuracy_low", "accuracy_high", "nfe", "cheap", "work", "tpf", "seconds", "compile_seconds", "n")
    ]
    assert (got["accuracy"], got["n"]) == (0.6, 5)
    assert got["accuracy_low"] == pytest.approx(0.2307, abs=1e-4)
    assert got["accuracy_high"] == pytest.approx(0.8824, abs=1e-4)
    assert 1 <= got["nfe"] <= 16
    assert 0 < got["cheap"] < got["nfe"] * 8
    assert 0 < got["work"] <= got["nfe"] + got["cheap"]
    assert got["tpf"] > 0
    assert 0 < got["seconds"] < got["compile_seconds"]
    assert (got["task"], got["split"], got["seed"], got["policy"]) == ("parity", "test", 0, "threshold:tau=0.1")
    assert (got["cache"], got["fill"], got["weights"]) == ("dual", "recap:slices=3", "int8")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == [f"test 0 {i}" for i in range(5)]
    assert [row["correct"] for row in rows] == [True, False, True, False, True]
    for count in ("nfe", "cheap", "work"):
        assert sum(row[count] for row in rows) == pytest.approx(5 * got[count])
    assert got["stop_strings"] == ["e", "\n"]
    assert not any("e" in row["text"] or "\n" in row["text"] for row in rows)
    assert "split: found 'train', expected test or validation" in refused(*asked, "--split", "train")


def test_a_variable_length_reaches_the_decoder(run, parity, folder, checkpoint, monkeypatch):
    seen = []

    def evaluated(checkpoint, task, decoder, **options):
        seen.append(decoder)
        raise jaxdiff.InputError("enough")

    monkeypatch.setattr(cli, "evaluate_task", evaluated)
    options = ("--length", "var", "--end-think", "+", "--end-think-boost", 7, "--constraint", "regex:[0-9]+")
    assert run("eval", "--task", "parity", "--model", folder, *SHORT, *options).code == 2
    (decoder,) = seen
    push = decoder.sampling.end_think
    assert (decoder.length, push.tokens) == ("var", tuple(checkpoint.tokenizer.encode("+")))
    assert (float(push.boost), float(push.power)) == (7.0, 2.0)
    assert set(np.flatnonzero(decoder.constraint.of == ENDS)) == set(checkpoint.tokenizer.eos_ids)


def test_another_threshold_seed_split_and_adapter_compile_nothing(run, parity, folder, adapter):
    asked = ("eval", "--task", "parity", "--model", folder, *SHORT, "--batch-size", 2, "--json")
    first = run(*asked, "--n", 3, "--policy", "threshold:tau=0.9", "--seed", 1).json
    misses = []

    def listen(event, **_):
        if event == "/jax/compilation_cache/cache_misses":
            misses.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        other = ("--policy", "threshold:tau=0.05", "--seed", 2, "--split", "validation", "--adapter", adapter)
        second = run(*asked, "--n", 4, *other).json
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert not misses
    assert (first["adapter"], second["adapter"]) == (None, str(adapter))
    assert second["nfe"] < first["nfe"]


def test_table(run, parity, folder, monkeypatch):
    problems = (Problem("?", "", "1"),) * 4
    counts = np.asarray([4, 4, 4, 4], np.int32)
    report = Report(
        *("parity", "validation", 7, problems, ("",) * 4, np.asarray([True, False, True, True])),
        *(counts, counts * 3, counts / 2, 2 * counts, 0 * counts, 0 * counts, 1.5, 3.25, 0 * counts),
    )
    asked = []
    monkeypatch.setattr("jaxdiff.cli.evaluate.evaluate_task", lambda *a, **k: asked.append((*a[1:], k)) or report)
    ran = run(
        *("eval", "--task", "parity", "--n", 4, "--seed", 7, "--split", "validation", "--model", folder, *SHORT),
        *("--batch-size", 2, "--steps", 4),
    )
    ((name, decoder, options),) = asked
    assert (name, options["n"], options["seed"], options["split"], options["batch_size"]) == (
        *("parity", 4, 7, "validation", 2),
    )
    assert (options["gen_length"], decoder.block_length, int(decoder.policy.steps)) == (16, 8, 2)
    assert ran.code == 0
    passes = "4.0 on average, 12.0 cheap passes; work 2.0"
    for words in ("parity/validation, n 4, seed 7", "75.0%", "30.1% to 95.4%", passes, "2.00 tokens", "3.25"):
        assert words in ran.out
    push = ("--end-think", "+", "--end-think-power", 3)
    got = run("eval", "--task", "parity", "--model", folder, *SHORT, *push, "--json").json
    assert [got["end_think" + name] for name in ("", "_boost", "_power")] == ["+", 100.0, 3.0]


def test_a_puzzle_has_its_own_length_which_is_one_block(run, folder):
    asked = ("eval", "--task", "copy", "--model", folder, "--n", 1, "--json")
    own = run(*asked).json
    assert (own["gen_length"], own["block_length"], own["n"], own["nfe"]) == (16, 16, 1, 16.0)
    blocks = run(*asked, "--block-length", 4, "--policy", "threshold:tau=0").json
    assert (blocks["gen_length"], blocks["block_length"], blocks["nfe"]) == (16, 4, 4.0)


def test_an_evaluation_is_repeated_from_its_json(run, refused, parity, folder, tmp_path):
    """With the same numbers; what differs is named, and what is not the file's evaluation is refused."""
    asked = ("eval", "--task", "parity", "--model", folder, *SHORT, "--batch-size", 2, "--json")
    options = ("--n", 3, "--policy", "threshold:tau=0.9", "--seed", 1)
    first = run(*asked, *options).json
    assert first["verdicts"] == "101"
    assert sum(first["nfe_each"]) == 3 * first["nfe"]
    told = first["run"]["options"]
    assert (told["task"], told["seed"], told["dtype"], told["stop_string"]) == ("parity", 1, "float32", [])
    versions = first["run"]["versions"]
    assert (versions["jax"], versions["tokenizers"]) == (jax.__version__, version("tokenizers"))
    assert "qwix" not in versions
    assert "reasoning-gym" not in versions
    file = tmp_path / "eval.json"

    def again(*beside, **changes):
        file.write_text(json.dumps(first | changes))
        return run("eval", "--from", file, *beside)

    same = again("--batch-size", 2, "--json")
    assert (same.code, same.json["agrees"], same.json["around_differs"]) == (0, True, {})
    assert same.err == f"agrees with {file}: the verdict and the NFE of each of 3 problems\n"
    same = same.json["now"]
    assert (same["nfe_each"], same["run"]["weights"]) == (first["nfe_each"], first["run"]["weights"])

    before = first["run"] | {"versions": versions | {"jax": "0.1"}, "git": "0123-dirty"}
    other = again(verdicts="100", accuracy=1 / 3, run=before)
    assert other.code == 1
    assert "accuracy 0.333333, now 0.666667; nfe " in other.err
    assert "; another verdict of problems 2; near-ties" in other.err
    assert f"jax 0.1, now {jax.__version__}; git 0123-dirty, now {first['run']['git']}" in other.err
    assert again(nfe_each=[1, *first["nfe_each"][1:]]).code == 1

    def changed(name, value):
        return {"run": first["run"] | {name: value}}

    refusals = [
        ({"colour": 1}, "found key 'colour', which is not known"),
        (changed("weights", "0123"), f"model {folder} has other weights"),
        (changed("decoder", "0123"), "decoder: found"),
        (changed("problems", "0123"), "the task gives other problems"),
        (changed("options", told | {"tempo": 1}), "options: found key 'tempo', which is not known"),
        (changed("options", {"task": "parity"}), "options: found no key 'n'"),
        (changed("options", told | {"n": "many"}), "Invalid value for '--n'"),
        (changed("options", told | {"stop_string": ["--x", ""]}), "found '', expected a text of at least one"),
        (changed("options", told | {"policy": "treshold"}), "policy: found 'treshold'"),
        (changed("options", []), "expected an object"),
        ({"verdicts": "1"}, "expected one for each of n problems"),
    ]
    for changes, words in refusals:
        file.write_text(json.dumps(first | changes))
        assert words in refused("eval", "--from", file), words
    file.write_text(json.dumps(first))
    assert "--policy: found it beside --from" in refused("eval", "--from", file, "--policy", "fixed")
    file.write_text(json.dumps({name: value for name, value in first.items() if name != "run"}))
    assert f"{file}: found no key 'run'" in refused("eval", "--from", file)


def test_an_evaluation_of_an_adapter_is_repeated_where_that_lies_elsewhere(
    run, refused, parity, folder, adapter, tmp_path
):
    lora, moved, file = tmp_path / "lora", tmp_path / "moved", tmp_path / "eval.json"
    shutil.copytree(adapter, lora)
    asked = ("eval", "--task", "parity", "--model", folder, *SHORT, "--batch-size", 2, "--n", 3, "--seed", 1)
    file.write_text(run(*asked, "--policy", "threshold:tau=0.9", "--adapter", lora, "--json").out)
    lora.rename(moved)
    assert f"no adapter_config.json in '{lora}'" in refused("eval", "--from", file)
    again = run("eval", "--from", file, "--adapter", moved, "--json")
    assert (again.code, again.json["agrees"], again.json["now"]["adapter"]) == (0, True, str(moved))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    assert "with its adapter (--adapter) and its guide (--guide) if it had one" in refused(
        "eval", "--from", file, "--adapter", moved
    )


def test_the_commit_of_a_source_tree(tmp_path, monkeypatch):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    file = tmp_path / "a.py"
    file.write_text("1")
    assert commit_of(tmp_path) is None
    git("init", "-q")
    assert commit_of(tmp_path) is None  # of no commit yet
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    git("tag", "v1")
    assert commit_of(tmp_path) == commit
    file.write_text("2")
    assert commit_of(tmp_path) == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit_of(tmp_path) is None
