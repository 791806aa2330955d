"""What a model that encodes visible tokens once learns from: masks, and steps in which the rest was revealed."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff import InputError
from jaxdiff.train import Recipe, train
from jaxdiff.train.data import Batch
from jaxdiff.train.fit_drafter import DrafterRecipe, fit_drafter
from jaxdiff.train.network import Network
from jaxdiff.train.noises import View, parse
from jaxdiff.train.objectives import Denoise
from jaxdiff.train.trajectories import Trajectories
from tests import small
from tests.enat import MODEL, Plain
from tests.train.conftest import RECIPE

ROWS, LENGTH = 3000, 14
PROMPTS = np.full(ROWS, 4, np.int32)
ANSWERS = np.broadcast_to(np.arange(LENGTH) >= 4, (ROWS, LENGTH))
TOKENS = np.random.default_rng(0).integers(4, small.VOCAB, (ROWS, LENGTH)).astype(np.int32)
BATCH = Batch(*map(jnp.asarray, (TOKENS, ANSWERS, PROMPTS, np.full(ROWS, 8, np.int32))))


def drawn(noise, batch=BATCH):
    views = jax.jit(lambda noise, key: noise.views(key, batch, Network(None, MODEL), jnp.float32(0)))
    (view,) = views(parse(noise), jax.random.key(5))
    return np.asarray(view.tokens), np.asarray(view.learn), np.asarray(view.revealed)


@pytest.mark.parametrize(("reuse", "steps"), [(0.0, 1), (0.5, 1), (1.0, 3)])
def test_the_visible_answer_is_revealed_in_steps_after_the_prompt(reuse, steps):
    tokens, learn, revealed = drawn(f"reveal:reuse={reuse},steps={steps}")
    np.testing.assert_array_equal(revealed < 0, tokens == small.MASK)
    np.testing.assert_array_equal(learn, tokens == small.MASK)
    assert (learn <= ANSWERS).all()
    assert (revealed[:, :4] == 0).all()
    visible = ANSWERS & ~learn
    assert revealed[visible].min() == 1
    assert revealed[visible].max() == 1 + steps * (reuse > 0)
    assert learn.mean(where=ANSWERS) == pytest.approx(0.55, abs=0.01)  # ceil(10 t) of 10
    # Of nine visible tokens the number in the last of two steps is even on 0 to 9: a share ~ U(0, 1).
    if steps == 1 and reuse:
        nine = visible.sum(1) == 9
        later = np.bincount((revealed[nine] == 2).sum(1), minlength=10)
        share = later / nine.sum()
        assert share[0] == pytest.approx(0.5 + 0.05, abs=0.08)
        np.testing.assert_allclose(share[1:], 0.05, atol=0.04)


def test_the_loss_is_of_what_encoding_step_by_step_gives():
    """The value by the plain network; all weights learn."""
    rows, tree = 3, small.params(1, MODEL)
    batch = jax.tree.map(lambda leaf: leaf[:rows], BATCH)
    tokens, learn, revealed = drawn("reveal:reuse=1,steps=3", batch)
    view = View(*map(jnp.asarray, (tokens, learn)), revealed=jnp.asarray(revealed))

    def lost(tree):
        return Denoise().loss(Network(tree, MODEL), batch, (view,), None)

    value, gradient = jax.jit(jax.value_and_grad(lost))(tree)
    expected = []
    for row in range(rows):
        plain = Plain(tree)
        for step in range(revealed.max() + 1):
            logits = plain(np.where(revealed[row] <= step, tokens[row], small.MASK))
        each = torch.nn.functional.cross_entropy(
            torch.tensor(logits[learn[row]]), torch.tensor(TOKENS[row, learn[row]]).long()
        )
        expected.append(each.item())
    assert float(value) == pytest.approx(np.mean(expected), rel=1e-5)
    for leaf in jax.tree.leaves(gradient):
        assert float(jnp.abs(leaf).max()) > 0


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ("reveal:steps=65", "steps: found 65"),
        ("reveal:reuse=1.5", "reuse: found 1.5"),
        ("reveal + uniform", "noise: found 'reveal . uniform', expected noises that all mask"),
    ],
)
def test_noises_that_are_none(noise, words):
    with pytest.raises(InputError, match=words):
        parse(noise)


def test_a_recipe_trains_one_and_no_other_family(recipe_file, tmp_path):
    ours = {"model": RECIPE["model"] | {"family": "enat", "n_layers": 2, "decoder_layers": 1}, "noise": "reveal"}
    ours |= {"objective": "denoise", "steps": 6, "save_every": 6, "buckets": RECIPE["buckets"][:1]}
    plain = {name: value for name, value in RECIPE.items() if name != "block_length"} | ours

    def recipe(**changes):
        path = recipe_file()
        path.write_text(json.dumps(plain | changes))
        return Recipe.read(path)

    folder = train(recipe(), tmp_path / "run")
    checkpoint = jaxdiff.load(folder)
    assert type(checkpoint.model).__name__ == "Enat"
    before = checkpoint.model.init(jax.random.key(0))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), checkpoint.params, before)
    assert min(jax.tree.leaves(moved)) > 0
    with pytest.raises(InputError, match="noise reveal: found a Llada, which sees its whole canvas"):
        train(recipe(model=RECIPE["model"]), tmp_path / "other")


def test_no_drafter_is_fitted_to_one():
    with pytest.raises(InputError, match="fit: found a model that encodes visible tokens once"):
        fit_drafter(MODEL, {}, *(mock.Mock(spec=kind) for kind in (Trajectories, DrafterRecipe)))
