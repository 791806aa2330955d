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
from tests.conformance.each_row import EachRow

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
    ("model", "cache", "stop", "rows", "devices"),
    [
        (small.MODEL, caches.Dual(), Eos, range(8), None),
        (small.DREAM, caches.NoCache(), NoStop, [1], None),
        (small.SDAR, caches.BlockCausal(), Eos, [7, 0, 5, 2], (2, 2)),
    ],
    ids=["llada-dual", "dream-none", "sdar-block-mesh"],
)
def test_argmax_with_the_guide_s_own_token_is_the_guide_s_greedy_text(model, cache, stop, rows, devices):
    """Every token of it, for denoisers that agree now and then, whatever the batch and the mesh."""
    prompts, own = [PROMPTS[row] for row in rows], greedy()
    mesh = None if devices is None else make_mesh(*devices)
    result = run(SPECULATE, model=model, prompts=prompts, cache=cache, stop=stop(), mesh=mesh)
    for place, row in enumerate(rows):
        length = int(own.lengths[row]) if stop is Eos else small.GEN
        found, expected = result.tokens[place, -small.GEN :], own.tokens[row, -small.GEN :]
        np.testing.assert_array_equal(found[:length], expected[:length])
        assert result.lengths[place] == own.lengths[row]
        stored = (len(PROMPTS[row]) + small.GEN) // 4 if cache.block_causal else 0
        assert result.guide_nfe[place] <= result.nfe[place] <= result.guide_nfe[place] + stored
    assert len(rows) < 8 or result.guide_nfe.sum() < (result.commit_step >= 0).sum()  # some drafts held


RULES = {
    "argmax": p.Agree(),
    "topk": p.AgreeTopK("guide", 9),
    "ratio": p.AgreeRatio("drafter", 12, 0.05),
    "ratio-one": p.AgreeRatio("guide", 30, 1.0),
    "threshold": p.AgreeThreshold("guide", 0.02),
    # What the threshold commits may lie right of what the guide writes: the guide must read that again.
    "any_of": p.any_of(p.Agree(on_reject="guide"), p.Threshold(0.05)),
}
ROWS = [(name, prompt) for name in RULES for prompt in small.PROMPTS[:2]]


def all_rules(order=None, **options):
    """`run` of all rules in one program, each row with its own."""
    order = np.arange(len(ROWS)) if order is None else np.asarray(order)
    which = np.asarray([list(RULES).index(name) for name, _ in ROWS])[order]
    prompts = [prompt for _, prompt in ROWS]
    return run(EachRow(tuple(RULES.values()), which), seed=1, prompts=prompts, order=order, **options)


def agreed(policy, token, logits):
    """Whether a draft token holds, by the policy's rule."""
    policy = getattr(policy, "parts", (policy,))[0]
    prob = reference.softmax(logits)
    rank = int((logits > logits[token]).sum() + (logits[:token] == logits[token]).sum())
    numbers = {name: float(getattr(policy, name, 0)) for name in ("k", "ratio", "tau")}
    return {
        "Agree": rank == 0,
        "AgreeTopK": rank < numbers["k"],
        "AgreeRatio": rank < numbers["k"] and prob[token] >= numbers["ratio"] * prob.max(),
        "AgreeThreshold": prob[token] >= numbers["tau"],
    }[type(policy).__name__]


def plain(policy, prompt, model, seed, guide):
    """(tokens, commit steps, log_prob, passes, tokens that the guide read) of a prompt, everything read anew."""
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
                if agreed(policy, draft[at], theirs[at]):
                    commit[at] = draft[at], reference.log_softmax(table[at])[draft[at]]
                    continue
                if writes:
                    own = int(theirs[at].argmax())
                    mine = reference.log_softmax(table[at] if own == draft[at] else theirs[at])
                    commit[at] = own, mine[own]
                break
            commit = commit or {holes[0]: (draft[holes[0]], reference.log_softmax(table[holes[0]])[draft[holes[0]]])}
            for other in getattr(policy, "parts", ())[1:]:
                sure = reference.softmax(table[holes]).max(-1) >= float(other.tau)
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
def test_each_rule_equals_numpy():
    """Tokens, commits, log-probabilities, passes and work, for each row whatever its place; some drafts hold."""
    result, guide, model = all_rules(), guides.guide(), small.MODEL
    weights = weights_met(guide.params, guide.model.config) / weights_met(small.params(), model.config)
    sizes, again = {name: set() for name in RULES}, dict.fromkeys(RULES, 0)
    for row, (name, prompt) in enumerate(ROWS):
        tokens, trace, log_prob, steps, read = plain(RULES[name], prompt, model, 1, guide)
        np.testing.assert_array_equal(result.tokens[row, -small.GEN :], tokens)
        np.testing.assert_array_equal(result.commit_step[row], trace)
        np.testing.assert_allclose(result.log_prob[row], log_prob, atol=2e-4)
        assert result.nfe[row] == result.guide_nfe[row] == steps
        assert result.work[row] == pytest.approx(steps + weights * read / (len(prompt) + small.GEN), rel=1e-5)
        sizes[name] |= set(np.unique(trace, return_counts=True)[1])
        again[name] += read - (steps * (small.BLOCK + 1) + len(prompt) - 1)
    assert len(set().union(*sizes.values())) > 2
    assert [name for name, more in again.items() if more] == ["any_of"]
    away = all_rules(np.arange(len(ROWS))[::-1])
    for field in ("tokens", "commit_step", "nfe", "guide_nfe", "work"):
        np.testing.assert_array_equal(getattr(away, field)[::-1], getattr(result, field))


@strict
def test_slots_that_are_refilled_give_the_same():
    """Prompts of many lengths through two slots, the canvas growing under them; a canvas to fill is refused."""
    requests = [Request(prompt, number=number) for number, prompt in enumerate(PROMPTS)]
    requests.insert(2, Request([*PROMPTS[0], small.MASK], number=90, is_canvas=True))
    requests.insert(4, Request(PROMPTS[2] * 47, number=91))
    decoder = small.decoder(policy=SPECULATE, cache=caches.Dual(), stop=Eos())
    options = dict(slots=2, gen_length=small.GEN, widths=(8, 48), guide=guides.guide())
    found = list(decode_stream(small.MODEL, guides.params(0, small.MODEL), requests, decoder, **options))
    (refused,) = [item for item in found if isinstance(item, Refusal)]
    assert refused.number == 90
    assert "policy: found agree, which asks a guide" in refused.error
    answers, own = {item.request.number: item for item in found if item is not refused}, greedy()
    for row in range(len(PROMPTS)):
        assert answers[row].length == own.lengths[row]
        np.testing.assert_array_equal(
            answers[row].tokens[: answers[row].length], own.tokens[row, -small.GEN :][: answers[row].length]
        )
        assert 0 < answers[row].guide_nfe == answers[row].nfe <= small.GEN


@strict
def test_a_guide_whose_scores_are_no_numbers_is_told_of():
    """The decode ends all the same."""
    broken = Guide(guides.MODEL, jax.tree.map(lambda x: x * jnp.nan, guides.guide().params))
    result = all_rules(guide=broken)
    assert (result.not_finite > 0).all()
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
    with pytest.raises(InputError, match="2 attention heads"):
        run(SPECULATE, mesh=make_mesh(1, 4))
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
