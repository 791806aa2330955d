"""`jaxdiff train`: the recipe that it runs, and what it says."""

import dataclasses
import json

import pytest

from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.train import Distillation, Recipe


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the training: records the recipe, gives the model folder unless told to stop early."""
    recipes = []

    def train(recipe, folder):
        recipes.append(recipe)
        return None if recipe.seed == 13 else folder / "model"

    monkeypatch.setattr("jaxdiff.train.train", train)
    return recipes


def test_default_recipe_is_that_of_the_model_that_ships(run, asked, tmp_path):
    ran = run("train", "--out", tmp_path / "run")
    assert (ran.code, ran.out, ran.err) == (0, f"{tmp_path / 'run' / 'model'}\n", "")
    assert asked == [Recipe.read(shipped_folder() / SHIPPED / "recipe.json")]


def test_steps_and_seed_replace_the_recipes(run, asked, tmp_path):
    file = tmp_path / "recipe.json"
    raw = json.loads((shipped_folder() / SHIPPED / "recipe.json").read_text())
    file.write_text(json.dumps(raw | {"clip": 0.5}))
    run("train", "--recipe", file, "--out", tmp_path / "run", "--steps", 9000, "--seed", 5)
    assert (asked[0].clip, asked[0].steps, asked[0].seed) == (0.5, 9000, 5)


def test_a_run_that_stopped_early_says_so(run, asked, tmp_path):
    ran = run("train", "--out", tmp_path / "run", "--seed", 13)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("stopped early")


DISTILL = {
    "task": "sort",
    "problems": 9,
    "buckets": [{"task": "sort", "length": 40, "rows": 2, "weight": 1.0}],
    "steps": 4,
    "warmup": 1,
    "decay": 1,
}


def test_distill_takes_the_recipe_with_what_the_command_changes(run, monkeypatch, tmp_path):
    asked = []

    def stand_in(recipe, folder, **callbacks):
        asked.append(recipe)
        callbacks["note"]("9 answers of the teacher, 8 right")
        return None if recipe.seed == 13 else folder / "model"

    monkeypatch.setattr("jaxdiff.train.distill", stand_in)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(DISTILL))
    words = ("distill", "--recipe", file, "--out", tmp_path / "run")
    ran = run(*words)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'run' / 'model'}\n")
    assert "9 answers" in ran.err
    run(*words, "--objective", "certainty:beta=0", "--noise", "complement", "--steps", 5, "--teacher", "other")
    assert asked[0] == Distillation.read(file)
    assert asked[1] == dataclasses.replace(
        asked[0], objective="certainty:beta=0", noise="complement", steps=5, teacher="other"
    )
    assert run(*words, "--seed", 13).err.splitlines()[-1].startswith("stopped early")


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        (("distill", "--objective", "sure"), {}, "objective: found 'sure', expected one of denoise, certainty"),
        (("distill", "--noise", "states", "--objective", "certainty:b=1"), {}, "found argument 'b=1', expected beta="),
        (("distill",), {"policy": "quick"}, "policy: found 'quick', expected one of fixed"),
        (("distill",), {"stop": "soon"}, "stop: found 'soon', expected one of"),
        (("distill",), {"model": "no-such"}, "model: no config.json in 'no-such'"),
        (("distill",), {"watch_problems": -1}, "watch_problems: found -1, expected a whole number from 0"),
        (("train", "--objective", "near_far", "--noise", "states"), None, "run it with `jaxdiff distill`"),
    ],
)
def test_what_makes_no_run_is_one_line_before_any_step(run, tmp_path, command, changes, words):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(DISTILL | (changes or {})))
    given = () if changes is None else ("--recipe", file)
    ran = run(*command, *given, "--out", tmp_path / "run")
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
