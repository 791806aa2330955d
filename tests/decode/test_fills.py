"""The fill seam: cheap passes over the canvas, the block or a group, against a plain loop; and what they count."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.caches import BlockCausal, Dual, Frozen, Prefix
from jaxdiff.decode import full
from jaxdiff.parallel.mesh import compiling_for
from jaxdiff.policies import Fixed, Threshold
from tests import reference, small
from tests.cached import Network
from tests.fills import Again, LeftToRight

pytestmark = pytest.mark.usefixtures("strict")
WIDTH = 3


class Plain:
    """One row's full passes and the fill's own, in numpy; keys and values of the full pass are kept for a group."""

    def __init__(self, tree, model, prompt, how, cfg, temperature):
        self.networks = [Network(tree, model.config) for _ in range(1 if cfg is None else 2)]
        self.model, self.first, self.how, self.cfg, self.temperature = model, len(prompt), how, cfg, temperature
        self.fed = self.passes = self.changed = 0

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
        chosen = sorted(chosen)
        start = self.first + (chosen[0] - self.first) // small.BLOCK * small.BLOCK
        block = np.arange(start, start + small.BLOCK)
        group = np.asarray([*chosen, *[i for i in block if i not in chosen]][:WIDTH])
        columns = {"canvas": np.arange(len(x)), "window": block, "group": group}[self.how]
        chosen = chosen[:WIDTH] if self.how == "group" else chosen
        now, kept = x.copy(), [network.kept for network in self.networks]
        for index, at in enumerate(chosen):
            table = self.table(now, columns)
            for network, before in zip(self.networks, kept, strict=True):
                network.kept = before
            self.passes += 1
            self.fed += len(self.networks) * len(self.with_those_before(columns))
            table[:, small.MASK] = -np.inf
            if self.temperature:
                table = table + self.temperature * reference.gumbel(key, 2 + index, *table.shape)
            now[at] = table[at].argmax()
            self.changed += int(now[at] != candidates[at])
        return {at: now[at] for at in chosen}


def assert_by_hand(how, model, cfg=None, temperature=0.0):
    fill = LeftToRight(how, WIDTH)
    result = small.decode(model=model, policy=Fixed(steps=2), fill=fill, cfg_scale=cfg, temperature=temperature)
    changed = 0
    assert not int(result.near_ties.sum()), "draw another seed: float rounding decides here"
    for row, prompt in enumerate(small.PROMPTS):
        plain = Plain(small.params(0, model), model, prompt, how, cfg, temperature)
        tokens, trace, nfe = reference.decode(
            plain,
            prompt,
            four_a_step,
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
        changed += plain.changed
    assert changed, "the case does not exercise the fill"


def four_a_step(seen):
    """`Fixed(2)`; what a group left over comes in a third step."""
    return reference.best_first(seen.conf, seen.masked)[:4]


@pytest.mark.parametrize(
    ("how", "model"),
    [("canvas", small.MODEL), ("window", small.DREAM), ("group", small.MODEL), ("group", small.DREAM)],
    ids=["canvas", "window-shifted", "group", "group-shifted"],
)
def test_a_fill_left_to_right_equals_a_plain_loop(how, model):
    assert_by_hand(how, model)


@pytest.mark.parametrize(
    ("how", "model"),
    [("canvas", small.DREAM), ("window", small.MODEL), ("group", small.DREAM)],
    ids=["canvas", "window", "group"],
)
def test_under_guidance_and_drawn_too(how, model):
    """Each cheap pass masks what guidance masks, feeds both copies, and draws noise of its own."""
    assert_by_hand(how, model, cfg=0.8, temperature=0.5)


@pytest.mark.parametrize("model", [small.MODEL, small.DREAM], ids=["llada", "dream"])
def test_with_one_layer_a_group_over_kept_keys_and_values_is_a_pass_over_the_canvas(model):
    """No key and no value hangs on another position there: what is stale is exact."""
    model = type(model)(dataclasses.replace(model.config, n_layers=1))
    whole, group = (
        small.decode(model=model, policy=Fixed(steps=3), fill=LeftToRight(how, WIDTH)) for how in ("canvas", "group")
    )
    assert not int((whole.near_ties + group.near_ties).sum())
    for field in ("tokens", "commit_step", "nfe", "cheap"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(group, field))
    np.testing.assert_allclose(whole.log_prob, group.log_prob, atol=1e-4)
    assert (np.asarray(group.work) < np.asarray(whole.work)).all()


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
