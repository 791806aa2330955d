"""`Model.apply` over a KV cache: tokens fed by themselves, wherever they stand, get what the whole canvas gives them.

And what `Inputs.sees` hides, and the two copies of a guided model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Span, build
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.models.guided import Guided
from jaxdiff.windows import take
from tests import small
from tests.models.test_families import SMALL, STACKS, noisy, rows_of
from tests.models.test_llada import forward

MODELS = STACKS | {"prefix_lm": build(SMALL["illada"] | {"dtype": "float32", "prefix_lm": True})}
PROMPT = jnp.array([4, 1, 5, 3])
# Each column at most once. Half are behind their neighbour; there are padding, first tokens, and the canvas' end.
SOME = jnp.array([[5, 4, 9, 8, 0, 1, 3], [10, 2, 1, 9, 6, 5, 7], [2, 3, 8, 7, 10, 9, 1], [7, 0, 6, 3, 2, 10, 9]])
EACH = jnp.array([[3, 1, 0, 2, 9, 8, 7, 10, 4, 6, 5], *[[10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]] * 3])
WINDOW = jnp.array([3, 0, 2, 4])


def fed(canvas, at, **fields):
    """The tokens of these columns; `at` [B T]."""
    own = {name: jnp.take_along_axis(getattr(canvas, name), at, axis=1) for name in ("tokens", "positions")}
    return dataclasses.replace(canvas, **own | fields)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", MODELS)
def test_tokens_fed_by_themselves_get_what_the_whole_canvas_gives_them(name):
    """At any columns, and in a window: what is fresh is seen and stored, all else is read from the cache."""
    model = MODELS[name]
    tree, canvas = rows_of(model, prompt_length=PROMPT)
    apply = jax.jit(model.apply)
    whole, _ = apply(tree, canvas)

    def check(found, at):
        """Where there is something to read: a shifted model needs the column before, or a first token."""
        expected, at = np.asarray(jnp.take_along_axis(whole, at[..., None], axis=1)), np.asarray(at)
        position = at - np.asarray(canvas.origin)[:, None]
        readable = position >= 0
        if model.shifted:
            readable &= (at[:, :, None] - 1 == at[:, None]).any(axis=2) | (position == 0)
        assert readable.any(axis=1).all()
        np.testing.assert_allclose(np.asarray(found)[readable], expected[readable], atol=2e-5)

    # Every column by itself, into a cache that is wider than the canvas.
    found, kv = apply(tree, fed(canvas, EACH), noisy(model.empty_kv(4, 13)), EACH)
    check(found, EACH)

    for at, start in ((SOME, None), (WINDOW[:, None] + jnp.arange(7)[None], WINDOW)):
        fresh = jax.random.bernoulli(jax.random.key(3), 0.7, at.shape)
        replaced = jax.vmap(lambda at, fresh: jnp.zeros((13,), bool).at[at].set(fresh))(at, fresh)
        wrong = jax.tree.map(lambda x, y: jnp.where(replaced[None, :, None, :, None], x, y), noisy(kv, 4), kv)  # noqa: B023
        inputs, place = fed(canvas, at, fresh=fresh), at if start is None else start
        every, after = apply(tree, inputs, wrong, place)
        check(every, at)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after, kv)
        if start is None or name == "llada":
            read = Span(jnp.array([1, 3, 0, 2]), 4)
            some, after = apply(tree, dataclasses.replace(inputs, store=False), wrong, place, read)
            np.testing.assert_allclose(some, take(every, read.start, 4), atol=1e-5)
            jax.tree.map(np.testing.assert_array_equal, after, wrong)


def attending(prompt, block):
    """A model whose tokens attend in that way, for the numpy forward of `test_llada`."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Blocks(LladaConfig):
        attention_block: int | None = block

    return Llada(Blocks(**dataclasses.asdict(small.CONFIG) | {"prefix_lm": prompt}))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("prompt", "block"), [(False, None), (True, None), (False, 3)], ids=["all", "prefix", "blocks"]
)
def test_a_token_sees_what_both_its_inputs_and_the_model_allow(prompt, block):
    """Against numpy attention: on the whole canvas, and by themselves over a KV cache."""
    model = attending(prompt, block)
    tree, canvas = rows_of(model, prompt_length=PROMPT)
    sees = jax.random.bernoulli(jax.random.key(5), 0.6, (4, 11, 11)) | jnp.eye(11, dtype=bool)[None]
    canvas = dataclasses.replace(canvas, sees=sees)
    apply = jax.jit(model.apply)
    found, kv = apply(tree, canvas, model.empty_kv(4, 11))
    some, _ = apply(tree, fed(canvas, SOME, sees=sees[jnp.arange(4)[:, None], SOME], store=False), kv, SOME)
    for row, first in enumerate(canvas.origin.tolist()):
        at = np.arange(11 - first)
        allowed = np.asarray(sees[row, first:, first:])
        if prompt:
            allowed = allowed & ((at[None] < int(PROMPT[row])) | (at[:, None] >= int(PROMPT[row])))
        if block:
            allowed = allowed & (at[None] // block <= at[:, None] // block)
        tokens = np.asarray(canvas.tokens[row, first:])
        expected = forward(model.config, tree, tokens, allowed)
        np.testing.assert_allclose(found[row, first:] @ tree["head"], expected, atol=5e-5)
        assert np.abs(expected - forward(model.config, tree, tokens)).max() > 1e-2  # something is hidden
        inside = np.asarray(SOME[row]) >= first
        columns = np.asarray(SOME[row])[inside] - first
        np.testing.assert_allclose(np.asarray(some[row])[inside] @ tree["head"], expected[columns], atol=5e-5)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_guidance_is_the_two_pass_formula(name):
    """On features; keys and values of either copy are its own, with a cache and without."""
    model, guided = MODELS[name], Guided(MODELS[name])
    given = jax.random.bernoulli(jax.random.key(6), 0.5, (4, 11))
    tree, canvas = rows_of(model)
    canvas = dataclasses.replace(canvas, given=given, scale=jnp.array([0.0, 0.5, 1.0, 3.0]))
    plain, apply, mask = jax.jit(model.apply), jax.jit(guided.apply), model.config.mask_token_id
    one, one_kv = plain(tree, canvas, model.empty_kv(4, 11))
    blind = dataclasses.replace(canvas, tokens=jnp.where(given, mask, canvas.tokens))
    other, other_kv = plain(tree, blind, model.empty_kv(4, 11))
    assert not np.allclose(one, other, atol=1e-2)
    expected = other + (canvas.scale[:, None, None] + 1.0) * (one - other)

    found, nothing = apply(tree, canvas)
    assert nothing is None
    np.testing.assert_allclose(found, expected, atol=5e-5)
    found, kv = apply(tree, canvas, guided.empty_kv(4, 11))
    np.testing.assert_allclose(found, expected, atol=5e-5)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), one_kv, other_kv)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), kv, both)

    # A column and the one before it, which a shifted model reads it from; that once more, which changes nothing.
    at = jnp.array([[5, 4, 4], [10, 9, 9], [8, 7, 7], [3, 2, 2]])
    inputs = fed(canvas, at, given=jnp.take_along_axis(given, at, axis=1), store=False)
    found, after = apply(tree, inputs, kv, at, Span(jnp.zeros((4,), jnp.int32), 1))
    np.testing.assert_allclose(found, jnp.take_along_axis(expected, at[:, :1, None], axis=1), atol=5e-5)
    jax.tree.map(np.testing.assert_array_equal, after, kv)
