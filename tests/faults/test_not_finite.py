"""Scores that are not numbers: every decode ends, says which rows met them, and leaves the other rows as they were."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Meter, Request, Sampling, decode, decode_stream
from jaxdiff.caches import BlockCausal, Dual
from jaxdiff.checkpoint import load, save
from jaxdiff.cli.main import main
from jaxdiff.decode.score import Draws, Vocabulary, believe
from jaxdiff.models import Llada
from jaxdiff.models.config import Config
from jaxdiff.models.llada_moe import LladaMoe, LladaMoeConfig
from jaxdiff.policies import AboveMean, Learned, RemdmCap, Threshold, any_of
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.stoppers import OfficialEotp
from tests import small
from tests.conformance.table import random_filter

BAD = 32  # a token that row 1 of the prompts holds, and no other
FIELDS = ("tokens", "commit_step", "log_prob", "nfe", "lengths", "near_ties", "not_finite")


def head(value, tokens=slice(None), model=small.MODEL):
    """The parameters with a value in the head, at these tokens."""
    tree = small.params(0, model)
    return tree | {"head": tree["head"].at[0, tokens].set(value)}


def spoilt(model=small.MODEL):
    """The parameters with an embedding of one token that is no number."""
    tree = small.params(0, model)
    return tree | {"wte": tree["wte"].at[BAD].set(jnp.nan)}


def run(tree, model=small.MODEL, order=range(4), **parts):
    prompts, origin = small.batch()
    order = list(order)
    own = {} if model.attention_block is None else {"block_length": None}
    return decode(
        model,
        tree,
        prompts[order],
        small.decoder(**own, **parts),
        gen_length=small.GEN,
        origin=origin[order],
        key=small.keys(4)[jnp.asarray(order)],
    )


def assert_whole(result):
    """Nothing stays masked, and every id is one that may be predicted."""
    answer = np.asarray(result.tokens)[:, -small.GEN :]
    assert ((answer >= 0) & (answer < small.VOCAB) & (answer != small.MASK)).all()


# Programs are few: numbers are traced, so that `drawn` takes that of `greedy`, and the second cut that of the first.
WAYS = {
    "greedy": {},
    "drawn": {"temperature": 0.7},
    "top-p": {"top_p": 0.9, "top_k": small.VOCAB, "defer_eos": True},
    "top-k": {"top_p": 1.0, "top_k": 3, "temperature": 1.0, "defer_eos": True},
    "guided": {"cfg_scale": 1.5, "cache": Dual(), "defer_eos": True},
}
DAMAGES = {
    "nan everywhere": (jnp.nan, slice(None)),
    "nan of one token": (jnp.nan, 9),
    "nan of an end of text": (jnp.nan, small.EOS),
    "inf of one token": (jnp.inf, 9),
    "-inf everywhere": (-jnp.inf, slice(None)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_damage_of_the_head_is_counted_under_every_way_to_draw(way):
    """One program for all damages: weights are traced."""
    for name, (value, tokens) in DAMAGES.items():
        result = run(head(value, tokens), policy=Threshold(0.9), **WAYS[way])
        assert_whole(result)
        assert (np.asarray(result.not_finite) > 0).all(), name
    assert run(small.params(), policy=Threshold(0.9), **WAYS[way]).not_finite.tolist() == [0] * 4


def test_the_count_is_of_the_positions_that_each_full_pass_could_commit():
    result = run(head(jnp.nan), policy=Threshold(0.9))  # vouches for none: one is forced at each step
    assert result.not_finite.tolist() == [sum(range(1, small.BLOCK + 1)) * small.GEN // small.BLOCK] * 4
    assert np.isnan(np.asarray(result.log_prob)).all()


@pytest.mark.parametrize("mask", [0, small.MASK])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_no_score_at_all_predicts_no_mask(mask, temperature):
    """Whichever id [MASK] is: the first one that may be predicted stands in."""
    model = Llada(dataclasses.replace(small.CONFIG, mask_token_id=mask))
    for value in (jnp.nan, -jnp.inf):
        result = run(head(value), model=model, policy=Threshold(0.9), temperature=temperature)
        assert (np.asarray(result.tokens)[:, -small.GEN :] != mask).all()
        assert (np.asarray(result.not_finite) > 0).all()


def test_a_token_without_mass_is_a_number():
    """-inf is the logit of what is never predicted: as a token with no mass, and the entropy of the others is right."""
    sampling, vocabulary = Sampling(), Vocabulary(4, forbidden=(3,))
    draws = Draws(small.keys(1), jnp.zeros(1, jnp.int32), jnp.int32(0), jnp.zeros((1, 1), jnp.int32))
    belief = believe(jnp.ones((1, 1, 1)), jnp.asarray([[1.0, -jnp.inf, 1.0, 2.0]]), vocabulary, sampling, draws)
    np.testing.assert_allclose(belief.prob, 0.5)
    np.testing.assert_allclose(belief.entropy, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(belief.log_prob, -np.log(2), rtol=1e-6)


def assert_others_are_untouched(result, healthy, bad=1):
    others = [row for row in range(4) if row != bad]
    assert_whole(result)
    assert [count > 0 for count in result.not_finite.tolist()] == [row == bad for row in range(4)]
    for field in FIELDS:
        left, right = (np.asarray(getattr(each, field)) for each in (result, healthy))
        np.testing.assert_array_equal(left[others], right[others])


POLICIES = {
    "above_mean": AboveMean(),
    "remdm": RemdmCap(steps=6, cap=0.3),
    "learned": any_of(Learned(random_filter("block"), 0.5), Learned(random_filter("local"), 0.5)),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_without_them_are_as_they_are(policy):
    """One row's prompt holds a token whose embedding is no number; the program is the same."""
    parts = {"policy": POLICIES[policy], "stop": OfficialEotp()}
    assert_others_are_untouched(run(spoilt(), **parts), run(small.params(), **parts))


def test_filters_that_give_no_number_commit_no_more_than_is_forced():
    broken = jax.tree.map(lambda x: x * jnp.nan, POLICIES["learned"])
    broken = with_numbers(broken, numbers_of(POLICIES["learned"]))
    trace = np.asarray(run(small.params(), policy=broken, stop=OfficialEotp()).commit_step)
    for row in trace:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


_SHAPE = {f.name: getattr(small.CONFIG, f.name) for f in dataclasses.fields(Config)}
MOE = LladaMoe(LladaMoeConfig(**_SHAPE, num_experts=4, num_experts_per_tok=2))


def test_a_mixture_of_experts():
    """Of one row's tokens, and of the router, which all rows pass."""
    healthy = run(small.params(0, MOE), MOE, policy=Threshold(0.9))
    assert_others_are_untouched(run(spoilt(MOE), MOE, policy=Threshold(0.9)), healthy)
    tree = small.params(0, MOE)
    kernel = tree["layers"]["router"]["kernel"].at[0, 0, 0].set(jnp.nan)
    tree = tree | {"layers": tree["layers"] | {"router": tree["layers"]["router"] | {"kernel": kernel}}}
    result = run(tree, MOE, policy=Threshold(0.9))
    assert_whole(result)
    assert (np.asarray(result.not_finite) > 0).all()


def test_what_fills_the_padding_does_not_matter():
    tree, (prompts, origin) = spoilt(), small.batch()
    prompts = np.where(prompts == BAD, BAD - 1, prompts)
    filled = np.where(np.arange(prompts.shape[1]) < origin[:, None], BAD, prompts)
    options = dict(gen_length=small.GEN, origin=origin, key=small.keys(4))
    decoder = small.decoder(policy=Threshold(0.9))
    results = [decode(small.MODEL, tree, ids, decoder, **options) for ids in (prompts, filled)]
    for field in FIELDS[1:]:
        np.testing.assert_array_equal(*(getattr(result, field) for result in results))
    assert results[1].not_finite.tolist() == [0] * 4


def test_a_slot_is_clean_for_the_next_request():
    """What such a row has left in the KV cache is seen by nobody: no weight times NaN is NaN."""
    model, cache = small.SDAR, BlockCausal()
    decoder, meter = small.decoder(policy=Threshold(0.9), cache=cache, block_length=None), Meter()
    prompts, lengths = ([BAD, 6, 7, 8, 9], [5, 6], [7, 8, 9], [40]), (16, 8, 4, 16)
    requests = [Request(ids, max_tokens=most) for ids, most in zip(prompts, lengths, strict=True)]

    def answers(tree):
        stream = decode_stream(model, tree, requests, decoder, slots=1, gen_length=16, meter=meter)
        return sorted(stream, key=lambda answer: answer.request.number)

    healthy, damaged = answers(small.params(0, model)), answers(spoilt(model))
    assert not any(BAD in answer.tokens for answer in healthy[1:]), "choose another token"
    assert [answer.not_finite > 0 for answer in damaged] == [True, False, False, False]
    for left, right in zip(healthy[1:], damaged[1:], strict=True):
        np.testing.assert_array_equal(left.tokens, right.tokens)
        assert (left.nfe, left.length) == (right.nfe, right.length)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The folder of a model whose head is no number."""
    shipped = load()
    head = shipped.params["head"] * jnp.nan
    folder = tmp_path_factory.mktemp("models") / "broken"
    save(folder, shipped.model, shipped.params | {"head": head}, tokenizer_from=shipped.path)
    return folder


def test_the_command_line_says_which_rows(damaged, tmp_path, capsys):
    shape = ("--gen-length", "8", "--block-length", "8", "--batch-size", "1", "--stop", "none")
    options = ("--model", str(damaged), *shape, "--policy", "threshold")

    def ran(*arguments):
        code = main([*arguments, *options])
        return code, *capsys.readouterr()

    mend = f"check the weights: jaxdiff inspect {damaged} --weights"
    code, out, err = ran("generate", "26 + 48", "--json", "--log-prob")
    row = json.loads(out, parse_constant=pytest.fail)  # null for what is no number
    assert (code, row["not_finite"], row["log_prob"]) == (1, sum(range(1, 9)), [None] * 8)
    assert err.splitlines()[-1].startswith("prompt 1: the model's scores were no numbers")
    assert mend in err
    (tmp_path / "in.jsonl").write_text('{"prompt": "1"}\n\n{"prompt": ""}\n{"prompt": "2"}\n', encoding="utf-8")
    files = ("--in", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"))
    code, out, err = ran("generate", *files, "--json")
    assert (code, json.loads(out)["not_finite"]) == (1, 2 * sum(range(1, 9)))
    assert "in.jsonl line 1, 4: the model's scores were no numbers" in err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("not_finite") for row in rows] == [sum(range(1, 9)), None, sum(range(1, 9))]
    code, out, err = ran("eval", "--n", "3", "--json")
    assert (code, json.loads(out)["not_finite"]) == (1, 3)
    assert "problem 1, 2, 3: the model's scores were no numbers" in err
