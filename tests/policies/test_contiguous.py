"""The longest sure run that touches what is known: equal to a plain numpy loop, after prompts and on canvases."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Sampling
from jaxdiff.policies import Contiguous
from tests import reference, small

pytestmark = pytest.mark.usefixtures("strict")


def chosen(conf, masked, tau, sides):
    """The positions of a block that commit: runs position by position, then the longest, the leftmost of these."""
    ends = range(len(masked) + 1)
    known_left = [True, *(~masked)]  # of what begins at this position, what is left of it
    known_right = [*(~masked), False]
    sure = masked & (conf >= tau)
    runs = [
        (first, last)
        for first in ends
        for last in ends
        if first < last and sure[first:last].all() and (known_left[first] or (sides == "both" and known_right[last]))
    ]
    if runs:
        first, last = max(runs, key=lambda run: (run[1] - run[0], -run[0]))
        return list(range(first, last))
    touching = [
        at
        for at in np.flatnonzero(masked)
        if known_left[at] or (sides == "both" and at + 1 < len(masked) and not masked[at + 1])
    ]
    return [max(touching, key=lambda at: conf[at])]


def test_after_a_prompt_it_equals_numpy():
    """One program for all numbers; a block is then written from left to right, whatever the sides."""
    taus, sizes = np.asarray([0.2, 0.35, 0.5, 1.0], np.float32), set()
    for seed, sides in ((0, "left"), (1, "left"), (1, "both")):
        result = small.decode(policy=Contiguous(taus, sides), model_seed=seed)
        tree = small.params(seed)
        for row, prompt in enumerate(small.PROMPTS):

            def select(seen, tau=taus[row], sides=sides):
                picked = chosen(seen.conf, seen.masked, tau, sides)
                sizes.add(len(picked))
                return picked

            tokens, trace, calls = reference.decode(
                lambda x, tree=tree: small.logits(tree, x),
                prompt,
                select,
                gen=small.GEN,
                block=small.BLOCK,
                mask=small.MASK,
                eos_ids=(small.EOS, small.EOT),
            )
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -small.GEN :]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == calls
    assert len(sizes) > 2


@pytest.mark.parametrize("sides", ["left", "both"])
def test_on_a_canvas_it_equals_numpy(sides):
    """Between what was given a run may touch it on its right as well."""
    drawn = np.random.default_rng(3)
    canvases = drawn.integers(5, small.VOCAB, (4, 20)).astype(np.int32)
    canvases[drawn.random(canvases.shape) < 0.7] = small.MASK
    taus, from_the_right = np.asarray([0.15, 0.3, 0.4, 0.9], np.float32), 0
    decoder = jaxdiff.Decoder(policy=Contiguous(taus, sides), sampling=Sampling())
    result = jaxdiff.infill(small.MODEL, small.params(), canvases, decoder)
    for row, canvas in enumerate(canvases):
        x, trace, step = canvas.copy(), np.full(20, -1), 0
        while (x == small.MASK).any():
            table = small.logits(small.params(), x)
            table[:, small.MASK] = -np.inf
            masked = x == small.MASK
            picked = chosen(reference.softmax(table).max(-1), masked, taus[row], sides)
            from_the_right += picked[0] > 0 and masked[picked[0] - 1]
            x[picked], trace[picked], step = table.argmax(-1)[picked], step, step + 1
        np.testing.assert_array_equal(np.asarray(result.tokens[row]), x)
        np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
    assert (from_the_right > 0) == (sides == "both")


def test_a_score_that_is_no_number_is_not_sure():
    """What the loop then forces is the leftmost."""
    policy, bad = Contiguous(0.0), jnp.full((1, 4), jnp.nan)
    zero, masked = jnp.zeros((1,), jnp.int32), jnp.asarray([[False, True, True, True]])
    names = ("prob", "log_odds", "runner_up", "entropy", "gap", "log_prob")
    score = jaxdiff.Score(
        **dict.fromkeys(names, bad),
        token=jnp.ones((1, 4), jnp.int32),
        named=bad[..., None],
        hidden=bad[..., None],
        masked=masked,
        eligible=masked,
        editable=~masked,
        canvas=jnp.ones((1, 4), jnp.int32),
        start=zero,
        origin=zero,
        block_step=zero,
        row_step=zero,
    )
    proposal, _ = policy.select((), score, small.keys(1))
    assert not proposal.commit.any()
