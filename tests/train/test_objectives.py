"""Each objective equals a plain PyTorch computation, row by row and position by position, and so does its gradient.

That of insertion models: `test_insertion.py`.
"""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdiff import InputError
from jaxdiff.train import network as networks
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import View
from jaxdiff.train.objectives import OBJECTIVES, Network, parse
from tests import small

ROWS, LENGTH = 3, 14
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(4, small.VOCAB, (ROWS, LENGTH)).astype(np.int32)
PROMPTS = np.asarray([2, 4, 1], np.int32)
ANSWER = np.arange(LENGTH)[None] >= PROMPTS[:, None]
ORDER = RNG.integers(0, 9, (ROWS, LENGTH)).astype(np.int32)
LEARN = np.stack([ANSWER & (RNG.random((ROWS, LENGTH)) < share) for share in (0.4, 0.7)])
LEARN[1, 2] = False  # a view may have nothing to learn
AT = np.asarray([[2, 5, 3], [4, 0, 8]], np.int32)


def small_chunks():
    """Several chunks, the last of them without a position that carries loss."""
    return mock.patch.object(networks, "CHUNK", 9)


def features_of(params, tokens):
    return Network(params, small.MODEL).features(tokens, jnp.tile(PROMPTS, 2))


@jax.jit
def logits_of(params):
    return (
        features_of(params, jnp.asarray(np.where(LEARN, small.MASK, TOKENS[None]).reshape(-1, LENGTH))) @ params["head"]
    )


def targets():
    """Tokens of which about half are what the model says: the entropy of right ones has something to count."""
    said = np.asarray(logits_of(small.params())).argmax(-1)[:ROWS]
    return np.where(RNG_RIGHT, said, TOKENS).astype(np.int32)


RNG_RIGHT = np.random.default_rng(1).random((ROWS, LENGTH)) < 0.5


def mean(terms):
    return torch.stack(terms).mean() if terms else torch.zeros(())


def plain(name, logits, teacher, tokens, numbers):
    """The loss in PyTorch, from logits [2 B T V]."""
    total, counted = torch.zeros(()), []
    for view in range(2):
        for row in range(ROWS):
            ours, theirs = logits[view * ROWS + row], teacher[view * ROWS + row]
            learn = np.flatnonzero(LEARN[view, row])
            target = torch.as_tensor(tokens[row], dtype=torch.long)
            wrongness = {t: torch.nn.functional.cross_entropy(ours[t], target[t]) for t in learn}
            if name == "near_far":
                near = [t for t in learn if ORDER[row, t] < AT[view, row] + numbers["near"]]
                tau = numbers["temperature"]
                apart = [
                    tau**2
                    * torch.nn.functional.kl_div(
                        torch.log_softmax(ours[t] / tau, -1), torch.softmax(theirs[t] / tau, -1), reduction="sum"
                    )
                    for t in learn
                    if t not in near
                ]
                total = total + mean([wrongness[t] for t in near]) + numbers["far"] * mean(apart)
                continue
            total = total + mean(list(wrongness.values()))
            if name == "certainty" or (name == "trajectory" and view == 0):
                sharp = torch.distributions.Categorical(logits=ours / numbers["temperature"]).entropy()
                right = [t for t in learn if int(ours[t].argmax()) == int(target[t])]
                counted.append(len(right))
                total = total + numbers["beta"] * mean([sharp[t] for t in right])
    assert not counted or 0 < counted.count(0) < len(counted)  # rows with right tokens, and one without
    return total / ROWS


CASES = {
    "denoise": {},
    "certainty": {"beta": 1.5, "temperature": 0.7},
    "trajectory": {"beta": 0.8, "temperature": 0.5},
    "near_far": {"near": 3, "far": 0.6, "temperature": 1.3},
    "next_token": {},  # of a model that sees it all; of one that does not: tests/parity/test_causal.py
}


def test_each_is_compared():
    assert {*CASES, "insertion"} == set(OBJECTIVES.entries)


@pytest.fixture(scope="module")
def asked():
    """Value and gradient of every objective on the same views, out of one program."""
    objectives = [
        OBJECTIVES.parse(":".join([name, ",".join(f"{k}={v}" for k, v in CASES[name].items())])) for name in CASES
    ]
    batch = Batch(targets(), ANSWER, PROMPTS, PROMPTS, jnp.asarray(ORDER))
    seen = np.where(LEARN, small.MASK, TOKENS[None]).astype(np.int32)
    views = tuple(View(jnp.asarray(seen[i]), jnp.asarray(LEARN[i]), jnp.asarray(AT[i])) for i in range(2))
    teacher = Network(small.params(1), small.MODEL)

    def losses(params):
        network = Network(params, small.MODEL)
        return jnp.stack([objective.loss(network, batch, views, teacher) for objective in objectives])

    def each(params):
        values, back = jax.vjp(losses, params)
        return values, jax.vmap(lambda one: back(one)[0])(jnp.eye(len(objectives)))

    with small_chunks():
        values, gradients = jax.jit(each)(small.params())
    logits, back = jax.vjp(logits_of, small.params())
    return dict(zip(CASES, range(len(objectives)), strict=True)), values, gradients, logits, jax.jit(back)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_pytorch(name, asked):
    numbers, values, gradients, logits, back = asked
    leaf, teacher = torch.tensor(np.asarray(logits), requires_grad=True), logits_of(small.params(1))
    expected = plain(name, leaf, torch.tensor(np.asarray(teacher)), targets(), CASES[name])
    expected.backward()
    assert float(values[numbers[name]]) == pytest.approx(expected.item(), rel=2e-5)
    gradient = jax.tree.map(lambda each: each[numbers[name]], gradients)
    for found, wanted in zip(jax.tree.leaves(gradient), jax.tree.leaves(back(jnp.asarray(leaf.grad))[0]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-5 * float(np.abs(wanted).max()))


def test_no_logits_of_all_positions_exist():
    """Of 84 positions, in chunks of 9: no larger array of logits is in the program, forward and backward."""
    objective, _ = parse("certainty", None)
    batch = Batch(TOKENS, ANSWER, PROMPTS, PROMPTS)
    views = [View(jnp.asarray(np.where(learn, small.MASK, TOKENS)), jnp.asarray(learn)) for learn in LEARN]
    ask = jax.grad(lambda params: objective.loss(Network(params, small.MODEL), batch, views, None))
    with small_chunks():
        text = jax.jit(ask).lower(small.params()).as_text()
    assert f"9x{small.VOCAB}xf32" in text
    rows = {int(found) for found in re.findall(rf"tensor<(\d+)x{small.VOCAB}xf32>", text)}
    assert max(rows) <= max(9, small.CONFIG.d_model)  # the head itself is [D V]
    assert f"x{LENGTH}x{small.VOCAB}xf32" not in text


@pytest.mark.parametrize(
    ("objective", "noise", "words"),
    [
        ("sharp", None, "objective: found 'sharp', expected one of denoise, certainty, trajectory, near_far"),
        ("certainty:gamma=1", None, "objective certainty: found argument 'gamma=1', expected beta=, temperature="),
        ("certainty:beta=-1", None, "objective certainty beta: found -1.0, expected a number from 0"),
        ("near_far", "uniform", "objective near_far: found a noise that follows no trajectory, expected states"),
        (
            "next_token",
            "uniform",
            "objective next_token: found a noise that hides what is to be learned, expected meap",
        ),
        ("denoise", "meap", "noise meap: found it with an objective that learns what is masked"),
        ("next_token", "meap + uniform", "noise: found 'meap . uniform', expected noises that all mask"),
    ],
)
def test_an_objective_that_is_not_known(objective, noise, words):
    with pytest.raises(InputError, match=words):
        parse(objective, noise)
