"""An autoregressive model from recipe to text: trained, decoded with its exact cache by default, told, refused."""

import json

import pytest

import jaxdiff
from jaxdiff.cli.main import main
from tests.train.conftest import RECIPE


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """The model of a short run of `jaxdiff train`, with masks among what it reads."""
    home = tmp_path_factory.mktemp("causal")
    recipe = {key: value for key, value in RECIPE.items() if key != "block_length"}
    recipe |= {"model": recipe["model"] | {"family": "llama"}, "steps": 4, "warmup": 1, "decay": 1}
    (home / "recipe.json").write_text(json.dumps(recipe | {"objective": "next_token", "noise": "meap:masked=0.2"}))
    assert main(["train", "--recipe", str(home / "recipe.json"), "--out", str(home / "run")]) == 0
    return home / "run" / "model"


def test_one_token_a_forward(causal, run):
    config = jaxdiff.load(causal).model.config
    assert (config.mask_token_id, config.has_mask) == (0, True)  # a run's tokenizer has one
    assert "what lies left" in run("inspect", causal).out
    ran = run("generate", "1 + 1", "--model", causal, "--gen-length", 6, "--stop", "none", "--json")
    assert "llama is autoregressive: one token a forward, in order, cache seeded" in ran.err
    assert ran.json["nfe"] == ran.json["generated_tokens"] == len(ran.json["token_ids"]) == 6
    assert ran.json["work"] < 1
    plain = run(
        "generate", "1 + 1", "--model", causal, "--gen-length", 6, "--stop", "none", "--json", "--cache", "none"
    )
    assert plain.json["token_ids"] == ran.json["token_ids"]
    assert plain.json["work"] == pytest.approx(6.0)


def test_what_makes_no_sense_is_refused(causal, run, tmp_path):
    for option, value, words in (
        ("--policy", "threshold:tau=0.9", "policy: found threshold with an autoregressive model (Llama)"),
        ("--cache", "dual", "cache: found dual with an autoregressive model (Llama)"),
        ("--stop", "eotp", "stop: found eotp with an autoregressive model (Llama)"),
    ):
        ran = run("generate", "1 + 1", "--model", causal, "--gen-length", 6, option, value)
        assert (ran.code, ran.out) == (2, "")
        assert words in ran.err.splitlines()[-1]
    (tmp_path / "rows.jsonl").write_text('{"canvas_ids": [5, 0, 6]}')
    ran = run("generate", "--in", tmp_path / "rows.jsonl", "--model", causal, "--gen-length", 6)
    assert ran.code == 1
    assert "canvas: found one for an autoregressive model (Llama)" in json.loads(ran.out)["error"]


def test_another_objective_does_not_train_it(refused, tmp_path):
    recipe = {key: value for key, value in RECIPE.items() if key != "block_length"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"objective": "next_token", "noise": "uniform"}))
    line = refused("train", "--recipe", tmp_path / "recipe.json", "--out", tmp_path / "run")
    assert "objective next_token: found a noise that hides what is to be learned" in line
