"""Slots as pure functions: what an engine of one's own embeds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import policies
from jaxdiff.caches import Dual
from jaxdiff.decode import api, loop
from jaxdiff.decode.layout import layout_of
from jaxdiff.decode.state import Rows, live
from jaxdiff.pytree import numbers_of
from jaxdiff.serve import slots
from jaxdiff.stoppers import Eos
from tests import small
from tests.conformance.table import POLICIES

pytestmark = pytest.mark.usefixtures("strict")
POLICY = policies.any_of(policies.Threshold(0.6), policies.Fixed(order="random"))


def blank(policy, rows):
    """The decoder, its layout and the shapes of so many free slots."""
    decoder = small.decoder(policy=policy, stop=Eos())
    layout = layout_of(small.MODEL, decoder, first=32, generated=small.GEN, block=small.BLOCK)
    return decoder, layout, jax.eval_shape(lambda: slots.blank(small.MODEL, layout, rows, 48, decoder))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_leaf_of_a_state_leads_with_its_rows(policy):
    """So that a slot is refilled whole, whatever the policy remembers."""
    build, numbers = POLICIES[policy]
    values = {name: 5 if name in ("steps", "k") else 0.5 for name in numbers}
    state = blank(build(**values), 5)[2]
    assert all(leaf.shape[0] == 5 for leaf in jax.tree.leaves(state))


def test_a_serve_step_is_one_while_loop_without_a_callback():
    decoder, layout, state = blank(POLICY, 3)
    zero = jnp.zeros((3,), jnp.int32)
    rows = Rows(jnp.zeros((3, 48), jnp.int32), zero, zero, small.keys(3))
    numbers = tuple(jnp.broadcast_to(number, (3,)) for number in numbers_of(decoder))
    traced = jax.make_jaxpr(functools.partial(slots.serve_step, small.MODEL, layout))(
        small.params(), decoder, state, slots.Incoming(zero == 0, rows, numbers), jnp.int32(1), jnp.int32(9)
    )
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns].count("while") == 1
    assert "callback" not in str(traced)


def test_a_state_goes_on_on_a_wider_canvas_with_its_keys_and_values():
    """In the middle of a block, where what is left to do reads the KV cache; misplaced by a column, it would show."""
    prompts, origin = small.batch()
    by, params = 8, small.params()
    decoder = small.decoder(stop=Eos(), cache=Dual())
    call = api.prepare(small.MODEL, params, prompts, decoder, origin=origin, gen_length=small.GEN, key=small.keys(4))
    wider = dataclasses.replace(call.layout, first=call.layout.first + by)

    @functools.partial(jax.jit, static_argnums=1)
    def once(state, layout):
        return loop.step(small.MODEL, params, layout, decoder, state)

    def to_the_end(state, layout):
        while bool(live(small.MODEL, state).any()):
            state = once(state, layout)
        return np.asarray(loop.finish(small.MODEL, layout, state).tokens)

    state = loop.begin(small.MODEL, call.layout, decoder, call.rows)
    for _ in range(3):
        state = once(state, call.layout)
    narrow, wide = to_the_end(state, call.layout), slots.repad(small.MODEL, by, state)
    np.testing.assert_array_equal(to_the_end(wide, wider)[:, by:], narrow)
    moved = dataclasses.replace(wide, kv=jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=3), wide.kv))
    assert (to_the_end(moved, wider)[:, by:] != narrow).any()
    back = slots.repad(small.MODEL, -by, wide)
    np.testing.assert_array_equal(to_the_end(back, call.layout), narrow)
