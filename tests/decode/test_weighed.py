"""Draws by rejection in the compiled decode: the tokens of a plain loop, weights right on average, refusals."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Decoder, InputError, Request, Sampling, make_mesh
from jaxdiff import policies as p
from jaxdiff.caches import Seeded, SeededDual
from jaxdiff.constraints import Awrs, NoRepeat, NotEmpty, Table
from jaxdiff.decode.checks import check_decoder
from jaxdiff.fills import Recap
from jaxdiff.stoppers import Eos
from jaxdiff.types import HOLE
from tests import reference, small
from tests.constraints.languages import ENDS, is_answer, regex

pytestmark = pytest.mark.usefixtures("strict")
RANDOM, LEFT = p.Fixed(order="random"), p.Fixed(order="left")


def generated(result):
    return np.asarray(result.tokens)[:, -small.GEN :]


def third(tokens, column, candidate):
    """No token but an end may be a multiple of three, nor the sum of two neighbours one of five."""
    left = jnp.where(column > 0, tokens[jnp.maximum(column - 1, 0)], HOLE)
    return (candidate % 3 != 0) & ((left == HOLE) | ((left + candidate) % 5 != 0))


def third_fits(said, at, token):
    said = [*said[:at], token, *said[at + 1 :]]
    fits = token % 3 != 0 and (at == 0 or said[at - 1] == small.MASK or (said[at - 1] + token) % 5 != 0)
    pairs = [pair for pair in itertools.pairwise(said) if not {small.MASK, *ENDS} & set(pair)]
    return fits and len(pairs) == len(set(pairs))


@pytest.mark.parametrize(("policy", "each"), [(LEFT, 1), (p.Fixed(order="random", steps=small.BLOCK // 2), 2)])
def test_a_plain_loop_draws_the_same(policy, each):
    """A function of the user's and `no_repeat`: of each position in turn the first token in the order of its noise that
    fits with those before it, and w = 1 - P0, or p where the next one would not have.
    """
    made, temperature = Awrs.of(third, NoRepeat(ENDS, 2)), 0.8
    result = jax.device_get(small.decode(constraint=made, policy=policy, temperature=temperature))
    refused = 0
    for row, (prompt, key) in enumerate(zip(small.PROMPTS, small.keys(len(small.PROMPTS)), strict=True)):
        canvas = np.asarray([*prompt, *[small.MASK] * small.GEN])
        said = canvas[len(prompt) :]  # a view
        log_weight, checks, log_prob = 0.0, 0, np.zeros(small.GEN)
        for step in itertools.count():
            holes = np.flatnonzero(said == small.MASK)
            if not holes.size:
                break
            holes = holes[holes // small.BLOCK == holes[0] // small.BLOCK]
            logits = small.logits(small.params(), canvas)[len(prompt) :]
            logits[:, small.MASK] = -np.inf
            plain, p_log = (reference.log_softmax(x) for x in (logits, logits / temperature))
            own = jax.random.fold_in(key, step)
            noise, draws = reference.gumbel(own, 0, len(canvas), small.VOCAB), reference.uniform(own, len(canvas))
            order = holes if each == 1 else holes[np.argsort(-draws[len(prompt) + holes])]
            for at in order[:each]:
                ranked = [t for t in np.argsort(-(p_log[at] + noise[len(prompt) + at])) if t != small.MASK]
                fits = [third_fits(said.tolist(), at, int(t)) for t in ranked]
                place = fits.index(True)
                refused += place
                lost = np.exp(p_log[at, ranked[:place]]).sum()
                log_weight += np.log1p(-lost) if fits[place + 1] else p_log[at, ranked[place]]
                checks += place + 2
                said[at], log_prob[at] = ranked[place], plain[at, ranked[place]]
        assert result.near_ties[row] == 0
        np.testing.assert_array_equal(generated(result)[row], said)
        np.testing.assert_allclose(result.log_weight[row], log_weight, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(result.log_prob[row], log_prob, atol=1e-3)
        assert result.checks[row] == checks
    assert refused > 20


@pytest.mark.parametrize(
    "parts",
    [
        dict(policy=p.EntropyBounded(0.5), cache=SeededDual(), model=small.FAST),
        dict(cache=Seeded(), model=small.LLAMA),
    ],
    ids=["seeded-dual", "autoregressive"],
)
def test_a_regular_expression_is_matched_whatever_else_is_in_the_batch(parts):
    pattern = "(ab|c|aca)*(b|é)?"
    parts = dict(constraint=Awrs.of(regex(pattern), estimator="paper"), temperature=1.0, stop=Eos()) | parts
    found = jax.device_get(small.decode(**parts))
    assert all(is_answer(pattern, tokens) for tokens in generated(found))
    assert np.isfinite(found.log_weight).all()
    # A row in which nothing was refused loses nothing, and has the text of a decode without the constraint.
    kept = found.log_weight == 0
    assert ((found.log_weight < 0) | kept).all()
    assert not kept.all()
    plain = generated(jax.device_get(small.decode(**parts | dict(constraint=None))))
    np.testing.assert_array_equal(generated(found)[kept], plain[kept])
    other = jax.device_get(small.decode(order=[2, 0, 0, 3], **parts))
    np.testing.assert_array_equal(generated(other), generated(found)[[2, 0, 0, 3]])
    np.testing.assert_allclose(other.log_weight, found.log_weight[[2, 0, 0, 3]], rtol=1e-4)


def test_rows_in_slots_and_over_a_mesh_weigh_the_same():
    made = Awrs.of(regex("[abc]*"), NotEmpty(ENDS), NoRepeat(ENDS, 3))
    parts = dict(constraint=made, policy=RANDOM, temperature=1.0)
    alone = jax.device_get(small.decode(**parts))
    spread = jax.device_get(small.decode(mesh=make_mesh(2, 1), **parts))
    np.testing.assert_array_equal(alone.tokens, spread.tokens)
    np.testing.assert_allclose(alone.log_weight, spread.log_weight, rtol=1e-4)
    requests = [Request(ids, key=key) for ids, key in zip(small.PROMPTS, small.keys(4), strict=True)]
    stream = jaxdiff.decode_stream(
        small.MODEL, small.params(), requests, small.decoder(**parts), slots=3, gen_length=small.GEN
    )
    for answer in stream:
        row = answer.request.number
        np.testing.assert_array_equal(answer.tokens, generated(alone)[row])
        np.testing.assert_allclose(answer.log_weight, alone.log_weight[row], rtol=1e-4)
        assert answer.checks == alone.checks[row]


def test_a_canvas_shows_predicates_all_of_it_and_where_nothing_is_allowed_a_row_weighs_nothing():
    canvas = np.full((2, 8), 40, np.int32)
    canvas[:, [2, 5]], canvas[1, 0] = small.MASK, 41

    def some(tokens, column, candidate):
        return (tokens[0] == 40) & jnp.where(column == 2, candidate == 9, candidate > 30)

    decoder = small.decoder(block_length=None, constraint=Awrs.of(some), policy=LEFT, temperature=1.0)
    found = jax.device_get(jaxdiff.infill(small.MODEL, small.params(), canvas, decoder))
    assert found.tokens[0, 2] == 9
    assert found.tokens[0, 5] > 30
    assert np.isfinite(found.log_weight[0])
    assert found.log_weight[1] == -np.inf
    assert found.checks[1] == small.VOCAB - 1  # each token at the first hole, and none at the second
    assert (found.tokens != small.MASK).all()


CONFIG = dataclasses.replace(small.CONFIG, vocab_size=8, n_layers=1, max_sequence_length=16)
TINY = type(small.MODEL)(CONFIG)
LENGTH, ROWS = 4, 3000


def tiny():
    """No token is so rare that ROWS draws would not show it."""
    tree = jax.jit(TINY.init)(jax.random.key(5))
    return tree | {"wte": tree["wte"] * 3.0}


def tiny_decoder(policy, constraint):
    return Decoder(policy, constraint=constraint, block_length=LENGTH, sampling=Sampling(1.0))


def test_where_all_fits_nothing_changes_and_nothing_is_lost():
    params, prompts = tiny(), np.full((4, 1), 5, np.int32)
    plain, weighed = (
        jaxdiff.decode(TINY, params, prompts, tiny_decoder(p.Entropy(0.8), constraint), gen_length=LENGTH)
        for constraint in (None, Awrs.of(Table(np.ones(8, bool))))
    )
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(weighed, field), getattr(plain, field))
    np.testing.assert_allclose(weighed.log_weight, 0.0, atol=1e-5)
    assert (np.asarray(weighed.checks) == 2 * LENGTH).all()  # the token, and one more
    assert (np.asarray(plain.checks) == 0).all()
    assert (np.asarray(plain.log_weight) == 0).all()


def odd(tokens, column, candidate):
    """The sum of all tokens is a multiple of three: nothing can be said before the last one."""
    text = tokens.at[column].set(candidate)
    return jnp.any(text == HOLE) | (jnp.sum(text) % 3 == 0)


@pytest.mark.parametrize(("steps", "estimator"), [(LENGTH, "recursive"), (LENGTH // 2, "geometric")])
def test_weights_are_right_on_average(steps, estimator):
    """All texts enumerated, one and two tokens a forward: the mean weight is the mass of those that are allowed, and
    what each first token has of it is right too.
    """
    params, ids = tiny(), [i for i in range(8) if i != small.MASK]
    made = Awrs.of(odd, lambda tokens, column, candidate: (column != 1) | (candidate > 3), estimator=estimator)
    decoder = tiny_decoder(p.Fixed(order="left", steps=steps), made)
    prompts = np.full((ROWS, 1), 5, np.int32)
    found = jax.device_get(jaxdiff.decode(TINY, params, prompts, decoder, gen_length=LENGTH, key=jax.random.key(1)))

    texts = np.asarray(list(itertools.product(ids, repeat=LENGTH)))
    mass, each = np.ones(len(texts)), LENGTH // steps
    for first in range(0, LENGTH, each):
        before, which = np.unique(texts[:, :first], axis=0, return_inverse=True)
        canvas = np.full((len(before), 1 + LENGTH), small.MASK, np.int32)
        canvas[:, 0], canvas[:, 1 : 1 + first] = 5, before
        features, _ = TINY.apply(params, jaxdiff.Inputs.whole(jnp.asarray(canvas)))
        logits = np.asarray(features @ TINY.head(params), np.float64)[:, 1:]
        logits[..., small.MASK] = -np.inf
        p_log = reference.log_softmax(logits)[which.ravel()]
        for at in range(first, first + each):
            mass *= np.exp(p_log[np.arange(len(texts)), at, texts[:, at]])
    assert mass.sum() == pytest.approx(1.0)
    mass *= (texts.sum(axis=1) % 3 == 0) & (texts[:, 1] > 3)
    weight, said = np.exp(np.float64(found.log_weight)), found.tokens[:, 1:]

    def near(values, expected):
        assert abs(values.mean() - expected) < 3 * values.std() / np.sqrt(ROWS) + 1e-6

    near(weight, mass.sum())
    for token in ids:
        near(weight * (said[:, 0] == token), mass[texts[:, 0] == token].sum())
        near(weight * (said[:, 3] == token), mass[texts[:, 3] == token].sum())
    alive = weight > 0
    assert ((said[alive].sum(axis=1) % 3 == 0) & (said[alive, 1] > 3)).all()


def test_few_tokens_of_512_are_asked_about():
    """With more than half of the mass allowed, under 5 % of the vocabulary for each token."""
    config = dataclasses.replace(CONFIG, vocab_size=512)
    model = type(small.MODEL)(config)
    params, prompts = jax.jit(model.init)(jax.random.key(0)), np.full((16, 2), 7, np.int32)
    made = Awrs.of(lambda tokens, column, one: one % 8 < 5, estimator="paper")
    decoder = Decoder(RANDOM, constraint=made, sampling=Sampling(1.0), block_length=8)
    found = jax.device_get(jaxdiff.decode(model, params, prompts, decoder, gen_length=8))
    assert (found.tokens[:, 2:] % 8 < 5).all()
    assert 8 < found.checks.mean() < 0.05 * 512 * 8
    assert 0.4 < np.exp(found.log_weight.mean() / 8) < 0.8  # 5/8 of a flat distribution


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(policy=p.Threshold(0.9)), "policy threshold, whose order looks at the candidates"),
        (dict(), "policy fixed, whose order looks at the candidates"),
        (dict(policy=p.any_of(RANDOM, p.Threshold(0.9))), "policy AnyOf, whose order looks"),
        (dict(policy=RANDOM, temperature=0.0), "temperature: found 0 with a constraint that draws by rejection"),
        (dict(policy=RANDOM, fill=Recap(2)), "fill: found recap with a constraint that draws by rejection"),
        (dict(policy=RANDOM, defer_eos=True), "defer_eos: found it with a constraint that draws by rejection"),
        (
            dict(policy=RANDOM, constraint=Awrs.of(NotEmpty((1,)))),
            r"text ends with ids \[1\], expected those",
        ),
        (dict(policy=RANDOM, constraint=Awrs.of(Table(np.ones(9, bool)))), "table: found 9 ids, expected those of the"),
        (dict(policy=RANDOM, constraint=Awrs.of(regex("[ab]{70}"))), "no text that matches is of at most 16 tokens"),
    ],
)
def test_what_breaks_the_weights_is_refused(parts, message):
    with pytest.raises(InputError, match=message):
        small.decode(**{"constraint": Awrs.of(third), "temperature": 1.0, **parts})


def test_with_blocks_of_one_every_order_is_in_order():
    parts = dict(constraint=Awrs.of(NotEmpty(ENDS)), temperature=1.0)
    check_decoder(small.decoder(policy=p.Threshold(0.9), **parts), small.MODEL, 4, 1)
    with pytest.raises(InputError, match="whose order looks at the candidates"):
        check_decoder(small.decoder(policy=p.Edit(0.9, 0.5), **parts), small.MODEL, 4, 1)


def test_parts_that_are_none_are_refused():
    for parts, message in [
        ((), "found 0 regular expressions in 0 parts"),
        ((regex("a"), regex("b")), "found 2 regular expressions in 2 parts"),
        ((3,), "found 3, expected a regular expression, a predicate or a function"),
    ]:
        with pytest.raises(InputError, match=message):
            Awrs.of(*parts)
    with pytest.raises(InputError, match="estimator: found 'best'"):
        Awrs.of(third, estimator="best")
    with pytest.raises(InputError, match="table: found"):
        Table(np.ones(3))
