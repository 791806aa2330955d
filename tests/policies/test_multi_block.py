"""d3LLM's decode: equal to a plain numpy loop over the whole answer; what no window of one block can serve."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.policies import MultiBlock
from jaxdiff.stoppers import Eos, NoStop
from jaxdiff.types import NEVER
from tests import reference, small

pytestmark = pytest.mark.usefixtures("strict")
GEN = small.GEN
CASES = [
    (4, 0.1, 0.95, 0.9),
    (4, 0.5, 0.75, 0.3),
    (2, 0.0, 0.0, 0.0),
    (4, 1.0, 1.0, 0.9),
    (5, 0.2, 0.6, 0.6),  # the last block is shorter; shares that float32 and a quotient round
    (10, 0.1, 0.9, 1.5),
    (6, 0.25, 0.5, 0.0),
]


@pytest.mark.parametrize("stop", [NoStop(), Eos()], ids=["none", "eos"])
def test_it_equals_numpy(stop):
    """One program for all numbers."""
    opened_ahead, stopped, nfe = 0, 0, set()
    for seed, (size, add, ready, tau) in enumerate(CASES):
        policy = MultiBlock(size, add, ready, tau)
        result = small.decode(policy=policy, stop=stop, model_seed=seed % 2, gen_length=GEN, block_length=GEN)
        tree = small.params(seed % 2)
        for row, prompt in enumerate(small.PROMPTS):
            tokens, trace, calls = reference.decode(
                lambda x, tree=tree: small.logits(tree, x),
                prompt,
                reference.MultiBlock(size, add, ready, tau),
                gen=GEN,
                block=GEN,
                mask=small.MASK,
                eos_ids=(small.EOS, small.EOT),
                stop=isinstance(stop, Eos),
            )
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -GEN:]), tokens)
            np.testing.assert_array_equal(np.asarray(result.commit_step[row]), trace)
            assert int(result.nfe[row]) == calls
            opened_ahead += 0 <= trace[size : 2 * size].min() < trace[:size].max()
            stopped += trace.min() < 0
            nfe.add(calls)
    assert len(nfe) > 5
    assert opened_ahead > len(CASES)  # a block got tokens before the one before it was done
    assert (stopped > 0) == isinstance(stop, Eos)


def test_of_one_block_there_is_no_next():
    with pytest.raises(InputError, match="found size 32 and a window of 8, expected several blocks in the window; set"):
        small.decode(policy=MultiBlock())


def test_a_block_that_is_given_whole_is_passed_by():
    """In infilling: holes left and right of it are filled, and what was given stays."""
    canvas = np.full((1, 16), small.MASK, np.int32)
    canvas[0, 4:12] = np.arange(20, 28)
    decoder = jaxdiff.Decoder(policy=MultiBlock(size=4, add=1.0, ready=1.0, tau=0.0))
    result = jaxdiff.infill(small.MODEL, small.params(), canvas, decoder)
    assert not (np.asarray(result.tokens) == small.MASK).any()
    np.testing.assert_array_equal(result.tokens[0, 4:12], canvas[0, 4:12])
    steps = np.asarray(result.commit_step)[0]
    assert sorted(steps[:4]) == [0, 1, 2, 3]
    assert sorted(steps[12:]) == [4, 5, 6, 7]


def test_ends_of_text_that_are_put_off_are_no_near_ties():
    """All that is open waits, and one commits because it must: the leftmost, by intent."""
    ids, numbers = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8))
    zero, masked = ids[:, 0], jnp.ones((1, 8), bool)
    beliefs = dict.fromkeys(("prob", "log_odds", "runner_up", "log_prob", "gap"), numbers)
    for entropy, ties in ((-NEVER, 0), (1.0, 3)):
        score = jaxdiff.Score(
            **beliefs,
            token=ids,
            entropy=numbers + entropy,
            named=numbers[..., None],
            hidden=numbers[..., None],
            masked=masked,
            eligible=masked,
            editable=~masked,
            canvas=ids,
            start=zero,
            origin=zero,
            block_step=zero,
            row_step=zero,
        )
        policy = MultiBlock(size=4, add=1.0, ready=1.0, tau=0.5)
        proposal, _ = policy.select(policy.init(1, 8), score, small.keys(1))
        assert proposal.commit.tolist() == [[True, *[False] * 7]]
        assert int(proposal.close.sum()) == ties
