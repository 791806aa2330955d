"""Lexinvariant embeddings: drawn anew in each step but for what ends and masks, and nothing of them is learned."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.models import Llada
from jaxdiff.train import Recipe, train
from jaxdiff.train.embedding import varied_by
from tests import small
from tests.train.conftest import RECIPE

TIED = Llada(dataclasses.replace(small.CONFIG, weight_tying=True))
KEPT = [small.MASK, small.EOS, small.EOT]


def test_each_draw_is_another_and_special_tokens_stay():
    params = TIED.init(jax.random.key(0))
    vary = varied_by("lexinvariant", TIED)
    one, other = (vary(jax.random.key(seed), params)["wte"] for seed in (1, 2))
    for drawn in (one, other):
        np.testing.assert_array_equal(drawn[jnp.asarray(KEPT)], params["wte"][jnp.asarray(KEPT)])
        np.testing.assert_allclose(jnp.linalg.norm(drawn, axis=1).mean(), 1.0, atol=0.1)
    same = (np.asarray(one) == np.asarray(other)).all(axis=1)
    assert set(np.flatnonzero(same)) == set(KEPT)
    assert varied_by("learned", TIED)(jax.random.key(1), params) is params


def test_a_head_that_knows_ids_is_refused():
    with pytest.raises(InputError, match="embedding: found lexinvariant with a model that has a head of its own"):
        varied_by("lexinvariant", small.MODEL)


def recipe(recipe_file, embedding):
    model = RECIPE["model"] | {"weight_tying": True}
    return recipe_file(model=model, embedding=embedding, buckets=RECIPE["buckets"][:1])


def test_a_run_learns_nothing_of_any_letter(recipe_file, tmp_path):
    """Its weights hang on the drawn embeddings; those it starts from stay as they were, but for weight decay."""
    told = Recipe.read(recipe(recipe_file, "lexinvariant"))
    folder = train(told, tmp_path / "run")
    checkpoint = jaxdiff.load(folder)
    wte = np.asarray(checkpoint.params["wte"])
    expected = varied_by("lexinvariant", checkpoint.model)(jax.random.key(told.seed), checkpoint.params)["wte"]
    np.testing.assert_allclose(wte, np.asarray(expected), atol=1e-2)  # stored in bfloat16
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["embedding"] == "lexinvariant"
    with pytest.raises(InputError, match="embedding differ"):
        train(Recipe.read(recipe(recipe_file, "learned")), tmp_path / "run")
    with pytest.raises(InputError, match="embedding: found 'random', expected learned or lexinvariant; leave it out"):
        Recipe.read(recipe(recipe_file, "random"))
