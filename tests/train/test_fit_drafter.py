"""Fitting a drafter: it learns what the model says later, goes on where it was stopped, and comes back from disk."""

import json
import os
import signal

import jax
import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.drafters import DRAFTERS, drafted_fill, save_drafter
from jaxdiff.policies import Fixed
from jaxdiff.train import fit_drafter
from jaxdiff.train.fit_drafter import DrafterRecipe
from jaxdiff.train.trajectories import LATER, load_trajectories, record
from tests import drafters, small

N = 48


@pytest.fixture(autouse=True)
def few_looks(monkeypatch):
    monkeypatch.setattr(fit_drafter, "CHECKED", 4)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """(folder, trajectories) of the tiny model, one token a step."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("trajectories")
    prompts = [rng.integers(5, 60, 4).tolist() for _ in range(N)]
    decoder, options = small.decoder(policy=Fixed(order="entropy"), temperature=1.0), dict(gen_length=small.GEN)
    options |= dict(batch_size=N, seed=3)
    return folder, record(small.MODEL, small.params(), prompts, range(N), folder, decoder, **options)


def test_every_state_of_a_decode_can_be_rebuilt(traced):
    folder, found = traced
    part = np.load(folder / "trajectory-00000.npz")
    given = found.rank < 0
    assert (given.sum(1) == 32).all()
    for row in range(N):
        ranks = found.rank[row, ~given[row]]
        np.testing.assert_array_equal(ranks, part["commit_step"][row])  # one token a step: the step is the rank
    assert set(found.start[~given]) == {32, 32 + small.BLOCK}
    again = load_trajectories([folder, folder], small.MODEL, small.params())
    assert len(again.tokens) == 2 * N
    assert (found.rank < LATER).all()


@pytest.mark.parametrize("kind", ["adjust", "head"])
def test_a_fit_brings_the_belief_near_that_of_the_later_state(traced, kind, monkeypatch):
    monkeypatch.setattr(fit_drafter, "CHUNK", 50)
    monkeypatch.setattr(fit_drafter, "POSITIONS", 24)  # a part of the positions at once
    recipe = DrafterRecipe(kind, k=4, steps=100, rows=16, learning_rate=1e-2)
    fitted = fit_drafter.fit_drafter(small.MODEL, small.params(), traced[1], recipe)
    assert fitted.best == min(fitted.losses) < 0.6 * fitted.before
    assert len(fitted.losses) == 2
    fitted.fill.check(small.MODEL, small.params())  # a fill of this model


def test_a_fit_that_was_stopped_goes_on_as_if_it_was_not(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_drafter, "CHUNK", 4)
    saved, recipe = tmp_path / "fit.npz", DrafterRecipe("head", k=4, steps=12, rows=4)

    def fit(progress=None, recipe=recipe):
        return fit_drafter.fit_drafter(small.MODEL, small.params(), traced[1], recipe, saved=saved, progress=progress)

    whole, looks = fit(), []
    saved.unlink()
    assert fit(lambda step, _: os.kill(os.getpid(), signal.SIGTERM)) is None
    with pytest.raises(InputError, match=r"holds the beginning of a fit with another recipe \(k\); delete it"):
        fit(recipe=DrafterRecipe("head", k=5, steps=12, rows=4))
    again = fit(lambda step, _: looks.append(step))
    assert looks == [8, 12]
    assert again.losses == whole.losses
    for left, right in zip(*(np.asarray(f.fill.params["first"]["kernel"]) for f in (again, whole)), strict=True):
        np.testing.assert_array_equal(left, right)
    saved.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"fit.npz: damaged"):
        fit()


@pytest.mark.parametrize("kind", ["adjust", "head"])
def test_a_drafter_comes_back_from_a_models_folder(tmp_path, kind):
    home, own = tmp_path / "tiny", drafters.fill(kind, k=5)
    jaxdiff.save(home, small.MODEL, small.params())
    with pytest.raises(InputError, match=rf"fill {kind}: found name '{kind}', but .* holds none; name one, or fit one"):
        drafted_fill(home, kind)
    save_drafter(home / DRAFTERS / kind, own)
    back = drafted_fill(home, kind)
    assert int(back.k) == 5
    assert back.drafter == own.drafter
    for left, right in zip(*map(jax.tree.leaves, (own.params, back.params)), strict=True):
        np.testing.assert_allclose(left, right, rtol=2**-8)  # stored in bfloat16
    other = {"adjust": "head", "head": "adjust"}[kind]
    with pytest.raises(InputError, match=rf"a drafter of kind {kind}; take --fill {kind}:name={kind}"):
        drafted_fill(home, other, kind)
    card = home / DRAFTERS / kind / "drafter.json"
    good = json.loads(card.read_text())
    for changes, found in (
        ({"shape": good["shape"] | {"d_model": 64}}, "params: cannot be read"),
        ({"kind": "wide"}, "drafter.json: missing or damaged"),
        ({"shape": {}}, "drafter.json: missing or damaged"),
    ):
        card.write_text(json.dumps(good | changes))
        with pytest.raises(InputError, match=found):
            drafted_fill(home, kind)


def test_what_cannot_be_fitted_is_refused(traced, tmp_path):
    with pytest.raises(InputError, match="drafter kind: found 'wide', expected adjust or head"):
        DrafterRecipe("wide")
    with pytest.raises(InputError, match="drafter k: found 1, expected at least 2"):
        DrafterRecipe(k=1)
    with pytest.raises(InputError, match="no trajectory-"):
        load_trajectories([tmp_path], small.MODEL, small.params())
    with pytest.raises(InputError, match=r"found trajectories of other weights in .*, expected this model's own"):
        load_trajectories([traced[0]], small.MODEL, small.params() | {"head": None})
    few = traced[1].take(traced[1].prompt == 0)
    with pytest.raises(InputError, match="found 1 prompts, too few to keep a tenth apart"):
        fit_drafter.fit_drafter(small.MODEL, small.params(), few, DrafterRecipe())
