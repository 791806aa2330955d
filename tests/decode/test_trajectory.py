"""The log-probabilities of a decode's tokens on the canvases that they were committed on, and their gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Decoder, InputError, Sampling, caches, fills, infill, policies, stoppers, trajectory_log_prob
from jaxdiff.decode import pieces
from jaxdiff.decode.result import unfit_of
from jaxdiff.models import Llada
from tests import small

THRESHOLD = policies.Threshold(0.5)
CASES = {
    "eos": (small.MODEL, dict(policy=THRESHOLD, stop=stoppers.Eos())),
    "drawn, over an exact cache": (
        small.FAST,
        dict(policy=THRESHOLD, cache=caches.Seeded(), temperature=1.0, forbid_eos=True),
    ),
}


def told(case, result):
    """What the decode told, and that it is worth a comparison."""
    assert int(result.commit_step.max()) > 2, case
    assert float(jnp.abs(result.log_prob).max()) > 0.1, case
    return result.log_prob


@pytest.mark.parametrize("case", CASES)
def test_under_the_same_parameters_they_are_those_of_the_decode(case):
    model, parts = CASES[case]
    result = small.decode(model=model, **parts)
    found = trajectory_log_prob(model, small.params(model=model), result)
    np.testing.assert_allclose(found, told(case, result), atol=1e-5)


def test_what_was_cut_off_is_seen_where_it_was_seen():
    """Commits right of an end of text, in its block, are not in the tokens that are returned."""
    model, parts = CASES["eos"]
    result = small.decode(model=model, **parts)
    cut = (result.trace.step >= 0) & (result.commit_step < 0)
    earlier = cut & (result.trace.step < result.commit_step.max(axis=1, keepdims=True))
    assert bool(earlier.any()), "draw another seed: nothing was committed past an end"
    blind = dataclasses.replace(result.trace, tokens=jnp.where(cut, small.MASK, result.trace.tokens))
    found = trajectory_log_prob(model, small.params(), dataclasses.replace(result, trace=blind))
    assert float(jnp.abs(found - result.log_prob).max()) > 1e-3


def test_holes_of_a_canvas_and_one_row_alone_by_a_plain_loop():
    """Other parameters than the decode's: a loop over the commits in numpy."""
    canvas = np.array([[5, 3, 7, 3, 3, 9, 3, 3, 3, 12, 3, 3]], np.int32)
    decoder = Decoder(policy=policies.Threshold(0.5), block_length=4)
    result = infill(small.MODEL, small.params(), canvas, decoder)
    other = small.params(seed=7)
    found = trajectory_log_prob(small.MODEL, other, result)
    tokens, steps = np.asarray(result.tokens)[0], np.asarray(result.commit_step)[0]
    assert ((steps < 0) == (canvas[0] != small.MASK)).all()
    expected = np.zeros(len(steps))
    for step in range(steps.max() + 1):
        logits = small.logits(other, np.where(steps < step, tokens, small.MASK))
        logits[:, small.MASK] = -np.inf
        log_probs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        log_probs -= logits.max(1, keepdims=True)
        for at in np.flatnonzero(steps == step):
            expected[at] = log_probs[at, tokens[at]]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert found.shape == (1, 12)


def test_the_gradient_is_that_of_finite_differences():
    """Along a random direction of all weights, and of a sum that weighs rows apart."""
    model, parts = CASES["eos"]
    params, result = small.params(), small.decode(**parts)
    generator = np.random.default_rng(0)
    along = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), params)
    weights = jnp.asarray([1.0, -0.5, 2.0, 0.3])

    def value(params):
        return jnp.sum(weights[:, None] * trajectory_log_prob(model, params, result))

    gradient = jax.grad(value)(params)
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
    moved = [jax.tree.map(lambda x, d, by=by: x + by * d, params, along) for by in (1e-4, -1e-4)]
    difference = (value(moved[0]) - value(moved[1])) / 2e-4
    assert abs(slope) > 10
    assert slope == pytest.approx(float(difference), rel=0.02)


def test_the_gradients_memory_is_that_of_one_piece_of_passes(monkeypatch):
    """Of 2 passes for each of 4 rows, and of 16: two at a time go through the layers."""
    result = small.decode(**CASES["eos"][1])
    monkeypatch.setattr(pieces, "TOGETHER", {"cpu": 2 * 24})

    def temporary(passes):
        step = np.broadcast_to(np.arange(small.GEN, dtype=np.int32), result.trace.step.shape)
        step = jnp.asarray(np.where(step < passes, step, -1))
        trace = dataclasses.replace(result.trace, step=step)
        longer = dataclasses.replace(result, commit_step=step[:, : result.commit_step.shape[1]], trace=trace)
        loss = jax.grad(lambda params: trajectory_log_prob(small.MODEL, params, longer).sum())
        return jax.jit(loss).lower(small.params()).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(2), temporary(16)
    assert long < 1.25 * short


UNFIT = {
    "fill recap": dict(fill=fills.Recap()),
    "cache dual": dict(cache=caches.Dual()),
    "stop eotp": dict(stop=stoppers.SafeEotp(tau=0.5)),
    "a policy that takes commits back": dict(policy=policies.RemdmCap()),
    "guidance": dict(sampling=Sampling(cfg_scale=1.0)),
    "length var": dict(length="var"),
    "stop strings": dict(stop_strings=small.stop_strings(["a"])),
}


def test_what_cannot_be_rebuilt_is_refused_by_its_name():
    """The name is part of the result's structure."""
    result = small.decode(**CASES["eos"][1])
    assert result.trace.unfit == ""
    for name, parts in UNFIT.items():
        trace = dataclasses.replace(result.trace, unfit=unfit_of(Decoder(**parts), small.MODEL))
        with pytest.raises(InputError, match=f"^trajectory_log_prob: found a result of {name}, expected"):
            trajectory_log_prob(small.MODEL, small.params(), dataclasses.replace(result, trace=trace))
    for cache in (caches.NoCache(), caches.Prefix(), caches.Frozen(), caches.FrozenPrompt(), caches.BlockCausal()):
        assert not unfit_of(Decoder(cache=cache), small.SDAR)
    assert unfit_of(Decoder(cache=caches.FrozenAtCommit()), small.SDAR) == "cache frozen"
    blind = Llada(dataclasses.replace(small.CONFIG, prefix_lm=True))
    assert not unfit_of(Decoder(cache=caches.FrozenPrompt()), blind)
    for cache, model in (
        (caches.Frozen(), blind),
        (caches.Dual(refresh=1), blind),
        (caches.FrozenPrompt(), small.MODEL),
    ):
        assert unfit_of(Decoder(cache=cache), model).startswith("cache ")
    with pytest.raises(InputError, match="found a traced result"):
        jax.jit(lambda result: trajectory_log_prob(small.MODEL, small.params(), result))(result)
