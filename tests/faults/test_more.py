"""More inputs as people hold them: siblings of the faults that the other files here have."""

import codecs
import functools
import gzip
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff import InputError
from jaxdiff.checkpoint import shipped_folder
from jaxdiff.cli.main import main
from jaxdiff.cli.show import note
from jaxdiff.convert import convert, export
from jaxdiff.files import check_writable, write_lines
from jaxdiff.filters import load_filter
from jaxdiff.models.llada2 import group_limited
from jaxdiff.models.llada_moe import most_likely
from jaxdiff.models.moe import Router
from jaxdiff.train import Recipe, train
from jaxdiff.train.loop import _check_finite, _manager
from tests.convert import published as hf
from tests.faults.fuzz import base_folder, write

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Small published folders with tokenizers, by family."""
    home = tmp_path_factory.mktemp("bases")
    return {family: base_folder(family, home) for family in ("llada", "dream")}


@pytest.fixture
def source(bases, tmp_path):
    """A copy of one of them, to be changed."""
    return lambda family="llada": shutil.copytree(bases[family], tmp_path / family)


def edit(file, *dropped, **changes):
    found = json.loads(file.read_text()) if file.is_file() else {}
    write(file, {name: value for name, value in found.items() if name not in dropped} | changes)


def refused(call, *arguments):
    """The one line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what ends an answer, and the mask: other files that name them


@pytest.mark.parametrize("named", ["<turn>", {"content": "<turn>", "lstrip": False}])
def test_special_ids_of_special_tokens_map(named, source):
    folder = source()
    edit(folder / "tokenizer_config.json", "eos_token", "mask_token")
    edit(folder / "config.json", "mask_token_id")
    edit(folder / "special_tokens_map.json", eos_token=named, mask_token="<mask>")
    config = jaxdiff.inspect(folder).config
    assert (config.mask_token_id, config.eos_ids) == (3, (1, 2))
    edit(folder / "special_tokens_map.json", eos_token="<mask>")
    assert "special_tokens_map.json eos_token: found 3, which" in refused(jaxdiff.inspect, folder)


def test_an_end_that_is_a_word_of_the_vocabulary(source):
    folder = source()
    edit(folder / "tokenizer_config.json", eos_token="w9")
    assert jaxdiff.inspect(folder).config.eos_ids == (1, 9)


# --- chat templates in a folder of their own


def test_named_templates_stay_with_the_folder(source, tmp_path):
    folder = source()
    edit(folder / "tokenizer_config.json", "chat_template")
    (folder / "chat_template.jinja").write_text("w9 {{ messages[0]['content'] }}")
    named = folder / "additional_chat_templates"
    named.mkdir()
    (named / "rag.jinja").write_bytes(codecs.BOM_UTF8 + b"x")
    assert set(jaxdiff.inspect(folder).tokenizer.fast.chat_template) == {"default", "rag"}
    convert(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    for place in (tmp_path / "ours", tmp_path / "back"):
        tokenizer = jaxdiff.inspect(place).tokenizer
        assert set(tokenizer.fast.chat_template) == {"default", "rag"}
        assert tokenizer.prompt("w5") == [9, 5]
    (named / "rag.jinja").write_bytes(b"\xff")
    assert "rag.jinja: damaged" in refused(jaxdiff.inspect, folder)


# --- weights


def test_buffers_of_rotary_frequencies(source):
    folder = source("dream")
    tensors = load_file(folder / SHARD)
    index = folder / "model.safetensors.index.json"
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(index, weight_map=json.loads(index.read_text())["weight_map"] | {name: SHARD})
    frequencies = (10000.0 ** (-np.arange(0, hf.SIZE, 2) / hf.SIZE)).astype(np.float32)
    save_file(tensors | {name: frequencies}, folder / SHARD)
    described = jaxdiff.inspect(folder)
    assert name not in described.weights.tensors.specs
    assert any("inv_freq" in line for line in described.facts()["warnings"])
    save_file(tensors | {name: frequencies / 2}, folder / SHARD)
    assert "inv_freq: found other rotary frequencies" in refused(jaxdiff.inspect, folder)


@pytest.mark.parametrize("name", [SHARD, "config.json", "generation_config.json", "tokenizer.json"])
def test_a_link_to_nothing(name, source):
    folder = source()
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/gone")
    assert f"{name}: found a link to a file that is not there" in refused(jaxdiff.inspect, folder)


def test_a_file_without_tensors(source):
    folder = source()
    for file in folder.glob("model*"):
        file.unlink()
    save_file({}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "found no tensors in it" in refused(jaxdiff.inspect, folder)


def test_a_folder_that_is_not_there(tmp_path):
    line = refused(convert, tmp_path / "nowhere", tmp_path / "new")
    assert line.startswith("model: found no folder ")
    (tmp_path / "file").touch()
    assert "found no folder" in refused(convert, tmp_path / "file", tmp_path / "new")


def test_a_folder_whose_name_looks_like_a_pattern(source, tmp_path):
    """Orbax leaves arrays out of what it writes to such a path, and says nothing."""
    name = "[new] a\\b*c?"
    convert(source(), tmp_path / name / "ours")
    loaded = jaxdiff.load(tmp_path / name / "ours")
    jaxdiff.save(tmp_path / name / "saved", loaded.model, loaded.params)
    for place in ("ours", "saved"):
        params = jaxdiff.load(tmp_path / name / place).params
        jax.tree.map(np.testing.assert_array_equal, params, loaded.params)
        assert not list(jaxdiff.inspect(tmp_path / name / place).unsound())
    manager = functools.partial(_manager, tmp_path / name / "checkpoints", 1)
    with manager() as written:
        written.save(1, args=ocp.args.StandardSave({"a": {"b.c": np.arange(3)}}), force=True)
    with manager() as read:
        np.testing.assert_array_equal(read.restore(1, args=ocp.args.StandardRestore())["a"]["b.c"], [0, 1, 2])


RULES = {
    "softmax": functools.partial(most_likely, k=2),
    "sigmoid": functools.partial(group_limited, k=2, groups=2, kept=1, factor=2.5),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_router_that_is_no_number_is_told_by_the_scores(rule):
    """Its bias alone chooses: experts would change, and every score stay a number."""
    router, flat = Router(4, RULES[rule], bias=True), jnp.ones((3, 5)).at[2, 0].set(0)
    kernel, bias = jnp.linspace(-1, 1, 20).reshape(5, 4), jnp.zeros(4)

    def unsound(kernel, bias):
        return np.isnan(router.apply({"params": {"kernel": kernel, "bias": bias}}, flat)[0]).all(1).tolist()

    assert unsound(kernel, bias) == [False] * 3
    assert unsound(kernel, bias.at[1].set(-jnp.inf)) == [False] * 3
    assert unsound(kernel, bias.at[1].set(jnp.nan)) == [True] * 3
    assert unsound(kernel, bias.at[1].set(jnp.inf)) == [True] * 3
    assert unsound(kernel.at[0, 0].set(jnp.inf), bias) == [True] * 3


# --- files that are read and written


def test_an_output_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    out, target = tmp_path / "out.jsonl", tmp_path / "there" / "rows.jsonl"
    out.symlink_to("there/rows.jsonl")
    for value in (1, 2):
        check_writable(out)
        write_lines(out, [value])
        assert out.is_symlink()
        assert target.read_text() == f"{value}\n"
    assert [path.name for path in target.parent.iterdir()] == ["rows.jsonl"]
    out.unlink()
    out.symlink_to("nowhere/rows.jsonl")
    assert "nowhere is no folder that can be written to" in refused(check_writable, out)


def test_the_input_is_read_before_the_model(tmp_path, capsys):
    files = ("--in", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    assert main(["generate", "--model", str(tmp_path), *files]) == 2
    assert "no.jsonl: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["0", "1", "-5"])
def test_a_table_is_shown_however_narrow_the_terminal_says_it_is(columns, source, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", str(source())]) == 0
    shown = capsys.readouterr().out
    assert "ends of an answer" in shown
    assert "1 <eos>" in shown


def test_a_stderr_that_takes_no_more(monkeypatch, capsys):
    with open("/dev/full", "w", buffering=1) as device, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", device)
        note("a line that is not told")
        assert main(["inspect", "nowhere"]) == 2
    with open("/dev/full", "w", buffering=1) as device, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", device)
        assert main(["inspect", "nowhere"]) == 2
    assert capsys.readouterr() == ("", "")


TEXT = '{"prompt_ids": [5]}\n'
KINDS = {
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 ": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    "a gzip file": gzip.compress(TEXT.encode()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused_as_a_whole(kind, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_bytes(KINDS[kind])
    assert main(["generate", "--in", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert f"in: found {kind.strip()}, expected lines of JSON in UTF-8" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# --- numbers that are none, in options and in recipes

OPTIONS = [
    (("export", "gsm-1m", "new", "--max-shard-gb", "nan"), "max-shard-gb"),
    (("export", "gsm-1m", "new", "--max-shard-gb", "inf"), "max-shard-gb: found inf"),
    (("fit", "--traces", "nowhere", "--name", "x", "--wrong", "nan"), "wrong"),
    (("fit", "--traces", "nowhere", "--name", "x", "--tau", "nan"), "tau"),
]


@pytest.mark.parametrize(("command", "words"), OPTIONS)
def test_options_that_are_no_numbers(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(command)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(tmp_path.iterdir())


CARDS = [
    {"widths": [-1, 4]},
    {"widths": []},
    {"widths": ["a", 1]},
    {"widths": [174, 128, 2]},
    {"reach": -1},
    {"reach": 10},
    {"reach": "x"},
    {"features": None},
    {"features": 5},
]


@pytest.mark.parametrize("changes", CARDS, ids=str)
def test_a_filters_card_that_contradicts_itself(changes, tmp_path):
    card = tmp_path / "filter.json"
    shutil.copy(shipped_folder() / "gsm-1m" / "filters" / "local" / "filter.json", card)
    edit(card, **changes)
    assert refused(load_filter, tmp_path).startswith(f"{card}: missing or damaged (found ")


RECIPES = {
    "task": ["nope", 3, None, ["drills"]],
    "model": [[], {}, "x", {"vocab_size": "300"}, {"vocab_size": 0}],
    "problems": [{}, {"nope": 5}, {"drills": 0}, {"drills": "x"}, [1]],
    "buckets": [[], [{}], [1], "x", {}],
    "bucket.task": ["nope", "", None],
    "bucket.length": [0, -1, "x", 2.5, True, None],
    "bucket.rows": [0, "2"],
    "bucket.weight": [-1, "1", None],
    "bucket.until": ["x", -1],
    "bucket.nope": [1],
    "steps": ["2", 2.5, 0, None, True],
    "decay": [-1, "x"],
    "learning_rate": ["x", None, -1],
    "clip": [0, "x"],
    "semi_ar": [2, -1, "x"],
    "block_length": [0, "x"],
    "save_every": [0, "x"],
    "tokenizer": [3, {}],
    "init": [3, {}],
    "seed": [-1, 1.5, 2**32],
    "nope": [1],
}


@pytest.mark.parametrize("name", RECIPES)
def test_odd_values_of_a_recipe(name, tmp_path):
    file = tmp_path / "recipe.json"
    for value in RECIPES[name]:
        recipe = json.loads((shipped_folder() / "gsm-1m" / "recipe.json").read_text())
        _, _, inner = name.partition("bucket.")
        (recipe["buckets"][1] if inner else recipe)[inner or name] = value
        write(file, recipe)
        line = refused(Recipe.read, file)
        assert str(file) in line
        assert (inner or name).removesuffix("s") in line


def test_a_run_that_diverged_makes_no_model(tmp_path):
    _check_finite({"a": jnp.ones(3)}, tmp_path)
    assert "smaller learning_rate" in refused(_check_finite, {"a": jnp.ones(3), "b": jnp.full(2, jnp.nan)}, tmp_path)


def test_a_vocabulary_that_does_not_hold_the_tokenizer(tmp_path):
    recipe = json.loads((shipped_folder() / "gsm-1m" / "recipe.json").read_text())
    write(tmp_path / "recipe.json", recipe | {"tokenizer_problems": 5, "model": recipe["model"] | {"vocab_size": 100}})
    line = refused(train, Recipe.read(tmp_path / "recipe.json"), tmp_path / "run")
    assert "model.vocab_size: found 100, expected at least the tokenizer's 260" in line
    assert "recipe.json" not in os.listdir(tmp_path / "run")


def test_the_tokenizer_of_another_model(tmp_path):
    recipe = json.loads((shipped_folder() / "gsm-1m" / "recipe.json").read_text()) | {"tokenizer": "gsm-1m"}
    write(tmp_path / "recipe.json", recipe | {"init": "runs/other"})
    assert "tokenizer: found it beside init" in refused(Recipe.read, tmp_path / "recipe.json")
    write(tmp_path / "recipe.json", recipe | {"model": recipe["model"] | {"vocab_size": 1000}})
    line = refused(train, Recipe.read(tmp_path / "recipe.json"), tmp_path / "run")
    assert "model.vocab_size: found 1000, expected at least the tokenizer's 1024" in line
    write(tmp_path / "recipe.json", recipe | {"tokenizer": str(tmp_path)})
    assert str(tmp_path) in refused(train, Recipe.read(tmp_path / "recipe.json"), tmp_path / "run")
