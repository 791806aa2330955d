"""The arithmetic of a report, on decodes that are made up: nothing is compiled."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff import Answer, Checkpoint, InputError, Tokenizer, decode, decode_stream, pad_prompts, parts
from jaxdiff.decode.batches import request_keys
from jaxdiff.policies import Threshold
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import TASKS
from jaxdiff.tasks.base import Problem
from jaxdiff.tasks.evaluate import evaluate, sweep
from tests import small

N, SLOTS = 5, 2
TAUS = (0.9, 0.6, 0.3)


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
        LENGTH=256,
        problems=lambda split, seed: (Problem(letter, "", letter, continues=letter == "b") for letter in "abcdefgh"),
        verify=lambda answer, problem: answer == problem.answer,
    )
    monkeypatch.setitem(TASKS, "letters", module)
    seen = []

    def stream(model, params, requests, decoder, *, gen_length, meter, **options):
        seen.append({"requests": requests, "decoder": decoder, "gen_length": gen_length, **options})
        meter.compile_seconds = 3.0
        for request in requests:
            asked = request.ids[-1]
            said = [asked + (asked == 12)] + [small.EOS] * (gen_length - 1)
            order = int(asked) - 10
            meter.seconds += 0.5
            yield Answer(
                request=request,
                tokens=np.asarray(said, np.int32),
                commit_step=np.zeros(gen_length, np.int32),
                log_prob=np.zeros(gen_length, np.float32),
                length=order + 1,
                nfe=order + 2,
                cheap=order,
                work=order / 2.0,
                reason=0,
                near_ties=order,
                not_finite=0,
                seconds=0.5,
            )

    monkeypatch.setattr("jaxdiff.tasks.evaluate.decode_stream", stream)
    return seen


def test_report_counts_each_problem_once(checkpoint, calls):
    heard = []
    report = evaluate(
        checkpoint,
        "letters",
        small.decoder(),
        n=N,
        batch_size=SLOTS,
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
    assert (summary["cheap"], summary["work"]) == (2.0, 1.0)
    assert summary["accuracy_low"] < 0.8 < summary["accuracy_high"]
    assert (summary["seconds"], summary["compile_seconds"]) == (2.5, 3.0)
    cut = evaluate(
        checkpoint, "letters", small.decoder(stop_strings=small.stop_strings(["d"])), n=N, gen_length=small.GEN
    )
    assert cut.texts == ("a", "b", "", "", "e")
    assert heard == [(1, 1, 0.5), (2, 4, 1.0), (3, 8, 1.5), (4, 13, 2.0), (5, 15, 2.5)]  # b is the shortest


def test_rows_are_kept_as_they_are_done_and_gone_on_with(checkpoint, calls, tmp_path, monkeypatch):
    out, options = tmp_path / "out.jsonl", {"n": N, "batch_size": SLOTS, "gen_length": small.GEN}
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
    assert [request.id for request in calls[0]["requests"]] == [1]
    assert report.summary() == alone.summary() | {"seconds": report.seconds}
    assert report.seconds == pytest.approx(alone.seconds)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(N))
    assert rows[2] == {
        **{"number": 2, "question": "c", "text": "d", "correct": False},
        **{"nfe": 4, "cheap": 2, "guide_nfe": 0, "work": 1.0, "length": 3, "near_ties": 2, "not_finite": 0},
    }
    assert list(tmp_path.iterdir()) == [out]


def test_the_longest_prompts_come_first_and_keep_their_keys(checkpoint, calls, monkeypatch):
    made = [Problem(text, "", text[-1]) for text in ("a", "bbb", "cc", "dd")]
    monkeypatch.setattr(TASKS["letters"], "problems", lambda split, seed: iter(made))
    report = evaluate(checkpoint, "letters", small.decoder(), n=4, batch_size=SLOTS, gen_length=small.GEN, seed=3)
    (call,) = calls
    assert [(request.id, request.number) for request in call["requests"]] == [(n, n) for n in (1, 2, 3, 0)]
    assert (call["slots"], call["widths"], call["gen_length"]) == (SLOTS, (32,), small.GEN)
    assert call["key"] == jax.random.key(3)
    assert report.texts == ("a", "b", "d", "d")


def test_a_sweep_equals_an_evaluation_of_each_value(calls, monkeypatch):
    """3 values x 4 problems through 5 slots: neighbours have other values. A row is what `decode` gives."""
    monkeypatch.setattr("jaxdiff.tasks.evaluate.decode_stream", decode_stream)
    checkpoint = Checkpoint(small.MODEL, small.params(), Tokenizer(Letters(), small.EOS), Path("tiny"))

    def decoder(tau):
        return small.decoder(policy=Threshold(tau=tau), stop=Eos())

    swept = sweep(checkpoint, "letters", decoder, TAUS, batch_size=5, n=4, gen_length=small.GEN)
    tokenizer = checkpoint.tokenizer
    questions = [tokenizer.encode(letter) if letter == "b" else tokenizer.prompt(letter) for letter in "abcd"]
    prompts, origin = pad_prompts(questions * len(TAUS), fill=small.EOS)
    given = checkpoint.model, checkpoint.params, prompts, decoder(np.repeat(TAUS, len(questions)))
    keys = request_keys(0, np.tile(np.arange(len(questions)), len(TAUS)))
    wanted = decode(*given, gen_length=small.GEN, origin=origin, key=keys)
    texts = [tokenizer.decode(tokens[prompts.shape[1] :]) for tokens in wanted.tokens]
    assert [text for report in swept for text in report.texts] == texts
    for found, counts in (("nfe", wanted.nfe), ("work", wanted.work), ("lengths", wanted.lengths)):
        np.testing.assert_allclose(np.concatenate([getattr(report, found) for report in swept]), counts, rtol=1e-6)
    first, second, third = (report.nfe.sum() for report in swept)
    assert first > second > third, "the values must matter, or the test says nothing"


def test_what_is_to_be_gone_on_with_is_no_turn_of_a_chat(checkpoint, calls):
    evaluate(checkpoint, "letters", small.decoder(), n=3, gen_length=small.GEN)
    asked = {request.id: list(request.ids) for request in calls[0]["requests"]}
    assert asked == {0: [small.EOT, 10], 1: [11], 2: [small.EOT, 12]}


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
