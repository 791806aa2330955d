"""Models of the hub: what is asked of it, what lies in its cache then, and each way in which it fails as one line."""

import errno
import json
import os
import resource
import shutil
import time
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save, save_file

import jaxdiff
from jaxdiff import InputError
from jaxdiff.drafters import save_drafter
from jaxdiff.hub import Name, origin_of
from tests import drafters
from tests.convert import published as hf
from tests.hub import Repository, commit_of, files_of

READ = {"config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"}
SHARDS = {f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)}
UNREAD = ("README.md", "modeling_llada.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published folder in three shards, and much beside it that is not read."""
    path = tmp_path_factory.mktemp("published") / "hf"
    hf.write_folder(path, hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()), shards=3)
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (path / "tokenizer_config.json").write_text("{}")
    (path / "onnx").mkdir()
    for name in UNREAD:
        (path / name).write_text("raise SystemExit\n" * 9)
    return path


@pytest.fixture
def tiny(hub, folder):
    """That folder at the hub, as org/tiny."""
    hub.repositories["org/tiny"] = Repository.of(folder)
    return hub


@pytest.fixture
def impatient(monkeypatch):
    """huggingface_hub tries again at once."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def bodies(hub):
    return [one.file for one in hub.bodies()]


def snapshot():
    """The folder of org/tiny in the cache."""
    return Path(constants.HF_HUB_CACHE) / "models--org--tiny" / "snapshots" / commit_of("first")


def half(folder):
    """What a folder in the cache must not hold: links that lead nowhere, and files that are not whole."""
    nowhere = [path for path in folder.rglob("*") if path.is_symlink() and not path.exists()]
    return nowhere + list(folder.parents[1].rglob("*.incomplete"))


def test_what_is_read_is_fetched_once_and_nothing_else(tiny, folder, tmp_path, monkeypatch):
    found = jaxdiff.load("org/tiny")
    assert sorted(bodies(tiny)) == sorted(READ | SHARDS)
    assert (found.revision, found.path) == (commit_of("first"), snapshot())
    assert found.model.config.eos_ids == (1, 2)  # as generation_config.json says
    expected = hf.write_folder(tmp_path / "plain", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()))
    jax.tree.map(np.testing.assert_array_equal, found.params, jaxdiff.load(expected).params)
    tiny.sent.clear()
    assert jaxdiff.load("org/tiny").path == found.path
    assert [one.path for one in tiny.sent] == ["/api/models/org/tiny/revision/main"]  # where does main stand?
    tiny.sent.clear()
    assert jaxdiff.load(f"org/tiny@{found.revision}").path == found.path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert jaxdiff.load("org/tiny").path == jaxdiff.load("org/tiny@main").path == found.path
    assert tiny.sent == []
    assert jaxdiff.load(found.path).revision == found.revision  # the folder in the cache says it itself


def test_a_model_of_ours_comes_from_the_hub_with_its_filters_and_judges(hub):
    source = jaxdiff.checkpoint.shipped_folder() / "gsm-1m"
    hub.repositories["org/ours"] = Repository.of(source)
    policy = jaxdiff.learned_policy("org/ours", "official")
    assert not any(file.startswith("params/") for file in bodies(hub))  # a policy needs no weights
    jax.tree.map(np.testing.assert_array_equal, policy, jaxdiff.learned_policy(source, "official"))
    found, expected = jaxdiff.load("org/ours"), jaxdiff.load(source)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.tokenizer.prompt("26 + 48") == expected.tokenizer.prompt("26 + 48")
    read = ("params/", "filters/", "judges/", "config.json", "tokenizer", "chat_template", "demo.json")
    read += ("adapters/revise/adapter_config.json",)  # which adapters there are, and which drafters
    read += ("drafters/adjust/drafter.json", "drafters/head/drafter.json")
    assert sorted(bodies(hub)) == sorted(name for name in files_of(source) if name.startswith(read))


def write_adapter(folder):
    """A LoRA adapter of one matrix, and beside it what is not read."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none", "target_modules": ["blocks.0.q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    module, draw = "base_model.model.model.transformer.blocks.0.q_proj", np.random.default_rng(0).normal
    pair = {"A": draw(size=(2, hf.WIDTH)), "B": draw(size=(hf.WIDTH, 2))}
    save_file(
        {f"{module}.lora_{name}.weight": array.astype(np.float32) for name, array in pair.items()},
        folder / "adapter_model.safetensors",
    )
    for unread in ("optimizer.bin", "adapter_model.bin"):
        (folder / unread).write_bytes(b"of no use")


def test_a_drafter_or_an_adapter_in_a_model_is_fetched_when_it_is_named(hub, folder, tmp_path, monkeypatch):
    source = shutil.copytree(folder, tmp_path / "hf")
    fill = drafters.fill("head", fitted_to="0" * 16)
    for home, name in ((source, "head"), (source, "other"), (source / "adapters" / "mine", "own")):
        if home is not source:
            write_adapter(home)
        save_drafter(home / "drafters" / name, fill)
    write_adapter(source / "adapters" / "other")
    hub.repositories["org/tiny"] = Repository.of(source)

    def fetched(under):
        """The names of files below a folder that were fetched, and of all that it has."""
        got = {name for name in bodies(hub) if name.startswith(under)}
        there = {name for name in files_of(source) if name.startswith(under)}
        return got, there

    found = jaxdiff.drafted_fill("org/tiny", "head")
    jax.tree.map(np.testing.assert_array_equal, found.params, jaxdiff.drafted_fill(source, "head").params)
    assert found.fitted_to == fill.fitted_to
    own, expected = fetched("drafters/head/")
    assert own == expected
    assert fetched("drafters/other/")[0] == {"drafters/other/drafter.json"}
    assert fetched("adapters/")[0] == {f"adapters/{name}/adapter_config.json" for name in ("mine", "other")}
    assert not any(name in SHARDS for name in bodies(hub))  # a fill needs no weights of the model
    with pytest.raises(InputError, match="holds head, other; name one"):
        jaxdiff.drafted_fill("org/tiny", "head", "none")

    loaded = jaxdiff.load("org/tiny", adapter="mine")
    here = jaxdiff.load(source, adapter="mine")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, here.params)
    assert jaxdiff.drafted_fill("org/tiny", "head", "own", adapter="mine").fitted_to == fill.fitted_to
    mine, expected = fetched("adapters/mine/")
    assert mine == expected - {"adapters/mine/optimizer.bin", "adapters/mine/adapter_model.bin"}
    assert fetched("adapters/other/")[0] == {"adapters/other/adapter_config.json"}
    assert len(bodies(hub)) == len(set(bodies(hub)))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert jaxdiff.drafted_fill("org/tiny", "head").fitted_to == fill.fitted_to
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        jaxdiff.drafted_fill("org/tiny", "head", "other")


def test_an_adapter_comes_from_the_hub(tiny, folder, tmp_path):
    write_adapter(tmp_path / "lora")
    tiny.repositories["org/lora"] = Repository.of(tmp_path / "lora")
    found = jaxdiff.load("org/tiny", adapter="org/lora")
    expected = jaxdiff.load(folder, adapter=tmp_path / "lora")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    plain = jaxdiff.load(folder).params["layers"]["q_proj"]["kernel"]
    assert np.abs(found.params["layers"]["q_proj"]["kernel"] - plain).max() > 0.1
    assert sorted(bodies(tiny)) == sorted(READ | SHARDS | {"adapter_config.json", "adapter_model.safetensors"})
    tiny.sent.clear()
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        jaxdiff.load("org/none", adapter="org/tiny")
    assert bodies(tiny) == []


def test_a_branch_a_tag_or_a_commit(hub, folder):
    old, new = files_of(folder), files_of(folder)
    new["generation_config.json"] = b'{"eos_token_id": 7}'
    first, second = commit_of("first"), commit_of("second")
    branches = {"main": second, "v1": first, "refs/pr/4": first}
    hub.repositories["org/tiny"] = Repository({first: old, second: new}, branches)
    for name, revision, expected in (
        ("org/tiny", None, second),
        ("org/tiny@v1", None, first),
        ("org/tiny", "v1", first),
        ("org/tiny@refs/pr/4", None, first),
        (f"org/tiny@{first}", first, first),
    ):
        found = jaxdiff.load(name, revision=revision)
        assert origin_of(found.path) == Name("org/tiny", expected)
        assert (7 in found.model.config.eos_ids) == (expected == second)
    assert bodies(hub).count("model-00001-of-00003.safetensors") == 1  # the same in both
    with pytest.raises(InputError, match=r"revision: found 'v2' beside the model 'org/tiny@v1'; leave one"):
        jaxdiff.load("org/tiny@v1", revision="v2")
    with pytest.raises(InputError, match=r"revision: found 'v1', but .* is a folder, which has one alone; leave it"):
        jaxdiff.load(folder, revision="v1")


def test_a_folder_of_that_name_comes_first(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    shutil.copytree(folder, tmp_path / "org" / "tiny")
    found = jaxdiff.load("org/tiny")
    assert (str(found.path), found.revision) == ("org/tiny", None)
    os.unlink(tmp_path / "org" / "tiny" / "config.json")
    with pytest.raises(InputError, match=r"no config.json in 'org/tiny', which holds"):
        jaxdiff.load("org/tiny")
    with pytest.raises(InputError, match=r"no config.json in 'org/none'; name a model folder, a shipped model"):
        jaxdiff.load(Path("org/none"))  # a path is no name
    assert tiny.sent == []


def test_inspect_fetches_headers_and_a_file_when_its_numbers_are_asked_for(tiny, folder):
    described = jaxdiff.inspect("org/tiny")
    found, expected = described.facts(), jaxdiff.inspect(folder).facts()
    places = ("path", "files", "warnings")
    assert {key: value for key, value in found.items() if key not in places} == {
        key: value for key, value in expected.items() if key not in places
    }
    assert (found["path"], found["files"]) == (str(snapshot()), [str(snapshot() / name) for name in sorted(SHARDS)])
    assert {one.status for one in tiny.bodies() if one.file in SHARDS} == {206}  # parts of files
    assert {path.name for path in snapshot().iterdir()} == READ
    tiny.sent.clear()
    assert list(described.unsound()) == []
    assert [(one.file, one.status) for one in tiny.bodies()] == [(name, 200) for name in sorted(SHARDS)]
    tiny.sent.clear()
    jaxdiff.inspect("org/tiny")
    assert bodies(tiny) == []


def test_a_mirror_that_lists_no_trees(tiny, folder, monkeypatch):
    tiny.lists = False
    found = jaxdiff.load("org/tiny")
    assert (found.revision, sorted(bodies(tiny))) == (commit_of("first"), sorted(READ | SHARDS))
    tiny.sent.clear()
    assert jaxdiff.load("org/tiny").path == jaxdiff.inspect(f"org/tiny@{found.revision}").path == found.path
    assert bodies(tiny) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert jaxdiff.load("org/tiny").path == found.path
    tiny.repositories["org/text"] = Repository({found.revision: {"README.md": b"x"}}, {"main": found.revision})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"org/text at the hub holds no model; name a repository"):
        jaxdiff.load("org/text")


@pytest.mark.parametrize("through", ["argument", "variable"])
def test_a_token_opens_what_is_private_or_gated(hub, folder, monkeypatch, through):
    hub.repositories["org/tiny"] = Repository.of(folder, token="secret", gated="secret")
    monkeypatch.setenv("HF_TOKEN", "secret" if through == "variable" else "wrong")
    token = "secret" if through == "argument" else None
    assert jaxdiff.load("org/tiny", token=token).revision == commit_of("first")


# --- what cannot be had


def served(hub, folder, *, without=(), **files):
    """org/tiny with some files left out and some others in it."""
    kept = {name: content for name, content in files_of(folder).items() if not name.startswith(tuple(without) or "-")}
    hub.repositories["org/tiny"] = Repository({commit_of("first"): kept | files}, {"main": commit_of("first")})


REFUSED = {
    "missing": ("org/none", {}, r"found neither a folder 'org/none' nor a repository of that name at http.*HF_TOKEN"),
    "private": ("org/tiny", {"token": "secret"}, r"found neither a folder 'org/tiny' nor a repository"),
    "gated": ("org/tiny", {"gated": "secret"}, r"org/tiny is gated at http.*ask for access at http.*/org/tiny, then"),
    "revision": ("org/tiny@v9", {}, r"org/tiny has no revision 'v9' at http.*; name a branch, a tag or a commit"),
    "odd name": ("org/a--b", {}, r"found 'org/a--b', expected a folder or a hub's org/name"),
    "address": ("https://huggingface.co/org/tiny", {}, r"found the address .*, expected a name; say org/tiny$"),
    "no revision": ("org/tiny@", {}, r"found no revision behind @ in 'org/tiny@', expected a branch"),
    "secret": ("https://me:secret@hub.co/org/tiny", {}, r"the address 'https://hub.co/org/tiny', expected a name"),
    "deep secret": ("https://me:secret@hub.co/a/org/tiny", {}, r"no config.json in 'https://hub.co/a/org/tiny'"),
    "no slash": ("LLaDA-8B", {}, r"no config.json in 'LLaDA-8B'; .* or a repository of the hub as org/name$"),
    "too deep": ("runs/org/tiny", {}, r"no config.json in 'runs/org/tiny'; .* or a repository of the hub as org/name$"),
}


@pytest.mark.parametrize("token", [None, "wrong"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(hub, folder, case, token):
    name, closed, words = REFUSED[case]
    hub.repositories["org/tiny"] = Repository.of(folder, **closed)
    with pytest.raises(InputError, match=words) as caught:
        jaxdiff.load(name, token=token)
    assert str(caught.value).count("\n") == 0
    assert "secret" not in str(caught.value)
    assert bodies(hub) == []


@pytest.mark.parametrize(("name", "words"), [("", "found ''"), ("a" * 5000, "found 'a{80}'.*File name too long")])
def test_what_names_no_place(name, words):
    for given in ("path", "adapter"):
        with pytest.raises(InputError, match=f"^{given.replace('path', 'model')}: {words}"):
            jaxdiff.load(**{given: name})
    with pytest.raises(InputError, match="model: found 5, expected"):
        jaxdiff.checkpoint._check_path("model", 5)  # past the tests' check of types


def test_a_password_in_the_hubs_address_is_not_told(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:s@cret@127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be fetched from http://127.0.0.1:9 |at http://127.0.0.1:9") as caught:
        jaxdiff.load("org/none")
    assert "cret" not in str(caught.value)


def test_a_config_that_is_refused_costs_no_weights(hub, folder):
    for change, words in (
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "config.json: .*GPT2LMHeadModel"),
        ({"expert_capacity": 48}, "config.json: expert_capacity: found 48"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ):
        config = json.dumps(hf.LLADA_CONFIG | change).encode()
        served(hub, folder, **{"config.json": config, "generation_config.json": config})  # no other's blob
        hub.repositories[f"org/{len(hub.repositories)}"] = hub.repositories["org/tiny"]
        with pytest.raises(InputError, match=words):
            jaxdiff.load(list(hub.repositories)[-1])
    assert not SHARDS & set(bodies(hub))
    assert jaxdiff.inspect("org/2", ignore="expert_capacity").config.n_layers == hf.LAYERS


def test_a_repository_that_holds_no_model_or_no_weights(hub, folder):
    served(hub, folder, without=["config", "model"])
    with pytest.raises(InputError, match=r"no config.json in org/tiny at the hub, which holds README.md, .*; name a"):
        jaxdiff.load("org/tiny")
    hub.repositories["org/gguf"] = Repository(
        {commit_of("x"): {"config.json": folder / "config.json", "tiny.gguf": b"GGUF"}}, {"main": commit_of("x")}
    )
    with pytest.raises(
        InputError, match=r"org/gguf at the hub holds no weights .*found config.json, tiny.gguf; expect"
    ):
        jaxdiff.load("org/gguf")
    assert "tiny.gguf" not in bodies(hub)


def test_a_pickle_is_fetched_where_there_are_no_safetensors(hub, folder):
    served(hub, folder, without=["model.safetensors", "model-"])
    for look in (jaxdiff.inspect, jaxdiff.load):
        with pytest.raises(InputError, match=r"pytorch_model.bin: refused, for it holds more than tensors"):
            look("org/tiny")  # it is no pickle, but was looked at
    assert bodies(hub).count("pytorch_model.bin") == 1
    served(hub, folder, without=["model.safetensors", "model-"], **{"config.json": b'{"architectures": ["Bert"]}'})
    hub.repositories["org/bert"] = hub.repositories["org/tiny"]
    with pytest.raises(InputError, match=r"config.json: .*Bert"):
        jaxdiff.inspect("org/bert")
    assert bodies(hub).count("pytorch_model.bin") == 1


def test_one_file_is_fetched_and_not_the_shards_beside_it(hub, folder):
    whole = hf.tensors(hf.llada_shapes())
    served(hub, folder, **{"model.safetensors": save({key: array + 1 for key, array in whole.items()})})
    found = jaxdiff.load("org/tiny")
    assert not SHARDS & set(bodies(hub))
    norm = whole["model.transformer.ln_f.weight"]
    np.testing.assert_array_equal(found.params["ln_f"]["weight"], (norm + 1).astype(np.float32))


def test_an_index_fetches_no_code_and_says_which_shard_lacks(hub, folder):
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    key = next(iter(where))
    index = json.dumps({"weight_map": where | {key: "modeling_llada.py"}}).encode()
    served(hub, folder, **{"model.safetensors.index.json": index})
    with pytest.raises(InputError, match=r"modeling_llada.py: found no file, expected the shard"):
        jaxdiff.load("org/tiny")
    assert not set(UNREAD) & set(bodies(hub))
    served(hub, folder, without=["model-00002"])
    hub.repositories["org/cut"] = hub.repositories["org/tiny"]
    with pytest.raises(InputError, match=r"model-00002-of-00003.safetensors: found no file, expected the shard"):
        jaxdiff.load("org/cut")


@pytest.mark.parametrize("how", ["offline", "no network", "503"])
def test_a_hub_that_is_not_there(tiny, folder, monkeypatch, impatient, how):
    """What the cache holds as a whole is loaded; the rest is one line."""
    tiny.repositories["org/other"] = Repository.of(folder)
    jaxdiff.load("org/tiny")
    os.unlink(snapshot() / "model-00003-of-00003.safetensors")
    jaxdiff.load("org/other")
    match how:
        case "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            words = "HF_HUB_OFFLINE forbids"
        case "503":
            tiny.down = 503
            words = r"answered 503 for org/\w+"
        case "no network":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(tiny.address, "http://127.0.0.1:9")
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            words = r"cannot be fetched from http://127.0.0.1:9 \(ConnectError: .*; check the network"
    assert jaxdiff.load("org/other").revision == commit_of("first")
    for name in ("org/none", "org/tiny"):
        with pytest.raises(InputError, match=words) as caught:
            jaxdiff.load(name)
        assert str(caught.value).count("\n") == 0


def test_an_interrupted_download_goes_on_where_it_was_cut(tiny, folder, impatient, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # 10 MB: what a cut loses at most
    name = "model-00002-of-00003.safetensors"
    size = (folder / name).stat().st_size
    tiny.cuts[name] = [1000, 0, 5000]
    found = jaxdiff.load("org/tiny")
    pieces = [(one.start, one.count) for one in tiny.bodies() if one.file == name]
    assert pieces == [(0, 1000), (1000, 0), (1000, 5000), (6000, size - 6000)]
    assert (found.path / name).read_bytes() == (folder / name).read_bytes()
    assert half(found.path) == []


def test_a_download_that_fails_leaves_whole_files_and_the_next_call_the_rest(tiny, folder, impatient):
    name = "model-00002-of-00003.safetensors"
    tiny.cuts[name] = [1000] + [0] * 9
    with pytest.raises(InputError, match=r"org/tiny@\w{40} cannot be fetched from http.*; check the .* fetched stays$"):
        jaxdiff.load("org/tiny")
    assert half(snapshot()) == []
    assert not (snapshot() / name).exists()
    for unfinished in (jaxdiff.load, jaxdiff.inspect):  # not even when the folder itself is named
        with pytest.raises(InputError, match=f"{name}: found no file, expected the shard"):
            unfinished(snapshot())
    there = {path.name for path in snapshot().iterdir()}
    tiny.cuts.clear()
    tiny.sent.clear()
    assert jaxdiff.load("org/tiny").revision == commit_of("first")
    assert set(bodies(tiny)) == (READ | SHARDS) - there


def test_a_full_disk_is_one_line(tiny, folder, monkeypatch):
    free = huggingface_hub.file_download.shutil.disk_usage("/")._replace(free=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: free)
        with pytest.raises(InputError, match=r"Not enough free disk space .*; free space, or name another .*HF_HOME$"):
            jaxdiff.load("org/tiny")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        with pytest.raises(InputError, match=rf"cannot be written \({os.strerror(errno.EFBIG)}.*HF_HOME$") as caught:
            jaxdiff.load("org/tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).count("\n") == 0
    assert half(snapshot()) == []
    assert jaxdiff.load("org/tiny").revision == commit_of("first")
