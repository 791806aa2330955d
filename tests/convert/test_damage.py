"""Damaged published folders: one line that names the file, never a hang or another error."""

import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert import convert
from jaxdiff.convert.engine import check, fill, plan_of
from jaxdiff.convert.published import Files
from jaxdiff.models import model_of
from tests.convert import published as hf

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return hf.tensors(hf.llada_shapes())


@pytest.fixture
def source(tensors, tmp_path):
    return hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, tensors, shards=2)


def refusal(source):
    """The one line of a conversion that must fail and leave nothing; loading says the same."""
    with pytest.raises(InputError) as caught:
        convert(source, source.parent / "deep" / "ours")
    with pytest.raises(InputError) as again:
        jaxdiff.load(source)
    assert str(caught.value) == str(again.value)
    assert list(source.parent.iterdir()) == [source]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_index(source, change):
    index = source / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    change(where)
    hf.write_index(source, where)


def edit_config(source, **changes):
    (source / "config.json").write_text(json.dumps(hf.LLADA_CONFIG | changes))


def test_truncated_file(source):
    path = source / SHARD
    path.write_bytes(path.read_bytes()[:-5])
    assert f"{path}: damaged" in refusal(source)


def test_shards_and_their_index_disagree(source):
    (source / SHARD).rename(source / "model-00003-of-00003.safetensors")
    line = refusal(source)
    assert f"{source / SHARD}: found no file, expected the shard that model.safetensors.index.json lists" in line
    assert line.endswith("found model-00003-of-00003.safetensors, which it does not list")


def test_a_shard_that_the_index_leaves_out(source):
    def forget(where):
        for key in [key for key, file in where.items() if file == SHARD]:
            del where[key]

    edit_index(source, forget)
    line = refusal(source)
    assert "misfits" in line
    assert f"model.safetensors.index.json does not list files beside it, which are not read: {SHARD}" in line


def test_an_index_that_points_elsewhere(source):
    edit_index(source, lambda where: where.update({"a.weight": "../../etc/passwd"}))
    assert "found '../../etc/passwd', expected the name of a file beside it" in refusal(source)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(source, text):
    (source / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(source)


def test_wrong_shape_and_dtype_name_file_and_key(tensors, tmp_path):
    wrong = tensors | {
        "model.transformer.blocks.1.ff_out.weight": np.zeros((hf.HIDDEN, hf.WIDTH), np.float32),
        "model.transformer.ln_f.weight": np.zeros(hf.WIDTH, np.int64),
    }
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, wrong)
    line = refusal(source)
    file = source / "model.safetensors"
    assert f"{file} model.transformer.blocks.1.ff_out.weight: found shape [48, 32], expected [32, 48]" in line
    assert f"{file} model.transformer.ln_f.weight: found dtype I64, expected float32, bfloat16" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
            "architectures 'MistralForCausalLM'; expected",
        ),
        ({"architectures": ["GPT9"]}, "architectures 'GPT9'; expected"),
        ({"architectures": []}, "config.json: found family None"),
        ({"architectures": 3}, "config.json: found family None"),
        ({"mask_token_id": None}, "config.json: missing mask_token_id"),
        ({"mask_token_id": "x"}, "config.json mask_token_id: found 'x', expected a token id"),
        ({"weight_tying": True}, "ff_out.weight: found other numbers, expected those of model.transformer.wte.weight"),
        ({"n_layers": 10**9}, "config.json asks for 1000000000 of these"),
        ({"n_layers": 3}, "9 misfits"),
        ({"d_model": "wide"}, "config.json"),
    ],
)
def test_config_that_does_not_fit(source, changes, words):
    edit_config(source, **changes)
    assert words in refusal(source)


def test_the_family_is_asked_before_the_weights(source):
    edit_config(source, architectures=["MistralForCausalLM"])
    (source / SHARD).write_bytes(b"")
    assert f"{source / 'config.json'}: found family None, architectures 'MistralForCausalLM'" in refusal(source)


def test_no_weights(source):
    for path in source.glob("model*"):
        path.unlink()
    assert f"{source}: no weights; expected model.safetensors or pytorch_model.bin" in refusal(source)


class Evil:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


@pytest.mark.parametrize("way", ["zip", "bare"])
def test_a_pickle_that_would_run_code_is_refused(way, source, capfd):
    torch = pytest.importorskip("torch")
    for path in source.glob("model*"):
        path.unlink()
    path = source / "pytorch_model.bin"
    if way == "zip":
        torch.save({"model.transformer.wte.weight": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil()))
    assert f"{path}: refused, for it holds more than tensors or is damaged" in refusal(source)
    assert capfd.readouterr() == ("", "")


def test_a_pickle_that_holds_no_tensors(source):
    torch = pytest.importorskip("torch")
    for path in source.glob("model*"):
        path.unlink()
    torch.save({"step": 3}, source / "pytorch_model.bin")
    assert "found no tensors by name, expected a state dict" in refusal(source)


def test_pickles_without_pytorch(source, monkeypatch):
    for path in source.glob("model*"):
        path.unlink()
    (source / "pytorch_model.bin").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pytorch_model.bin: reading it needs PyTorch; pip install torch" in refusal(source)


@pytest.fixture(scope="module")
def plan(tensors):
    model, shapes = model_of(hf.LLADA_CONFIG, Path("config.json"))
    return plan_of(model, shapes, most=len(tensors))


def reads(folder, plan):
    """All that loading does, without a program: whatever the bytes are, arrays or InputError."""
    try:
        files = Files(folder)
        for leaf, dtype in check(plan, files).items():
            assert fill(plan, files, leaf, dtype).shape == plan.leaves[leaf]
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


NUMBER = st.integers(-(2**65), 2**65) | st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**64 - 1]) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["dtype", "shape", "data_offsets", "extra"])
VALUES = JSON | st.sampled_from(["BF16", "F32", "F64", "F8_E4M3", "BOOL", "I4"]) | st.lists(NUMBER, max_size=3)


@settings(max_examples=500)
@given(data=st.data())
def test_corrupted_headers(data, plan, tmp_path_factory, tensors):
    home = tmp_path_factory.getbasetemp() / "fuzz"
    path = home / "model.safetensors"
    if not home.exists():
        hf.write_folder(home, hf.LLADA_CONFIG, tensors)
        (home / "whole").write_bytes(path.read_bytes())
    whole = (home / "whole").read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header, body = whole[8 : 8 + size], whole[8 + size :]
    way = data.draw(st.sampled_from(["fields", "bytes", "cut", "length", "other"]))
    if way == "fields":
        parsed = json.loads(header)
        for key in data.draw(st.lists(st.sampled_from(sorted(parsed)), min_size=1, max_size=3, unique=True)):
            parsed[key] = data.draw(st.just(parsed[key] | {data.draw(FIELDS): data.draw(VALUES)}) | JSON)
        header = json.dumps(parsed).encode("utf-8", "surrogatepass")
        whole = struct.pack("<Q", len(header)) + header + body
    elif way == "bytes":
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 8))):
            changed[data.draw(st.integers(0, 8 + size - 1))] = data.draw(st.integers(0, 255))
        whole = bytes(changed)
    elif way == "cut":
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif way == "length":
        whole = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + whole[8:]
    else:
        header = json.dumps(data.draw(JSON)).encode("utf-8", "surrogatepass")
        whole = struct.pack("<Q", len(header)) + header + body
    path.write_bytes(whole)
    reads(home, plan)


@settings(max_examples=100)
@given(data=st.data())
def test_corrupted_pickles(data, plan, tmp_path_factory):
    torch = pytest.importorskip("torch")
    home = tmp_path_factory.getbasetemp() / "fuzz-bin"
    path = home / "pytorch_model.bin"
    if not home.exists():
        home.mkdir()
        torch.save({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}, home / "whole")
    with zipfile.ZipFile(home / "whole") as archive:
        parts = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    (name,) = [name for name in parts if name.endswith("data.pkl")]
    for _ in range(data.draw(st.integers(1, 4))):
        parts[name][data.draw(st.integers(0, len(parts[name]) - 1))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(content))
    reads(home, plan)
