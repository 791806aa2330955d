"""Tokens and NFE at temperature 0 equal the published samplers, uncompiled and in PyTorch, on 20 random prompts."""

import dataclasses
import functools

import numpy as np
import pytest

from jaxdiff import Decoder, EndThink, Request, Sampling, decode, decode_stream, pad_prompts
from jaxdiff.caches import BlockCausal, NoCache
from jaxdiff.convert import from_tensors
from jaxdiff.policies import Edit, Fixed, Wino, parse
from jaxdiff.stoppers import Eos, NoStop
from tests.parity import samplers
from tests.parity.networks import EOS, MASK, VOCAB, network

GEN, BLOCK = 16, 8
DRAWN = np.random.default_rng(0)
PROMPTS = [DRAWN.integers(4, VOCAB, DRAWN.integers(1, 10)).tolist() for _ in range(20)]


@functools.cache
def load(family, **changes):
    reference = network(family, sharpness=2.5)  # confident enough for thresholds to bite
    return *from_tensors(reference.config | {"dtype": "float32"} | changes, reference.tensors()), reference


DREAM = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}
CASES = {
    "llada-steps": ("llada", "fixed:steps=3", samplers.llada, {"steps": 3, "block": BLOCK}, {}),
    "llada-guided": ("llada", "fixed:steps=3", samplers.llada, {"steps": 3, "block": BLOCK, "cfg": 1.5}, {}),
    "llada-threshold": ("llada", "threshold:tau=0.4", samplers.confident, {"tau": 0.4, "block": BLOCK}, {}),
    "llada_moe-threshold": ("llada_moe", "threshold:tau=0.4", samplers.confident, {"tau": 0.4, "block": BLOCK}, {}),
    **{
        f"dream-{name}": (
            "dream",
            f"fixed:order={order},schedule=dream",
            samplers.dream,
            {"steps": 7, "order": name},
            {"block_length": GEN, "steps": 7},
        )
        for name, order in DREAM.items()
    },
    "dream-as-many-steps-as-tokens": (
        "dream",
        "fixed:order=entropy,schedule=dream",
        samplers.dream,
        {"steps": GEN, "order": "entropy"},
        {"block_length": GEN, "steps": GEN},
    ),
    "dream-top-p-top-k": (
        "dream",
        "fixed:order=entropy,schedule=dream",
        samplers.dream,
        {"steps": 7, "order": "entropy", "top_p": 0.6, "top_k": 3},
        {"block_length": GEN, "steps": 7, "top_p": 0.6, "top_k": 3},
    ),
    "a2d": ("a2d_qwen3", "fixed:steps=4", samplers.llada, {"steps": 4, "block": BLOCK, "counts": samplers.rounded}, {}),
    "open-dcoder": (
        "open_dcoder",
        "fixed:order=entropy,schedule=dream",
        samplers.dream,
        {"steps": 7, "order": "entropy"},
        {"block_length": GEN, "steps": 7},
    ),
    # Answers that end with their block: else the published sampler cuts the last one, where all of it is decoded here.
    "stable-diffcoder": (
        "stable_diffcoder",
        "threshold:tau=0.4",
        samplers.block_causal,
        {"tau": 0.4, "cut": True, "strict": False, "whole": True},
        {},
    ),
    "llada2": ("llada2", "threshold:tau=0.4", samplers.block_causal, {"tau": 0.4, "gen": 14}, {}),
    "sdar-dynamic": ("sdar", "threshold:tau=0.4", samplers.block_causal, {"tau": 0.4, "gen": 14}, {}),
    "sdar_moe-dynamic": ("sdar_moe", "threshold:tau=0.4", samplers.block_causal, {"tau": 0.4, "gen": 14}, {}),
    "sdar-static": ("sdar", "fixed", samplers.block_causal, {"tau": None, "gen": 14}, {}),
}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_nfe_equal_the_published_sampler(case):
    family, policy, sampler, theirs, ours = CASES[case]
    model, params, reference = load(family)
    theirs = {"gen": GEN, "mask": MASK} | theirs
    given = [prompt * 4 for prompt in PROMPTS] if theirs.pop("whole", False) else PROMPTS
    prompts, origin = pad_prompts(given, fill=EOS)
    if reference.block:
        theirs["block"] = reference.block
    options = {"block_length": theirs.get("block"), "cfg_scale": theirs.get("cfg")} | ours
    steps, block = options.pop("steps", None), options.pop("block_length")
    decoder = Decoder(policy=parse(policy, steps=steps), sampling=Sampling(**options), block_length=block)
    result = decode(model, params, prompts, decoder, gen_length=theirs["gen"], origin=origin)
    assert result.tokens.shape == (20, prompts.shape[1] + theirs["gen"])
    decided = np.flatnonzero(np.asarray(result.near_ties) == 0)
    assert len(decided) >= 18, "draw other weights: float rounding decides here"
    nfe = []
    for row in decided:
        tokens, calls = sampler(reference.logits, given[row], **theirs)
        assert np.asarray(result.tokens)[row, prompts.shape[1] :].tolist() == tokens
        assert int(result.nfe[row]) == calls
        nfe.append(calls)
    if "tau=" in policy:
        assert len(set(nfe)) > 2, "the case does not exercise the rule"


@pytest.mark.usefixtures("strict")
def test_tokens_that_are_overwritten_are_those_of_llada2_1():
    """Twenty drawn settings, one a row. Under cache `block` a forward more stores the prompt's whole blocks, and one
    each block but the last whose forwards ran out on a change.
    """
    model, params, reference = load("llada2")
    gen, drawn = 14, np.random.default_rng(5)
    tau, edit = drawn.uniform(0.1, 0.6, 20).astype(np.float32), drawn.uniform(0.0, 0.4, 20).astype(np.float32)
    post = drawn.integers(0, 9, 20).astype(np.int32)
    prompts, origin = pad_prompts(PROMPTS, fill=EOS)
    policy = Edit(tau, edit, post)
    free, kept = (
        decode(model, params, prompts, Decoder(policy=policy, cache=cache), gen_length=gen, origin=origin)
        for cache in (NoCache(), BlockCausal())
    )
    decided = np.flatnonzero(np.asarray(free.near_ties) == 0)
    assert len(decided) >= 18, "draw other weights: float rounding decides here"
    stored, spared, overwritten = 0, 0, 0
    for row in decided:
        numbers = {"tau": float(tau[row]), "edit": float(edit[row]), "post": int(post[row])}
        options = {"gen": gen, "block": reference.block, "mask": MASK}
        tokens, calls, changes = samplers.edited(reference.logits, PROMPTS[row], **numbers, **options)
        for result, more in ((free, 0), (kept, (len(PROMPTS[row]) >= reference.block) + sum(changes[:-1]))):
            assert np.asarray(result.tokens)[row, prompts.shape[1] :][:gen].tolist() == tokens
            assert int(result.nfe[row]) == calls + more
        plain, _ = samplers.block_causal(reference.logits, PROMPTS[row], tau=numbers["tau"], **options)
        overwritten += plain != tokens
        stored += sum(changes[:-1])
        spared += len(changes) - 1 - sum(changes[:-1])
    assert overwritten > 5, "nothing is overwritten"
    assert stored > 3
    assert spared > 3


@pytest.mark.usefixtures("strict")
def test_commits_that_a_shadow_revokes_are_winos():
    """Five drawn settings, one a row, on a model that attends in blocks. Under cache `block` a forward more, without a
    shadow, stores the prompt's whole blocks, and one each block but the last.
    """
    block, gen, given = 32, 28, [prompt * 4 for prompt in PROMPTS[::4]]  # some blocks begin with more than 20 / 0.7
    model, params, reference = load("sdar", block_size=block)
    reference, drawn = dataclasses.replace(reference, block=block), np.random.default_rng(6)
    tau, revoke = drawn.uniform(0.0, [[0.3], [1.0]], (2, 20)).astype(np.float32)[:, ::4]
    prompts, origin = pad_prompts(given, fill=EOS)
    decoder = Decoder(policy=Wino(tau, revoke), cache=BlockCausal())
    result = decode(model, params, prompts, decoder, gen_length=gen, origin=origin)
    decided, taken_back = np.flatnonzero(np.asarray(result.near_ties) == 0), 0
    assert len(decided) >= 4, "draw other weights: float rounding decides here"
    for row in decided:
        numbers = {"tau": float(tau[row]), "revoke": float(revoke[row]), "gen": gen, "block": block, "mask": MASK}
        tokens, calls, revoked = samplers.wino(reference.logits, given[row], **numbers)
        blocks, first = -(-(len(given[row]) + gen) // block), len(given[row]) // block
        stored, whole = blocks - first - 1, first > 0  # the prompt's, which feeds its blocks
        assert np.asarray(result.tokens)[row, prompts.shape[1] :][:gen].tolist() == tokens
        assert int(result.nfe[row]) == calls + stored + whole
        assert np.isclose(result.work[row], (2 * calls + stored + first) / blocks, rtol=1e-5)
        taken_back += revoked > 0
    assert taken_back > 2, "nothing is taken back"


BOOSTS = np.array([4.0 * (10 - row) if row < 10 else 0.0 for row in range(20)], np.float32)
PUSH = EndThink(tokens=(17, 17, 23), boost=BOOSTS, power=1.5)  # ten rows are pushed towards an end of thought


def grown(stop, push=PUSH):
    return Decoder(
        policy=Fixed(steps=BLOCK), stop=stop, sampling=Sampling(end_think=push), block_length=BLOCK, length="var"
    )


@functools.cache
def var_generate(row):
    theirs = {"sequence": PUSH.tokens, "boost": float(BOOSTS[row]), "power": 1.5}
    logits = load("illada")[2].logits
    return samplers.var_generate(logits, PROMPTS[row], gen=GEN, block=BLOCK, steps=BLOCK, mask=MASK, **theirs)


@pytest.mark.usefixtures("strict")
def test_a_variable_length_is_var_generate_with_its_push():
    model, params, _ = load("illada")
    prompts, origin = pad_prompts(PROMPTS, fill=EOS)
    result = decode(model, params, prompts, grown(NoStop()), gen_length=GEN, origin=origin)
    decided = np.flatnonzero(np.asarray(result.near_ties) == 0)
    assert len(decided) >= 18, "draw other weights: float rounding decides here"
    for row in decided:
        tokens, calls = var_generate(row)
        assert np.asarray(result.tokens)[row, prompts.shape[1] :].tolist() == tokens
        assert int(result.nfe[row]) == calls == GEN
        length = len(PROMPTS[row])
        assert np.isclose(result.work[row], BLOCK * (1 + (length + BLOCK) / (length + GEN)))
    written = [samplers.holds(var_generate(row)[0], PUSH.tokens) for row in decided]
    assert 3 <= sum(written) <= 10, "the push does not decide"


@pytest.mark.usefixtures("strict")
def test_a_variable_length_ends_where_the_text_does_in_slots_too():
    """The published loop ends with the block that holds an end: here the rest of that block is not computed. Rows of a
    stream are at different blocks in one pass.
    """
    counts = np.bincount(np.concatenate([var_generate(row)[0][:BLOCK] for row in range(20)]))
    end = int(np.argmax(counts))  # as end-of-text, of which the model knows nothing
    model, params, _ = load("illada", eos_token_id=end)
    prompts, origin = pad_prompts(PROMPTS, fill=EOS)
    result = decode(model, params, prompts, grown(Eos()), gen_length=GEN, origin=origin)
    saved = []
    for row in np.flatnonzero(np.asarray(result.near_ties) == 0):
        theirs, length, nfe = var_generate(row)[0], int(result.lengths[row]), int(result.nfe[row])
        blocks = -(-length // BLOCK)
        assert (end in theirs[: blocks * BLOCK]) == (length < GEN or theirs[-1] == end)
        assert end not in theirs[: length - 1]
        assert np.asarray(result.tokens)[row, prompts.shape[1] :][:length].tolist() == theirs[:length]
        assert (blocks - 1) * BLOCK < nfe <= blocks * BLOCK
        saved.append(blocks * BLOCK - nfe)
    assert max(saved) > 0
    assert (np.asarray(result.lengths) <= BLOCK).sum() >= 3

    each = [grown(Eos(), dataclasses.replace(PUSH, boost=boost)) for boost in BOOSTS.tolist()]
    requests = [Request(prompt, decoder=decoder) for prompt, decoder in zip(PROMPTS, each, strict=True)]
    options = {"slots": 4, "gen_length": GEN, "widths": (prompts.shape[1],)}
    for answer in decode_stream(model, params, requests, each[0], **options):
        row = answer.request.number
        np.testing.assert_array_equal(answer.tokens, np.asarray(result.tokens)[row, prompts.shape[1] :])
        assert answer.nfe == result.nfe[row]
