"""Rows go through the layers in pieces: a decode stays the same, and a step runs what its rows need, and no more."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.caches import CACHES
from jaxdiff.decode import api, loop, lower, pieces
from jaxdiff.policies import POLICIES
from jaxdiff.stoppers import STOPPERS
from tests import small

FIELDS = ("tokens", "nfe", "work", "commit_step", "log_prob", "reason")
SOME = 3 * 22


def decoded(monkeypatch, together, model=small.MODEL, **parts):
    monkeypatch.setattr(pieces, "TOGETHER", {"cpu": together})
    prompts, origin = small.batch()
    decoder = small.decoder(**parts)
    options = dict(gen_length=small.GEN, origin=origin, key=small.keys(4))
    return lower(model, small.params(model=model), prompts, decoder, **options)()


@pytest.mark.parametrize(
    ("cache", "stop", "model", "scale", "together"),
    [
        ("none", "eotp:way=official", small.MODEL, None, 1),
        ("dual:refresh=3", "eos", small.MODEL, 1.5, 1),
        ("prefix", "eotp:way=block", small.DREAM, None, SOME),
        ("frozen:refresh=5", "eotp:way=safe,keep=4,tau=0.3", small.MODEL, None, SOME),
        ("seeded:inner=dual", "eos", small.FAST, 1.5, 1),
    ],
)
def test_pieces_change_nothing(cache, stop, model, scale, together, monkeypatch):
    """A row at a time, or as many as have 66 tokens, with every cache and every way to end."""
    parts = dict(policy=POLICIES.parse("threshold:tau=0.5"), cache=CACHES.parse(cache), stop=STOPPERS.parse(stop))
    whole, found = (decoded(monkeypatch, tokens, model, cfg_scale=scale, **parts) for tokens in (10_000, together))
    assert len(set(whole.nfe.tolist())) > 1, "rows that are never apart show nothing"
    for field in FIELDS:
        np.testing.assert_allclose(getattr(found, field), getattr(whole, field), rtol=1e-4, atol=1e-4)


def test_a_step_runs_what_its_rows_need(monkeypatch):
    """Of four rows one is due for a refresh and one is done: a canvas of one row, and windows of two."""
    monkeypatch.setattr(pieces, "TOGETHER", {"cpu": 1})
    prompts, origin = small.batch()
    decoder = small.decoder(policy=POLICIES.parse("fixed"), cache=CACHES.parse("dual"))
    call = api.prepare(small.MODEL, small.params(), prompts, decoder, gen_length=small.GEN, origin=origin)
    state = jax.jit(lambda setup, rows: loop.step(setup, loop.begin(setup, rows)))(call.setup, call.rows)
    fresh, done = jnp.asarray([0, 1, 0, 0]), jnp.asarray([False, False, True, False])
    state = dataclasses.replace(
        state,
        block_step=jnp.where(fresh == 1, 0, state.block_step).astype(jnp.int32),
        end=jnp.where(done, 0, state.end),
    )
    fed = []
    apply = type(small.MODEL).apply

    def counted(self, params, inputs, *rest, **named):
        jax.debug.callback(functools.partial(fed.append, inputs.tokens.shape))  # each time that it runs
        return apply(self, params, inputs, *rest, **named)

    monkeypatch.setattr(type(small.MODEL), "apply", counted)
    after = jax.jit(lambda setup, state: loop.step(setup, state))(call.setup, state)
    jax.effects_barrier()
    length = prompts.shape[1] + small.GEN
    assert sorted(fed) == [(1, small.BLOCK), (1, small.BLOCK), (1, length)]
    np.testing.assert_array_equal(after.nfe, [2, 2, 1, 2])
