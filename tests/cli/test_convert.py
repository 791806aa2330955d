"""`jaxdiff convert` and `jaxdiff export`: there and back, into a decode; refused or interrupted, they leave nothing."""

import json
import os
import signal
import struct
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxdiff
from tests.convert import published as hf


@pytest.fixture
def source(tmp_path):
    return hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()), shards=2)


@pytest.mark.parametrize("family", hf.CONFIGS)
def test_there_and_back(family, tmp_path, run):
    source = hf.write_folder(tmp_path / "hf", hf.CONFIGS[family], hf.tensors(hf.shapes(family)), shards=2)
    ours, back = tmp_path / "ours", tmp_path / "back"
    ran = run("convert", source, ours)
    assert (ran.code, ran.out, ran.err) == (0, f"{ours}\n", "")
    direct, converted = jaxdiff.load(source), jaxdiff.load(ours)
    assert direct.model == converted.model
    jax.tree.map(np.testing.assert_array_equal, direct.params, converted.params)
    ran = run("export", ours, back, "--max-shard-gb", "0.00001")
    assert (ran.code, ran.out, ran.err) == (0, f"{back}\n", "")
    assert len(list(back.glob("model-*.safetensors"))) > 2
    found, expected = hf.read_folder(back), hf.read_folder(source)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key].view(np.uint16), array.view(np.uint16))


@pytest.mark.parametrize("family", ["dream", "llada2"])
def test_a_published_folder_decodes_as_it_is(family, tmp_path, run):
    source = hf.write_folder(tmp_path / "hf", hf.CONFIGS[family], hf.tensors(hf.shapes(family)))
    (tmp_path / "in.jsonl").write_text('{"prompt_ids": [5, 6, 7]}\n')
    run("convert", source, tmp_path / "ours")
    tokens = []
    for model in (source, tmp_path / "ours"):
        out = tmp_path / f"{model.name}.jsonl"
        shape = ("--gen-length", 32, "--policy", "threshold:tau=0.1")
        assert run("generate", "--model", model, "--in", tmp_path / "in.jsonl", "--out", out, *shape).code == 0
        tokens.append(json.loads(out.read_text())["token_ids"])
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 32


def test_an_unknown_key_is_refused_or_left_out(source, tmp_path, run, refused):
    config = hf.LLADA_CONFIG | {"expert_capacity": 48}
    (source / "config.json").write_text(json.dumps(config))
    words = refused("convert", source, tmp_path / "ours")
    assert f"{source / 'config.json'}: expert_capacity: found 48, expected keys that LladaConfig knows" in words
    assert not (tmp_path / "ours").exists()
    assert run("convert", source, tmp_path / "ours", "--ignore-config", "expert_capacity").code == 0
    assert "expert_capacity" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert run("export", tmp_path / "ours", tmp_path / "back").code == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config  # the authors' own is given back


def test_refusals(source, tmp_path, refused):
    (tmp_path / "there").mkdir()
    assert "there: exists; name a new folder, or remove it" in refused("convert", source, tmp_path / "there")
    assert "model: no config.json in" in refused("convert", tmp_path / "nowhere", tmp_path / "new")
    assert "DST" in refused("convert", source)
    assert "model: no config.json in" in refused("export", tmp_path / "nowhere", tmp_path / "new")
    assert "is published already" in refused("export", source, tmp_path / "new")
    assert "--max-shard-gb" in refused("export", "gsm-1m", tmp_path / "new", "--max-shard-gb", "0")
    shard = source / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    assert f"{shard}: damaged" in refused("convert", source, tmp_path / "deep" / "new")
    assert f"{shard}: damaged" in refused("generate", "x", "--model", source)


def hollow(folder, layers):
    """A published folder of some GB that takes no room on the disk: zeros that were never written."""
    folder.mkdir()
    config = hf.LLADA_CONFIG | {"d_model": 1024, "mlp_hidden_size": 4096, "n_kv_heads": 4, "n_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    end, header = 0, {}
    for key, shape in hf.llada_shapes(layers).items():
        wide = {hf.WIDTH: 1024, hf.KV_HEADS * hf.SIZE: 1024, hf.HIDDEN: 4096, hf.VOCAB: hf.VOCAB}
        shape = [wide[size] for size in shape]
        size = 2 * int(np.prod(shape))
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(kill, tmp_path):
    source, target = hollow(tmp_path / "hf", layers=64), tmp_path / "ours"
    command = [sys.executable, "-m", "jaxdiff.cli.main", "convert", str(source), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".ours-*/new/params*")) and time.monotonic() < until:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(kill)
        process.wait(timeout=20)
        assert process.returncode == (130 if kill == signal.SIGINT else -kill)
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    assert not target.exists()
    if kill == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [source]
