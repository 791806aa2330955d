"""Models that encode visible tokens once: both ways to decode with one give what a plain loop gives that encodes each
token when it is revealed; what their work is; what is refused.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Decoder, InputError, Sampling, caches, decode_stream, infill, make_mesh
from jaxdiff.caches import Encoded, NoCache
from jaxdiff.decode import pieces, trajectory_log_prob
from jaxdiff.fills import FILLS
from jaxdiff.policies import POLICIES
from jaxdiff.pytree import pytree
from jaxdiff.serve import Request
from jaxdiff.stoppers import STOPPERS
from tests import reference, small
from tests.conformance.each_row import EachRow
from tests.enat import MODEL, Plain, shares

RULES = {
    "threshold:tau=0.5": lambda: reference.threshold(0.5),
    "fixed:order=random,steps=4": lambda: reference.Fixed(4, "random"),
    "fixed": reference.Fixed,
}
ROWS, SEED = len(small.PROMPTS), 5  # a model that is unsure for long
SAME = ("tokens", "commit_step", "nfe", "lengths", "reason", "near_ties")


@pytree
class Committing(EachRow):
    """Of policies that only commit."""

    revises = False


@functools.cache
def decoded(cache, temperature=0.0):
    """All rules in one program, with their rows one after the other."""
    return jax.device_get(
        small.decode(
            model=MODEL,
            policy=Committing(tuple(map(POLICIES.parse, RULES)), np.repeat(np.arange(len(RULES)), ROWS)),
            order=np.tile(np.arange(ROWS), len(RULES)),
            cache=cache,
            model_seed=SEED,
            temperature=temperature,
        )
    )


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("cache", [NoCache(), Encoded()], ids=["none", "encoded"])
def test_tokens_and_work_equal_a_plain_loop(cache, temperature):
    """Of rows of several lengths together: so a row hangs on none of the others."""
    result, tree = decoded(cache, temperature), small.params(SEED, MODEL)
    assert not int(result.near_ties.sum()), "draw another seed: float rounding decides here"
    encoder, decoder = shares(tree)
    for place, rule in enumerate(RULES):
        for row, prompt in enumerate(small.PROMPTS):
            plain, visible = Plain(tree), []

            def logits(x, plain=plain, visible=visible):
                visible.append(int(np.sum(x != small.MASK)))
                return plain(x)

            tokens, trace, calls = reference.decode(
                logits,
                prompt,
                RULES[rule](),
                gen=small.GEN,
                block=small.BLOCK,
                mask=small.MASK,
                eos_ids=(small.EOS, small.EOT),
                temperature=temperature,
                key=small.keys(ROWS)[row],
            )
            at = place * ROWS + row
            np.testing.assert_array_equal(result.tokens[at, -small.GEN :], tokens)
            np.testing.assert_array_equal(result.commit_step[at], trace)
            assert result.nfe[at] == calls
            encoded = plain.encoded if cache == Encoded() else sum(visible)
            work = (encoder * encoded + decoder * plain.decoded) / (len(prompt) + small.GEN)
            assert result.work[at] == pytest.approx(work, rel=1e-5)


def test_an_end_that_moves_left_of_tokens_changes_nothing(monkeypatch):
    """They were seen by others, which are not encoded again: both ways go on seeing them; row by row, or together."""
    policy, stop = POLICIES.parse("fixed:order=random,steps=16"), STOPPERS.parse("eotp:way=official")
    parts = dict(model=MODEL, policy=policy, stop=stop, block_length=32, gen_length=32, model_seed=SEED)
    whole = small.decode(**parts)
    monkeypatch.setattr(pieces, "TOGETHER", {"cpu": 1})
    found = small.decode(**parts, cache=Encoded(), order=[2, 0, 3, 1])
    assert (np.asarray(whole.trace.step) >= 0)[np.asarray(whole.commit_step) < 0].any(), "draw another seed"
    for name in (*SAME, "log_prob"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name)[jnp.asarray([2, 0, 3, 1])], atol=1e-5)


def test_a_mesh_changes_nothing():
    parts = dict(model=MODEL, policy=POLICIES.parse("fixed:steps=4"), cache=Encoded(), model_seed=SEED)
    one, spread = small.decode(**parts), small.decode(**parts, mesh=make_mesh(2, 2))
    for name in (*SAME, "work"):
        np.testing.assert_array_equal(getattr(spread, name), getattr(one, name))


def test_slots_are_refilled():
    """With the keys and values of another row in them."""
    decoder = small.decoder(cache=Encoded(), policy=POLICIES.parse("threshold:tau=0.5"))
    requests = [Request(prompt, id=i) for i, prompt in enumerate(small.PROMPTS * 2)]
    stream = decode_stream(MODEL, small.params(SEED, MODEL), requests, decoder, gen_length=small.GEN, slots=2)
    found = {done.request.id: done for done in stream}
    result = decoded(Encoded())
    for number, prompt in enumerate(small.PROMPTS * 2):
        row = number % ROWS
        assert found[number].tokens.tolist() == result.tokens[row, -small.GEN :].tolist(), prompt
        assert found[number].work == pytest.approx(float(result.work[row]), rel=1e-5)


def test_a_canvas_is_filled_and_its_log_probability_is_that_of_the_decode():
    canvas = np.full((2, 12), small.MASK, np.int32)
    canvas[0, [0, 5, 11]], canvas[1, 3:7] = (7, 8, 9), (10, 11, 12, 13)
    tree, waits = small.params(SEED, MODEL), POLICIES.parse("fixed:schedule=dream,steps=12")  # in some steps
    plain, found = (infill(MODEL, tree, canvas, Decoder(policy=waits, cache=cache)) for cache in (NoCache(), Encoded()))
    for name in SAME:
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    assert (np.asarray(found.work) < np.asarray(plain.work)).all()
    log_prob = trajectory_log_prob(MODEL, tree, found)
    np.testing.assert_allclose(log_prob, found.log_prob, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "parts", "words"),
    [
        (
            MODEL,
            dict(cache=caches.Dual()),
            r"cache: found dual with a model that .* \(Enat\), expected encoded",
        ),
        (small.MODEL, dict(cache=Encoded()), "cache: found encoded with a Llada, whose visible tokens see masks"),
        (MODEL, dict(policy=POLICIES.parse("wino")), "policy: found wino with a model that encodes"),
        (MODEL, dict(policy=POLICIES.parse("edit")), "policy: found edit with a model that encodes"),
        (MODEL, dict(fill=FILLS.parse("recap")), "fill: found recap with a model that encodes"),
        (MODEL, dict(sampling=Sampling(cfg_scale=1.0)), "cfg_scale: found one with a model that encodes"),
        (MODEL, dict(cache=Encoded(), length="var"), "length: found var with cache encoded"),
    ],
)
def test_what_does_not_go_together_is_refused_before_compilation(model, parts, words):
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(InputError, match=words):
        jaxdiff.decode(model, shapes, np.asarray([[5, 6]]), dataclasses.replace(Decoder(), **parts), gen_length=32)
