"""`--adapter` wherever weights are read, and where its name goes."""

import dataclasses
import json
import shutil

import jax
import numpy as np

from jaxdiff import parts
from jaxdiff.checkpoint import load
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.requests import Job
from jaxdiff.cli.share import fingerprints
from tests.faults.folders import edit

SHORT = ("--gen-length", 16, "--block-length", 8)


def test_a_prompt_is_answered_by_the_adapted_model(run, folder, adapter, tmp_path):
    asked = ("generate", "26 + 48", "--model", folder, *SHORT, "--json")
    plain, adapted = run(*asked).json, run(*asked, "--adapter", adapter).json
    assert (plain["adapter"], adapted["adapter"]) == (None, str(adapter))
    assert plain["token_ids"] != adapted["token_ids"]
    assert run("convert", folder, tmp_path / "merged", "--adapter", adapter).code == 0
    merged = run("generate", "26 + 48", "--model", tmp_path / "merged", *SHORT, "--json", "--dtype", "float32").json
    assert merged["token_ids"] == adapted["token_ids"]


def test_a_gated_adapter_is_named_in_the_models_folder_and_is_on_at_masks(run, refused, folder, adapter, tmp_path):
    """It answers otherwise than the model, and than the same adapter where that is on everywhere."""
    home = shutil.copytree(folder, tmp_path / "model")
    gated = shutil.copytree(adapter, home / "adapters" / "parallel")
    edit(gated / "adapter_config.json", peft_type="GATED_LORA")
    asked = ("generate", "26 + 48", "--model", home, *SHORT, "--json", "--log-prob")
    answers = [run(*asked, *more).json for more in ((), ("--adapter", adapter), ("--adapter", "parallel"))]
    assert len({tuple(answer["log_prob"]) for answer in answers}) == 3
    assert answers[2]["adapter"] == "parallel"
    assert run("inspect", home, "--adapter", "parallel", "--json").json["adapter"]["gated"] is True
    assert f"'serial', but {home / 'adapters'} holds parallel; name one" in refused(*asked, "--adapter", "serial")
    assert "is gated, on at [MASK] alone" in refused("export", home, tmp_path / "out", "--merge", "parallel")
    compared = ("bench", "--model", home, "--adapter", "parallel", "--policy", "fixed")
    assert "pytorch: found a gated adapter" in refused(*compared)


def test_a_model_trained_on_from_another_answers_and_is_copied_by_its_name(run, folder, adapter, tmp_path):
    home = shutil.copytree(folder, tmp_path / "model")
    assert run("convert", folder, home / "adapters" / "parallel", "--adapter", adapter).code == 0
    asked = ("generate", "26 + 48", "--model", home, "--adapter", "parallel", *SHORT, "--json", "--dtype", "float32")
    answer = run(*asked).json
    assert answer["adapter"] == "parallel"
    assert answer["token_ids"] == run(*asked[:4], *SHORT, "--json", "--adapter", adapter).json["token_ids"]
    assert run("export", home, tmp_path / "out", "--merge", "parallel").code == 0
    expected, found = load(home, adapter="parallel").params, load(tmp_path / "out").params
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_a_part_file_knows_the_adapter(run, refused, ids_folder, adapter, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt_ids": [5, 6, 7]}\n')
    files = ("--in", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    asked = ("generate", "--model", ids_folder, *files, *SHORT, "--adapter", adapter, "--json")
    assert run(*asked).json["adapter"] == str(adapter)
    decoding = Decoding(model="any", gen_length=16, block_length=8, adapter=str(adapter))
    checkpoint, job = load(ids_folder, adapter=adapter), Job(seed=0, slots=8)
    first = fingerprints(b"{}\n", checkpoint, decoding, job)
    other = shutil.copytree(adapter, tmp_path / "lora")
    moved = dataclasses.replace(checkpoint, adapter=other)
    assert fingerprints(b"{}\n", moved, dataclasses.replace(decoding, adapter=str(other)), job) == first
    plain = fingerprints(b"{}\n", load(ids_folder), dataclasses.replace(decoding, adapter=None), job)
    assert parts.differences(plain, first) == "settings (adapter)"
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    assert parts.differences(fingerprints(b"{}\n", moved, decoding, job), first) == "settings (adapter)"


def test_every_command_that_reads_weights_takes_one(refused, ids_folder, adapter, tmp_path, monkeypatch):
    for name in ("_manager", "_tasks"):  # the package, where it is not installed
        monkeypatch.setattr(f"jaxdiff.cli.lm_eval.{name}", lambda *_: None)
    nowhere = ("--adapter", tmp_path / "nowhere")
    for command in (
        ("generate", "x", "--model", ids_folder),
        ("eval", "--model", ids_folder),
        ("collect", "--out", tmp_path / "traces", "--model", ids_folder),
        ("bench", "--compile-only", "--model", ids_folder),
        ("serve", "--port", 0, "--model", ids_folder),
        ("lm-eval", "--tasks", "any", "--model", ids_folder),
        ("inspect", ids_folder),
        ("export", ids_folder, tmp_path / "new"),
        ("convert", ids_folder, tmp_path / "new"),
    ):
        assert "adapter: no adapter_config.json in" in refused(*command, *nowhere)
    assert "--shape" in refused("bench", "--shape", "llada-8b", "--adapter", adapter)
