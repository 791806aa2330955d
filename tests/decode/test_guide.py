"""A guide beside the denoiser: its greedy text for any denoiser, its rules against plain numpy, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Decoder, Guide, InputError, Sampling, caches, make_mesh
from jaxdiff import policies as p
from jaxdiff.fills import Recap
from jaxdiff.leaves import weights_met
from jaxdiff.serve import Refusal, Request, decode_stream
from jaxdiff.stoppers import BlockEotp, Eos, NoStop
from tests import guides, reference, small

strict = pytest.mark.usefixtures("strict")
SPECULATE = p.Agree(on_reject="guide")
PROMPTS = [*small.PROMPTS, [50, 51], [33] * 7, [20, 21, 22], [60, 5, 60, 5, 60]]


def run(policy, *, model=small.MODEL, seed=0, prompts=small.PROMPTS, order=None, mesh=None, guide=None, **parts):
    """`decode` of prompts, rows in that order, with the guide; in numpy."""
    ids, origin = small.batch(prompts)
    order = np.arange(len(prompts)) if order is None else np.asarray(order)
    own = {} if (model.attention_block or small.BLOCK) % small.BLOCK == 0 else {"block_length": None}
    result = jaxdiff.decode(
        *(model, guides.params(seed, model), ids[order], small.decoder(policy=policy, **own, **parts)),
        gen_length=small.GEN,
        origin=origin[order],
        key=small.keys(len(prompts))[jnp.asarray(order)],
        mesh=mesh,
        guide=guides.guide() if guide is None else guide,
    )
    return jax.device_get(result)


@functools.cache
def greedy():
    """The guide's own text after each of PROMPTS, by the library's decode of an autoregressive model, and on after its
    end.
    """
    ids, origin = small.batch(PROMPTS)
    guide, options = guides.guide(), dict(gen_length=small.GEN, origin=origin)
    result = jax.device_get(jaxdiff.decode(guide.model, guide.params, ids, Decoder(cache=caches.Seeded()), **options))
    assert not result.near_ties.sum()
    return result


# Denoisers that read tokens where they stand and one before, whose positions see all and that attend in blocks.
@strict
@pytest.mark.parametrize(
    ("model", "cache", "stop", "rows"),
    [
        (small.MODEL, caches.Dual(), Eos, range(8)),
        (small.DREAM, caches.NoCache(), NoStop, [1, 4, 3, 7, 6]),
        (small.SDAR, caches.BlockCausal(), Eos, [7]),
    ],
    ids=["llada-dual", "dream-none", "sdar-block"],
)
def test_argmax_with_the_guide_s_own_token_is_the_guide_s_greedy_text(model, cache, stop, rows):
    """Every token of it, for denoisers that agree now and then, and whatever the batch."""
    prompts, own = [PROMPTS[row] for row in rows], greedy()
    result = run(SPECULATE, model=model, prompts=prompts, cache=cache, stop=stop())
    for place, row in enumerate(rows):
        length = int(own.lengths[row]) if stop is Eos else small.GEN
        found, expected = result.tokens[place, -small.GEN :], own.tokens[row, -small.GEN :]
        np.testing.assert_array_equal(found[:length], expected[:length])
        assert result.lengths[place] == own.lengths[row]
        stored = (len(PROMPTS[row]) + small.GEN) // 4 if cache.block_causal else 0
        assert result.guide_nfe[place] <= result.nfe[place] <= result.guide_nfe[place] + stored
    assert model is small.SDAR or result.guide_nfe.sum() < (result.commit_step >= 0).sum()  # some drafts held


RULES = {
    "argmax": lambda: p.Agree(),
    "topk": lambda: p.AgreeTopK("guide", np.asarray([1, 9, 25, 61])),
    "ratio": lambda: p.AgreeRatio("drafter", np.asarray([60, 12, 30, 30]), np.asarray([0.0, 0.1, 0.02, 1.0])),
    "threshold": lambda: p.AgreeThreshold("guide", np.asarray([0.0, 0.001, 0.02, 0.3])),
    # What the threshold commits may lie right of what the guide writes: the guide must read that again.
    "any_of": lambda: p.any_of(p.Agree(on_reject="guide"), p.Threshold(np.asarray([0.0, 0.1, 0.2, 0.3]))),
}


def agreed(policy, row, token, logits):
    """Whether a draft token holds, by the policy's rule."""
    policy = getattr(policy, "parts", (policy,))[0]
    prob = reference.softmax(logits)
    rank = int((logits > logits[token]).sum() + (logits[:token] == logits[token]).sum())
    numbers = {name: np.broadcast_to(getattr(policy, name, 0), 4)[row] for name in ("k", "ratio", "tau")}
    return {
        "Agree": rank == 0,
        "AgreeTopK": rank < numbers["k"],
        "AgreeRatio": rank < numbers["k"] and prob[token] >= numbers["ratio"] * prob.max(),
        "AgreeThreshold": prob[token] >= numbers["tau"],
    }[type(policy).__name__]


def plain(policy, row, model, seed, guide):
    """(tokens, commit steps, log_prob, passes, tokens that the guide read) of a prompt, everything read anew."""
    prompt = small.PROMPTS[row]
    x = np.asarray([*prompt, *[small.MASK] * small.GEN])
    writes = getattr(policy, "parts", (policy,))[0].on_reject == "guide"
    trace, said, step, read, exact = np.full(len(x), -1), np.zeros(len(x)), 0, 0, 0
    for start in range(len(prompt), len(x), small.BLOCK):
        block = np.arange(start, start + small.BLOCK)
        while (x[block] == small.MASK).any():
            table = small.logits(guides.params(seed, model), x, model)
            table[:, small.MASK] = -np.inf
            holes = block[x[block] == small.MASK]
            draft = x.copy()
            draft[holes] = table[holes].argmax(-1)
            theirs = small.logits(guide.params, draft, guide.model)
            theirs[:, small.MASK] = -np.inf
            read += start + small.BLOCK - min(exact, start - 1)
            commit = {}
            for at in holes:
                if agreed(policy, row, draft[at], theirs[at]):
                    commit[at] = draft[at], reference.log_softmax(table[at])[draft[at]]
                    continue
                if writes:
                    own = int(theirs[at].argmax())
                    mine = reference.log_softmax(table[at] if own == draft[at] else theirs[at])
                    commit[at] = own, mine[own]
                break
            commit = commit or {holes[0]: (draft[holes[0]], reference.log_softmax(table[holes[0]])[draft[holes[0]]])}
            for other in getattr(policy, "parts", ())[1:]:
                sure = reference.softmax(table[holes]).max(-1) >= other.tau[row]
                for at in holes[sure]:
                    commit.setdefault(at, (draft[at], reference.log_softmax(table[at])[draft[at]]))
            for at, (token, log_prob) in commit.items():
                x[at], trace[at], said[at] = token, step, log_prob
            step += 1
            changed = np.flatnonzero(x[block] != draft[block])
            exact = start + (changed[0] if changed.size else small.BLOCK)
    first = len(prompt)
    return x[first:], trace[first:], said[first:], step, read


@strict
@pytest.mark.parametrize("rule", RULES)
def test_each_rule_equals_numpy(rule):
    """Tokens, commits, log-probabilities, passes and work; a row's numbers are its own; some drafts hold, some not."""
    policy, guide = RULES[rule](), guides.guide()
    model = small.DREAM if rule == "topk" else small.MODEL
    sizes, again = set(), 0
    weights = weights_met(guide.params, guide.model.config) / weights_met(small.params(0, model), model.config)
    result = run(policy, model=model, seed=1)
    for row, prompt in enumerate(small.PROMPTS):
        tokens, trace, log_prob, steps, read = plain(policy, row, model, 1, guide)
        np.testing.assert_array_equal(result.tokens[row, -small.GEN :], tokens)
        np.testing.assert_array_equal(result.commit_step[row], trace)
        np.testing.assert_allclose(result.log_prob[row], log_prob, atol=2e-4)
        assert result.nfe[row] == result.guide_nfe[row] == steps
        canvas = len(prompt) + small.GEN
        assert result.work[row] == pytest.approx(steps + weights * read / canvas, rel=1e-5)
        sizes |= set(np.unique(trace, return_counts=True)[1])
        again += read - (steps * (small.BLOCK + 1) + len(prompt) - 1)
    assert len(sizes) > 1
    assert (again > 0) == (rule == "any_of")
    if rule == "argmax":
        away = run(policy, model=model, seed=1, order=[3, 2, 1, 0])
        for field in ("tokens", "commit_step", "nfe", "guide_nfe", "work"):
            np.testing.assert_array_equal(getattr(away, field)[::-1], getattr(result, field))


@strict
def test_slots_that_are_refilled_and_devices_give_the_same():
    """Prompts of many lengths through two slots, the canvas growing under them; and rows and weights over a mesh."""
    parts = dict(cache=caches.Dual(), stop=Eos())
    home = run(SPECULATE, prompts=PROMPTS, **parts)
    requests = [Request(prompt, number=number) for number, prompt in enumerate(PROMPTS)]
    requests.insert(2, Request([*PROMPTS[0], small.MASK], number=90, is_canvas=True))
    requests.insert(4, Request(PROMPTS[2] * 47, number=91))
    found = list(
        decode_stream(
            *(small.MODEL, guides.params(0, small.MODEL), requests, small.decoder(policy=SPECULATE, **parts)),
            slots=2,
            gen_length=small.GEN,
            widths=(8, 48),
            guide=guides.guide(),
        )
    )
    refused = {item.number: item.error for item in found if isinstance(item, Refusal)}
    assert refused == {90: refused[90]}
    assert "policy: found agree, which asks a guide" in refused[90]
    answers = {item.request.number: item for item in found if not isinstance(item, Refusal)}
    for row in range(len(PROMPTS)):
        assert answers[row].tokens.tolist() == home.tokens[row, -small.GEN :].tolist()
        assert (answers[row].nfe, answers[row].guide_nfe) == (home.nfe[row], home.guide_nfe[row])
        assert answers[row].work == pytest.approx(home.work[row], rel=1e-5)
    with pytest.raises(InputError, match="2 attention heads"):
        run(SPECULATE, mesh=make_mesh(1, 4))
    spread = run(SPECULATE, prompts=PROMPTS, **parts, mesh=make_mesh(2, 2))
    for field in ("tokens", "commit_step", "nfe", "guide_nfe", "work", "lengths"):
        np.testing.assert_array_equal(getattr(spread, field), getattr(home, field))


@strict
def test_a_guide_whose_scores_are_no_numbers_is_told_of():
    broken = Guide(guides.MODEL, jax.tree.map(lambda x: x * jnp.nan, guides.guide().params))
    result = run(p.Agree(), seed=1, guide=broken)
    assert (result.not_finite > 0).all()
    assert (result.nfe == small.GEN).all()  # nothing holds, and the decode ends all the same
    assert (result.tokens != small.MASK).all()


def other(**changes):
    """A guide of another config."""
    return Guide(type(guides.MODEL)(dataclasses.replace(guides.MODEL.config, **changes)), guides.guide().params)


@pytest.mark.parametrize(
    ("parts", "guide", "words"),
    [
        (
            {"policy": p.Threshold()},
            guides.guide,
            "guide: found one, but policy threshold asks none; take policy agree",
        ),
        ({"policy": p.Agree()}, None, "policy: found agree, which asks a guide, and no guide; give --guide NAME"),
        ({"policy": p.cap(2, p.Agree())}, None, "policy: found Cap, which asks a guide"),
        (
            {"policy": p.Agree()},
            lambda: other(vocab_size=50, mask_token_id=3),
            "guide: found a vocabulary of 50, expected",
        ),
        (
            {"policy": p.Agree()},
            lambda: other(max_sequence_length=20),
            "guide: found a context of 20, expected 22 or more",
        ),
        ({"policy": p.Agree()}, lambda: guides.MODEL, "guide: found Llama.* expected a jaxdiff Guide"),
        ({"policy": p.Agree(), "fill": Recap()}, guides.guide, "fill: found recap with policy agree"),
        ({"policy": p.Agree(), "stop": BlockEotp()}, guides.guide, "stop: found eotp with policy agree"),
        ({"policy": p.Agree(), "defer_eos": True}, guides.guide, "defer_eos: found it with policy agree"),
        ({"policy": SPECULATE, "temperature": 0.5}, guides.guide, "temperature: found 0.5 with a policy that writes"),
        (
            {"policy": SPECULATE, "end_think": jaxdiff.EndThink((5,), 1.0)},
            guides.guide,
            "end_think: found it with a policy that writes",
        ),
    ],
)
def test_what_does_not_go_with_a_guide_is_refused(parts, guide, words):
    ids, origin = small.batch()
    made = None if guide is None else guide()
    with pytest.raises(InputError, match=words) as caught:
        jaxdiff.decode(
            *(small.MODEL, small.params(), ids, small.decoder(**parts)), gen_length=small.GEN, origin=origin, guide=made
        )
    assert "\n" not in str(caught.value)


def test_other_places_that_have_no_guide_refuse_the_policy():
    with pytest.raises(InputError, match="guide: found a Llada, expected an autoregressive model"):
        Guide(small.MODEL, small.params())
    with pytest.raises(InputError, match="policy: found agree, which asks a guide"):
        jaxdiff.infill(small.MODEL, small.params(), np.asarray([[5, 3, 6, 3]]), Decoder(policy=p.Agree()))
    with pytest.raises(InputError, match="cache: found seeded with policy agree"):
        run(p.Agree(), model=small.FAST, cache=caches.Seeded())
    own = dataclasses.replace(small.decoder(policy=SPECULATE), sampling=Sampling(temperature=0.5))
    (refusal,) = decode_stream(
        *(small.MODEL, small.params(), [Request([5, 6], decoder=own)], small.decoder(policy=SPECULATE)),
        gen_length=small.GEN,
        guide=guides.guide(),
    )
    assert "temperature: found 0.5 with a policy that writes" in refusal.error
