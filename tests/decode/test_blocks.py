"""Models that attend in blocks: each row's blocks align to its own positions, and the last one is decoded whole."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jaxdiff import Decoder, InputError, Reason, Sampling, decode, infill
from jaxdiff.decode import api, loop
from jaxdiff.decode.state import live
from jaxdiff.models import Sdar, SdarConfig
from jaxdiff.policies import Fixed, Oracle, Threshold
from jaxdiff.stoppers import Eos, NoStop, SafeEotp
from tests import small

BLOCK, GEN = 4, 14  # the prompts have 3, 6, 1 and 4 tokens: no row ends where a block does, and no two alike
MODEL = Sdar(
    SdarConfig(
        vocab_size=small.VOCAB,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        mlp_hidden_size=48,
        mask_token_id=small.MASK,
        eos_token_id=small.EOS,
        eot_token_id=small.EOT,
        max_sequence_length=64,
        dtype="float32",
        attention_block=BLOCK,
    )
)


@functools.cache
def params(seed=0):
    """Random weights, sharpened, with an end-of-text that is likely enough to occur."""
    tree = MODEL.init(jax.random.key(seed))
    tree["wte"] = tree["wte"] * 3.0
    head = tree["head"] * 5.0
    tree["head"] = head.at[:, small.EOS].set(head[:, small.EOS] * 1.6)
    return tree


def prepared(policy, stop=NoStop, temperature=0.0, multiple=1, seed=0, **options):
    prompts, origin = small.batch(multiple=multiple)
    decoder = Decoder(policy=policy(), stop=stop(), sampling=Sampling(temperature=temperature))
    options = dict(gen_length=GEN, origin=origin, key=small.keys(4)) | options
    return api.prepare(MODEL, params(seed), prompts, decoder, **options)


@functools.cache
def run(*arguments, **options):
    return prepared(*arguments, **options).run()


def sampled():
    return Threshold(0.5)


def test_blocks_align_to_positions_and_follow_each_other():
    result = run(sampled, SafeEotp, 0.7)
    prompts, _ = small.batch()
    assert result.tokens.shape == (4, prompts.shape[1] + GEN)
    assert result.commit_step.shape == (4, GEN)
    assert (np.asarray(result.tokens)[:, prompts.shape[1] :] != small.MASK).all()
    for row, prompt in enumerate(small.PROMPTS):
        trace = np.asarray(result.commit_step)[row]
        block = (len(prompt) + np.arange(GEN)) // BLOCK
        spans = [trace[(block == b) & (trace >= 0)] for b in np.unique(block)]
        for left, right in itertools.pairwise([span for span in spans if span.size]):
            assert left.max() < right.min()
        assert result.lengths[row] <= GEN


def test_padding_does_not_matter():
    """Rule 3: canvas columns move, rungs of shorter forwards with them; positions and keys do not."""
    home, moved = run(sampled, SafeEotp, 0.7), run(sampled, SafeEotp, 0.7, multiple=9)
    assert not int(home.near_ties.sum() + moved.near_ties.sum()), "draw another seed: float rounding decides here"
    np.testing.assert_array_equal(moved.tokens[:, -GEN:], home.tokens[:, -GEN:])
    for field in ("commit_step", "nfe", "lengths", "reason"):
        np.testing.assert_array_equal(getattr(moved, field), getattr(home, field))
    assert (np.asarray(home.reason) == Reason.STOPPED).any()


def test_the_while_loop_is_a_python_loop():
    """Rule 5."""
    call = prepared(sampled, SafeEotp, 0.7)
    state = loop.begin(call.setup, call.rows)
    once = jax.jit(lambda state: loop.step(call.setup, state))
    while bool(live(MODEL, state).any()):
        state = once(state)
    by_hand = loop.finish(call.setup, state)
    for left, right in zip(jax.tree.leaves(by_hand), jax.tree.leaves(run(sampled, SafeEotp, 0.7)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_oracle_finds_the_standard_answer_in_fewer_forwards():
    standard, oracle = run(Fixed), run(Oracle)
    np.testing.assert_array_equal(oracle.tokens, standard.tokens)
    assert (np.asarray(oracle.nfe) < np.asarray(standard.nfe)).any()
    whole = [-(-(len(prompt) + GEN) // BLOCK) * BLOCK - len(prompt) for prompt in small.PROMPTS]
    assert standard.nfe.tolist() == whole  # one forward a token, those that are cut off too
    given = prepared(Oracle, reference=standard.tokens).run()
    np.testing.assert_array_equal(given.nfe, oracle.nfe)


def test_eos_gives_the_text_of_the_whole_decode():
    whole, stopped = run(Fixed, seed=5), run(Fixed, Eos, seed=5)  # two of its rows say end-of-text
    np.testing.assert_array_equal(whole.lengths, stopped.lengths)
    for row, length in enumerate(np.asarray(whole.lengths)):
        end = whole.tokens.shape[1] - GEN + length
        np.testing.assert_array_equal(whole.tokens[row, :end], stopped.tokens[row, :end])
    assert (np.asarray(stopped.nfe) < np.asarray(whole.nfe)).any()


def test_other_blocks_are_refused():
    prompts, origin = small.batch()
    with pytest.raises(InputError, match="block_length: found 8, but this model attends in blocks of 4; leave it out"):
        decode(MODEL, params(), prompts, Decoder(block_length=8), origin=origin, gen_length=16)
    with pytest.raises(InputError, match="gen_length: found 0"):
        decode(MODEL, params(), prompts, origin=origin, gen_length=0)
    with pytest.raises(InputError, match="found 6 with block_length 4"):
        infill(MODEL, params(), np.full((1, 6), small.MASK))
