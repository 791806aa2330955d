"""The measuring itself: what it compares does the same work. No test looks at a time."""

import jax
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.bench.ceilings import forward_cost
from jaxdiff.bench.clock import Median, in_turn, ratio
from jaxdiff.bench.shapes import abstract_params, shaped


def test_ways_run_in_turn_and_each_is_first_once():
    order = []
    seconds = in_turn({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3,), "b": (3,), "c": (3,)}


def test_the_median_and_its_interval():
    found = Median.of([5.0, 1.0, 2.0, 3.0, 100.0])
    assert (found.median, found.rounds) == (3.0, 5)
    assert found.low == 1.0
    assert found.high == 100.0
    assert ratio(np.array([4.0, 9.0]), np.array([2.0, 3.0])).median == 2.5
    assert Median.of(np.arange(101.0)).low > 35
    with pytest.raises(InputError, match="no values"):
        Median.of([])
    with pytest.raises(InputError, match="found 0"):
        in_turn({}, 0)


@pytest.mark.parametrize(("name", "billions"), [("llada-8b", 8.0156), ("dream-7b", 7.6156), ("llada2-mini", 16.3)])
def test_a_shape_has_the_published_size(name, billions):
    params = abstract_params(shaped(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e9 == pytest.approx(billions, rel=0.005)


def test_flops_of_a_forward_grow_with_what_is_fed_and_bytes_do_not():
    model = shaped("llada2-mini", n_layers=2)
    params = abstract_params(model)
    one, ten = (forward_cost(model, params, 1, tokens, 320) for tokens in (1, 10))
    assert ten[0] == pytest.approx(10 * one[0])
    assert ten[1] == one[1]
    assert one[0] < one[1]  # of 256 experts 8 are computed with, all are counted as read
