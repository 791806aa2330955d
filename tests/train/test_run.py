"""A run: deterministic, resumable after SIGKILL to the bit, clean on SIGTERM."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.tasks.gsm_symbolic import split_of
from jaxdiff.train import Recipe, train
from jaxdiff.train.data import Corpus, check_covered, training_rows
from tests.train.conftest import RECIPE

DRILLS = {"task": "drills", "length": 32, "rows": 4, "weight": 2.0}


def final_params(folder, steps):
    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        assert manager.latest_step() == steps
        return jax.tree.leaves(manager.restore(steps, args=ocp.args.StandardRestore())["params"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of RECIPE that was never stopped; nobody writes into it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    train(Recipe.read(folder / "recipe.json"), folder / "run")
    return folder / "run"


def start(recipe_file, folder, log):
    """The training in a process of its own, slowed down enough to be hit by a signal."""
    code = (
        "import sys, time; from pathlib import Path; from jaxdiff.train import Recipe, train, data; "
        "plain = data.Corpus.batch; "
        "data.Corpus.batch = lambda self, step: (time.sleep(0.3), plain(self, step))[1]; "
        "train(Recipe.read(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, recipe_file, folder], stderr=log)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the run ended before its checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, recipe_file, whole):
    recipe, broken = recipe_file(), tmp_path / "broken"
    with (tmp_path / "log").open("wb") as log:
        killed = start(recipe, broken, log)
        wait_for(broken / "checkpoints" / "4", killed)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert not (broken / "model").exists()

        stopped = start(recipe, broken, log)
        wait_for(broken / "checkpoints" / "8", stopped)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 0
    assert "stopped by a signal" in (tmp_path / "log").read_text()
    assert not (broken / "model").exists()

    model = train(Recipe.read(recipe), broken)
    assert model is not None
    for left, right in zip(final_params(whole, 12), final_params(broken, 12), strict=True):
        np.testing.assert_array_equal(left, right)
    assert jaxdiff.load(model).tokenizer.decode([1]) == ""


def test_sigterm_before_the_first_step_ends_cleanly(tmp_path, recipe_file):
    """By the command, which ends at once on SIGTERM wherever nobody else takes it."""
    code = (
        "import os, signal, sys; from jaxdiff.cli.main import main; from jaxdiff.train import data; "
        "plain = data.Corpus.__init__; "
        "data.Corpus.__init__ = lambda self, *a: (os.kill(os.getpid(), signal.SIGTERM), plain(self, *a))[1]; "
        "sys.exit(main())"
    )
    words = ("train", "--recipe", recipe_file(), "--out", tmp_path / "run")
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert "stopped early" in ran.stderr
    assert (tmp_path / "run" / "checkpoints" / "1").is_dir()
    assert not (tmp_path / "run" / "model").exists()


def test_a_run_cannot_be_cut_below_what_it_has_done(recipe_file, whole):
    with pytest.raises(InputError, match=r"steps: found 8, but .* has done 12; raise --steps"):
        train(Recipe.read(recipe_file(steps=8)), whole)
    assert Recipe.read(whole / "recipe.json").steps == 12  # the folder's recipe is left alone


def test_training_learns(tmp_path, recipe_file):
    recipe = Recipe.read(recipe_file(steps=60, warmup=5, decay=20, save_every=60, seed=3))
    train(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [20, 40, 60]
    assert log[-1]["loss_by_length"]["32"] < 0.7 * log[0]["loss_by_length"]["32"]


def test_batches_depend_on_the_step_alone_and_hold_out_by_content(whole):
    tokenizer = jaxdiff.load(whole / "model").tokenizer
    buckets = tuple(jaxdiff.train.data.Bucket("gsm_symbolic", 320, 4, 1.0) for _ in range(1))
    rows = training_rows("gsm_symbolic", 80, 5, tokenizer)
    one, two = (Corpus(buckets, {"gsm_symbolic": rows}, 5, tokenizer) for _ in range(2))
    for step in (7, 3):
        np.testing.assert_array_equal(one.batch(step).tokens, two.batch(step).tokens)
    np.testing.assert_array_equal(one.batch(3).tokens, two.batch(3).tokens)
    assert (one.batch(3).tokens != one.batch(4).tokens).any()
    batch = one.batch(0)
    for row, prompt, answer in zip(batch.tokens, batch.prompt_lengths, batch.answer_lengths, strict=True):
        question = tokenizer.fast.decode(row[1 : prompt - 1])
        assert split_of(question) == "train"
        assert (row[prompt + answer - 1 :] == tokenizer.eos_id).all()
        assert (row[prompt : prompt + answer - 1] != tokenizer.eos_id).all()


def test_a_bucket_may_start_late_or_end_early(tmp_path, recipe_file):
    tokenizer = jaxdiff.load("gsm-1m").tokenizer
    early = jaxdiff.train.data.Bucket("drills", 16, 2, 1.0, until=3)
    late = jaxdiff.train.data.Bucket("drills", 24, 2, 1.0, since=2, until=5)
    corpus = Corpus((early, late), {"drills": training_rows("drills", 20, 0, tokenizer)}, 0, tokenizer)
    lengths = [corpus.batch(step).tokens.shape[1] for step in (0, 1, 3, 4)]
    assert lengths == [16, 16, 24, 24]
    check_covered((early, late), 5)
    with pytest.raises(InputError, match="buckets: none is drawn in step 5"):
        check_covered((early, late), 6)


def test_a_packed_bucket_fills_rows_with_drills():
    tokenizer = jaxdiff.load().tokenizer
    bucket = jaxdiff.train.data.Bucket("drills", 48, 8, 1.0, pack=True)
    batch = Corpus((bucket,), {"drills": training_rows("drills", 200, 0, tokenizer)}, 0, tokenizer).batch(0)
    for row, answers in zip(batch.tokens, batch.answers, strict=True):
        lines = tokenizer.decode(row).splitlines()
        assert len(lines) > 3
        values = [re.search(r"= ?(\d+)$", line)[1] for line in lines]
        assert "".join(tokenizer.decode([token]) for token in row[answers]) == "".join(values)
    assert (batch.answer_lengths == 0).all()


def test_a_folder_belongs_to_one_recipe(recipe_file, whole):
    with pytest.raises(InputError, match=r"a run of another recipe \(learning_rate differ\)"):
        train(Recipe.read(recipe_file(learning_rate=1.0)), whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(steps=3), "steps: found 3, expected warmup \\+ decay = 6 or more"),
        (dict(colour="red"), "colour: not known, expected one of steps, buckets, objective"),
        (dict(buckets=[DRILLS | {"until": 5}]), "buckets: none is drawn in step 5"),
        (dict(buckets=[DRILLS | {"until": 2}, DRILLS | {"since": 3}]), "buckets: none is drawn in step 2"),
        (dict(buckets=[DRILLS | {"since": 1}]), "buckets: none is drawn in step 0"),
        (dict(buckets=[DRILLS | {"weight": 0.0}]), "buckets: none is drawn in step 0"),
        (dict(buckets=[DRILLS | {"pack": "no"}]), r"buckets\[0\].pack: found 'no', expected true or false"),
        (dict(buckets=[DRILLS | {"width": 1}]), r"buckets\[0\].width: not known, expected one of task, length"),
        (dict(buckets=[{"task": "drills"}]), r"buckets\[0\].length: found none, expected it"),
        (dict(objective="denoize"), "objective: found 'denoize', expected one of denoise, certainty"),
        (dict(objective=3), "objective: found 3, expected a text"),
        (dict(noise="uniform", semi_ar=0.5), "noise: found it beside block_length, semi_ar, which are"),
        (
            dict(objective="trajectory"),
            "found trajectory with noise .*, which learns from a teacher's decodes; run it with",
        ),
    ],
)
def test_a_recipe_that_does_not_fit(recipe_file, changes, words):
    with pytest.raises(InputError, match=words):
        Recipe.read(recipe_file(**changes))


def test_a_recipe_of_numbers_and_one_that_names_its_noise_are_the_same(tmp_path, recipe_file):
    """A folder that was begun with one goes on with the other."""
    old = Recipe.read(recipe_file(steps=6, warmup=1, decay=1, semi_ar=0.6, in_order=0.25))
    assert old.noise == "semi_ar:share=0.6,in_order=0.25,block=8"
    raw = json.loads(recipe_file().read_text()) | {"steps": 6, "warmup": 1, "decay": 1, "noise": old.noise}
    del raw["block_length"]
    named = tmp_path / "named.json"
    named.write_text(json.dumps(raw))
    assert Recipe.read(named) == old
    assert Recipe.read(recipe_file(block_length=32)).noise == "semi_ar:share=0.5,in_order=0.0,block=32"
    (tmp_path / "run").mkdir()
    shutil.copy(recipe_file(steps=6, warmup=1, decay=1, semi_ar=0.6, in_order=0.25), tmp_path / "run" / "recipe.json")
    old.check_same(tmp_path / "run" / "recipe.json")
    with pytest.raises(InputError, match=r"a run of another recipe \(noise differ\)"):
        Recipe.read(recipe_file(steps=6, warmup=1, decay=1)).check_same(tmp_path / "run" / "recipe.json")


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(noise=None),
        dict(noise="semi_ar:share=0.50,in_order=0"),
        dict(objective="denoise:", noise="semi_ar:share=0.5,in_order=0.0,block=32"),
    ],
)
def test_a_folder_of_the_older_spelling_goes_on_with_the_recipe_that_began_it(recipe_file, tmp_path, changes):
    """The folder's file names the defaults that the recipe may have left out."""
    (tmp_path / "run").mkdir()
    saved = tmp_path / "run" / "recipe.json"
    shutil.copy(recipe_file(semi_ar=0.5, in_order=0.0, block_length=32), saved)
    raw = json.loads(saved.read_text())
    for name in ("semi_ar", "in_order", "block_length"):
        del raw[name]
    path = tmp_path / "new.json"
    path.write_text(json.dumps(raw | changes))
    Recipe.read(path).check_same(saved)
    for other, word in ((dict(noise="semi_ar:share=0.4"), "noise"), (dict(objective="certainty"), "objective, noise")):
        path.write_text(json.dumps(raw | other))
        with pytest.raises(InputError, match=rf"a run of another recipe \({word} differ\)"):
            Recipe.read(path).check_same(saved)


def test_a_bucket_that_nothing_fits(tmp_path, recipe_file):
    short = [{"task": "drills", "length": 3, "rows": 4, "weight": 1.0}]
    with pytest.raises(InputError, match="bucket drills/3: no problem fits"):
        train(Recipe.read(recipe_file(buckets=short)), tmp_path / "run")


def test_the_shipped_recipe_is_the_kind_that_the_card_promises():
    recipe = Recipe.read(jaxdiff.checkpoint.shipped_folder() / jaxdiff.checkpoint.SHIPPED / "recipe.json")
    shape = recipe.model
    assert all(shape[name] % 8 == 0 for name in ("n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size"))
    assert max(bucket.length for bucket in recipe.buckets) >= 1024 + 60
    assert jnp.dtype(shape["dtype"]) == jnp.float32
