"""Whole folders: converted, loaded as published, exported to the bit; all or nothing."""

import json
import os
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxdiff
from jaxdiff import InputError
from jaxdiff.convert import convert, export, folder, from_tensors
from jaxdiff.convert.published import Files
from jaxdiff.train.tokenizer import train_tokenizer
from tests.convert import published as hf


def same(left, right):
    assert left.keys() == right.keys()
    for key, array in left.items():
        assert array.dtype == right[key].dtype
        np.testing.assert_array_equal(array.view(np.uint8), right[key].view(np.uint8), err_msg=key)


@pytest.fixture(scope="module")
def tensors():
    return hf.tensors(hf.llada_shapes())


@pytest.fixture(scope="module")
def source(tmp_path_factory, tensors):
    path = hf.write_folder(tmp_path_factory.mktemp("hf") / "llada", hf.LLADA_CONFIG, tensors, shards=3)
    train_tokenizer("drills", 50, 270, 0, path)
    (path / "chat_template.jinja").write_text("ask {{ messages[0]['content'] }}")
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (path / "modeling_llada.py").write_text("raise SystemExit('code of a checkpoint was run')")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_llada.LLaDAModelLM", "AutoTokenizer": "modeling_llada.Tokenizer"}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory, source):
    path = tmp_path_factory.mktemp("ours") / "llada"
    convert(source, path)
    return path


def test_converted_folder_is_the_published_one(ours, source, tensors):
    left, right = jaxdiff.load(ours, dtype="bfloat16"), jaxdiff.load(source, dtype="bfloat16")
    assert left.model == right.model
    _, expected = from_tensors(hf.LLADA_CONFIG, tensors)
    for one in (left, right):
        assert one.tokenizer.prompt("26 + 48") == one.tokenizer.encode("ask 26 + 48")
        assert (one.tokenizer.eos_id, one.tokenizer.eot_id) == (1, 2)
        jax.tree.map(np.testing.assert_array_equal, one.params, expected)


def test_loading_casts_where_a_dtype_is_asked_for(source):
    loaded = jaxdiff.load(source)  # float32 on CPU
    assert loaded.model.config.dtype == "float32"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"float32"}


def test_there_and_back_is_bit_identical(ours, source, tensors, tmp_path):
    export(ours, tmp_path / "back")
    assert [p.name for p in (tmp_path / "back").glob("*.safetensors*")] == ["model.safetensors"]
    same(hf.read_folder(tmp_path / "back"), tensors)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_export_in_shards(ours, tensors, tmp_path):
    told = []
    export(ours, tmp_path / "back", shard_bytes=8000, report=lambda done, total: told.append((done, total)))
    files = sorted((tmp_path / "back").glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 8000 + 2000 for file in files)  # the header comes on top
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    total = sum(array.nbytes for array in tensors.values())
    assert index["metadata"]["total_size"] == total
    assert told[-1] == (total, total)
    assert index["weight_map"].keys() == tensors.keys()
    same(hf.read_folder(tmp_path / "back"), tensors)
    jaxdiff.load(tmp_path / "back")  # the index fits the shards


def test_a_model_that_was_trained_here_can_be_published(tmp_path):
    export(jaxdiff.checkpoint.shipped_folder() / "gsm-1m", tmp_path / "gsm")
    assert json.loads((tmp_path / "gsm" / "config.json").read_text())["architectures"] == ["LLaDAModelLM"]
    left, right = jaxdiff.load("gsm-1m"), jaxdiff.load(tmp_path / "gsm")
    assert left.model == right.model
    assert left.tokenizer.prompt("1 + 1") == right.tokenizer.prompt("1 + 1")
    jax.tree.map(np.testing.assert_array_equal, left.params, right.params)


@pytest.mark.parametrize("family", ["sdar", "llada2", "qwen2"])
def test_a_family_with_names_of_its_own_goes_there_and_back(family, tmp_path):
    tensors = hf.tensors(hf.shapes(family))
    source = hf.write_folder(tmp_path / "hf", hf.CONFIGS[family], tensors)
    convert(source, tmp_path / "ours")
    shutil.rmtree(tmp_path / "ours" / folder.ORIGINAL)  # as if it was trained here: its config is spelt anew
    export(tmp_path / "ours", tmp_path / "back", shard_bytes=30_000)
    same(hf.read_folder(tmp_path / "back"), tensors)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == hf.CONFIGS[family]["architectures"]
    assert config["hidden_size"] == hf.WIDTH
    assert jaxdiff.load(tmp_path / "back").model == jaxdiff.load(source).model == jaxdiff.load(tmp_path / "ours").model


def test_an_autoregressive_model_with_a_mask_is_published_where_it_is_read_as_one():
    """With a mask in its file Qwen's class means a diffusion model; Llama's does not."""
    llama, qwen = (
        jaxdiff.build(hf.CONFIGS[family] | {"mask_token_id": 3, "family": family}) for family in ("llama", "qwen2")
    )
    assert jaxdiff.build(folder.published_config(llama)).config == llama.config
    with pytest.raises(InputError, match=r"export: found an autoregressive model \(qwen2\) with \[MASK\].*\(id 3\)"):
        folder.published_config(qwen)


def test_leaves_keep_their_own_dtypes(tensors, tmp_path):
    mixed = tensors | {k: v.astype(np.float32) for k, v in tensors.items() if "norm" in k}
    convert(hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, mixed), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"  # of most numbers
    export(tmp_path / "ours", tmp_path / "back")
    same(hf.read_folder(tmp_path / "back"), mixed)


def test_a_router_stays_float32(tmp_path):
    """What the published code routes with: rounded to bfloat16 it would choose other experts."""
    tensors = hf.tensors(hf.shapes("llada2"))
    exact = hf.tensors({k: v.shape for k, v in tensors.items() if "mlp.gate" in k}, seed=1, dtype=np.float32)
    source = hf.write_folder(tmp_path / "hf", hf.CONFIGS["llada2"], tensors | exact)
    convert(source, tmp_path / "ours")
    loaded = jaxdiff.load(source)
    jaxdiff.save(tmp_path / "saved", loaded.model, loaded.params)
    for path in (source, tmp_path / "ours", tmp_path / "saved"):
        params = jaxdiff.load(path, dtype="bfloat16").params
        router = params["layers"].pop("router")
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        for n in range(hf.LAYERS):
            name = f"model.layers.{n + 1}.mlp.gate."
            np.testing.assert_array_equal(router["bias"][n], exact[f"{name}expert_bias"])
            np.testing.assert_array_equal(router["kernel"][n], exact[f"{name}weight"].T)


def test_float16_is_kept_and_computed_in_float32(tmp_path):
    tensors = hf.tensors(hf.llada_shapes(), dtype=np.float16)
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG | {"torch_dtype": "float16"}, tensors)
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    same(hf.read_folder(tmp_path / "back"), tensors)
    for path in (source, tmp_path / "ours"):
        loaded = jaxdiff.load(path)
        assert (loaded.model.config.dtype, loaded.params["head"].dtype) == ("float32", np.float32)
        np.testing.assert_array_equal(loaded.params["head"], tensors["model.transformer.ff_out.weight"].T)


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_leaves_go_to_their_sharding(kind, source, ours):
    loaded = jaxdiff.load({"published": source, "ours": ours}[kind], mesh=jaxdiff.make_mesh(2, 2))
    assert loaded.params["layers"]["ff_proj"]["kernel"].sharding.spec == P(None, None, "model")
    assert loaded.params["head"].sharding.spec == P(None, "model")
    alone, vocabulary = jaxdiff.load(ours).params, loaded.model.config.vocab_size
    cut = loaded.params | {"head": loaded.params["head"][:, :vocabulary], "wte": loaded.params["wte"][:vocabulary]}
    jax.tree.map(np.testing.assert_array_equal, cut, alone)


@pytest.mark.parametrize(
    ("error", "expected"), [(KeyboardInterrupt,) * 2, (OSError,) * 2, (OSError(28, os.strerror(28)), InputError)]
)
def test_an_interrupted_conversion_leaves_nothing(error, expected, source, tmp_path, monkeypatch):
    fill, calls = folder.fill, []

    def breaks(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise error
        return fill(*arguments)

    monkeypatch.setattr(folder, "fill", breaks)
    words = r"ours: cannot be written \(No space left on device\)" if expected is InputError else None
    with pytest.raises(expected, match=words):
        convert(source, tmp_path / "ours")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_one_leaf(source, tmp_path, monkeypatch):
    """Each leaf is let go before the next is made: a model may be larger than memory."""
    import weakref

    fill, alive = folder.fill, []

    def watched(*arguments):
        assert not [leaf for leaf in alive if leaf() is not None]
        array = fill(*arguments)
        alive.append(weakref.ref(array))
        return array

    monkeypatch.setattr(folder, "fill", watched)
    convert(source, tmp_path / "ours")
    assert len(alive) == 12


NAMELESS = {"mask_token_id": None, "eos_token_id": None}
IDS = {
    "config alone": ({}, {}, {}, (3, 1, None)),
    "generation": (NAMELESS, {"mask_token_id": 7, "eos_token_id": 8}, {}, (7, 8, None)),
    "a turn's end": ({}, {"eos_token_id": [9, 1]}, {}, (3, 1, 9)),
    "tokenizer": (NAMELESS, {}, {"mask_token": {"content": "<|m|>"}, "eos_token": "<|e|>"}, (20, 21, None)),
    "tokenizer's turn": ({}, {}, {"eos_token": "<|e|>"}, (3, 1, 21)),
    "config comes first": ({}, {"mask_token_id": 9}, {"mask_token": "<|m|>"}, (3, 1, None)),
}


@pytest.mark.parametrize("case", IDS)
def test_special_ids_come_from_the_files(case, tensors, tmp_path):
    changes, generation, tokenizer, expected = IDS[case]
    config = {k: v for k, v in (hf.LLADA_CONFIG | changes).items() if v is not None}
    path = hf.write_folder(tmp_path / "hf", config, tensors)
    (path / "generation_config.json").write_text(json.dumps(generation))
    added = {"20": {"content": "<|m|>"}, "21": {"content": "<|e|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"added_tokens_decoder": added}))
    found = jaxdiff.load(path).model.config
    assert (found.mask_token_id, found.eos_token_id, found.eot_token_id) == expected


def test_qwen_is_a_diffusion_model_where_its_tokenizer_names_a_mask(tmp_path):
    """Open-dCoder keeps Qwen2's class and config.json; Qwen2 itself has no mask."""
    config = hf.CONFIGS["dream"] | {"architectures": ["Qwen2ForCausalLM"], "mask_token_id": None}
    path = hf.write_folder(tmp_path / "hf", config, hf.tensors(hf.shapes("dream")))
    plain = jaxdiff.inspect(path)
    assert (plain.facts()["family"], plain.facts()["ids"]["mask"]) == ("qwen2", None)
    (path / "added_tokens.json").write_text(json.dumps({"<M>": 20}))
    (path / "vocab.json").write_text(json.dumps({"a": 0}))
    (path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<M>"}))
    described = jaxdiff.inspect(path)
    assert described.config.mask_token_id == 20
    assert (described.facts()["family"], described.facts()["shifted"]) == ("qwen_diffusion", True)


def test_torch_files(source, ours, tensors, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "bin"
    path.mkdir()
    shutil.copy(source / "config.json", path)
    state = {k: torch.from_numpy(v.view(np.int16)).view(torch.bfloat16) for k, v in tensors.items()}
    torch.save(state, path / "pytorch_model.bin")
    told = []
    convert(path, tmp_path / "ours", lambda done, total: told.append((done, total)))
    total = sum(array.nbytes for array in tensors.values())
    assert {all_ for _, all_ in told} == {total}
    assert sorted(told) == told
    assert told[-1][0] == total
    export(tmp_path / "ours", tmp_path / "back")
    same(hf.read_folder(tmp_path / "back"), tensors)
    assert tensors["model.transformer.wte.weight"].dtype == ml_dtypes.bfloat16


def test_torch_files_in_shards(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    where = {key: f"pytorch_model-{i % 2 + 1:05}-of-00002.bin" for i, key in enumerate(tensors)}
    for name in set(where.values()):
        part = {k: torch.from_numpy(v.astype(np.float16)) for k, v in tensors.items() if where[k] == name}
        torch.save(part, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    files = Files(tmp_path)
    found = {key: files.read(key, slice(None)) for key in files.specs}
    same(found, {key: array.astype(np.float16) for key, array in tensors.items()})


def test_torch_files_of_parameters_and_of_what_is_no_dense_tensor(tmp_path):
    torch = pytest.importorskip("torch")
    file, weight = tmp_path / "pytorch_model.bin", torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    torch.save({"w": weight}, file)
    np.testing.assert_array_equal(Files(tmp_path).read("w", slice(1, 2)), [[3.0, 4.0, 5.0]])
    for odd, words in ((torch.eye(3).to_sparse(), "layout torch.sparse_coo"), (torch.empty(3, device="meta"), "meta")):
        torch.save({"w": weight, "odd": odd}, file)
        with pytest.raises(InputError, match=f"pytorch_model.bin 'odd': found .*{words}.*expected a dense tensor"):
            Files(tmp_path)


def test_converted_twice_is_refused(ours, source, tmp_path):
    with pytest.raises(InputError, match="is converted already"):
        convert(ours, tmp_path / "x")
    with pytest.raises(InputError, match="is published already"):
        export(source, tmp_path / "x")
