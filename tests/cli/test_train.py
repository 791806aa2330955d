"""`jaxdiff train`: the recipe that it runs, and what it says."""

import json

import pytest

from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.train import Recipe


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
