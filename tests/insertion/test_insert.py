"""The compiled loop equals a plain one in numpy, row by row; what is drawn; what is refused."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError, Reason, Sampling
from jaxdiff.insertion import One, Parallel, join
from tests import small
from tests.insertion.conftest import MODEL, SPECIAL, params, said

ROOM = 6
ROWS = [[[5, 6, 7]], [[9, 8], [30, 31, 32, 33]], [[40]], [[11, 12], [13], [14, 15]]]


def plain(tree, parts, *, tau, stop, room):
    """Greedy insertion as the paper has it, on lists; and, where tau is given, into further gaps."""
    text = [(token, False) for part in parts for token in part]
    ends = np.cumsum([len(part) for part in parts]) - 1
    gaps = {int(end) for end in ends[: max(len(parts) - 1, 1)]}
    steps, forwards = [-1] * len(text), 0
    while True:
        logits, whole = said(tree, [token for token, _ in text])
        logits[:, list(SPECIAL)] = -np.inf
        forwards += 1
        inserted = sum(own for _, own in text)
        if 1 / (1 + np.exp(-whole)) >= stop:
            return [token for token, _ in text], steps, forwards, Reason.STOPPED
        if inserted == room:
            return [token for token, _ in text], steps, forwards, Reason.FULL
        among = [i for i, (_, own) in enumerate(text) if own or i in gaps]
        mass = np.log(np.exp(logits).sum(axis=1))
        best = max(among, key=lambda i: mass[i])
        top = logits.max(axis=1)
        chosen = [best]
        if tau is not None:
            further = [i for i in among if i != best and np.exp(top[i] - top[among].max()) >= tau]
            for i in sorted(further, key=lambda i: -top[i]):
                if logits[i].argmax() not in logits[chosen].argmax(axis=1):
                    chosen.append(i)
        for i in sorted(chosen[: room - inserted], reverse=True):
            text.insert(i + 1, (int(logits[i].argmax()), True))
            steps.insert(i + 1, forwards - 1)
            gaps = {gap + (gap > i) for gap in gaps}


def insert(rows, way, *, order=None, seed=0, room=ROOM, tree=None, **sampling):
    order = list(range(len(rows))) if order is None else order
    prompts, origin, gaps = join([rows[i] for i in order], small.EOS)
    keys = small.keys(len(rows), seed)[jnp.asarray(order)]
    return jaxdiff.insert(
        *(MODEL, params() if tree is None else tree, prompts, way),
        **{"sampling": Sampling(**sampling), "gen_length": room, "origin": origin, "gaps": gaps, "key": keys},
    )


def row(result, i):
    """A row's text, which of it was inserted, at which forward, and how many forwards there were."""
    own = slice(int(result.origin[i]), int(result.ends[i]))
    return (
        np.asarray(result.tokens[i, own]).tolist(),
        np.asarray(result.generated[i, own]).tolist(),
        np.asarray(result.commit_step[i, own]).tolist(),
        int(result.nfe[i]),
        Reason(int(result.reason[i])),
    )


@pytest.mark.usefixtures("strict")
@given(
    seed=st.integers(0, 3),
    tau=st.none() | st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    stop=st.sampled_from([0.4, 0.55, 0.7, 1.0]),
)
@settings(max_examples=20)
def test_the_loop_equals_a_plain_one(seed, tau, stop):
    way = One(stop=stop) if tau is None else Parallel(tau=tau, stop=stop)
    result = insert(ROWS, way, tree=params(seed))
    for i, parts in enumerate(ROWS):
        text, steps, forwards, reason = plain(params(seed), parts, tau=tau, stop=stop, room=ROOM)
        if result.near_ties[i]:
            continue
        assert row(result, i)[0] == text
        assert row(result, i)[1] == [step >= 0 for step in steps]
        assert row(result, i)[2:] == (steps, forwards, reason)
        assert int(result.lengths[i]) == sum(step >= 0 for step in steps)


@pytest.mark.usefixtures("strict")
def test_a_row_does_not_depend_on_its_neighbours_and_keeps_what_is_given():
    for way, sampling in ((One(stop=0.7), {"temperature": 0.8, "top_p": 0.9}), (Parallel(tau=0.3, stop=0.7), {})):
        whole = insert(ROWS, way, **sampling)
        for order in ([3, 1, 0, 2], [2])[: 2 if sampling else 1]:
            some = insert(ROWS, way, order=order, **sampling)
            for place, i in enumerate(order):
                assert row(some, place) == row(whole, i)
        for i, parts in enumerate(ROWS):
            text, generated = row(whole, i)[:2]
            assert [token for token, own in zip(text, generated, strict=True) if not own] == [*chain(*parts)]
            assert not {token for token, own in zip(text, generated, strict=True) if own} & set(SPECIAL)


@pytest.mark.parametrize(("sampling", "most"), [({}, None), ({"top_k": 3}, 3), ({"top_p": 0.6}, None)])
def test_pairs_of_gap_and_token_are_drawn_from_one_softmax(sampling, most):
    """The first insertion into a text with two gaps, of 2,000 rows."""
    parts, temperature, rows = ROWS[3], 0.7, 2000
    prompts, origin, gaps = join([parts] * rows, small.EOS)
    result = jaxdiff.insert(
        *(MODEL, params(), prompts, One(stop=1.0)),
        sampling=Sampling(temperature=temperature, **sampling),
        **{"gen_length": 1, "origin": origin, "gaps": gaps, "key": small.keys(rows)},
    )
    logits, _ = said(params(), [*chain(*parts)])
    logits[:, list(SPECIAL)] = -np.inf
    pairs = np.exp(logits[[1, 2]] / temperature)
    share = (pairs / pairs.sum()).reshape(-1)
    order = np.argsort(-share)
    kept = most or (len(order) if "top_p" not in sampling else int(np.argmax(np.cumsum(share[order]) >= 0.6)) + 1)
    expected = np.zeros_like(share)
    expected[order[:kept]] = share[order[:kept]] / share[order[:kept]].sum()
    place = np.asarray(result.generated).argmax(axis=1)
    token = np.asarray(result.tokens)[np.arange(rows), place]
    found = np.bincount((place - 2) * small.VOCAB + token, minlength=len(share)) / rows
    assert not found[expected == 0].any()
    assert np.abs(found - expected).sum() < 0.15
    log_prob = np.asarray(result.log_prob)[np.arange(rows), place]
    plain_share = np.exp(logits[[1, 2]]) / np.exp(logits[[1, 2]]).sum()
    np.testing.assert_allclose(np.exp(log_prob), plain_share[place - 2, token], rtol=2e-4)


def test_no_logits_of_all_positions_exist():
    """Nothing of [B, L, V] in the program; what is looked at are gaps."""
    prompts = np.full((2, 40), 5, np.int32)
    call = jaxdiff.insertion.api.prepare_insert(MODEL, params(), prompts, gen_length=ROOM)
    text = jax.jit(lambda *given: jaxdiff.insertion.loop.run(*given)).lower(call.setup, call.texts).as_text()
    assert f"2x{1 + ROOM}x{small.VOCAB}xf32" in text
    assert f"2x{40 + ROOM}x{small.VOCAB}x" not in text


PROMPT = np.asarray([[5, 6, 7]], np.int32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": small.MODEL}, "model: found a Llada, which has no stop head"),
        ({"gen_length": 0}, "gen_length: found 0, expected room for at least one token"),
        ({"gen_length": 62}, "expected at most the context of 64"),
        ({"prompts": PROMPT[:, :0]}, "prompts: found length 0"),
        ({"prompts": PROMPT * 0 + small.MASK}, r"prompt: row 0 holds \[MASK\]"),
        ({"gaps": np.zeros((1, 3), bool)}, "gaps: row 0 has none"),
        ({"gaps": np.ones((1, 2), bool)}, r"gaps: found bool \(1, 2\), expected bool \(1, 3\)"),
        ({"sampling": Sampling(forbid_eos=True)}, "forbid_eos: found it with an insertion model"),
        ({"sampling": Sampling(cfg_scale=1.0)}, "cfg_scale: found it with an insertion model"),
        ({"way": One(stop=[0.5, 0.6])}, "stop: found 2 values, expected one, or 1"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    arguments = {"model": MODEL, "params": params(), "prompts": PROMPT, "gen_length": 4} | given
    with pytest.raises(InputError, match=words) as caught:
        jaxdiff.insert(**arguments)
    assert "\n" not in str(caught.value)


def test_masks_are_not_filled_with_it():
    canvas = np.asarray([[5, small.MASK]], np.int32)
    for call in (
        lambda: jaxdiff.decode(MODEL, params(), PROMPT, gen_length=32),
        lambda: jaxdiff.infill(MODEL, params(), canvas),
        lambda: list(jaxdiff.decode_stream(MODEL, params(), [[5]], gen_length=32)),
        lambda: jaxdiff.log_likelihood(MODEL, params(), PROMPT, PROMPT),
        lambda: jaxdiff.choose(MODEL, params(), PROMPT, [[[5], [6]]]),
    ):
        with pytest.raises(InputError, match="model: found an insertion model"):
            call()
    with pytest.raises(InputError, match="begins with an empty part"):
        join([[[], [5]]], small.EOS)
