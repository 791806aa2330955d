"""A model that encodes visible tokens once, on the command line: trained, decoded with its cache; what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

import jaxdiff
from jaxdiff.models import Enat, EnatConfig

RECIPES = Path(__file__).parents[2] / "experiments" / "enat"


@pytest.fixture(scope="module")
def encoder(folder):
    """The tiny model as one that encodes, of random weights."""
    config = dataclasses.asdict(jaxdiff.load(folder).model.config) | {"dtype": "float32"}
    model = Enat(EnatConfig(**config, decoder_layers=1))
    jaxdiff.save(folder.parent / "encoder", model, model.init(jax.random.key(0)), tokenizer_from=folder)
    return folder.parent / "encoder"


def test_its_own_cache_is_the_default_and_changes_nothing(encoder, run):
    given = ("generate", "26 + 48", "--model", encoder, "--gen-length", 8, "--block-length", 8, "--json")
    own, plain = run(*given), run(*given, "--cache", "none")
    for name in ("token_ids", "nfe", "commit_step"):
        assert own.json[name] == plain.json[name]
    assert own.json["work"] < plain.json["work"]
    shown = run("inspect", encoder, "--json")
    assert (shown.code, shown.json["family"]) == (0, "enat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cache", "dual"), "cache: found dual with a model that encodes visible tokens once (Enat)"),
        (("--policy", "remdm"), "policy: found remdm with a model that encodes"),
        (("--fill", "recap"), "fill: found recap with a model that encodes"),
        (("--cfg-scale", "1"), "cfg_scale: found one with a model that encodes"),
    ],
)
def test_what_it_does_not_go_with_is_one_line(encoder, run, options, words):
    ran = run("generate", "26 + 48", "--model", encoder, "--gen-length", 8, "--block-length", 8, *options)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1


def test_another_model_has_no_such_cache(folder, run):
    ran = run("generate", "26 + 48", "--model", folder, "--gen-length", 8, "--block-length", 8, "--cache", "encoded")
    assert "cache: found encoded with a Llada, whose visible tokens see masks" in ran.err
    assert ran.code == 2


def test_the_recipes_are_read_and_of_one_size(run, tmp_path):
    """What `experiments/enat` trains, with fewer problems and steps."""
    sizes = []
    for name in ("recipe", "uniform"):
        recipe = json.loads((RECIPES / f"{name}.json").read_text(encoding="utf-8"))
        recipe |= {"problems": {"latin": 40, "permutation": 40}, "tokenizer_problems": 40, "steps": 1}
        (tmp_path / name).write_text(json.dumps(recipe | {"warmup": 0, "decay": 1}))
        model = jaxdiff.build({"mask_token_id": 0, "eos_token_id": 1} | recipe["model"])
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    ran = run("train", "--recipe", tmp_path / "recipe", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert type(jaxdiff.load(tmp_path / "run" / "model").model).__name__ == "Enat"
