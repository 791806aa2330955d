"""Distillation: the teacher's answers, what is kept of them, runs that go on to the bit wherever they were stopped."""

import contextlib
import dataclasses
import json
import shutil
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.models.lora import adapters
from jaxdiff.train import Distillation, distill
from jaxdiff.train.data import NEVER_WRITTEN, Corpus
from tests import programs

module = sys.modules["jaxdiff.train.distill"]  # the package gives the function under that name
RECIPE = {
    "task": "sort",
    "problems": 7,
    "policy": "threshold:tau=0.2",
    "gen_length": 16,
    "block_length": 8,
    "batch_size": 3,
    "keep": "all",
    "objective": "near_far:near=2",
    "buckets": [{"task": "sort", "length": 40, "rows": 2, "weight": 1.0}],
    "steps": 4,
    "warmup": 1,
    "decay": 1,
    "watch_problems": 2,
    "watch_policy": "threshold:tau=0.2",
    "watch_every": 3,
    "save_every": 10,
}


PACKED = RECIPE["buckets"][0] | {"pack": True}
SHAPES = (
    *("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "max_sequence_length"),
    *("mask_token_id", "eos_token_id"),
)
COUNTS = ("problems", "batch_size", "watch_every", "watch_problems")


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    with programs.shared():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of random weights that soon says end-of-text, with the tokenizer of the one that ships."""
    folder, home = tmp_path_factory.mktemp("tiny") / "model", shipped_folder() / SHIPPED
    shape = json.loads((home / "config.json").read_text())
    model = jaxdiff.build(shape | dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden_size=32))
    params = model.init(jax.random.key(0))
    params["head"] = 4.0 * params["head"].at[:, model.config.eos_token_id].set(1.05 * params["head"][:, 915])
    jaxdiff.save(folder, model, params, tokenizer_from=home)
    return folder


def in_blocks(folder, tiny):
    """A model with the same tokenizer that attends in blocks of 4."""
    config = jaxdiff.load(tiny).model.config
    same = {name: getattr(config, name) for name in SHAPES}
    model = jaxdiff.build(same | {"family": "sdar", "attention_block": 4, "head_dim": 8})
    jaxdiff.save(folder, model, model.init(jax.random.key(0)), tokenizer_from=tiny)
    return folder


@pytest.fixture
def recipe(tiny, tmp_path):
    def made(**changes):
        file = tmp_path / "recipe.json"
        file.write_text(json.dumps(RECIPE | {"model": str(tiny)} | changes))
        return Distillation.read(file)

    return made


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    notes = []
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(RECIPE | {"model": str(tiny)}))
    assert distill(Distillation.read(file), folder, note=notes.append) == folder / "model"
    assert "7 answers of the teacher" in notes[0]
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_the_answers_are_those_of_decode(whole, tiny):
    teacher, problems = jaxdiff.load(tiny), jaxdiff.tasks.task("sort").problems("train", 0)
    decoder = jaxdiff.Decoder(jaxdiff.policies.Threshold(0.2), stop=jaxdiff.stoppers.Eos(), block_length=8)
    lines, ends = lines_of(whole), set()
    assert [line["number"] for line in lines] == list(range(7))
    prompts, origin = jaxdiff.pad_prompts([line["prompt"] for line in lines], fill=1)
    result = jaxdiff.decode(teacher.model, teacher.params, prompts, decoder, gen_length=16, origin=origin)
    for row, (line, problem) in enumerate(zip(lines, problems, strict=False)):
        assert teacher.tokenizer.decode(line["prompt"]) == problem.question
        tokens, steps = np.asarray(result.tokens)[row, -16:], np.asarray(result.commit_step)[row]
        length = int(result.lengths[row])
        ended = tokens[length - 1] == teacher.tokenizer.eos_id
        assert line["ended"] == ended
        assert line["tokens"] == tokens[: length - ended].tolist()
        assert line["order"] == steps[steps >= 0].tolist()
        assert line["nfe"] == int(result.nfe[row])
        ends.add(bool(ended))
    assert True in ends


def test_the_run_logs_what_it_watched_and_writes_a_model(whole, tiny):
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [3, 4]
    assert all({"accuracy", "nfe", "tpf"} <= set(line) for line in log)
    before, after = jaxdiff.load(tiny), jaxdiff.load(whole / "model")
    assert after.model == before.model
    assert after.tokenizer.decode([70]) == before.tokenizer.decode([70])
    changed = [np.any(a != b) for a, b in zip(*(jax.tree.leaves(c.params) for c in (before, after)), strict=True)]
    assert all(changed)


class Asked(threading.Event):
    """SIGTERM that comes when it was looked at so often."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def is_set(self):
        self.looks -= 1
        return self.looks < 0


def test_a_run_that_was_stopped_thrice_ends_with_the_same_bits(whole, recipe, tmp_path, monkeypatch):
    """While the teacher answers, after a step before it is watched, and while it is watched."""
    broken = tmp_path / "run"
    stops = ((3, "answers.jsonl.parts", None), (3 + 2, "checkpoints/3", []), (0, "checkpoints/3", [3]))
    for looks, there, watched in stops:
        asked = Asked(looks)
        monkeypatch.setattr(module, "until_sigterm", lambda asked=asked: contextlib.nullcontext(asked))
        assert distill(recipe(), broken) is None
        assert (broken / there).is_dir()
        assert not (broken / "checkpoints" / "4").exists()
        if watched is not None:
            assert [json.loads(line)["step"] for line in (broken / "log.jsonl").read_text().splitlines()] == watched
        assert not (broken / "model").exists()
    monkeypatch.undo()
    assert distill(recipe(), broken) == broken / "model"
    assert (broken / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    assert (broken / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    assert not (broken / "answers.jsonl.parts").exists()
    ends = []
    for folder in (whole, broken):
        with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
            ends.append(jax.tree.leaves(manager.restore(4, args=ocp.args.StandardRestore())["params"]))
    for left, right in zip(*ends, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_batch_holds_the_teachers_tokens_and_when_they_were_written(whole, recipe, tiny):
    tokenizer = jaxdiff.load(tiny).tokenizer
    kept = [line for line in lines_of(whole) if line["ended"]]
    rows = module.kept_rows(lines_of(whole), recipe())
    assert len(rows) == len(kept)
    batch = Corpus(recipe().buckets, {"sort": rows}, 0, tokenizer).batch(0)
    for tokens, order, first in zip(batch.tokens, batch.order, batch.prompt_lengths, strict=True):
        line = next(line for line in kept if line["prompt"] == tokens[:first].tolist())
        answer, written = line["tokens"], line["order"]
        assert tokens[first:].tolist() == answer + [tokenizer.eos_id] * (40 - first - len(answer))
        assert order[first : first + len(written)].tolist() == written
        assert (order[first + len(written) :] == NEVER_WRITTEN).all()


def test_what_cannot_be_learned_from_is_refused(whole, recipe, tiny, tmp_path):
    lines = lines_of(whole)
    for line in lines:
        line["correct"] = line["ended"] = line["number"] == 3
    assert len(module.kept_rows(lines, recipe(keep="right"))) == 1
    lines[3]["correct"] = False
    with pytest.raises(InputError, match="keep right: found 7 answers of the teacher, of which 1 end and 0 are right"):
        module.kept_rows(lines, recipe(keep="right"))
    other = tmp_path / "other"
    model, params = jaxdiff.load(tiny).model, jaxdiff.load(tiny).params
    wider = jaxdiff.build(dataclasses.asdict(model.config) | {"family": "llada", "vocab_size": 1032})
    jaxdiff.save(other, wider, wider.init(jax.random.key(0)), tokenizer_from=tiny)
    words = r"teacher: found a vocabulary of 1032 ids with \[MASK\] 0, expected the model's, of 1024"
    with pytest.raises(InputError, match=words):
        distill(recipe(teacher=str(other)), tmp_path / "run")
    with pytest.raises(InputError, match="model: found one that attends in blocks of 4, expected one that sees its"):
        distill(recipe(model=str(in_blocks(tmp_path / "in_blocks", tiny))), tmp_path / "run")
    jaxdiff.save(other, model, jax.tree.map(lambda x: x + 1, params), tokenizer_from=tiny)
    with pytest.raises(InputError, match="holds a run of another recipe \\(teacher differ\\)"):
        distill(recipe(teacher=str(other)), whole)
    many = [{"task": "drills", "length": 40, "rows": 2, "weight": 1.0}]
    with pytest.raises(InputError, match="all drills are for training; score another task"):
        distill(recipe(task="drills", buckets=many), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(objective="certain"), "objective: found 'certain', expected one of denoise, certainty"),
        (dict(objective="certainty:beta=x"), "objective certainty beta: found 'x', expected a number"),
        (dict(keep="some"), "keep: found 'some', expected one of right, all"),
        (dict(problems=0), "problems: found 0, expected a whole number from 1"),
        (dict(policy=3), "policy: found 3, expected a text"),
        (dict(task="nope"), "task: found 'nope', expected one of gsm_symbolic"),
        (dict(colour="red"), "colour: not known, expected one of steps, buckets, objective"),
        *(({name: None}, f"{name}: found None, expected a whole number from") for name in COUNTS),
        (dict(buckets=[PACKED]), "found a packed one with objective near_far:near=2 and noise states"),
        (dict(buckets=[PACKED], objective="denoise", noise="trajectory"), "found a packed one with objective denoise"),
        (dict(buckets=[PACKED | {"until": 2}], objective="denoise"), "buckets: none is drawn in step 2"),
        (dict(adapter={"rank": 0}), "adapter.rank: found 0, expected a whole number from 1"),
        (dict(adapter={"ranks": 4}), "adapter: found {'ranks': 4}, expected an object of rank, alpha, targets, gated"),
        (dict(weights="int8"), "weights: found int8, which are not trained; name an adapter"),
        (dict(buckets=[{"task": "copy", "length": 9, "rows": 1, "weight": 1.0}]), "expected one of sort"),
    ],
)
def test_a_recipe_that_makes_no_run(recipe, changes, words):
    with pytest.raises(InputError, match=words):
        recipe(**changes)


TWO_STEPS = dict(objective="certainty", noise="complement:block=8", steps=2, warmup=0, decay=1, watch_problems=0)


def answers_in(folder, whole):
    """A run's folder with another's answers."""
    folder.mkdir()
    for kept in ("answers.jsonl", "setting.json"):
        shutil.copy(whole / kept, folder / kept)
    return folder


def test_an_adapter_is_trained_beside_frozen_weights_and_goes_on_to_the_bit(whole, recipe, tiny, tmp_path, monkeypatch):
    """From answers that are there, stopped after the first of two steps; by a noise that asks the model."""
    noisy = TWO_STEPS | dict(objective="denoise", noise="uniform + mistakes:block=8")
    asks = recipe(**noisy, adapter={"rank": 2, "targets": ["q_proj", "up_proj"]})
    tensors = []
    for name, looks in (("one", None), ("two", 0)):
        folder = answers_in(tmp_path / name, whole)
        if looks is not None:
            monkeypatch.setattr(module, "until_sigterm", lambda looks=looks: contextlib.nullcontext(Asked(looks)))
            assert distill(asks, folder) is None
            assert (folder / "checkpoints" / "1").is_dir()
            monkeypatch.undo()
        assert distill(asks, folder) == folder / "adapter"
        tensors.append((folder / "adapter" / "adapter_model.safetensors").read_bytes())
    assert tensors[0] == tensors[1]
    base, adapted = jaxdiff.load(tiny), jaxdiff.load(tiny, adapter=tmp_path / "one" / "adapter")
    flat = [dict(jax.tree_util.tree_leaves_with_path(checkpoint.params)) for checkpoint in (base, adapted)]
    changed = {jax.tree_util.keystr(path) for path, leaf in flat[0].items() if np.any(leaf != flat[1][path])}
    assert {name.split("'")[3] for name in changed} == {"q_proj", "up_proj"}


def test_a_gated_adapter_is_trained_in_float32_beside_int8_weights(whole, recipe, tiny, tmp_path):
    """It says which weights those were made from, and a model with others refuses it."""
    adapter = {"rank": 2, "targets": ["q_proj", "up_proj"], "gated": True}
    folder = distill(recipe(**TWO_STEPS, weights="int8", adapter=adapter), answers_in(tmp_path / "run", whole))
    found = adapters(jaxdiff.load(tiny, adapter=folder, weights="int8").params)
    assert sorted(found) == ["layers/q_proj/kernel", "layers/up_proj/kernel"]
    for leaf in found.values():
        assert (leaf.gated, leaf.base.qvalue.dtype, leaf.b.dtype) == (True, np.int8, np.float32)
        assert bool(np.any(leaf.b != 0))
    base = jaxdiff.load(tiny)
    jaxdiff.save(tmp_path / "other", base.model, jax.tree.map(lambda x: x + 1, base.params), tokenizer_from=tiny)
    with pytest.raises(InputError, match="adapter: was trained beside other weights"):
        jaxdiff.load(tmp_path / "other", adapter=folder)
