"""`jaxdiff inspect`: what is used, ignored, missing; memory over a mesh; folders that cannot be loaded."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff.cli.main import main
from tests.convert import published as hf
from tests.faults.folders import edit


def shown(capsys, *arguments, code=0):
    assert main(["inspect", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def sdar(tmp_path):
    """With a tied head that is stored, buffers, and names that wrap a model."""
    arrays = hf.tensors(hf.shapes("sdar"))
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    frequencies = (10000.0 ** (-np.arange(0, hf.SIZE, 2) / hf.SIZE)).astype(np.float32)
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = frequencies
    config = hf.CONFIGS["sdar"] | {"use_cache": True, "hidden_act": "silu"}
    return hf.write_folder(tmp_path / "hf", config, {f"module.{key}": array for key, array in arrays.items()})


def test_what_is_used_and_ignored(sdar, capsys):
    facts = shown(capsys, sdar)
    tensors, keys = facts["tensors"], facts["keys"]
    assert tensors["used"] == len(hf.shapes("sdar"))
    assert tensors["ignored"] == ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert (tensors["missing"], tensors["unexpected"], tensors["unfit"]) == ([], [], [])
    assert (tensors["prefix"], facts["faults"]) == ("module.", [])
    assert {"hidden_size", "block_size", "architectures"} <= set(keys["used"])
    assert (keys["required"], keys["ignored"], keys["missing"]) == (["hidden_act"], ["use_cache"], [])
    assert keys["default"]["rope_theta"] == 10000.0
    assert facts["stored"] == {"bfloat16": facts["parameters"] + hf.VOCAB * hf.WIDTH, "float32": hf.SIZE // 2}
    assert facts["bytes"] == 2 * facts["stored"]["bfloat16"] + 4 * (hf.SIZE // 2)
    assert main(["inspect", str(sdar)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert f"tensors {tensors['used']} used; 2 ignored: lm_head.weight" in table
    assert "1 ignored: use_cache" in table
    assert "'module.' was taken from all" in table


def test_memory_is_what_the_devices_hold(sdar, capsys):
    """Of devices that are here, it is the bytes of their shards; of others the same count."""
    for mesh, shape in (("1x2", (1, 2)), ("2x4", (2, 4)), ("1x1", None)):
        memory = shown(capsys, sdar, "--mesh", mesh)["memory"]
        laid = None if shape is None else jaxdiff.make_mesh(*shape)
        loaded = jaxdiff.load(sdar, mesh=laid, dtype="bfloat16")
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(loaded.params))
        assert memory["params_per_device"] == held
        columns = loaded.model.config.max_sequence_length
        heads = {"1x1": 2, "1x2": 1, "2x4": 2}[mesh]  # two do not spread over four devices: each has both
        assert memory["kv_per_row"] == 2 * hf.LAYERS * heads * columns * hf.SIZE * 2
    assert shown(capsys, sdar, "--mesh", "64x4")["memory"]["mesh"] == "64x4"  # there are not so many here
    for mesh, words in (("1x3", "a model axis of 3"), ("0x1", "1 or more devices"), ("4", "expected DxM")):
        assert main(["inspect", str(sdar), "--mesh", mesh]) == 2
        assert words in capsys.readouterr().err


def test_a_folder_that_does_not_fit_is_shown(sdar, capsys):
    arrays = load_file(sdar / "model.safetensors")
    del arrays["module.model.norm.weight"]
    arrays["module.model.layers.1.mlp.up_proj.weight"] = arrays["module.model.layers.1.mlp.up_proj.weight"].T.copy()
    save_file(arrays | {"module.extra.weight": np.zeros(3, np.float32)}, sdar / "model.safetensors")
    facts = shown(capsys, sdar, "--weights", code=1)
    assert facts["tensors"]["missing"] == ["model.norm.weight"]
    assert facts["tensors"]["unexpected"] == ["extra.weight"]
    assert facts["tensors"]["unfit"] == ["model.layers.1.mlp.up_proj.weight"]
    assert facts["tensors"]["used"] == len(hf.shapes("sdar")) - 2
    assert facts["unsound"] is None
    (fault,) = facts["faults"]
    with pytest.raises(jaxdiff.InputError) as caught:
        jaxdiff.load(sdar)
    assert fault == str(caught.value)
    assert main(["inspect", str(sdar)]) == 1
    assert "1 missing: model.norm.weight; 1 unexpected: extra.weight" in " ".join(capsys.readouterr().out.split())


def test_a_config_that_is_not_understood_is_shown(sdar, capsys):
    edit(sdar / "config.json", colour="red", hidden_size=None)
    facts = shown(capsys, sdar, code=1)
    assert (facts["keys"]["unknown"], facts["keys"]["missing"]) == (["colour"], ["hidden_size"])
    assert "colour: found 'red'" in facts["faults"][0]
    assert facts["stored"]["float32"] == hf.SIZE // 2
    assert main(["inspect", str(sdar)]) == 1
    assert "1 unknown: colour; 1 missing: hidden_size" in " ".join(capsys.readouterr().out.split())


def test_weights_that_are_packed_or_missing_leave_the_model_to_be_told(sdar, capsys):
    edit(sdar / "config.json", quantization_config={"quant_method": "gptq"})
    facts = shown(capsys, sdar, "--mesh", "1x2", code=1)
    assert "quantised by gptq" in facts["faults"][0]
    assert (facts["family"], facts["layers"], facts["memory"]["mesh"]) == ("sdar", hf.LAYERS, "1x2")
    edit(sdar / "config.json", quantization_config=None)
    (sdar / "model.safetensors").unlink()
    facts = shown(capsys, sdar, code=1)
    assert "no weights; expected model.safetensors" in facts["faults"][0]
    assert facts["parameters"] > 0
    assert main(["inspect", str(sdar)]) == 1
    capsys.readouterr()
    edit(sdar / "config.json", architectures=["GPT9"])
    facts = shown(capsys, sdar, code=1)
    assert "GPT9" in facts["faults"][0]
    assert "family" not in facts
    assert main(["inspect", str(sdar)]) == 1
    (sdar / "config.json").write_text("{")
    assert main(["inspect", str(sdar)]) == 2
    assert "config.json" in capsys.readouterr().err
