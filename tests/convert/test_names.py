"""Folders whose tensors are all there, under an index or names that are not quite right: they load, and say so."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert import convert, export
from jaxdiff.convert.published import Files
from tests.convert import published as hf

FIRST, SECOND = (f"model-{i:05}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


def fresh(folder, home):
    return shutil.copytree(home, folder)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """A folder of each family in two shards, and its params."""
    there = tmp_path_factory.mktemp("homes")
    return {
        family: hf.write_folder(there / family, hf.CONFIGS[family], hf.tensors(hf.shapes(family)), shards=2)
        for family in ("llada", "dream", "sdar")
    }


@pytest.fixture(scope="module")
def expected(homes):
    return {family: jaxdiff.load(home).params for family, home in homes.items()}


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def edit_index(folder, change):
    where = json.loads((folder / INDEX).read_text())["weight_map"]
    change(where)
    hf.write_index(folder, where)


def copy_to_other(folder, key):
    """The tensor of the first shard, changed, in the second too."""
    both = load_file(folder / FIRST), load_file(folder / SECOND)
    save_file(both[1] | {key: both[0][key] + 1}, folder / SECOND)


def stale(folder):
    save_file({"old.weight": np.zeros(3, np.float32)}, folder / "model-00003-of-00009.safetensors")


INDEXES = {
    "a tensor that no shard holds": (
        lambda f: edit_index(f, lambda where: where.update({"lm_head.bias": FIRST})),
        f"{INDEX} lists tensors that no shard holds: lm_head.bias",
    ),
    "tensors that the index leaves out": (
        lambda f: edit_index(f, lambda where: [where.pop(key) for key in list(where)[:5]]),
        f"{INDEX} does not list tensors that its shards hold: ",
    ),
    "the other shard": (
        lambda f: edit_index(f, lambda where: where.update({"model.transformer.wte.weight": SECOND})),
        f"{INDEX} names another shard for: model.transformer.wte.weight",
    ),
    "a stale copy in the other shard": (lambda f: copy_to_other(f, "model.transformer.wte.weight"), None),
    "a stale file": (stale, f"{INDEX} does not list files beside it, which are not read: model-00003-of-00009.safet"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_is_not_as_its_shards_are(case, homes, expected, tmp_path):
    change, words = INDEXES[case]
    folder = fresh(tmp_path / "hf", homes["llada"])
    change(folder)
    found = jaxdiff.inspect(folder)
    assert words is None or any(line.startswith(words) for line in found.warnings)
    same(jaxdiff.load(folder).params, expected["llada"])


def test_shards_without_an_index(homes, expected, tmp_path):
    folder = fresh(tmp_path / "hf", homes["llada"])
    (folder / INDEX).unlink()
    note = f"no index lists the 2 shards ({FIRST} ...), which are all there"
    assert note in jaxdiff.inspect(folder).warnings
    same(jaxdiff.load(folder).params, expected["llada"])
    copy_to_other(folder, "model.transformer.wte.weight")
    with pytest.raises(InputError, match=r"wte.weight': found in another shard too, and no index names one"):
        jaxdiff.load(folder)
    (folder / SECOND).unlink()
    with pytest.raises(InputError, match=f"no weights; expected model.safetensors .*, found {FIRST}"):
        jaxdiff.load(folder)


def test_two_shards_hold_a_tensor_and_the_index_says_of_neither(homes, tmp_path):
    folder = fresh(tmp_path / "hf", homes["llada"])
    copy_to_other(folder, "model.transformer.wte.weight")
    edit_index(folder, lambda where: where.pop("model.transformer.wte.weight"))
    with pytest.raises(
        InputError, match=r"wte.weight': found in another shard too; model.safetensors.index.json names"
    ):
        jaxdiff.load(folder)


# --- names


def rename(folder, change, family):
    arrays = hf.read_folder(folder)
    shutil.rmtree(folder)
    return hf.write_folder(folder, hf.CONFIGS[family], {change(key): array for key, array in arrays.items()})


NAMES = {
    "module": ("llada", lambda key: f"module.{key}", "module."),
    "model": ("llada", lambda key: f"model.{key}", "model."),
    "peft": ("dream", lambda key: f"base_model.model.{key}", "base_model.model."),
    "both": ("dream", lambda key: f"module._orig_mod.{key}", "module._orig_mod."),
    "compiled": ("sdar", lambda key: f"_orig_mod.{key}", "_orig_mod."),
    "layers": ("sdar", lambda key: key.replace(".self_attn", "._orig_mod.self_attn"), "_orig_mod."),
    "many": ("dream", lambda key: f"module.model.module.{key}", "module.model.module."),
    "none": ("sdar", lambda key: key.removeprefix("model."), "-model."),
}


@pytest.mark.parametrize("case", NAMES)
def test_wrapped_names(case, homes, expected, tmp_path):
    family, change, taken = NAMES[case]
    folder = rename(fresh(tmp_path / "hf", homes[family]), change, family)
    described = jaxdiff.inspect(folder)
    assert described.facts()["tensors"]["prefix"] == taken
    assert any(line.startswith("names of tensors: ") for line in described.warnings)
    same(jaxdiff.load(folder).params, expected[family])


def test_names_that_are_wrapped_otherwise_are_refused_as_they_are(homes, tmp_path):
    folder = rename(
        fresh(tmp_path / "some", homes["dream"]), lambda k: f"module.{k}" if "layers.1" in k else k, "dream"
    )
    with pytest.raises(
        InputError, match=r"module.model.layers.1.input_layernorm.weight: found shape \[32\], expected no"
    ):
        jaxdiff.load(folder)
    folder = rename(fresh(tmp_path / "other", homes["dream"]), lambda k: f"student.{k}", "dream")
    with pytest.raises(InputError, match="found none of the model's 27 tensors, but 'student"):
        jaxdiff.load(folder)
    arrays = hf.tensors(hf.shapes("dream"))
    arrays |= {"module.lm_head.weight": arrays["lm_head.weight"] + 1}  # which of the two is it?
    folder = hf.write_folder(tmp_path / "two", hf.CONFIGS["dream"], arrays)
    with pytest.raises(InputError, match=r"module.lm_head.weight: found shape \[61, 32\], expected no such tensor"):
        jaxdiff.load(folder)


def test_a_wrapped_folder_that_lacks_a_tensor_is_told_of_that_alone(homes, tmp_path):
    folder = fresh(tmp_path / "hf", homes["dream"])
    arrays = hf.read_folder(folder)
    del arrays["model.norm.weight"]
    shutil.rmtree(folder)
    hf.write_folder(folder, hf.CONFIGS["dream"], {f"module.{key}": array for key, array in arrays.items()})
    with pytest.raises(
        InputError, match=r"hf model.norm.weight: found nothing, expected shape \[32\]; names of tensors"
    ):
        jaxdiff.load(folder)


# --- dtypes


def test_dtypes_are_mixed_within_a_leaf(homes, tmp_path):
    """Each tensor is read as it is stored; a leaf of several dtypes is float32, which holds them all."""
    kinds = (ml_dtypes.bfloat16, np.float16, np.float32)
    arrays = {
        key: hf.tensors({key: shape}, i, kinds[i % 3])[key] for i, (key, shape) in enumerate(hf.shapes("dream").items())
    }
    folder = hf.write_folder(tmp_path / "hf", hf.CONFIGS["dream"] | {"torch_dtype": "bfloat16"}, arrays)
    convert(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    back = hf.read_folder(tmp_path / "back")
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key].astype(np.float32), array.astype(np.float32), err_msg=key)
    same(jaxdiff.load(folder).params, jaxdiff.load(tmp_path / "ours", dtype="float32").params)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_file_comes_before_shards_as_in_transformers(suffix, homes, tmp_path):
    """Of a folder whose shards are left over from another model."""
    folder = fresh(tmp_path / "hf", homes["llada"])
    whole = {key: array + 1 for key, array in hf.read_folder(folder).items()}
    if suffix == "safetensors":
        save_file(whole, folder / "model.safetensors")
        kept = INDEX
    else:
        torch = pytest.importorskip("torch")
        state = {key: torch.from_numpy(array.astype(np.float32)) for key, array in whole.items()}
        torch.save(state, folder / "pytorch_model.bin")
        (folder / INDEX).rename(folder / (kept := "pytorch_model.bin.index.json"))
    files = Files(folder)
    assert files.notes == [
        f"{kept} is not read, for {'model' if suffix == 'safetensors' else 'pytorch_model'}.{suffix} is there"
    ]
    assert {key: (files.read(key, slice(None)) == whole[key]).all() for key in files.specs} == dict.fromkeys(
        whole, True
    )
