"""Rows with `choices`, and `--choice`: the same probabilities as the library's, bad ones refused in one line."""

import json

import numpy as np
import pytest

import jaxdiff
from jaxdiff.decode.batches import request_keys
from tests.cli.test_generate import read, write

ROWS = [
    {"id": "a", "prompt": "26 + 48", "choices": ["74", "75", "I do not know"]},
    {"id": "b", "prompt": "3 * 4", "choices": ["12", "7", [30, 31]]},
    {"id": "hole", "canvas_ids": [5, 0, 0, 6, 7, 0, 8], "choices": [[9], [10, 11]]},
]
BAD_ROWS = {
    "choices: found none, expected a list of texts": {"prompt": "x", "choices": []},
    "choices: found str, expected a list of texts": {"prompt": "x", "choices": "yes"},
    "choices: found '5', expected a text or a list of ids": {"prompt": "x", "choices": ["yes", 5]},
    "choices: found '[5, 1.5]', expected a text": {"prompt": "x", "choices": [[5, 1.5]]},
    "choices: found an empty text": {"prompt": "x", "choices": [""]},
    "choices: found one (choice 0) without tokens": {"prompt": "x", "choices": [[]]},
    "choices: found the same tokens twice (choices 0 and 1)": {"prompt": "x", "choices": ["a", "a"]},
    "choices: found one (choice 1) that holds [MASK] (id 0)": {"prompt": "x", "choices": [[5], [0]]},
    "choices: found one (choice 0) with id 280": {"prompt": "x", "choices": [[280]]},
    "choices: found one (choice 0) of 3 tokens, expected at most 2": {
        "canvas_ids": [5, 0, 0, 6],
        "choices": [[5, 6, 7]],
    },
    "canvas_ids: found no mask (id 0), expected a slot": {"canvas_ids": [5, 6], "choices": ["a"]},
    "prompt: holds [MASK] (id 0) in column 1": {"prompt_ids": [5, 0], "choices": ["a"]},
    "prompt: found 95 tokens + gen_length 2 = 97": {"prompt_ids": [5] * 95, "choices": ["a"]},
    "stop_strings: found some with choices": {"prompt": "x", "choices": ["a"], "stop_strings": ["b"]},
}


def test_rows_with_choices_hold_what_the_library_says(run, folder, checkpoint, tmp_path):
    source, out = write(tmp_path / "in.jsonl", map(json.dumps, ROWS)), tmp_path / "out.jsonl"
    options = ("--model", folder, "--gen-length", 32, "--policy", "fixed:order=random", "--seed", 3)
    assert run("generate", "--in", source, "--out", out, *options).code == 0
    a, b, hole = read(out)
    part = checkpoint.tokenizer.part
    prompts = [checkpoint.tokenizer.prompt(row["prompt"]) for row in ROWS[:2]]
    ids, origin = jaxdiff.pad_prompts(prompts, fill=1)
    given = [[each if isinstance(each, list) else part(each) for each in row["choices"]] for row in ROWS[:2]]
    decoder = jaxdiff.Decoder(policy=jaxdiff.policies.Fixed(order="random"))
    found = jaxdiff.choose(
        *(checkpoint.model, checkpoint.params, ids, given, decoder), origin=origin, key=request_keys(3, np.arange(2))
    )
    for row, (told, choices) in enumerate(zip((a, b), given, strict=True)):
        np.testing.assert_allclose([each["prob"] for each in told["choices"]], found.prob[row], rtol=1e-4)
        np.testing.assert_allclose([each["log_prob"] for each in told["choices"]], found.log_prob[row], rtol=1e-5)
        assert [each["token_ids"] for each in told["choices"]] == choices
        assert told["best"] == found.best[row]
        assert told["nfe"] == sum(each["nfe"] for each in told["choices"]) == found.nfe[row].sum()
        assert told["text"] == told["choices"][told["best"]]["text"]
    best = ROWS[2]["choices"][hole["best"]]
    assert hole["token_ids"][: 1 + len(best)] == [5, *best]
    assert len(hole["token_ids"]) == 5 + len(best)
    assert hole["filled"][0] == {
        "start": 1,
        "end": 1 + len(best),
        "token_ids": best,
        "text": hole["choices"][hole["best"]]["text"],
    }
    assert hole["filled"][1]["start"] == 3 + len(best)
    assert hole["commit_step"].count(-1) == len(hole["commit_step"]) - 1


def test_a_prompt_alone_is_told_the_best_first(run, folder):
    choices = [word for text in ("74", "75", "no") for word in ("--choice", text)]
    asked = ("generate", "26 + 48", "--model", folder, *choices)
    told = run(*asked, "--json").json
    assert abs(sum(each["prob"] for each in told["choices"]) - 1) < 1e-6
    lines = run(*asked).out.splitlines()
    shown = sorted(told["choices"], key=lambda each: -each["prob"])
    assert lines == [f"{each['prob']:.4f}  {each['text']}" for each in shown]
    drawn = run(*asked, "--choose-by", "likelihood", "--samples", 2, "--json").json
    assert drawn["choices"][2]["error"] > 0


def test_bad_choices_are_refused_alone(run, folder, tmp_path):
    rows = [*BAD_ROWS.values(), {"prompt": "x", "choices": ["a", "b"]}]
    source, out = write(tmp_path / "in.jsonl", map(json.dumps, rows)), tmp_path / "out.jsonl"
    assert run("generate", "--in", source, "--out", out, "--model", folder, "--gen-length", 32).code == 1
    *bad, good = read(out)
    assert "error" not in good
    for row, line in zip(bad, BAD_ROWS, strict=True):
        assert row["error"].startswith(line)
        assert "\n" not in row["error"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--choice is for a single PROMPT", ("--in", "x.jsonl", "--choice", "a")),
        ("--choose-by and --samples say how answers are compared", ("x", "--samples", 5)),
        ("--choice compares whole answers", ("x", "--choice", "a", "--watch")),
        ("choose-by: found 'guess', expected one of order, likelihood", ("x", "--choice", "a", "--choose-by", "guess")),
        ("policy: found one that takes commits back", ("x", "--choice", "a", "--policy", "remdm")),
    ],
)
def test_what_does_not_go_with_choices(run, folder, line, words):
    ran = run("generate", *words, "--model", folder)
    assert ran.code == 2
    assert line in ran.err
