"""The arithmetic of a report, on decodes that are made up: nothing is compiled."""

import json
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Checkpoint, InputError, Result, Tokenizer, parts
from jaxdiff.decode import Timed
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import request_keys
from jaxdiff.policies import Threshold
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import TASKS
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import evaluate, sweep
from tests import small

N, BATCH = 5, 2
TAUS = (0.9, 0.6, 0.3)
RUN = Timed.run


class Letters:
    """Ids 10, 11, ... are a, b, ...; one letter is a question, and a turn of a chat opens with an id of its own."""

    chat_template = None

    def encode(self, text, add_special_tokens=True):
        return [small.EOT] * add_special_tokens + [10 + ord(letter) - ord("a") for letter in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i - 10 + ord("a")) for i in ids)


@pytest.fixture
def checkpoint():
    return Checkpoint(small.MODEL, {}, Tokenizer(Letters(), small.EOS), Path("tiny"))


@pytest.fixture
def calls(monkeypatch):
    """A task of problems a, b, c, d, e, and a decode that answers each with its letter, except that c says d."""
    module = types.ModuleType("letters")
    vars(module).update(
        NAME="letters",
        problems=lambda split, seed: (Problem(letter, "", letter, continues=letter == "b") for letter in "abcdefgh"),
        verify=lambda answer, problem: answer == problem.answer,
    )
    monkeypatch.setitem(TASKS, "letters", module)
    seen = []

    def prepare(model, params, prompts, decoder, *, origin, key, gen_length, mesh):
        options = {"decoder": decoder, "mesh": mesh, "gen_length": gen_length}
        seen.append({"origin": origin, "key": key, "shape": prompts.shape, "before": prompts[:, -2], **options})
        rows = prompts.shape[0]
        said = prompts[:, -1] + (prompts[:, -1] == 12)
        tail = np.full((rows, gen_length - 1), small.EOS, np.int32)
        order = jnp.asarray(prompts[:, -1] - 10, jnp.int32)
        return Result(
            tokens=jnp.asarray(np.concatenate([prompts, said[:, None], tail], axis=1)),
            origin=jnp.asarray(origin),
            lengths=order + 1,
            nfe=order + 2,
            cheap=jnp.zeros((rows,), jnp.int32),
            work=order / 2.0,
            commit_step=jnp.zeros((rows, gen_length), jnp.int32),
            log_prob=jnp.zeros((rows, gen_length)),
            reason=jnp.zeros((rows,), jnp.int32),
            near_ties=order,
            not_finite=jnp.zeros((rows,), jnp.int32),
            policy=(),
        )

    def run(timed, result):
        timed.seconds += 0.5
        timed.compile_seconds = 3.0
        return result

    monkeypatch.setattr("jaxdiff.tasks.evaluate.prepare", prepare)
    monkeypatch.setattr("jaxdiff.tasks.evaluate.Timed.run", run)
    return seen


def test_report_counts_each_problem_once(checkpoint, calls):
    heard = []
    report = evaluate(
        checkpoint,
        "letters",
        small.decoder(),
        n=N,
        batch_size=BATCH,
        gen_length=small.GEN,
        progress=lambda *told: heard.append(told),
    )
    assert report.texts == ("a", "b", "d", "d", "e")
    assert report.correct.tolist() == [True, True, False, True, True]
    assert report.nfe.tolist() == [2, 3, 4, 5, 6]
    assert report.work.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert report.lengths.tolist() == [1, 2, 3, 4, 5]
    assert report.near_ties.tolist() == [0, 1, 2, 3, 4]
    assert [problem.answer for problem in report.problems] == list("abcde")
    summary = report.summary()
    assert (summary["accuracy"], summary["nfe"], summary["tpf"], summary["n"]) == (0.8, 4.0, 15 / 20, 5)
    assert summary["work"] == 1.0
    assert summary["accuracy_low"] < 0.8 < summary["accuracy_high"]
    assert (summary["seconds"], summary["compile_seconds"]) == (1.5, 3.0)
    assert heard == [(2, 3, 0.5), (4, 10, 1.0), (5, 15, 1.5)]


def test_rows_are_kept_as_batches_end_and_gone_on_with(checkpoint, calls, tmp_path, monkeypatch):
    out, options = tmp_path / "out.jsonl", {"n": N, "batch_size": BATCH, "gen_length": small.GEN}
    alone = evaluate(checkpoint, "letters", small.decoder(), **options)

    def stop(done, *_):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, "letters", small.decoder(), out=out, progress=stop, **options)
    assert len(parts.part_of(out, 0).read_text().splitlines()) == 5
    assert not out.exists()
    words = r"another seed, decoder; delete .*out.jsonl.parts, or name another --out"
    with pytest.raises(InputError, match=words):
        evaluate(checkpoint, "letters", small.decoder(stop=Eos()), out=out, seed=1, **options)
    calls.clear()
    report = evaluate(checkpoint, "letters", small.decoder(), out=out, **options)
    assert len(calls) == 1
    assert report.summary() == alone.summary() | {"seconds": report.seconds}
    assert report.seconds == pytest.approx(alone.seconds)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(N))
    assert rows[2] == {
        **{"number": 2, "question": "c", "text": "d", "correct": False},
        **{"nfe": 4, "work": 1.0, "length": 3, "near_ties": 2, "not_finite": 0},
    }
    assert list(tmp_path.iterdir()) == [out]


def test_problems_of_like_length_share_a_batch(checkpoint, calls, monkeypatch):
    worked = {"a": "....", "b": "", "c": "...", "d": "", "e": ""}
    made = [Problem(letter, text, letter) for letter, text in worked.items()]
    monkeypatch.setattr(TASKS["letters"], "problems", lambda split, seed: iter(made))
    report = evaluate(checkpoint, "letters", small.decoder(), n=N, batch_size=BATCH, gen_length=small.GEN)
    order = [1, 3, 4, 2, 0, 0]  # the last batch repeats its own
    for call, rows in zip(calls, (order[:2], order[2:4], order[4:]), strict=True):
        assert (call["key"] == request_keys(0, np.asarray(rows))).all()
    assert report.texts == ("a", "b", "d", "d", "e")


def test_a_sweep_equals_an_evaluation_of_each_value(calls, monkeypatch):
    """3 values x 4 problems in batches of 5: batches straddle values, and the last one is filled up."""
    monkeypatch.setattr("jaxdiff.tasks.evaluate.prepare", prepare)
    monkeypatch.setattr("jaxdiff.tasks.evaluate.Timed.run", RUN)
    checkpoint = Checkpoint(small.MODEL, small.params(), Tokenizer(Letters(), small.EOS), Path("tiny"))
    options = {"n": 4, "gen_length": small.GEN}

    def decoder(tau):
        return small.decoder(policy=Threshold(tau=tau), stop=Eos())

    swept = sweep(checkpoint, "letters", decoder, TAUS, batch_size=5, **options)
    for report, tau in zip(swept, TAUS, strict=True):
        alone = evaluate(checkpoint, "letters", decoder(tau), **options)
        assert report.texts == alone.texts
        np.testing.assert_array_equal(report.nfe, alone.nfe)
        np.testing.assert_array_equal(report.work, alone.work)
        np.testing.assert_array_equal(report.lengths, alone.lengths)
    first, second, third = (report.nfe.sum() for report in swept)
    assert first > second > third, "the values must matter, or the test says nothing"


def test_what_is_to_be_gone_on_with_is_no_turn_of_a_chat(checkpoint, calls):
    evaluate(checkpoint, "letters", small.decoder(), n=3, gen_length=small.GEN)
    assert (calls[0]["before"] == small.EOT).tolist() == [True, False, True]


def test_batches_share_one_shape_and_problems_keep_their_keys(checkpoint, calls):
    settings = {"decoder": small.decoder(temperature=1.0), "n": N, "gen_length": small.GEN}
    evaluate(checkpoint, "letters", batch_size=BATCH, **settings)
    pairs = [call for call in calls if call["decoder"].sampling.temperature == 1.0]
    assert {call["shape"] for call in pairs} == {(BATCH, 32)}
    evaluate(checkpoint, "letters", batch_size=N, **settings)
    together = calls[-1]["key"]
    assert (jnp.concatenate([call["key"] for call in pairs])[:N] == together).all()


def test_padding_gives_way_to_the_context(checkpoint, calls):
    room = small.CONFIG.max_sequence_length - 56
    evaluate(checkpoint, "letters", small.decoder(), n=2, gen_length=56)
    assert calls[0]["shape"] == (2, room)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "train"}, "split: found 'train', expected test or validation"),
        ({"n": 0}, "n, batch_size: found 0, 16"),
        ({"n": 2, "gen_length": 64}, r"2 tokens \+ gen_length 64 = 66, expected at most the context of 64"),
    ],
)
def test_refused(changes, words, checkpoint, calls):
    with pytest.raises(InputError, match=words):
        evaluate(checkpoint, "letters", small.decoder(), **{"gen_length": small.GEN, **changes})
    assert not calls


def test_a_model_that_speaks_ids_only_cannot_be_scored(calls):
    with pytest.raises(InputError, match="has no tokenizer"):
        evaluate(Checkpoint(small.MODEL, {}, None, Path("tiny")), "letters")
