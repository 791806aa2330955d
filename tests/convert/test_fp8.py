"""Weights in float8 with scales: what PyTorch makes of them; and packed ones, which are refused by name."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert import convert, export
from jaxdiff.convert.engine import InMemory
from jaxdiff.convert.fp8 import Dequantised
from tests.convert import published as hf
from tests.faults.folders import edit

torch = pytest.importorskip("torch")
st = pytest.importorskip("safetensors.torch")

FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
BLOCK = 16  # the folder's: its matrices of 32, 48 and 61 rows fill the last block or do not
GIVEN = {
    "block": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [BLOCK, BLOCK],
        "activation_scheme": "dynamic",
    },
    "tensor": {"quant_method": "fp8", "activation_scheme": "static"},
    "channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
    },
}


def quantised(form, weight, generator):
    """A weight [O, I] in float8 with its scale, and what PyTorch multiplies them to."""
    out, width = weight.shape
    w = torch.from_numpy(weight).to(torch.float8_e4m3fn)
    match form:
        case "tensor":
            scale = torch.tensor(generator.uniform(0.1, 2.0), dtype=torch.float32)
            return w, scale, w.to(torch.float32) * scale
        case "channel":
            scale = torch.from_numpy(generator.uniform(0.1, 2.0, (out, 1)).astype(np.float32)).to(torch.bfloat16)
            return w, scale, w.to(torch.float32) * scale.to(torch.float32)
        case _:
            sizes = [-(-out // BLOCK), -(-width // BLOCK)]
            scale = torch.from_numpy(generator.uniform(0.1, 2.0, sizes).astype(np.float32))
            each = scale.repeat_interleave(BLOCK, 0)[:out].repeat_interleave(BLOCK, 1)[:, :width]
            return w, scale, w.to(torch.float32) * each


def folder_of(form, path):
    """LLaDA's folder with its layers' matrices in float8, and the tensors that PyTorch makes of it."""
    generator = np.random.default_rng(0)
    stored, plain = {}, {}
    for key, array in hf.tensors(hf.llada_shapes(), dtype=np.float32).items():
        if array.ndim == 2 and "blocks" in key:
            weight, scale, whole = quantised(form, array, generator)
            stored |= {key: weight, f"{key}_scale{'_inv' if form == 'block' else ''}": scale}
            plain[key] = whole
            if form == "tensor":
                stored[key.replace(".weight", ".input_scale")] = torch.tensor(1.5)
        else:
            stored[key] = plain[key] = torch.from_numpy(array).to(torch.bfloat16)
    path.mkdir(parents=True)
    st.save_file(stored, path / "model.safetensors")
    config = hf.LLADA_CONFIG | {"torch_dtype": "bfloat16", "quantization_config": GIVEN[form]}
    (path / "config.json").write_text(json.dumps(config))
    return path, plain


@pytest.mark.parametrize("form", GIVEN)
def test_float8_is_what_pytorch_makes_of_it(form, tmp_path):
    source, plain = folder_of(form, tmp_path / "hf")
    described = jaxdiff.inspect(source)
    note = "14 tensors are float8_e4m3fn with scales, and multiplied out as they are read"
    assert any(line.startswith(note) for line in described.warnings)
    assert described.config.dtype == "bfloat16"
    config = hf.LLADA_CONFIG
    _, exact = jaxdiff.convert.from_tensors(
        config, {key: each.to(torch.float32).numpy() for key, each in plain.items()}
    )
    jax.tree.map(np.testing.assert_array_equal, jaxdiff.load(source).params, exact)
    convert(source, tmp_path / "ours")  # rounded once
    rounded = {key: each.to(torch.bfloat16).to(torch.float32).numpy() for key, each in plain.items()}
    _, exact = jaxdiff.convert.from_tensors(config, rounded)
    jax.tree.map(np.testing.assert_array_equal, jaxdiff.load(tmp_path / "ours", dtype="float32").params, exact)
    export(tmp_path / "ours", tmp_path / "back")  # nothing of it says float8
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert jaxdiff.load(tmp_path / "back").model == jaxdiff.load(source).model


def test_blocks_of_128_are_read_in_pieces():
    """Rows that begin within a block, of a matrix that fills no whole number of blocks; a config that says nothing."""
    generator = np.random.default_rng(1)
    weight = generator.normal(0, 1, (300, 200)).astype(FLOAT8)
    scale = generator.uniform(0.1, 2.0, (3, 2)).astype(np.float32)
    found = Dequantised(InMemory({"a.weight": weight, "a.weight_scale_inv": scale}), "bfloat16")
    assert {key: spec.dtype for key, spec in found.specs.items()} == {"a.weight": "bfloat16"}
    each = np.repeat(np.repeat(scale, 128, 0)[:300], 128, 1)[:, :200]
    for rows in (slice(None), slice(100, 270), slice(299, 300)):
        np.testing.assert_array_equal(found.read("a.weight", rows), weight[rows].astype(np.float32) * each[rows])


ZEROS, ONES = np.zeros((32, 32), FLOAT8), np.ones((1, 1), np.float32)
ODD = {
    "no scale": ({"a.weight": ZEROS}, "a.weight: found float8_e4m3fn without a scale beside it"),
    "two scales": (
        {"a.weight": ZEROS, "a.weight_scale": ONES, "a.weight_scale_inv": ONES},
        "a.weight_scale_inv: found it beside a.weight_scale, expected one scale for a weight",
    ),
    "no weight": ({"a.weight_scale": ONES}, "a.weight_scale: is a scale, but a.weight is nothing"),
    "int8": ({"a.weight": ZEROS.view(np.int8), "a.weight_scale": ONES}, "a.weight is int8, expected float8_e4m3fn"),
    "groups": (
        {"a.weight": ZEROS, "a.weight_scale": np.ones((32, 2), np.float32)},
        r"found shape \[32, 2\] and dtype fl",
    ),
    "e8m0": ({"a.weight": ZEROS, "a.weight_scale": np.ones((32, 1), np.uint8)}, "and dtype uint8 for weights of"),
    "cube": ({"a.weight": ZEROS[None], "a.weight_scale": ONES}, r"for weights of \[1, 32, 32\], expected one number"),
}


@pytest.mark.parametrize("case", ODD)
def test_float8_of_another_form_is_refused(case):
    arrays, words = ODD[case]
    with pytest.raises(InputError, match=words):
        Dequantised(InMemory(arrays), "bfloat16")


CONFIGS = {
    "bitsandbytes in 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "compressed-tensors (pack-quantized)": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    "compressed-tensors (float-quantized)": {
        **GIVEN["channel"],
        "config_groups": {"g": {"weights": {"type": "float", "num_bits": 4}}},
    },
    "fp8 (e5m2)": {"quant_method": "fp8", "fmt": "e5m2"},
    "mxfp4": {"quant_method": "mxfp4"},
    "MLX": {"group_size": 64, "bits": 4},
}
TENSORS = {
    "GPTQ or AWQ": "qweight",
    "bitsandbytes": "weight.absmax",
    "compressed-tensors": "weight_packed",
    "EETQ": "weight_scales",
    "HQQ": "W_q",
    "AQLM": "codebooks",
    "quanto": "weight._data",
    "MLX": "scales",
}


def test_packed_weights_are_refused_by_name(tmp_path):
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()))
    for method, given in CONFIGS.items():
        edit(source / "config.json", quantization_config=given)
        with pytest.raises(InputError) as caught:
            jaxdiff.load(source)
        assert f"config.json quantization_config: found weights quantised by {method}, expected plain" in str(
            caught.value
        )
        assert "--weights int8" in str(caught.value)
    edit(source / "config.json", quantization_config=None, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(InputError, match=r"config.json quantization: found weights quantised by MLX"):
        jaxdiff.load(source)
    edit(source / "config.json", quantization=None)
    for method, name in TENSORS.items():
        save_file({f"model.transformer.blocks.0.q_proj.{name}": np.zeros(3, np.int8)}, source / "model.safetensors")
        with pytest.raises(InputError, match=f"holds weights quantised by {method} .tensor "):
            jaxdiff.load(source)


def test_a_config_that_says_float8_of_plain_tensors(tmp_path):
    arrays = hf.tensors(hf.llada_shapes())
    config = hf.LLADA_CONFIG | {"quantization_config": GIVEN["block"]}
    source = hf.write_folder(tmp_path / "hf", config, arrays)
    assert any("the tensors are not: they count" in line for line in jaxdiff.inspect(source).warnings)
    _, exact = jaxdiff.convert.from_tensors(hf.LLADA_CONFIG, arrays, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, jaxdiff.load(source).params, exact)
    edit(source / "config.json", quantization_config=GIVEN["block"] | {"weight_block_size": ["x", 0]})
    save_file(arrays | {"x.weight": ZEROS}, source / "model.safetensors")
    with pytest.raises(InputError, match="weight_block_size: found"):
        jaxdiff.load(source)
