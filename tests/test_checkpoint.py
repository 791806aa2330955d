"""Model folders: round trip, and every kind of damage as one line."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.checkpoint import SHIPPED, model_folder, part_homes, shipped_folder, survey
from jaxdiff.parallel.rules import place
from jaxdiff.train.tokenizer import train_tokenizer
from tests import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    jaxdiff.save(str(path), small.MODEL, small.params())
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_round_trip(folder):
    loaded = jaxdiff.load(folder)
    assert loaded.model == small.MODEL  # float32 on CPU, whatever the file says
    assert loaded.tokenizer is None
    kept = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), small.params())
    for left, right in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_model_trained_on_from_another_is_loaded_by_its_name_there_alike(copy):
    """With filters of its own, which come before the other's; a folder elsewhere is no adapter."""
    trained = jax.tree.map(lambda x: x * 1.5, small.params())
    there = copy / "adapters" / "parallel"
    jaxdiff.save(there, small.MODEL, trained)
    loaded = jaxdiff.load(copy, adapter="parallel", dtype="bfloat16")
    assert (loaded.adapter, loaded.path) == (there, there)
    for found, expected in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
    assert jaxdiff.inspect(copy, adapter="parallel").path == there
    assert not survey(copy, adapter="parallel").get("faults")
    assert part_homes(copy, "filters", adapter="parallel") == [there / "filters", copy / "filters"]
    with pytest.raises(InputError, match=r"^beside: found adapter parallel, which is a whole model"):
        jaxdiff.load(copy, adapter="parallel", beside=True)
    with pytest.raises(InputError, match="adapters holds parallel; name one"):
        jaxdiff.load(copy, adapter="other")
    with pytest.raises(InputError, match=r"no adapter_config.json in .*copy"):
        jaxdiff.load(copy, adapter=str(copy))


def test_each_device_reads_its_own_part(folder):
    mesh = jaxdiff.make_mesh(2, 4)
    wanted = place(small.CONFIG, jaxdiff.load(folder).params, mesh)
    found = jaxdiff.load(folder, mesh=mesh).params
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert left.sharding == right.sharding
        np.testing.assert_array_equal(left, right)
    assert found["wte"].addressable_shards[0].data.shape == (128, 32)  # of 61 ids, padded to 4 x 128


def test_another_models_arrays_are_not_cut_or_padded_to_fit_a_mesh(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"mlp_hidden_size": 64}))
    with pytest.raises(InputError, match=r"cannot be read .*config.json says \(2, 64, 32\)"):
        jaxdiff.load(copy, mesh=jaxdiff.make_mesh(1, 2))


def test_dtype_overrides(folder):
    loaded = jaxdiff.load(folder, dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    assert loaded.model.config.dtype == "bfloat16"


def test_text_ends_at_the_end_of_a_turn_too(copy, tmp_path):
    train_tokenizer("drills", 50, 270, 0, copy)
    tokenizer = jaxdiff.load(copy).tokenizer
    assert tokenizer.eot_id == small.CONFIG.eot_token_id
    ids = tokenizer.encode("12")
    assert tokenizer.decode([*ids, small.EOT, *ids]) == tokenizer.decode([*ids, tokenizer.eos_id, *ids]) == "12"


def test_saving_replaces_a_folder_as_a_whole(copy):
    (copy / "stale").touch()
    jaxdiff.save(copy, small.MODEL, small.params(1))
    assert not (copy / "stale").exists()
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]  # no scratch folder left


def test_an_unknown_key_is_refused_or_ignored(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"expert_capacity": 48}))
    with pytest.raises(InputError, match=r"config.json: expert_capacity: found 48, .*ignore=\('expert_capacity',\)"):
        jaxdiff.load(copy)
    assert jaxdiff.load(copy, ignore=("expert_capacity",)).model == small.MODEL
    with pytest.raises(InputError, match=r"config.json: ignore: found 'n_layers', which LladaConfig reads"):
        jaxdiff.load(copy, ignore=("expert_capacity", "n_layers"))


def _truncate(path):
    for file in (path / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def _other_shape(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"mlp_hidden_size": 64}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no config.json in"),
        (lambda path: shutil.rmtree(path / "params"), "params: missing"),
        (_truncate, "cannot be read"),
        (_other_shape, "cannot be read"),
        (lambda path: (path / "config.json").write_text("{"), "config.json: damaged"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "tokenizer.json: damaged"),
    ],
    ids=["gone", "no-params", "truncated", "other-shape", "config", "tokenizer"],
)
def test_damage_is_one_clear_line(copy, damage, words):
    damage(copy)
    with pytest.raises(InputError, match=words) as caught:
        jaxdiff.load(copy)
    assert "\n" not in str(caught.value)


def test_the_name_of_a_model_that_ships_is_that_model_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED).mkdir()
    (tmp_path / SHIPPED / "config.json").write_text("{}")
    assert model_folder(SHIPPED) == shipped_folder() / SHIPPED
    for named in (f"./{SHIPPED}", Path(SHIPPED), tmp_path / SHIPPED):
        assert model_folder(named).resolve() == tmp_path / SHIPPED
