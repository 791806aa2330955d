"""The fill seam: cheap passes over the canvas, the block or a group, against a plain loop; and what they count."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, infill
from jaxdiff.caches import BlockCausal, Dual, Frozen, Prefix
from jaxdiff.decode import full, loop
from jaxdiff.fills import Recap
from jaxdiff.fills.recap import SHUFFLE
from jaxdiff.models import Dream
from jaxdiff.parallel.mesh import compiling_for
from jaxdiff.policies import Fixed, Threshold
from jaxdiff.policies.base import PolicyBase, propose
from jaxdiff.pytree import pytree
from tests import reference, small
from tests.cached import Network
from tests.fills import Again, LeftToRight

pytestmark = pytest.mark.usefixtures("strict")


class Plain:
    """One row's full passes and the fill's own, in numpy; keys and values of the full pass are kept for a group."""

    def __init__(self, tree, model, prompt, how, cfg, temperature):
        self.networks = [Network(tree, model.config) for _ in range(1 if cfg is None else 2)]
        self.model, self.first, self.how, self.cfg, self.temperature = model, len(prompt), how, cfg, temperature
        self.fed = self.passes = self.changed = 0
        self.log_prob = {}  # of what the fill took from passes of its own

    def __call__(self, x):
        self.fed += len(x) * len(self.networks)
        return self.table(x, np.arange(len(x)))

    def table(self, x, columns):
        """Logits of these columns; all others have the keys and values that were kept last."""
        fed, tables = self.with_those_before(columns), []
        for network, visible in zip(self.networks, (0, self.first), strict=False):
            seen, table = x.copy(), np.full((len(x), small.VOCAB), np.nan)
            seen[:visible] = small.MASK
            table[fed] = network.forward(seen, fed)
            tables.append(np.concatenate([table[:1], table[:-1]]) if self.model.shifted else table)
        return tables[0] if self.cfg is None else tables[1] + (self.cfg + 1) * (tables[0] - tables[1])

    def with_those_before(self, columns):
        """A shifted model reads a column from the one before it."""
        fed = np.union1d(columns, columns - self.model.shifted).astype(int)
        return fed[fed >= 0]

    def fill(self, x, chosen, candidates, key):
        """`canvas` and `window`: each of the chosen anew, left to right; else in slices, as `Recap` says."""
        if self.how in ("canvas", "window"):
            start = self.first + (min(chosen) - self.first) // small.BLOCK * small.BLOCK
            block = np.arange(start, start + small.BLOCK)
            columns = np.arange(len(x)) if self.how == "canvas" else block
            slices, now = [[], *([at] for at in sorted(chosen))], x.copy()
        else:
            order, count = self.how
            columns, drawn = np.asarray(sorted(chosen)), reference.uniform(key, len(x), SHUFFLE)
            ordered = {"priority": chosen, "left": sorted(chosen), "random": sorted(chosen, key=lambda at: -drawn[at])}
            slices, now = np.array_split(ordered[order], min(count, len(chosen))), x.copy()
        kept = [network.kept for network in self.networks]
        for at in slices[0]:
            now[at] = candidates[at]
        for index, these in enumerate(slices[1:]):
            table = self.table(now, columns)
            for network, before in zip(self.networks, kept, strict=True):
                network.kept = before
            self.passes += 1
            self.fed += len(self.networks) * len(self.with_those_before(columns))
            table[:, small.MASK] = -np.inf
            noisy = table
            if self.temperature:
                noisy = table + self.temperature * reference.gumbel(key, 2 + index, *table.shape)
            for at in these:
                now[at] = noisy[at].argmax()
                self.log_prob[at - self.first] = reference.log_softmax(table[at])[now[at]]
                self.changed += int(now[at] != candidates[at])
        return {at: now[at] for at in chosen}


def assert_by_hand(fill, hows, model, cfg=None, temperature=0.0):
    """`hows`: for each row, how `Plain` fills."""
    result = small.decode(model=model, policy=Fixed(steps=3), fill=fill, cfg_scale=cfg, temperature=temperature)
    changed = 0
    assert not int(result.near_ties.sum()), "draw another seed: float rounding decides here"
    for row, (prompt, how) in enumerate(zip(small.PROMPTS, hows, strict=True)):
        plain = Plain(small.params(0, model), model, prompt, how, cfg, temperature)
        tokens, trace, nfe = reference.decode(
            plain,
            prompt,
            reference.Fixed(3),
            gen=small.GEN,
            block=small.BLOCK,
            mask=small.MASK,
            eos_ids=(small.EOS, small.EOT),
            temperature=temperature,
            key=small.keys(4)[row],
            fill=plain.fill,
            tempered=model.tempered,
        )
        np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
        np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
        assert (int(result.nfe[row]), int(result.cheap[row])) == (nfe * len(plain.networks), plain.passes)
        np.testing.assert_allclose(result.work[row], plain.fed / (len(prompt) + small.GEN), rtol=1e-5)
        for at, expected in plain.log_prob.items():
            np.testing.assert_allclose(result.log_prob[row, at], expected, atol=1e-4)
        changed += plain.changed
    assert changed, "the case does not exercise the fill"


@pytest.mark.parametrize(
    ("how", "model", "drawn"),
    [
        ("canvas", small.MODEL, {}),
        ("window", small.DREAM, {}),
        ("canvas", small.DREAM, dict(cfg=0.8, temperature=0.5)),
        ("window", small.MODEL, dict(cfg=0.8, temperature=0.5)),
    ],
    ids=["canvas", "window-shifted", "canvas-shifted-guided", "window-guided"],
)
def test_a_fill_left_to_right_equals_a_plain_loop(how, model, drawn):
    """Each cheap pass masks what guidance masks, feeds both copies, and draws noise of its own."""
    assert_by_hand(LeftToRight(how), [how] * 4, model, **drawn)


@pytest.mark.parametrize(
    ("order", "model", "drawn"),
    [
        ("priority", small.MODEL, {}),
        ("left", small.DREAM, {}),
        ("random", small.MODEL, dict(cfg=0.8, temperature=0.5)),
        ("priority", small.DREAM, dict(cfg=0.8, temperature=0.5)),
    ],
    ids=["priority", "left-shifted", "random-guided", "priority-shifted-guided"],
)
def test_recap_equals_a_plain_loop_over_frozen_keys_and_values(order, model, drawn):
    """Each row with its own number of slices: none more than it has positions, and no pass for a single one."""
    slices = [1, 2, 3, 8]
    assert_by_hand(Recap(slices, order), [(order, count) for count in slices], model, **drawn)


ONE_LAYER = Dream(dataclasses.replace(small.DREAM.config, n_layers=1))


@pytest.mark.parametrize(
    ("model", "canvas"),
    [(ONE_LAYER, False), (small.DREAM, True)],
    ids=["one-layer", "whole-shifted"],
)
def test_recap_is_exact_where_nothing_else_is_frozen(model, canvas):
    """In one layer no key and no value hangs on another column; and in a canvas that is chosen whole none is kept."""
    found = []
    for fill in (LeftToRight("canvas"), Recap(slices=small.BLOCK, order="left")):
        if canvas:
            masks, decoder = np.full((3, small.BLOCK), small.MASK), small.decoder(policy=Fixed(steps=1), fill=fill)
            found.append(infill(model, small.params(0, model), masks, decoder, key=small.keys(3)))
        else:
            found.append(small.decode(model=model, policy=Fixed(steps=3), fill=fill))
    whole, group = found
    assert not int((whole.near_ties + group.near_ties).sum())
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(group, field))
    np.testing.assert_allclose(whole.log_prob, group.log_prob, atol=1e-4)
    np.testing.assert_array_equal(whole.cheap - whole.nfe, group.cheap)  # the first of a step is the full pass's
    assert canvas or (np.asarray(group.work) < np.asarray(whole.work)).all()


@pytree
class AllAlike(PolicyBase):
    """Everything at once, and none before the others."""

    def select(self, state, score, key):
        return propose(score, score.eligible, jnp.zeros_like(score.log_odds)), state


def test_who_comes_first_is_a_near_tie_at_the_border_of_two_slices():
    result = small.decode(policy=AllAlike(), fill=Recap([1, 2, 3, 8]))
    np.testing.assert_array_equal(result.near_ties, [0, 2, 4, 14])
    assert not int(small.decode(policy=AllAlike(), fill=Recap([1, 2, 3, 8], order="left")).near_ties.sum())


class NothingKept(type(small.MODEL)):
    """A network without keys and values to keep."""

    def empty_kv(self, rows, columns):
        return {}


def test_what_a_fill_cannot_serve_is_refused_before_compilation():
    before = loop.run._cache_size()
    for fill, words in (
        (Recap([2, 9, 8, 1]), "fill recap slices: found 9 for blocks of 8 positions, expected at most 8"),
        (Recap([2, 3]), "slices: found 2 values, expected one, or 4: one for each row"),
    ):
        with pytest.raises(InputError, match=words):
            small.decode(fill=fill)
    for part, words in (({"fill": Recap()}, "fill: found recap"), ({"cache": Dual()}, "cache: found dual")):
        with pytest.raises(InputError, match=f"{words}, which reads keys and values, with a NothingKept, which keeps"):
            small.decode(model=NothingKept(small.CONFIG), **part)
    assert loop.run._cache_size() == before


def assert_same_as_parallel(**parts):
    again, plain = (
        small.decode(policy=Threshold(0.5), temperature=0.7, **fill, **parts) for fill in ({"fill": Again()}, {})
    )
    assert not int((again.near_ties + plain.near_ties).sum()), "draw another seed: float rounding decides here"
    for field in ("tokens", "commit_step", "nfe"):
        np.testing.assert_array_equal(getattr(again, field), getattr(plain, field))
    np.testing.assert_allclose(again.log_prob, plain.log_prob, atol=1e-4)
    np.testing.assert_array_equal(again.cheap, np.max(plain.commit_step, axis=1) + 1)


@pytest.mark.parametrize(
    "parts",
    [
        dict(cache=Frozen()),
        dict(model=small.DREAM, cache=Dual()),
        dict(model=small.DREAM, cfg_scale=1.5),
        dict(model=small.SDAR, cache=BlockCausal()),
    ],
    ids=["frozen", "shifted-dual", "shifted-guided", "block-causal"],
)
def test_a_group_of_the_whole_block_over_fresh_keys_and_values_believes_what_the_full_pass_does(parts):
    assert_same_as_parallel(**parts)


def test_keys_and_values_that_a_fill_reads_are_stored_on_a_tpu_too(monkeypatch):
    """There a cache does not write what no later step reads, but for a fill that does."""
    monkeypatch.setattr(full, "platform", lambda: "tpu")
    with compiling_for("cpu"):  # so that it is traced anew
        assert_same_as_parallel(cache=Prefix())
