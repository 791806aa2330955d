"""What an insertion model learns from, and its loss: a plain PyTorch computation on texts without what is missing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff import InputError
from jaxdiff.train import Recipe, train
from jaxdiff.train.data import Batch
from jaxdiff.train.network import Network
from jaxdiff.train.noises import Drop, View
from jaxdiff.train.objectives import Insertion, parse
from jaxdiff.types import Inputs
from tests import small
from tests.insertion.conftest import MODEL, params
from tests.train.conftest import RECIPE
from tests.train.test_objectives import small_chunks

LENGTH = 14
RNG = np.random.default_rng(3)
TOKENS = RNG.integers(4, 9, (5, LENGTH)).astype(np.int32)  # few different ones: some are missing twice from a gap
PROMPTS = np.asarray([2, 4, 1, 3, 0], np.int32)
LENGTHS = np.asarray([9, 10, 7, 6, 0], np.int32)  # with end-of-text; the last row is packed
COLUMN = np.arange(LENGTH)[None]
ANSWERS = PROMPTS[:, None] <= COLUMN
ANSWERS[4] = [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0]
BATCH = Batch(*map(jnp.asarray, (TOKENS, ANSWERS, PROMPTS, LENGTHS)))
AMONG = ANSWERS & ((PROMPTS + LENGTHS - 1)[:, None] > COLUMN)
AMONG[4] = ANSWERS[4]
MISSING = AMONG & (RNG.random(AMONG.shape) < 0.5)
MISSING[2] = False  # nothing
MISSING[3] = AMONG[3]  # the whole answer
TEXT = [8 + PROMPTS[0], 9 + PROMPTS[1], 6 + PROMPTS[2], 5 + PROMPTS[3], 9]


def standing(row):
    """The columns that are left of a row's text."""
    return [column for column in range(TEXT[row]) if not MISSING[row, column]]


def logits_of(tree):
    """Of each row's text as it stands, [5 n V], and the log-odds that it is whole."""
    tokens, positions = np.zeros_like(TOKENS), np.full_like(TOKENS, -1)
    for row in range(5):
        left = standing(row)
        tokens[row, : len(left)], positions[row, : len(left)] = TOKENS[row, left], np.arange(len(left))
    inputs = Inputs(jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(positions >= 0), jnp.zeros(5, jnp.int32))
    features = MODEL.apply(tree, inputs)[0]
    return features @ MODEL.head(tree), MODEL.whole(tree, features[:, 0])


def plain(logits, whole, weight):
    total = torch.zeros(())
    for row in range(5):
        left, missing = standing(row), np.flatnonzero(MISSING[row])
        is_open = [ANSWERS[row, c] or (c + 1 < LENGTH and bool(ANSWERS[row, c + 1])) for c in left]
        target = torch.zeros(len(left), small.VOCAB)
        for column in missing:
            target[max(i for i, c in enumerate(left) if c < column), TOKENS[row, column]] += 1 / len(missing)
        assert not target[~torch.tensor(is_open)].any()
        shut = torch.where(torch.tensor(is_open)[:, None], logits[row, : len(left)], -torch.inf)
        total = (
            total
            - (target * torch.nan_to_num(torch.log_softmax(shut.reshape(-1), 0), neginf=0).view(target.shape)).sum()
        )
        is_whole = torch.tensor(float(len(missing) == 0))
        total = total + weight * torch.nn.functional.binary_cross_entropy_with_logits(whole[row], is_whole)
    return total / 5


def test_value_and_gradient_equal_pytorch():
    objective, view = Insertion(stop=0.7), View(jnp.asarray(TOKENS), jnp.asarray(MISSING))
    with small_chunks():
        ask = jax.jit(jax.value_and_grad(lambda tree: objective.loss(Network(tree, MODEL), BATCH, [view], None)))
        value, gradient = ask(params())
    found, back = jax.vjp(jax.jit(logits_of), params())
    leaves = [torch.tensor(np.asarray(each), requires_grad=True) for each in found]
    expected = plain(*leaves, weight=0.7)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=2e-5)
    (wanted,) = back(tuple(jnp.asarray(leaf.grad) for leaf in leaves))
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-5 * float(np.abs(other).max()))


def test_any_number_of_the_answers_tokens_is_missing():
    rows = 2000
    batch = jax.tree.map(lambda x: jnp.repeat(x[:1], rows, 0), BATCH)
    noises = {"anywhere": Drop(), "a stretch": Drop(span=1.0), "a short one": Drop(span=1.0, longest=3)}
    for kind, noise in noises.items():
        (view,) = jax.jit(lambda noise, key: noise.views(key, batch, Network(params(), MODEL), jnp.float32(0)))(
            noise, jax.random.key(1)
        )
        missing = np.asarray(view.learn)
        np.testing.assert_array_equal(view.tokens, batch.tokens)
        assert not missing[:, ~AMONG[0]].any()
        counts = np.bincount(missing.sum(1), minlength=9)
        among = missing[:, AMONG[0]]
        reach = np.where(among.any(1), 8 - among[:, ::-1].argmax(1) - among.argmax(1), 0)  # from first to last
        if kind == "anywhere":
            assert counts.min() >= rows // 9 - 1  # 0 to 8 of 8, evenly
            np.testing.assert_allclose(among.mean(0), 0.5, atol=0.05)
            continue
        # w ~ U{1 .. most}, n ~ U{0 .. w}
        most = 8 if kind == "a stretch" else 3
        law = [sum(1 / most / (w + 1) for w in range(max(n, 1), most + 1)) for n in range(most + 1)]
        np.testing.assert_allclose(counts / rows, law + [0.0] * (8 - most), atol=0.03)
        assert reach.max() == most
        assert (reach > missing.sum(1)).any()  # what stands in a stretch is not at its ends alone


@pytest.mark.parametrize(
    ("objective", "noise", "words"),
    [
        ("insertion", "uniform", "objective insertion: found a noise that masks what is to be learned, expected drop"),
        ("denoise", "drop", "noise drop: found it with an objective that learns what is masked"),
        ("insertion", "drop + uniform", "noise: found 'drop . uniform', expected noises that all mask"),
        ("insertion:stop=-1", None, "objective insertion stop: found -1.0, expected a number from 0"),
    ],
)
def test_what_does_not_go_together(objective, noise, words):
    with pytest.raises(InputError, match=words):
        parse(objective, noise)


def insertion_recipe(recipe_file, family, objective, **changes):
    file = recipe_file(model=RECIPE["model"] | {"family": family}, objective=objective)
    recipe = json.loads(file.read_text())
    del recipe["block_length"]  # an older spelling of a noise
    recipe |= {"buckets": recipe["buckets"][:1], "steps": 4, "warmup": 1, "decay": 1} | changes
    file.write_text(json.dumps(recipe))
    return file


@pytest.mark.parametrize(
    ("family", "objective", "words"),
    [
        ("llada", "insertion", "objective insertion: found a Llada, which has no stop head"),
        ("insertion", "denoise", r"model: found one that inserts \(Insertion\) with an objective of masks"),
        ("insertion", "next_token", "objective next_token: found a Insertion"),
    ],
)
def test_a_model_that_it_does_not_train(recipe_file, tmp_path, family, objective, words):
    recipe = Recipe.read(insertion_recipe(recipe_file, family, objective))
    with pytest.raises(InputError, match=words):
        train(recipe, tmp_path / "run")


def test_a_recipe_makes_a_folder_that_inserts(recipe_file, tmp_path):
    folder = train(Recipe.read(insertion_recipe(recipe_file, "insertion", "insertion")), tmp_path / "run")
    checkpoint = jaxdiff.load(folder)
    assert np.asarray(checkpoint.params["stop"]["weight"]).any()
    result = jaxdiff.insert(checkpoint.model, checkpoint.params, np.asarray([[5, 6]], np.int32), gen_length=3)
    assert int(result.lengths[0]) <= 3


def test_it_starts_from_a_model_that_fills_masks(recipe_file, tmp_path):
    source = tmp_path / "masked"
    train(Recipe.read(insertion_recipe(recipe_file, "llada", "denoise", tokenizer_problems=60)), source)
    still = {"init": str(source), "learning_rate": 0.0}
    began = train(Recipe.read(insertion_recipe(recipe_file, "insertion", "insertion", **still)), tmp_path / "run")
    given, begun = (jaxdiff.load(folder, dtype="float32").params for folder in (source / "model", began))
    assert not np.asarray(begun.pop("stop")["weight"]).any()
    jax.tree.map(np.testing.assert_array_equal, given, begun)
    for folder in (source, source / "model"):
        wider = RECIPE["model"] | {"family": "insertion", "d_model": 32}
        other = insertion_recipe(recipe_file, "insertion", "insertion", init=str(folder), model=wider)
        with pytest.raises(InputError, match=r"init: \['.*'\] has shape .* in .*, expected .*32"):
            train(Recipe.read(other), tmp_path / "other")
    back = insertion_recipe(recipe_file, "llada", "denoise", init=str(began))
    with pytest.raises(InputError, match=r"init: \['stop'\].* expected none"):
        train(Recipe.read(back), tmp_path / "back")
