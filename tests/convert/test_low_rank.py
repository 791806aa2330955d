"""An adapter's folder: written as peft saves one, read back beside the weights or merged; PyTorch's logits."""

import functools
import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert.engine import from_tensors, plan_of
from jaxdiff.convert.lora import Lora
from jaxdiff.convert.low_rank import beside, pairs_of, written_beside
from jaxdiff.models.lora import Adapted, LoraRecipe, adapt, adapters, bare, join, merged, split
from jaxdiff.weights import quantised
from tests import small
from tests.convert import published as hf
from tests.convert.test_adapter import BEFORE, logits_of, program, published, write
from tests.faults.folders import edit
from tests.parity.networks import network
from tests.parity.test_networks import LONG

RECIPE = LoraRecipe(rank=3, alpha=12.0, targets=("q_proj", "attn_out", "ff_out"))


def randomised(params, recipe=RECIPE, seed=0):
    """Params with an adapter of random numbers."""
    generator = np.random.default_rng(seed)
    own, frozen = split(jax.jit(functools.partial(adapt, recipe=recipe))(params, jax.random.key(seed)))
    return join(jax.tree.map(lambda x: generator.normal(0, 0.3, x.shape).astype(np.float32), own), frozen)


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_what_is_written_gives_the_logits_of_pytorch(family, tmp_path):
    """PyTorch takes the files by their own names: each layer's product stands beside its weight."""
    reference = network(family, seed=1)
    folder = hf.write_folder(tmp_path / "hf", reference.config, reference.tensors())
    loaded = jaxdiff.load(folder)
    whole = randomised(loaded.params)
    jaxdiff.save_adapter(tmp_path / "lora", loaded.model, whole, base="org/name")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 12)
    assert config["base_model_name_or_path"] == "org/name"
    found = {}
    for name, array in load_file(tmp_path / "lora" / "adapter_model.safetensors").items():
        module, letter = name.removeprefix(BEFORE).removesuffix(".weight").split(".lora_")
        found.setdefault(module, {})[letter] = array
    pairs = {module: (both["A"], both["B"]) for module, both in found.items()}
    targets = config["target_modules"]
    meant = {m for m in published(reference) if any(m == name or m.endswith(f".{name}") for name in targets)}
    assert (len(pairs), set(pairs)) == (6, meant)
    before = reference.run(LONG)[1]
    expected = logits_of(reference, pairs, lambda module: 12 / 3, {})
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(program(loaded.model)(merged(whole)), expected, atol=1e-4)
    again = jaxdiff.load(folder, adapter=tmp_path / "lora", beside=True)
    same(again.params, whole)
    same(jaxdiff.load(folder, adapter=tmp_path / "lora").params, merged(whole))


def test_a_fused_matrix_and_experts_are_written_and_read():
    """LLaDA2: what is added to each leaf is the same after the way through peft's layout."""
    model, params = from_tensors(hf.CONFIGS["llada2"], hf.tensors(hf.shapes("llada2"), dtype=np.float32))
    whole = randomised(params, LoraRecipe(rank=2, alpha=3.0, targets=("q_proj", "v_proj", "experts/up_proj")))
    plan = plan_of(model, bare(whole))
    pairs = pairs_of(plan, adapters(whole))
    fused = next(pair for key, pair in pairs.items() if "query_key_value" in key)
    assert fused.a.shape[0] == 4  # a block for each of the two leaves
    again = beside(params, plan, pairs, gated=False)
    added = {name: 1.5 * np.asarray(leaf.a) @ np.asarray(leaf.b) for name, leaf in adapters(whole).items()}
    for name, leaf in adapters(again).items():
        factor = np.asarray(leaf.factor).reshape(-1, *[1] * (leaf.a.ndim - 1))
        np.testing.assert_allclose(factor * (leaf.a @ leaf.b), added.get(name, 0.0), atol=1e-5, err_msg=name)


def test_layers_of_their_own_ranks_and_scales_stay_beside(tmp_path):
    """Padded with zeros, they add what is merged."""
    folder = hf.write_folder(tmp_path / "hf", hf.CONFIGS["dream"], hf.tensors(hf.shapes("dream"), dtype=np.float32))
    generator, tensors = np.random.default_rng(0), {}
    for n, rank in enumerate((2, 5)):
        name = f"{BEFORE}model.layers.{n}.self_attn.q_proj.lora_"
        tensors[f"{name}A.weight"] = generator.normal(size=(rank, 32)).astype(np.float32)
        tensors[f"{name}B.weight"] = generator.normal(size=(32, rank)).astype(np.float32)
    patterns = {"rank_pattern": {r"layers\.1\..*": 5}, "alpha_pattern": {r"layers\.1\..*": -1}}
    adapter = write(tmp_path / "lora", tensors, target_modules=["q_proj"], use_rslora=True, **patterns)
    kept = jaxdiff.load(folder, adapter=adapter, beside=True, weights="int8")
    (leaf,) = adapters(kept.params).values()
    assert hasattr(leaf.base, "qvalue")
    np.testing.assert_allclose(leaf.factor, [6 / math.sqrt(2), 1 / math.sqrt(5)], rtol=1e-6)
    plain = jaxdiff.load(folder).params
    same(bare(kept.params), quantised(plain))
    full = dict(plain, layers=plain["layers"] | {"q_proj": plain["layers"]["q_proj"] | {}})
    full["layers"]["q_proj"]["kernel"] = Adapted(plain["layers"]["q_proj"]["kernel"], leaf.a, leaf.b, leaf.factor)
    expected = jaxdiff.load(folder, adapter=adapter).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), merged(full), expected)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of ours, and a gated adapter in it by its name."""
    there = tmp_path_factory.mktemp("gated") / "tiny"
    jaxdiff.save(there, small.MODEL, small.params())
    whole = randomised(jaxdiff.load(there).params, LoraRecipe(rank=2, gated=True))
    jaxdiff.save_adapter(there / "adapters" / "parallel", small.MODEL, whole)
    return there, whole


def test_a_gated_adapter_is_found_by_its_name_and_kept_beside(home, tmp_path):
    folder, whole = home
    loaded = jaxdiff.load(folder, adapter="parallel", check=True)
    assert loaded.adapter == folder / "adapters" / "parallel"
    same(loaded.params, whole)
    assert jaxdiff.inspect(folder, adapter="parallel").facts()["adapter"]["gated"] is True
    spread = jaxdiff.load(folder, adapter="parallel", weights="int8", mesh=jaxdiff.make_mesh(1, 2)).params
    assert {leaf.gated for leaf in adapters(spread).values()} == {True}
    for refused in (
        lambda: jaxdiff.convert.export(folder, tmp_path / "out", adapter=loaded.adapter),
        lambda: jaxdiff.convert.convert(folder, tmp_path / "out", adapter=loaded.adapter),
        lambda: jaxdiff.save(tmp_path / "out", small.MODEL, whole),
    ):
        with pytest.raises(InputError, match=r"is gated, on at \[MASK\] alone, and cannot be merged"):
            refused()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^adapter: found 'other', but .*adapters holds parallel; name one, or"):
        jaxdiff.load(folder, adapter="other")
    with pytest.raises(InputError, match=r"^params: found no adapter beside them"):
        jaxdiff.save_adapter(tmp_path / "out", small.MODEL, small.params())


def test_a_gated_adapter_changes_layers_alone_and_is_none_of_pefts(home, tmp_path):
    folder, _ = home
    config = json.loads((folder / "adapters" / "parallel" / "adapter_config.json").read_text())
    assert config["peft_type"] == "GATED_LORA"
    assert Lora.read(folder / "adapters" / "parallel").gated
    head = np.asarray(small.params()["head"]).T.astype(np.float32)
    saved = {f"{BEFORE}model.transformer.ff_out.weight": head}
    adapter = write(tmp_path / "lora", saved, modules_to_save=["transformer.ff_out"], target_modules=[])
    jaxdiff.load(folder, adapter=adapter)
    edit(adapter / "adapter_config.json", peft_type="GATED_LORA")
    words = r"changes model.transformer.ff_out.weight \(one of 1\), expected matrices of the layers alone"
    with pytest.raises(InputError, match=words):
        jaxdiff.load(folder, adapter=adapter)
    edit(adapter / "adapter_config.json", peft_type="LORA")
    with pytest.raises(InputError, match=words):
        jaxdiff.load(folder, adapter=adapter, beside=True)


def test_an_adapter_of_other_weights_is_refused(home, tmp_path):
    """Names and shapes agree. The digest is that of the stored numbers, in whatever layout and dtype they are read."""
    folder, _ = home
    other, published = tmp_path / "other", tmp_path / "published"
    jaxdiff.save(other, small.MODEL, small.params(seed=1))
    jaxdiff.convert.export(folder, published)
    recipe = LoraRecipe(rank=2, targets=("q_proj", "ff_out"))
    saved = {
        "plain": {},
        "bfloat16": dict(dtype="bfloat16"),
        "int8": dict(weights="int8"),
        "told": dict(weights="int8"),
    }
    for name, options in saved.items():
        tensors = jaxdiff.inspect(folder).tensors if name == "told" else None
        mesh = jaxdiff.make_mesh(1, 2) if name == "bfloat16" else None
        whole = randomised(jaxdiff.load(folder, mesh=mesh, **options).params, recipe)
        jaxdiff.save_adapter(tmp_path / name, small.MODEL, whole, base="org/name", tensors=tensors)
    digests = {name: written_beside(tmp_path / name) for name in saved}
    assert digests.pop("int8") is None
    assert len(set(digests.values())) == 1
    assert None not in digests.values()
    words = r"plain: was trained beside other weights \('org/name'\) than those of .*other.params \(digest .*; name the"
    for refuses in (
        lambda: jaxdiff.load(other, adapter=tmp_path / "plain"),
        lambda: jaxdiff.load(other, adapter=tmp_path / "plain", beside=True, weights="int8"),
        lambda: jaxdiff.convert.convert(other, tmp_path / "out", adapter=tmp_path / "plain"),
        lambda: jaxdiff.convert.export(other, tmp_path / "out", adapter=tmp_path / "plain"),
    ):
        with pytest.raises(InputError, match=words):
            refuses()
    assert not (tmp_path / "out").exists()
    jaxdiff.load(other, adapter=tmp_path / "int8")
    for there in (folder, published):
        for options in ({}, dict(dtype="bfloat16"), dict(weights="int8")):
            jaxdiff.load(there, adapter=tmp_path / "told", **options)
