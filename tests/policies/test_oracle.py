"""The oracle: commits what equals its reference and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.policies import Fixed, Oracle, Threshold, any_of, cap, parse
from jaxdiff.stoppers import Eos, NoStop
from jaxdiff.types import REFERENCE
from tests import reference, small


def run(seed=0, **parts):
    return small.decode(model_seed=seed, **parts)


@pytest.mark.parametrize("stop", [NoStop(), Eos()], ids=["none", "eos"])
def test_it_ends_with_the_text_of_the_standard_decode_in_fewer_forwards(stop):
    standard, oracle = run(stop=stop), run(stop=stop, policy=Oracle())
    for row, length in enumerate(np.asarray(standard.lengths)):
        text = slice(standard.tokens.shape[1] - small.GEN, standard.tokens.shape[1] - small.GEN + length)
        np.testing.assert_array_equal(oracle.tokens[row, text], standard.tokens[row, text])
    assert int(oracle.nfe.sum()) < int(standard.nfe.sum())


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_plain_loop(seed):
    """Extremely greedy parallel decoding: the argmax is committed wherever it is the reference's token."""
    standard, oracle = run(seed), run(seed, policy=Oracle())
    tree = small.params(seed)
    assert int(oracle.near_ties.sum()) == 0
    for row, prompt in enumerate(small.PROMPTS):
        answer = np.asarray(standard.tokens[row, -small.GEN :])
        x = np.array([*prompt, *[small.MASK] * small.GEN])
        wanted = np.concatenate([prompt, answer])
        steps = np.full(small.GEN, -1)
        nfe = 0
        for start in range(len(prompt), len(x), small.BLOCK):
            block = np.arange(start, start + small.BLOCK)
            while (x[block] == small.MASK).any():
                table = small.logits(tree, x)
                table[:, small.MASK] = -np.inf
                masked = x[block] == small.MASK
                chosen = block[masked & (table[block].argmax(-1) == wanted[block])]
                if not chosen.size:
                    best = reference.best_first(reference.softmax(table[block]).max(-1), masked)[0]
                    chosen = block[[best]]
                x[chosen] = wanted[chosen]
                steps[chosen - len(prompt)] = nfe
                nfe += 1
        np.testing.assert_array_equal(oracle.commit_step[row], steps)
        assert oracle.nfe[row] == nfe


def test_a_reference_of_ones_own_is_followed_to_the_letter():
    ids, _ = small.batch()
    given = np.concatenate([ids, np.full((4, small.GEN), 17)], axis=1)
    result = run(policy=Oracle(), reference=jnp.asarray(given, jnp.int32))
    np.testing.assert_array_equal(np.asarray(result.tokens)[:, -small.GEN :], 17)


def test_it_may_be_a_part_of_another_policy():
    standard = run()
    for policy in (any_of(Threshold(1.0), Oracle()), cap(2, Oracle()), parse("cap(2 + oracle)")):
        np.testing.assert_array_equal(run(policy=policy).tokens, standard.tokens)
    assert (np.asarray(run(policy=cap(2, Oracle())).nfe) >= small.GEN // 2).all()
    assert REFERENCE in any_of(Threshold(), cap(2, Oracle())).needs
    assert REFERENCE not in any_of(Fixed(), Threshold()).needs


def test_a_reference_that_does_not_fit_is_refused():
    words = r"reference: found shape \(4, 3\), expected the canvas' \(4, 22\)"
    with pytest.raises(InputError, match=words):
        run(policy=Oracle(), reference=jnp.zeros((4, 3), jnp.int32))
    with pytest.raises(InputError, match=r"reference: row 0 holds \[MASK\] \(id 3\), expected a canvas that is filled"):
        run(policy=Oracle(), reference=jnp.full((4, 22), small.MASK, jnp.int32))


def test_text_gives_it_no_argument():
    with pytest.raises(InputError, match="policy oracle: found argument 'reference=1', expected none"):
        parse("oracle:reference=1")
