"""Fast-dLLM v2's decode equals its published sampler: tokens and NFE, alone and among others, cached or not."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdiff import Decoder, pad_prompts
from jaxdiff.caches import Seeded, SeededDual
from jaxdiff.convert import from_tensors
from jaxdiff.decode import api
from jaxdiff.policies import Threshold
from jaxdiff.serve import Request, decode_stream
from jaxdiff.stoppers import Eos, NoStop
from tests.parity import fast_dllm_v2 as published
from tests.parity.networks import EOS, MASK, VOCAB, network

BLOCK, SMALL, GEN, TAU = 32, 8, 44, 0.25
DRAWN = np.random.default_rng(3)
LENGTHS = [1, 8, 9, 31, 32, 33, 40, 63, 64, 65, *DRAWN.integers(1, 70, 10).tolist()]
PROMPTS = [DRAWN.integers(4, VOCAB, length).tolist() for length in LENGTHS]
# Half of the rows end with a block's first token, which the pass that stores gives, as the published loop does; the
# others inside a block, which is decoded whole.
ENDS = [(length + GEN - 1) // BLOCK * BLOCK + 1 if row % 2 else length + GEN for row, length in enumerate(LENGTHS)]


@functools.cache
def loaded():
    reference = network("fast_dllm_v2", sharpness=2.5)
    config = reference.config | {"dtype": "float32", "bd_size": BLOCK, "max_position_embeddings": 256}
    return from_tensors(config, reference.tensors())


@functools.cache
def expected(inner):
    """The published decode of each row, so many whole blocks of it as are asked for."""
    fed = published.Fed(network("fast_dllm_v2", sharpness=2.5).at(torch.float64).module, BLOCK)
    options = dict(tau=TAU, mask=MASK, small=SMALL, cached=inner == "dual")
    return [
        published.decode(fed, prompt, blocks=-(-(end - 1) // BLOCK), **options)
        for prompt, end in zip(PROMPTS, ENDS, strict=True)
    ]


def in_one_batch(decoder):
    model, params = loaded()
    prompts, origin = pad_prompts(PROMPTS, fill=EOS)
    call = api.prepare(model, params, prompts, decoder, gen_length=GEN, origin=origin)
    last = jnp.asarray(origin + np.asarray(ENDS), jnp.int32)
    result = dataclasses.replace(call, rows=dataclasses.replace(call.rows, last=last)).run()
    tokens = np.asarray(result.tokens)
    return [
        (tokens[row, origin[row] + length : last[row]].tolist(), int(result.nfe[row]), int(result.near_ties[row]))
        for row, length in enumerate(LENGTHS)
    ]


def through_slots(decoder, slots):
    requests = [
        Request(prompt, max_tokens=end - len(prompt), id=row)
        for row, (prompt, end) in enumerate(zip(PROMPTS, ENDS, strict=True))
    ]
    answers = decode_stream(*loaded(), requests, decoder, slots=slots, gen_length=GEN, widths=(72,))
    found = {each.request.id: each for each in answers}
    return [
        (found[row].tokens[: end - len(prompt)].tolist(), found[row].nfe, found[row].near_ties)
        for row, (prompt, end) in enumerate(zip(PROMPTS, ENDS, strict=True))
    ]


CASES = {
    "batch": (Seeded, NoStop, in_one_batch),
    "batch-cached": (SeededDual, Eos, in_one_batch),
    "alone": (Seeded, Eos, functools.partial(through_slots, slots=1)),
    "slots-cached": (SeededDual, NoStop, functools.partial(through_slots, slots=3)),
}


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_nfe_equal_the_published_sampler(case):
    cache, stop, run = CASES[case]
    decoder = Decoder(policy=Threshold(TAU), cache=cache(), stop=stop(), block_length=SMALL)
    theirs = expected("dual" if cache is SeededDual else "none")
    decided, stopped = 0, 0
    for row, (tokens, nfe, ties) in enumerate(run(decoder)):
        if ties:
            continue
        decided += 1
        length, end = LENGTHS[row], ENDS[row]
        text, seeded = theirs[row].tokens[length:end], end % BLOCK == 1
        forwards = theirs[row].passes[-1][int(seeded)]
        found = theirs[row].stopped(length, {EOS}) if stop is Eos else None
        if found is not None and found[0] <= end - length:
            count, forwards = found
            text[count:] = [EOS] * (len(text) - count)
            stopped += 1
        assert tokens == text, (case, row)
        assert nfe == forwards, (case, row)
    assert decided >= 18, "draw other weights: float rounding decides here"
    assert stopped > 3 or stop is NoStop
    assert [row.tokens for row in expected("dual")] != [row.tokens for row in expected("none")]
