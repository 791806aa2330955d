"""Judgements hold what rash decodes committed, and a judge learns from them which of it is wrong."""

import dataclasses
import itertools

import numpy as np
import pytest

import jaxdiff
from jaxdiff import InputError
from jaxdiff.decode.batches import request_keys
from jaxdiff.judges import load_judge, save_judge
from jaxdiff.policies import Threshold
from jaxdiff.train.fit_judge import JudgeRecipe, auc, fit_judge, logits_of
from jaxdiff.train.judgements import Judgements, collect, load_judgements
from jaxdiff.train.traces import load_traces
from tests import reference, small

WINDOW = 8


def made_up(prompts=200, seed=0):
    """A commit is wrong where it was unsure and the candidate is another now, or where a hidden feature says so."""
    rng = np.random.default_rng(seed)
    shape = (10 * prompts, WINDOW)
    odds, agrees, judged = rng.normal(0, 3, shape), rng.random(shape) < 0.5, rng.random(shape) < 0.7
    hidden = rng.normal(0, 1, (*shape, 3)).astype(np.float16)
    return Judgements(
        odds=odds.astype(np.float32),
        standing=rng.normal(-1, 1, shape).astype(np.float32),
        log_prob=rng.normal(-1, 1, shape).astype(np.float32),
        agrees=agrees,
        masked=~judged,
        judged=judged,
        repeats=rng.random(shape) < 0.1,
        age=np.ones(shape, np.int32),
        hidden=hidden,
        wrong=judged & (((odds < 0) & ~agrees) | (hidden[..., 1] > 1)),
        step=np.ones(shape[0], np.int64),
        block=np.zeros(shape[0], np.int64),
        prompt=np.repeat(np.arange(prompts), 10),
        rash=np.zeros(shape[0], np.int32),
    )


def test_a_judge_learns_and_comes_back_from_disk(tmp_path):
    fitted = fit_judge(made_up(), JudgeRecipe(hidden=16, steps=400, learning_rate=0.02), fitted_to="0123456789abcdef")
    fresh = made_up(seed=1)
    logits, wrong = logits_of(fitted.judge, fresh), fresh.wrong[fresh.judged]
    assert ((logits > 0) == wrong).mean() > 0.93
    assert fitted.auc > 0.97
    assert auc(logits, wrong) > 0.97
    save_judge(tmp_path / "judge", fitted.judge, 0.25)
    back, tau = load_judge(tmp_path / "judge")
    assert (tau, back.reach, back.features, back.fitted_to) == (0.25, 3, 3, "0123456789abcdef")
    np.testing.assert_array_equal(logits_of(back, fresh), logits)
    config = tmp_path / "judge" / "judge.json"
    for old, new in (('"reach": 3', '"reach": 2'), ('"tau": 0.25', '"tau": 7'), ('"features": 3', '"features": -3')):
        text = config.read_text()
        config.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=r"judge.json: missing or damaged"):
            load_judge(tmp_path / "judge")
        config.write_text(text)


def test_area_under_the_curve():
    rng = np.random.default_rng(0)
    scores, wrong = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.3
    pairs = list(itertools.product(scores[wrong], scores[~wrong]))
    assert auc(scores, wrong) == pytest.approx(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    with pytest.raises(InputError, match="commits of one kind alone"):
        auc(scores, np.ones(50, bool))


def test_bad_judgements_are_refused():
    rows = made_up()
    with pytest.raises(InputError, match="found no commit to judge"):
        dataclasses.replace(rows, judged=np.zeros_like(rows.judged)).check()
    broken = rows.take(np.arange(rows.prompt.size))
    broken.odds[3, 2] = np.nan
    with pytest.raises(InputError, match=f"odds of prompt {rows.prompt[3]} is not finite"):
        broken.check()
    with pytest.raises(InputError, match="too few to keep a tenth apart"):
        fit_judge(rows.take(rows.prompt == 1), JudgeRecipe(steps=1))
    for name in ("layers", "hidden", "steps", "positions"):
        with pytest.raises(InputError, match=f"judge {name}: found 0"):
            JudgeRecipe(**{name: 0})


def test_what_is_collected_is_what_the_decodes_did(tmp_path):
    """The last forward of a block sees all that it committed; what differs from the careful answer is wrong."""
    prompts, rash = [*small.PROMPTS, [7, 9]], [Threshold(0.0), Threshold(0.3)]
    asked = dict(rash=rash, gen_length=small.GEN, batch_size=4)
    folder = tmp_path / "judgements"
    given = (small.MODEL, small.params(), prompts, range(10, 15), folder, small.decoder())
    rows = collect(*given, **asked)
    assert set(rows.rash) == {0, 1}
    careful = decoded(prompts, small.decoder())
    for number, policy in enumerate(rash):
        decodes = decoded(prompts, small.decoder(policy=policy))
        for prompt, block in itertools.product(range(5), range(small.GEN // small.BLOCK)):
            own = rows.take((rows.rash == number) & (rows.prompt == 10 + prompt) & (rows.block == block))
            last = own.take(np.argsort(own.step)[-1:])
            at = slice(block * small.BLOCK, (block + 1) * small.BLOCK)
            assert last.judged.all()
            np.testing.assert_array_equal(last.wrong[0], decodes[prompt][0][at] != careful[prompt][0][at])
            committed = np.asarray(decodes[prompt][1][at])
            np.testing.assert_array_equal(last.step[0] - last.age[0], committed - committed.min())
            assert np.isfinite(last.hidden).all()
            assert last.hidden.shape[-1] == small.CONFIG.d_model
    assert 0.1 < rows.wrong.sum() / rows.judged.sum() < 0.9
    for name, column in vars(load_judgements(folder)).items():
        np.testing.assert_array_equal(column, getattr(rows, name))
    load_judgements(folder, small.params())
    with pytest.raises(InputError, match=r"judgements: found those of the weights \w+ in .*, but these are"):
        load_judgements(folder, small.params(1))
    with pytest.raises(InputError, match="found columns of another kind"):
        load_traces(folder)
    with pytest.raises(InputError, match="rash"):
        collect(*given, **asked | {"rash": rash[:1]})


def test_unlikely_is_what_a_careful_decode_would_hardly_draw(tmp_path):
    """At a temperature, each row with its own key; a numpy network is asked token by token, in the order of commits."""
    prompts, below = [*small.PROMPTS, [7, 9]], 0.4
    decoder = small.decoder(temperature=1.0)
    given = (small.MODEL, small.params(), prompts, range(5), tmp_path / "judgements", decoder)
    rows = collect(*given, rash=[Threshold(0.3)], unlikely=below, seed=3, gen_length=small.GEN, batch_size=4)
    rash = dataclasses.replace(decoder, policy=Threshold(0.3))
    padded, origin = small.batch(prompts)
    keys = request_keys(3, np.arange(5))
    result = jaxdiff.decode(small.MODEL, small.params(), padded, rash, origin=origin, gen_length=small.GEN, key=keys)
    for prompt in range(5):  # of the first block alone: at its end one forward more looks at what was committed last
        own = rows.take((rows.prompt == prompt) & (rows.block == 0))
        last = own.take(np.argsort(own.step)[-1:])
        tokens = np.asarray(result.tokens[prompt, origin[prompt] :])
        x, start = tokens.copy(), len(prompts[prompt])
        x[start:] = small.MASK
        committed = np.asarray(result.commit_step[prompt])[: small.BLOCK]
        for at in np.argsort(committed, kind="stable"):
            table = small.logits(small.params(), x)[start + at]
            table[small.MASK] = -np.inf
            x[start + at] = tokens[start + at]
            is_unlikely = np.exp(reference.log_softmax(table[None])[0, x[start + at]]) < below
            assert last.wrong[0, at] == (is_unlikely and last.judged[0, at])
    assert 0.1 < rows.wrong.sum() / rows.judged.sum() < 0.9


def decoded(prompts, decoder):
    """Of each prompt its tokens and its commit steps."""
    result = small.decode(prompts=prompts, order=range(5), policy=decoder.policy)
    return list(zip(np.asarray(result.tokens)[:, -small.GEN :], np.asarray(result.commit_step), strict=True))
