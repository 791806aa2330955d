"""End-of-text prediction: the published cuts equal a plain loop, the safe one loses nothing, a cut only saves work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, decode
from jaxdiff.decode import api, layout
from jaxdiff.policies import Fixed, Learned, Threshold
from jaxdiff.policies.filters import BlockFilter, Linear
from jaxdiff.stoppers import STOPPERS, BlockEotp, Eos, OfficialEotp, SafeEotp
from jaxdiff.types import Progress, Score, Tail
from tests import reference, small
from tests.models.test_llada import forward

GEN, BLOCK = 32, 8
SEEDS = range(4)


WAYS = {"official": OfficialEotp, "block": BlockEotp, "safe": lambda: SafeEotp(tau=0.3, keep=4)}


def run(stop, seed=0):
    return small.decode(model_seed=seed, gen_length=GEN, policy=Threshold(0.6), stop=stop)


def plain(tree, prompt, tau, way, least=None):
    """Learned-to-parallel-decode's loop with end-of-text prediction: the canvas is cut for real.

    `least`: accept all of a block, or nothing, by the sum of its confidences, in place of `tau`.
    """
    x, nfe, fed = np.array([*prompt, *[small.MASK] * GEN]), 0, 0
    for start in range(len(prompt), len(prompt) + GEN, BLOCK):
        while (x[start : start + BLOCK] == small.MASK).any():
            table, fed = forward(small.CONFIG, tree, x), fed + len(x)  # in numpy: each length were a program
            table[:, small.MASK] = -np.inf
            conf, token = reference.softmax(table).max(-1), table.argmax(-1)
            masked = x == small.MASK
            block = [i for i in range(start, min(start + BLOCK, len(x))) if masked[i]]
            accepted = [i for i in block if conf[i] >= tau]
            if least is not None:  # what was cut off is not there, and adds nothing
                accepted = block if conf[start : start + BLOCK].sum() > least else []
            for i in accepted or [max(block, key=lambda i, conf=conf: conf[i])]:
                x[i] = token[i]
            scope = block if way == "block" else np.flatnonzero(masked)
            sure = [i for i in accepted if token[i] == small.EOS]
            any_ = [i for i in scope if token[i] == small.EOS]
            if sure:
                x = x[: sure[0] + 1]
            elif any_:
                x = x[: max(any_, key=lambda i, conf=conf: conf[i]) + 1]
            nfe += 1
    return x[len(prompt) :], nfe, fed


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("way", ["official", "block"])
def test_the_published_ways_equal_a_plain_loop(way):
    cut = 0
    for seed in SEEDS:
        result = run(WAYS[way](), seed)
        assert int(result.near_ties.sum()) == 0
        for row, prompt in enumerate(small.PROMPTS):
            tokens, nfe, fed = plain(small.params(seed), prompt, 0.6, way)
            answer = np.asarray(result.tokens[row, -GEN:])
            np.testing.assert_array_equal(answer[: len(tokens)], tokens)
            np.testing.assert_array_equal(answer[len(tokens) :], small.EOS)
            assert result.nfe[row] == nfe
            np.testing.assert_allclose(result.work[row], fed / (len(prompt) + GEN), rtol=1e-5)
            cut += len(tokens) < GEN
    assert cut > 4, "the case does not exercise the rule"


def test_a_filter_sees_nothing_behind_the_end():
    least, cut = 4.5, 0
    everything = Linear(jnp.ones((BLOCK, BLOCK)), jnp.full((BLOCK,), -least))
    for seed in SEEDS:
        policy = Learned(BlockFilter((everything,)), tau=0.5)
        result = small.decode(model_seed=seed, gen_length=GEN, policy=policy, stop=OfficialEotp())
        for row, prompt in enumerate(small.PROMPTS):
            tokens, nfe, _ = plain(small.params(seed), prompt, 0.0, "official", least)
            np.testing.assert_array_equal(np.asarray(result.tokens[row, -GEN:])[: len(tokens)], tokens)
            assert result.nfe[row] == nfe
            cut += bool(len(tokens) % BLOCK)
    assert cut > 4, "the case does not exercise the rule"


def test_ends_that_are_put_off_cut_no_more_than_they_foresee():
    for ties in ("first", "log_odds"):
        result = small.decode(gen_length=GEN, policy=Threshold(0.6), stop=OfficialEotp(ties=ties), defer_eos=True)
        assert (result.lengths > 1).any()


def test_the_safe_way_never_costs_a_forward_and_without_certainty_it_is_eos():
    for seed in SEEDS:
        eos, never = run(Eos(), seed), run(SafeEotp(tau=1.0), seed)
        for field in ("tokens", "nfe", "commit_step"):
            np.testing.assert_array_equal(getattr(never, field), getattr(eos, field))


def test_the_safe_way_keeps_what_is_not_foreseen_as_end_of_text():
    """A model that foresees end-of-text everywhere: the end moves to `keep` positions behind the prompt."""
    tree = small.params() | {"head": jnp.zeros_like(small.params()["head"])}
    hidden = jnp.zeros((small.CONFIG.d_model,)).at[0].set(1.0)
    tree["layers"] = jax.tree.map(jnp.zeros_like, tree["layers"])
    tree["wte"] = jnp.broadcast_to(hidden, tree["wte"].shape)
    tree["head"] = tree["head"].at[0, small.EOS].set(5.0)  # after the norm, one feature is sqrt(D) and the rest are 0
    prompts, origin = small.batch()
    for keep in (3, 8, 20):
        decoder = small.decoder(policy=Fixed(order="random"), stop=SafeEotp(keep=keep))
        result = decode(small.MODEL, tree, prompts, decoder, origin=origin, gen_length=GEN)
        committed = (np.asarray(result.commit_step) >= 0).sum(1)
        assert (committed <= keep).all()
        assert (np.asarray(result.commit_step)[:, keep:] == -1).all()


def foreseen(marks):
    """The end that the safe way sets with `keep` 3 on a canvas of masks.

    Marks say what is foreseen: `e` an end-of-text, `?` an unsure one, `x` something else; `E` is a committed one.
    """
    length = len(marks)
    canvas = jnp.asarray([[small.EOS if mark == "E" else small.MASK for mark in marks]], jnp.int32)
    nothing, zero = jnp.zeros((1, 1)), jnp.zeros((1,), jnp.int32)
    score = Score(
        **dict.fromkeys(("prob", "log_odds", "runner_up", "entropy", "gap", "log_prob"), nothing),
        **dict.fromkeys(("start", "origin", "block_step", "row_step"), zero),
        **dict.fromkeys(("masked", "eligible", "editable"), jnp.ones((1, 1), bool)),
        token=jnp.zeros((1, 1), jnp.int32),
        named=jnp.zeros((1, 1, 1)),
        hidden=jnp.zeros((1, 1, 2)),
        canvas=canvas,
    )
    progress = Progress(
        canvas=canvas,
        end=jnp.asarray([length], jnp.int32),
        live=jnp.ones((1,), bool),
        generated=jnp.ones((1, length), bool),
        score=score,
        accepted=jnp.zeros((1, 1), bool),
        tail=Tail(
            ends=jnp.asarray([[mark in "e?" for mark in marks]]),
            log_odds=jnp.asarray([[9.0 if mark == "e" else 0.1 for mark in marks]]),
        ),
        settled=jnp.asarray([next((i for i, mark in enumerate(marks) if mark != "E"), length)], jnp.int32),
        eos_ids=(small.EOS,),
    )
    return int(SafeEotp(keep=3).update((), progress)[0][0])


@pytest.mark.parametrize(
    ("marks", "end"),
    [
        ("xxeeexx?xe", 5),  # what strays beyond does not count
        ("xxee?eeexx", 8),  # three in a row, all sure
        ("xxeEexxxxx", 5),  # one may be there already
        ("xxee?ee?ee", 10),
        ("eexxxxxxee", 10),
    ],
)
def test_the_safe_way_cuts_behind_a_run_of_sure_ends(marks, end):
    assert foreseen(marks) == end


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_canvas_changes_nothing_but_the_work(way, monkeypatch):
    results = [run(WAYS[way](), seed) for seed in SEEDS]
    monkeypatch.setattr(layout, "doublings", lambda *_: ())
    for seed, result in zip(SEEDS, results, strict=True):
        whole = run(WAYS[way](), seed)
        assert not int(whole.near_ties.sum() + result.near_ties.sum())
        for field in ("tokens", "nfe", "commit_step", "lengths"):
            np.testing.assert_array_equal(getattr(result, field), getattr(whole, field))


def test_rungs_double_from_the_shortest_on(monkeypatch):
    assert layout.doublings(256, 32) == (32, 64, 128)
    assert layout.doublings(96, 32) == (32, 64)
    assert layout.doublings(32, 32) == ()
    monkeypatch.undo()
    assert layout.doublings(256, 32) == (64, 128)
    assert layout.doublings(1024, 4) == (64, 128, 256, 512)
    assert layout.doublings(64, 32) == ()


def test_a_forward_is_compiled_for_each_rung_and_only_where_ends_are_foreseen():
    def lengths(stop):
        prompts, origin = small.batch()
        options = dict(origin=origin, gen_length=GEN)
        return api.prepare(
            small.MODEL, small.params(), prompts, small.decoder(stop=stop), **options
        ).setup.layout.ladder

    assert lengths(Eos()) == ()
    assert lengths(SafeEotp()) == (14, 22)


def test_a_way_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="stop eotp way: found 'bold', expected one of official, block, safe"):
        STOPPERS.parse("eotp:way=bold")
