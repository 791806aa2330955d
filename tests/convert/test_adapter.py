"""LoRA adapters as peft saves them, merged as the weights are read: PyTorch's logits, where they stay beside them."""

import functools
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff import InputError, Inputs
from jaxdiff.cli.main import main
from jaxdiff.convert import convert, export
from tests.convert import published as hf
from tests.faults.folders import edit
from tests.parity.networks import network
from tests.parity.test_networks import LONG

BEFORE = "base_model.model."
CONFIG_KEYS = """
    peft_type r lora_alpha target_modules use_rslora rank_pattern alpha_pattern modules_to_save layers_to_transform
    layers_pattern exclude_modules bias use_dora init_lora_weights fan_in_fan_out
"""
ATTENTION = ["q_proj", "k_proj", "v_proj"]


def published(reference):
    """The published names of a network's matrices, each with its module in PyTorch."""
    found = {}
    for name, module in reference.module.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            key = f"{name}.weight"
            for pattern, replacement in reference.rename:
                key = re.sub(pattern, replacement, key)
            found[key.removesuffix(".weight")] = module
    return found


def write(folder, tensors, **config):
    """An adapter's folder."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "use_dora": False, "peft_version": "0.21.2"}
    (folder / "adapter_config.json").write_text(json.dumps(given | config))
    return folder


def pairs(reference, modules, rank=lambda module: 2):
    """Random tensors of an adapter for Linears (and embeddings), by module."""
    generator, there, found = np.random.default_rng(3), published(reference), {}
    for module in modules:
        rows, columns = there[module].weight.shape
        draw = functools.partial(generator.normal, 0, 0.3)
        if isinstance(there[module], torch.nn.Embedding):
            found[module] = draw(size=(rank(module), rows)), draw(size=(columns, rank(module)))
        else:
            found[module] = draw(size=(rank(module), columns)), draw(size=(rows, rank(module)))
    return {module: tuple(x.astype(np.float32) for x in both) for module, both in found.items()}


def named(reference, found):
    """Those tensors as peft names them."""
    there, out = published(reference), {}
    for module, (a, b) in found.items():
        middle, end = ("embedding_", "") if isinstance(there[module], torch.nn.Embedding) else ("", ".weight")
        out |= {f"{BEFORE}{module}.lora_{middle}A{end}": a, f"{BEFORE}{module}.lora_{middle}B{end}": b}
    return out


def logits_of(reference, found, scale, saved):
    """PyTorch's, each layer's product beside its own weight; `saved`: weights that take a module's place."""
    there, hooks = published(reference), []
    for module, weight in saved.items():
        there[module].weight = torch.nn.Parameter(torch.from_numpy(weight))
    for module, pair in found.items():
        a, b = map(torch.from_numpy, pair)
        hooks.append(there[module].register_forward_hook(functools.partial(_add, a, b, scale(module))))
    _, logits = reference.run(LONG)
    for hook in hooks:
        hook.remove()
    return logits


def _add(a, b, by, layer, given, out):
    low = a.T[given[0]] if isinstance(layer, torch.nn.Embedding) else given[0] @ a.T
    return out + by * (low @ b.T)


@functools.cache
def program(model):
    inputs = Inputs.whole(jnp.asarray(LONG, jnp.int32)[None], jnp.array([0]))
    return jax.jit(lambda params: (model.apply(params, inputs)[0] @ model.head(params))[0])


CASES = {
    "a list": ({"target_modules": [*ATTENTION, "up_proj"]}, r"(q|k|v|up)_proj$"),
    "names that only some families have": ({"target_modules": ["q_proj", "o_proj", "gate_proj"]}, None),
    "a pattern": ({"target_modules": r".*\.\d\..*(q_proj|v_proj)"}, r"(q|v)_proj$"),
    "all-linear": ({"target_modules": "all-linear"}, r"\.\d\..*(proj|attn_out|ff_out)$"),
    "rslora": ({"target_modules": ["q_proj"], "use_rslora": True}, r"q_proj$"),
    "one layer": ({"target_modules": ["k_proj", "v_proj"], "layers_to_transform": [1]}, r"\.1\..*(k|v)_proj$"),
    "ranks of their own": (
        {
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 5},
            "alpha_pattern": {r".*\.1\..*q_proj": 1},
        },
        r"(q|k)_proj$",
    ),
    "embedding and head": ({"modules_to_save": True, "target_modules": ["v_proj"]}, r"v_proj$|embed_tokens$|wte$"),
}


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_logits_equal_pytorch(family, tmp_path):
    """Every case in one program: an adapter changes no shape."""
    plain = network(family, seed=1)
    folder = hf.write_folder(tmp_path / "hf", plain.config, plain.tensors())
    convert(folder, tmp_path / "ours")
    model = jaxdiff.load(folder).model
    before = plain.run(LONG)[1]
    heads = {"llada": "model.transformer.ff_out", "dream": "lm_head"}
    for i, (case, (config, pattern)) in enumerate(CASES.items()):
        reference = network(family, seed=1)
        pattern = pattern or {"llada": r"q_proj$", "dream": r"q_proj$|o_proj$|gate_proj$"}[family]
        modules = [module for module in published(reference) if re.search(pattern, module) and module != heads[family]]
        saved = {}
        if config.get("modules_to_save"):
            head, embedding = heads[family], next(module for module in modules if re.search("embed|wte", module))
            weight = published(reference)[head].weight.detach().numpy()
            saved = {head: weight + np.random.default_rng(4).normal(0, 0.1, weight.shape).astype(np.float32)}
            config = config | {"modules_to_save": [head], "target_modules": ["v_proj", embedding]}
        rank = {module: 5 if "rank_pattern" in config and "k_proj" in module else 2 for module in modules}
        alpha = {
            module: 1 if "alpha_pattern" in config and re.search(r"\.1\..*q_proj", module) else 6 for module in modules
        }
        found = pairs(reference, modules, rank.get)
        root = math.sqrt if config.get("use_rslora") else float
        expected = logits_of(reference, found, lambda m, a=alpha, r=rank, root=root: a[m] / root(r[m]), saved)
        assert np.abs(expected - before).max() > 0.1, case
        tensors = named(reference, found) | {f"{BEFORE}{module}.weight": weight for module, weight in saved.items()}
        adapter = write(tmp_path / f"lora{i}", tensors, **config)
        for base in (folder, tmp_path / "ours") if i == 0 else (folder,):
            loaded = jaxdiff.load(base, adapter=adapter)
            assert loaded.adapter == adapter
            logits = program(model)(loaded.params)
            np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=case)


def test_a_fused_matrix_and_experts(tmp_path):
    """LLaDA2: an adapter of the fused matrix is cut as the matrix is; experts have adapters of their own."""
    arrays = hf.tensors(hf.shapes("llada2"), dtype=np.float32)
    folder = hf.write_folder(tmp_path / "hf", hf.CONFIGS["llada2"], arrays)
    generator, added, changed = np.random.default_rng(0), {}, dict(arrays)
    for key in arrays:
        if key.endswith(("query_key_value.weight", "experts.1.up_proj.weight")):
            a, b = generator.normal(size=(3, arrays[key].shape[1])), generator.normal(size=(arrays[key].shape[0], 3))
            module = key.removesuffix(".weight")
            added |= {f"{BEFORE}{module}.lora_{k}.weight": x.astype(np.float32) for k, x in (("A", a), ("B", b))}
            changed[key] = arrays[key] + 2 * (b.astype(np.float32) @ a.astype(np.float32))
    targets = r".*(query_key_value|experts\.1\.up_proj)"
    adapter = write(tmp_path / "lora", added, r=3, target_modules=targets)
    expected = jaxdiff.convert.from_tensors(hf.CONFIGS["llada2"], changed)[1]
    for mesh in (None, jaxdiff.make_mesh(1, 2)):
        found = jaxdiff.load(folder, adapter=adapter, mesh=mesh).params
        for leaf in ("q_proj", "k_proj", "v_proj"):
            close(found["layers"][leaf]["kernel"], expected["layers"][leaf]["kernel"])
            close(found["dense"][leaf]["kernel"], expected["dense"][leaf]["kernel"])
        close(found["layers"]["experts"]["up_proj"], expected["layers"]["experts"]["up_proj"])


def close(left, right):
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in bfloat16 and an adapter of it."""
    there = tmp_path_factory.mktemp("adapted")
    arrays = hf.tensors(hf.shapes("dream"))
    generator, added = np.random.default_rng(0), {}
    for n in range(hf.LAYERS):
        for module, width in (("q_proj", 32), ("v_proj", 16)):
            name = f"{BEFORE}model.layers.{n}.self_attn.{module}.lora_"
            added[f"{name}A.weight"] = generator.normal(size=(2, 32)).astype(np.float32)
            added[f"{name}B.weight"] = generator.normal(size=(width, 2)).astype(np.float32)
    config = {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "Dream-org/Dream-v0-Base-7B"}
    return hf.write_folder(there / "hf", hf.CONFIGS["dream"], arrays), write(there / "lora", added, **config)


def test_convert_and_export_write_the_merged_model(home, tmp_path, capsys):
    folder, adapter = home
    merged = jaxdiff.load(folder, adapter=adapter, dtype="bfloat16").params  # merged in float32, then rounded once
    assert main(["convert", str(folder), str(tmp_path / "one"), "--adapter", str(adapter)]) == 0
    convert(folder, tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "two", adapter=adapter)
    assert main(["export", str(tmp_path / "base"), str(tmp_path / "three"), "--adapter", str(adapter)]) == 0
    capsys.readouterr()
    export(tmp_path / "two", tmp_path / "four")
    for made in ("one", "two", "three", "four"):
        found = jaxdiff.load(tmp_path / made, dtype="bfloat16").params
        jax.tree.map(np.testing.assert_array_equal, found, merged)
    assert (tmp_path / "four" / "config.json").is_file()


def test_inspect_shows_the_adapter_and_check_reads_it(home, tmp_path, capsys):
    folder, adapter = home
    assert main(["inspect", str(folder), "--adapter", str(adapter), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == {"path": str(adapter), "ranks": [2], "matrices": 4, "saved": [], "gated": False}
    broken = shutil.copytree(adapter, tmp_path / "lora")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.nan
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(InputError, match="NaN"):
        jaxdiff.load(folder, adapter=broken, check=True)


def test_pickled_and_named_tensors(home, tmp_path):
    """What older versions save: a pickle, and the adapter's own name in each tensor's."""
    folder, adapter = home
    other = shutil.copytree(adapter, tmp_path / "lora")
    tensors = load_file(other / "adapter_model.safetensors")
    (other / "adapter_model.safetensors").unlink()
    renamed = {key.replace(".weight", ".default.weight"): torch.from_numpy(array) for key, array in tensors.items()}
    torch.save(renamed, other / "adapter_model.bin")
    left, right = (jaxdiff.load(folder, adapter=path).params for path in (adapter, other))
    jax.tree.map(np.testing.assert_array_equal, left, right)


def _tensors(change):
    def edit_tensors(folder):
        found = load_file(folder / "adapter_model.safetensors")
        change(found)
        save_file(found, folder / "adapter_model.safetensors")

    return edit_tensors


def _config(**changes):
    return lambda folder: edit(folder / "adapter_config.json", **changes)


Q = f"{BEFORE}model.layers.0.self_attn.q_proj"
REFUSED = {
    "dora": (_config(use_dora=True), "use_dora: found True, expected False; merge the adapter with peft"),
    "another type": (_config(peft_type="IA3"), "peft_type: found 'IA3', expected 'LORA'"),
    "a switch that is none": (_config(use_rslora="false"), "use_rslora: found 'false', expected true or false"),
    "a whole tensor beside": (
        _tensors(lambda t: t.update({f"{Q}.bias": np.ones(32, np.float32)})),
        "modules_to_save: found 'base_model.model.model.layers.0.self_attn.q_proj.bias' in the adapter, which it does",
    ),
    "biases": (_config(bias="lora_only"), "bias: found 'lora_only', expected 'none'"),
    "an unknown key": (
        _config(use_bdlora={"a": 1}),
        "use_bdlora: found {'a': 1}, expected keys that are known here; merge",
    ),
    "pissa": (
        _config(init_lora_weights="pissa"),
        "init_lora_weights: found 'pissa', expected one that leaves the model's own weights",
    ),
    "another rank": (_config(r=4), "r: found 4 for model.layers.0.self_attn.q_proj, whose tensors are of rank 2"),
    "no number": (_config(lora_alpha="x"), "found r 2 and lora_alpha 'x', expected numbers"),
    "more targets": (
        _config(target_modules=["q_proj", "v_proj", "o_proj"]),
        "target_modules: names model.layers.0.self_attn.o_proj, which has no tensors in the adapter (one of 2)",
    ),
    "fewer targets": (_config(target_modules=["q_proj"]), "does not name model.layers.0.self_attn.v_proj, which has t"),
    "no pattern": (_config(target_modules="(q_proj"), "found '(q_proj', expected a pattern"),
    "no list": (_config(target_modules=7), "target_modules: found 7, expected a list of names"),
    "unsaved": (_config(modules_to_save=["lm_head"]), "modules_to_save: names lm_head, which has no tensors"),
    "half a pair": (
        _tensors(lambda t: t.pop(f"{Q}.lora_B.weight")),
        "q_proj.weight: found lora_A, expected lora_A and lora_B of a matrix",
    ),
    "another model": (
        _tensors(lambda t: t.update({f"{BEFORE}transformer.h.0.attn.lora_A.weight": np.zeros((2, 32), np.float32)})),
        "'base_model.model.transformer.h.0.attn.lora_A.weight': found no such module in the model",
    ),
    "magnitudes": (
        _tensors(lambda t: t.update({f"{Q}.lora_magnitude_vector.weight": np.zeros(32, np.float32)})),
        "lora_magnitude_vector.weight': found no such module in the model",
    ),
    "of a norm": (
        _tensors(
            lambda t: t.update({f"{BEFORE}model.norm.lora_{k}.weight": np.zeros((2, 2), np.float32) for k in "AB"})
        ),
        "model.norm.weight: found lora_A, lora_B, expected lora_A and lora_B of a matrix",
    ),
    "of an embedding as of a Linear": (
        _tensors(
            lambda t: t.update(
                {f"{BEFORE}model.embed_tokens.lora_{k}.weight": np.zeros((2, 2), np.float32) for k in "AB"}
            )
        ),
        "embed_tokens.weight: found lora_A, lora_B, expected lora_embedding_A and lora_embedding_B",
    ),
    "another width": (
        _tensors(lambda t: t.update({f"{Q}.lora_A.weight": np.zeros((2, 31), np.float32)})),
        "q_proj.lora_A.weight: found shape [2, 31] and dtype float32, expected [2, 32]",
    ),
    "two adapters": (
        _tensors(lambda t: t.update({f"{Q}.lora_A.other.weight": np.zeros((2, 32), np.float32)})),
        "q_proj.weight: found two adapters, expected one",
    ),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter: no adapter_config.json in "),
    "no tensors": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "no weights; expected adapter_model.safetensors or adapter_model.bin",
    ),
    "damaged": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 50),
        "adapter_model.safetensors: damaged",
    ),
}


def test_an_adapter_that_does_not_fit_is_refused_in_one_line(home, tmp_path):
    folder, adapter = home
    for i, (case, (change, words)) in enumerate(REFUSED.items()):
        other = shutil.copytree(adapter, tmp_path / str(i))
        change(other)
        with pytest.raises(InputError) as caught:
            jaxdiff.inspect(folder, adapter=other)
        assert words in str(caught.value), case
        assert "\n" not in str(caught.value), case
    with pytest.raises(InputError, match=r"holds a LoRA adapter of Dream-org/Dream-v0-Base-7B .*--adapter"):
        jaxdiff.load(adapter)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from(
        ["", "q_proj", "all-linear", ".*(q|v)_proj", "(", "*", "a\nb", "LORA", "none", "x" * 500, 10**400]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["q_proj", "v_proj", "(", ".*1.*", "a\nb"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from([*CONFIG_KEYS.split(), "colour", "a\nb"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, ODD, min_size=1, max_size=2))
def test_an_odd_config_is_read_or_refused_in_one_line(changes, home, tmp_path_factory):
    folder, adapter = home
    other = tmp_path_factory.getbasetemp() / "odd_adapter"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(adapter, other)
    edit(other / "adapter_config.json", **changes)
    try:
        described = jaxdiff.inspect(folder, adapter=other)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 900  # noqa: PT017
        return
    assert described.adapter.facts()["matrices"] == 4


def test_a_tied_embedding_is_not_adapted(tmp_path):
    folder = hf.write_folder(tmp_path / "hf", hf.CONFIGS["sdar"], hf.tensors(hf.shapes("sdar")))
    name = f"{BEFORE}model.embed_tokens.lora_embedding_"
    tensors = {f"{name}A": np.zeros((2, hf.VOCAB), np.float32), f"{name}B": np.zeros((hf.WIDTH, 2), np.float32)}
    adapter = write(tmp_path / "lora", tensors, target_modules=["embed_tokens"])
    with pytest.raises(InputError, match="the model's embedding and its head at once"):
        jaxdiff.load(folder, adapter=adapter)
