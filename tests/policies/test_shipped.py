"""The learned policies that ship with the model."""

import itertools
import json

import numpy as np
import pytest

import jaxdiff
from experiments.revise.run import mended
from jaxdiff.checkpoint import shipped_folder
from jaxdiff.filters import BEST_FILTER, FILTERS, learned_policy
from jaxdiff.judges import DEFAULT, JUDGES, named_judge
from jaxdiff.leaves import fingerprint
from jaxdiff.policies import Fixed, Learned
from jaxdiff.policies.filters import BlockFilter, LocalFilter
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.train.network import Network

MODEL = "gsm-1m"


@pytest.fixture(scope="module")
def checkpoint():
    return jaxdiff.load(MODEL)


@pytest.mark.parametrize(
    ("name", "kind", "parts"), [("official", BlockFilter, [Learned, Fixed]), ("local", LocalFilter, None)]
)
def test_they_load_with_the_threshold_of_their_card(name, kind, parts):
    folder = shipped_folder() / MODEL / FILTERS / name
    policy = learned_policy(MODEL, name)
    if parts is not None:  # joined with one token a step, as published
        assert [type(part) for part in policy.parts] == parts
        policy = policy.parts[0]
        assert sum(leaf.size for layer in policy.filter.layers for leaf in (layer.kernel, layer.bias)) == 2112
    assert isinstance(policy.filter, kind)
    assert float(policy.tau) == pytest.approx(json.loads((folder / "filter.json").read_text())["tau"])
    card = (folder / "README.md").read_text()
    assert f"| threshold | {float(policy.tau):g}:" in card


@pytest.mark.parametrize(("adapter", "block", "tokens"), [(None, 32, 10), ("parallel", 64, 22)])
def test_bare_learned_is_the_best_of_them(adapter, block, tokens):
    """At the lengths that its card is about it solves three quarters of 32 held-out problems, so many tokens a forward:
    with the adapter more than the oracle of the model has without it.
    """
    assert BEST_FILTER == "local"
    checkpoint = jaxdiff.load(MODEL, adapter=adapter)
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = list(itertools.islice(gsm_symbolic.problems("test", 0), 32))
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(p.question) for p in problems], fill=tokenizer.eos_id)
    policy = learned_policy(MODEL, adapter=adapter)
    decoder = jaxdiff.Decoder(policy=policy, stop=Eos(), block_length=block)
    result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompts, decoder, origin=origin, gen_length=256)
    texts = [tokenizer.decode(ids) for ids in np.asarray(result.tokens)[:, prompts.shape[1] :]]
    assert sum(gsm_symbolic.verify(text, p) for text, p in zip(texts, problems, strict=True)) >= 24
    assert np.sum(result.lengths) > tokens * np.sum(result.nfe)


@pytest.mark.parametrize("name", [MODEL, "puzzles-1m"])
def test_the_judge_is_of_the_model_that_ships(name):
    checkpoint = jaxdiff.load(name)
    judge, tau = named_judge(checkpoint.path)
    judge.check(checkpoint.model, checkpoint.params)
    assert (tau, judge.fitted_to) == (0.5, fingerprint(checkpoint.params))
    assert (checkpoint.path / JUDGES / DEFAULT / "README.md").is_file()


def test_with_its_adapter_a_pass_mends_worked_answers(checkpoint):
    """Of 25 held-out ones with a tenth of the tokens replaced at random, at the threshold that `revise` has."""
    adapted = jaxdiff.load(MODEL, adapter="revise")
    base, doubting = (Network(each.params, each.model) for each in (checkpoint, adapted))
    (point,) = (p for p in mended(doubting, base, "chance", checkpoint, "test", 25) if p["tau"] == 0.9)
    assert point["mended"] >= 30.0
    assert point["spoilt"] < 1.0
