"""Fills with a drafter against a plain loop of random drafters; what they count; and drafters of other models."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxdiff import InputError
from jaxdiff.decode.frechet import Bounds, bounded
from jaxdiff.fills.drafted import check_drafter
from jaxdiff.policies import Fixed, Oracle
from jaxdiff.types import NEVER
from tests import drafters, reference, small

pytestmark = pytest.mark.usefixtures("strict")


class Plain:
    """One row: the model's passes over its canvas, and the drafter's between them, in numpy."""

    def __init__(self, kind, model, prompt, k, stop, clip, cfg, temperature):
        self.kind, self.model, self.first, self.k, self.stop, self.clip = kind, model, len(prompt), k, stop, clip
        self.cfg, self.temperature, self.passes, self.work = cfg, temperature, 0, 0.0
        self.changed = self.clipped = 0
        self.tree = small.params(0, model)
        self.head, self.embedding = np.asarray(self.tree["head"], np.float64), np.asarray(self.tree["wte"])
        self.params, layers = drafters.drafter(kind, model)[1], {"layers": self.tree["layers"], "ln": self.tree["ln_f"]}
        self.share = drafters.weights_of(kind, model) / sum(leaf.size for leaf in jax.tree.leaves(layers))

    def __call__(self, x):
        self.work += 1 if self.cfg is None else 2
        self.hidden = self.features(x)
        return self.logits(self.hidden)

    def features(self, x):
        seeing = small.features(self.tree, x, self.model).astype(np.float64)
        if self.cfg is None:
            return seeing
        blind = np.where(np.arange(len(x)) < self.first, small.MASK, x)
        unseeing = small.features(self.tree, blind, self.model).astype(np.float64)
        return unseeing + (self.cfg + 1) * (seeing - unseeing)

    def logits(self, hidden):
        table = hidden @ self.head
        table[:, small.MASK] = -np.inf
        return table

    def drawn(self, table, key, number):
        """(candidates, entropies) of a pass over all columns."""
        p = reference.softmax(table / self.temperature if self.model.tempered and self.temperature else table)
        entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
        if not self.temperature:
            return table.argmax(-1), entropy
        return (table + self.temperature * reference.gumbel(key, number, *table.shape)).argmax(-1), entropy

    def fill(self, x, chosen, candidates, key):
        return {"adjust": self.adjust, "head": self.left_to_right}[self.kind](x, chosen, candidates, key)

    def adjust(self, x, chosen, candidates, key):
        start = self.first + (chosen[0] - self.first) // small.BLOCK * small.BLOCK
        block = np.arange(start, start + small.BLOCK)
        _, entropy = self.drawn(self.logits(self.hidden), key, 0)
        best = min(chosen, key=lambda at: entropy[at])
        divisor = self.temperature or 1.0
        marginal = reference.softmax(self.logits(self.hidden) / divisor)
        mass = marginal[best, candidates[best]]
        written, now, hidden = {best: candidates[best]}, x.copy(), self.hidden.copy()
        now[best] = candidates[best]
        for number in range(min(self.k, len(chosen)) - 1):
            hidden[block] = drafters.adjusted(
                self.params, self.model.config, hidden[block], self.embedding[now[block]], block
            )
            self.count(len(block), len(x))
            token, entropy = self.drawn(self.logits(hidden), key, 2 + number)
            best = min((at for at in chosen if at not in written), key=lambda at: entropy[at])
            if entropy[best] > self.stop:
                break
            now[best] = written[best] = token[best]
            if self.clip == "frechet":
                p = marginal[best]
                low, high = np.maximum(p - 1.0 + mass, 0.0) / mass, p / mass
                within = np.clip(reference.softmax(self.logits(hidden[[best]]) / divisor)[0], low, high)
                with np.errstate(divide="ignore"):
                    keys = np.log(within)
                if self.temperature:
                    keys = keys + reference.gumbel(key, 2 + number, len(x), small.VOCAB)[best]
                self.clipped += int(keys.argmax() != token[best])
                now[best] = written[best] = keys.argmax()
                mass *= p[now[best]]
            self.changed += int(now[best] != candidates[best])
        return written

    def left_to_right(self, x, chosen, candidates, key):
        p = reference.softmax(self.logits(self.hidden))
        kept = sorted(sorted(chosen, key=lambda at: -p[at, candidates[at]])[: self.k])
        written, number = {}, 0
        for at in kept:
            written[at] = candidates[at]
            if at - 1 in written and (at - self.first) % small.BLOCK:
                left = self.embedding[[written[at - 1]]]
                hidden = self.hidden.copy()
                hidden[[at]] = drafters.corrected(self.params, self.model.config, self.hidden[[at]], left)
                token, _ = self.drawn(self.logits(hidden), key, 2 + number)
                self.count(1, len(x))
                self.changed += int(token[at] != candidates[at])
                written[at], number = token[at], number + 1
        return written

    def count(self, tokens, canvas):
        self.passes += 1
        self.work += tokens * self.share / canvas


def assert_by_hand(kind, model, *, k=8, stop=1e3, clip="none", cfg=None, temperature=0.0, steps=2):
    own = {"stop": stop, "clip": clip} if kind == "adjust" else {}
    fill = drafters.fill(kind, model, k=k, **own)
    result = small.decode(model=model, policy=Fixed(steps=steps), fill=fill, cfg_scale=cfg, temperature=temperature)
    assert not int(result.near_ties.sum()), "draw another seed: float rounding decides here"
    rows = []
    for row, prompt in enumerate(small.PROMPTS):
        plain = Plain(kind, model, prompt, k, stop, clip, cfg, temperature)
        tokens, trace, nfe = reference.decode(
            plain,
            prompt,
            lambda seen: reference.best_first(seen.conf, seen.masked)[: small.BLOCK // steps],
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
        assert (int(result.nfe[row]), int(result.cheap[row])) == (nfe * result_copies(cfg), plain.passes)
        np.testing.assert_allclose(result.work[row], plain.work, rtol=1e-5)
        rows.append(plain)
    return result, rows


def result_copies(cfg):
    return 1 if cfg is None else 2


def test_adjust_equals_a_plain_loop():
    """So many tokens of a full pass take a pass less of the drafter; the rest of a commit is left for later."""
    whole, rows = assert_by_hand("adjust", small.MODEL)
    assert (np.asarray(whole.cheap) == 4 * (4 - 1)).all()
    assert sum(row.changed for row in rows), "the case does not exercise the drafter"
    some, _ = assert_by_hand("adjust", small.MODEL, k=3)
    assert (np.asarray(some.nfe) > np.asarray(whole.nfe)).all()
    _, rows = assert_by_hand("adjust", small.MODEL, stop=1.0)  # some rows go on, and some do not
    assert sum(row.passes for row in rows) > 0
    assert_by_hand("adjust", small.MODEL, temperature=0.7)


def test_adjust_goes_on_from_guided_features_of_a_shifted_model_and_clips_what_it_draws():
    """The bounds are of what is drawn from: softmax(logits / temperature), whatever the confidences are of."""
    _, rows = assert_by_hand("adjust", small.DREAM, clip="frechet", cfg=0.8, temperature=0.5)
    _, more = assert_by_hand("adjust", small.MODEL, clip="frechet", temperature=0.7)
    assert sum(row.clipped for row in rows), "the case does not exercise the bounds"
    assert sum(row.clipped for row in more), "the case does not exercise the bounds"


def test_the_bounds_of_what_is_almost_impossible_are_numbers():
    """P so small that 1 / P is none in float32; p may be 1."""
    p = np.asarray([1.0, 1.0 - 2.0**-20, 0.5, 0.0])
    with np.errstate(divide="ignore"):
        marginal = np.maximum(np.log(p), NEVER).astype(np.float32)
    drawn = np.log([0.1, 0.2, 0.3, 0.4]).astype(np.float32)
    for log_mass in (-1e-6, -1.0, -88.0, -89.0, -200.0):
        one = jnp.ones((1, 1, 1))
        within = Bounds(one, jnp.full((1,), log_mass), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
        found = bounded(jnp.asarray(drawn)[None, None], jnp.asarray(marginal)[None, None], within, one)
        with np.errstate(divide="ignore", over="ignore"):
            low = np.log(np.maximum(1.0 - (1.0 - p) / np.exp(log_mass), 0.0))
        expected = np.clip(np.float64(drawn), np.maximum(low, NEVER), np.maximum(marginal - log_mass, NEVER))
        np.testing.assert_allclose(np.asarray(found)[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_scores_of_a_cheap_pass_that_are_no_numbers_are_told():
    """Of a program of the plain loops: the weights are traced."""
    fill = drafters.fill("head", k=8)
    broken = dataclasses.replace(fill, params=jax.tree.map(lambda leaf: leaf * np.nan, fill.params))
    result = small.decode(policy=Fixed(steps=2), fill=broken)
    spoilt = np.isnan(np.asarray(result.log_prob)).sum(axis=1)
    assert spoilt.any()
    np.testing.assert_array_equal(result.not_finite, spoilt)


def test_the_head_equals_a_plain_loop():
    """It has a pass for each position whose left neighbour is written in the same step."""
    _, rows = assert_by_hand("head", small.MODEL)
    assert sum(row.changed for row in rows), "the case does not exercise the head"
    assert_by_hand("head", small.MODEL, k=3)
    assert_by_hand("head", small.MODEL, temperature=0.7)


@pytest.mark.parametrize("kind", ["adjust", "head"])
def test_one_position_at_a_time_is_parallel(kind):
    own = {"stop": 1e3} if kind == "adjust" else {}
    plain, one, none = (
        small.decode(policy=Fixed(steps=steps), fill=fill, temperature=0.7)
        for steps, fill in (
            (8, drafters.fill(kind, k=8, **own)),
            (2, drafters.fill(kind, k=1, **own)),
            (8, drafters.fill(kind, k=1, **own)),
        )
    )
    parallel = small.decode(policy=Fixed(steps=8), temperature=0.7)
    for result in (plain, none):
        for field in ("tokens", "commit_step", "nfe", "log_prob", "work"):
            np.testing.assert_array_equal(getattr(result, field), getattr(parallel, field))
    assert (np.asarray(one.nfe) == small.GEN).all()
    assert not np.asarray(plain.cheap + one.cheap + none.cheap).any()


def test_over_a_mesh_the_same_tokens():
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    fill = drafters.fill("adjust", stop=1e3)
    home, spread = (
        small.decode(policy=Fixed(steps=2), fill=fill, temperature=0.7, **where) for where in ({}, {"mesh": mesh})
    )
    assert not int((home.near_ties + spread.near_ties).sum()), "draw another seed: float rounding decides here"
    for field in ("tokens", "commit_step", "nfe", "cheap"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(home, field))
    np.testing.assert_allclose(spread.work, home.work, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adjust", "head"])
def test_a_drafter_of_another_model_is_refused_before_anything_compiles(kind):
    own = drafters.fill(kind)
    for name, value, here in (("d_model", 64, 32), ("vocab_size", 80, small.VOCAB), ("n_heads", 8, 4)):
        config = dataclasses.replace(own.drafter.config, **{name: value}, head_dim=0)
        other = dataclasses.replace(own, drafter=dataclasses.replace(own.drafter, config=config))
        found = f"fill {kind}: found a drafter for a model of {name} {value}, but this one has {here}"
        with pytest.raises(InputError, match=found):
            small.decode(fill=other)
    other = dataclasses.replace(own, fitted_to="0123456789abcdef")
    with pytest.raises(
        InputError, match=r"found a drafter of the weights 0123456789abcdef, but these are [0-9a-f]{16}"
    ):
        small.decode(fill=other)
    with pytest.raises(InputError, match="k: found 0"):
        drafters.fill(kind, k=0)


def test_a_model_without_what_tells_it_apart_is_refused_in_one_line():
    own = drafters.fill("adjust").drafter.config
    with pytest.raises(InputError, match="params: found no leaf ln_f/weight"):
        check_drafter("adjust", own, "0123456789abcdef", small.MODEL, {"norm": {}})
    with pytest.raises(InputError, match="of d_model None, but this one has 32"):
        check_drafter("adjust", SimpleNamespace(), None, small.MODEL, {})


def test_a_fill_that_takes_other_tokens_than_the_reference_is_refused():
    with pytest.raises(InputError, match="fill: found adjust with a policy that decodes towards a reference, expected"):
        small.decode(policy=Oracle(), fill=drafters.fill("adjust"))
