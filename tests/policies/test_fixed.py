"""Dream's alg_temp: positions drawn without replacement from softmax(score / alg_temp)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, Score
from jaxdiff.policies import Fixed, parse

PROB = np.array([0.9, 0.6, 0.5, 0.2])
pytestmark = pytest.mark.usefixtures("strict")


def score(rows):
    """The same four candidates in every row; the last is visible already."""
    wide = jnp.broadcast_to(jnp.asarray(PROB, jnp.float32), (rows, 4))
    numbers, ids = jnp.zeros((rows, 4)), jnp.zeros((rows, 4), jnp.int32)
    zero, masked = jnp.zeros((rows,), jnp.int32), jnp.broadcast_to(jnp.arange(4) < 3, (rows, 4))
    return Score(
        token=ids,
        prob=wide,
        log_odds=jnp.log(wide) - jnp.log1p(-wide),
        runner_up=numbers,
        entropy=1.0 - wide,
        gap=numbers + 1.0,
        log_prob=jnp.log(wide),
        named=numbers[..., None],
        hidden=numbers[..., None],
        masked=masked,
        eligible=masked,
        editable=~masked,
        canvas=ids,
        start=zero,
        origin=zero,
        block_step=zero,
        row_step=zero,
    )


def committed(policy, rows):
    seen = score(rows)
    return np.asarray(policy.select(policy.init(rows, 4), seen, jax.random.split(jax.random.key(0), rows))[0].commit)


@pytest.mark.parametrize(("order", "value"), [("confidence", PROB), ("margin", PROB), ("entropy", PROB - 1.0)])
def test_positions_are_drawn_from_the_softmax_of_their_score(order, value):
    rows, heat = 4000, 0.3
    chosen = committed(Fixed(steps=2, order=order, alg_temp=heat), rows)  # 3 masked in 2 steps: the first takes 2
    assert (chosen.sum(1) == 2).all()
    assert not chosen[:, 3].any()
    weight = np.exp(value[:3] / heat)
    weight /= weight.sum()
    left_out = sum(  # the one that two draws without replacement leave
        weight[i] * weight[j] / (1 - weight[i]) * np.eye(3)[3 - i - j] for i in range(3) for j in range(3) if i != j
    )
    np.testing.assert_allclose(1 - chosen[:, :3].mean(0), left_out, atol=4 * np.sqrt(0.25 / rows))


def test_none_and_zero_take_the_best_and_a_vector_mixes_them():
    best = np.broadcast_to([True, True, False, False], (50, 4))
    np.testing.assert_array_equal(committed(Fixed(steps=2), 50), best)
    np.testing.assert_array_equal(committed(Fixed(steps=2, alg_temp=0.0), 50), best)
    mixed = committed(Fixed(steps=2, alg_temp=np.repeat([0.0, 5.0], 25)), 50)
    np.testing.assert_array_equal(mixed[:25], best[:25])
    assert (mixed[25:] != best[25:]).any()


def test_it_is_read_from_text_and_refused_where_there_is_no_score():
    assert float(parse("fixed:order=entropy,alg_temp=0.2").alg_temp) == pytest.approx(0.2)
    with pytest.raises(InputError, match="fixed alg_temp: found order=random"):
        parse("fixed:order=random,alg_temp=1")
    with pytest.raises(InputError, match="alg_temp: found -1"):
        Fixed(alg_temp=-1)
