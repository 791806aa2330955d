"""Slots as pure functions: what an engine of one's own embeds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import policies
from jaxdiff.caches import Dual
from jaxdiff.decode import api, loop
from jaxdiff.decode.layout import Setup, layout_of
from jaxdiff.decode.state import Rows, live
from jaxdiff.pytree import numbers_of, with_numbers
from jaxdiff.serve import slots
from jaxdiff.stoppers import Eos
from tests import small
from tests.conformance.table import POLICIES

pytestmark = pytest.mark.usefixtures("strict")
POLICY = policies.any_of(policies.Threshold(0.6), policies.Fixed(order="random"))


def begun(policy, rows):
    """A setup, and the shapes of a state of so many rows."""
    decoder = small.decoder(policy=policy, stop=Eos())
    layout = layout_of(small.MODEL, decoder, first=32, generated=small.GEN, block=small.BLOCK)
    zero, setup = jnp.zeros((rows,), jnp.int32), Setup(small.MODEL, small.params(), decoder, layout)
    given = Rows(jnp.zeros((rows, 48), jnp.int32), zero, zero, small.keys(rows))
    numbers = tuple(jnp.broadcast_to(number, (rows,)) for number in numbers_of(decoder))
    spread = dataclasses.replace(setup, decoder=with_numbers(decoder, numbers))
    return setup, jax.eval_shape(loop.begin, spread, given), slots.Incoming(zero == 0, given, numbers)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_leaf_of_a_state_leads_with_its_rows(policy):
    """So that a slot is refilled whole, whatever the policy remembers."""
    build, numbers = POLICIES[policy]
    values = {name: 5 if name in ("steps", "k", "size", "post", "passes") else 0.5 for name in numbers}
    assert all(leaf.shape[0] == 5 for leaf in jax.tree.leaves(begun(build(**values), 5)[1]))


def test_a_serve_step_is_one_while_loop_without_a_callback():
    traced = jax.make_jaxpr(slots.serve_step)(*begun(POLICY, 3), jnp.int32(1), jnp.int32(9))
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns].count("while") == 1
    assert "callback" not in str(traced)


def test_a_state_goes_on_on_a_wider_canvas_with_its_keys_and_values():
    """In the middle of a block, where what is left to do reads the KV cache; misplaced by a column, it would show."""
    prompts, origin = small.batch()
    by, decoder = 8, small.decoder(stop=Eos(), cache=Dual())
    options = dict(origin=origin, gen_length=small.GEN, key=small.keys(4))
    call = api.prepare(small.MODEL, small.params(), prompts, decoder, **options)
    setup, layout = call.setup, call.setup.layout
    wider = dataclasses.replace(setup, layout=dataclasses.replace(layout, first=layout.first + by))
    once = jax.jit(loop.step)

    def to_the_end(setup, state):
        while bool(live(small.MODEL, state).any()):
            state = once(setup, state)
        return np.asarray(loop.finish(setup, state).tokens)

    state = loop.begin(setup, call.rows)
    for _ in range(3):
        state = once(setup, state)
    narrow, wide = to_the_end(setup, state), slots.repad(wider, layout, state)
    np.testing.assert_array_equal(to_the_end(wider, wide)[:, by:], narrow)
    moved = dataclasses.replace(wide, kv=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=3), wide.kv))
    assert (to_the_end(wider, moved)[:, by:] != narrow).any()
    np.testing.assert_array_equal(to_the_end(setup, slots.repad(setup, wider.layout, wide)), narrow)
