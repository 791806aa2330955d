"""An insertion model on the command line: prompts, texts with holes, an evaluation; and what is refused."""

import dataclasses
import json

import jax
import pytest

import jaxdiff
from jaxdiff.models.insertion import Insertion, InsertionConfig


@pytest.fixture(scope="module")
def inserter(folder):
    """The tiny model as one that inserts, of random weights; its stop head is unsure."""
    config = dataclasses.asdict(jaxdiff.load(folder).model.config) | {"dtype": "float32"}
    model = Insertion(InsertionConfig(**config))
    params = model.init(jax.random.key(0))
    params["head"] = params["head"] * 4
    params["stop"]["weight"] = 0.5 * jax.random.normal(jax.random.key(9), (config["d_model"],))
    jaxdiff.save(folder.parent / "inserter", model, params, tokenizer_from=folder)
    return folder.parent / "inserter"


def test_a_prompt_is_gone_on_with(inserter, run):
    ran = run("generate", "26 + 48", "--model", inserter, "--gen-length", 5, "--insert", "one:stop=1", "--json")
    assert (ran.code, len(ran.json["token_ids"]), ran.json["nfe"]) == (0, 5, 6)
    assert (ran.json["full"], ran.json["reason"]) == (True, "full")
    assert sorted(ran.json["commit_step"]) == [*range(5)]
    shorter = run(
        "generate", "26 + 48", "--model", inserter, "--gen-length", 5, "--insert", "parallel:tau=0,stop=1", "--json"
    )
    assert shorter.json["nfe"] == 4  # 1, 2, 2 and the last one, which asks whether that is all
    stopped = run("generate", "26 + 48", "--model", inserter, "--insert", "one:stop=0", "--gen-length", 5, "--json")
    assert (stopped.json["token_ids"], stopped.json["full"], stopped.json["nfe"]) == ([], False, 1)


def test_texts_with_holes(inserter, run, tmp_path):
    rows = [
        {"id": "text", "insert": ["2 + 3", "1 2"]},
        {"id": "ids", "insert": [[30, 31], [32], [33, 34]]},
        {"id": "prompt", "prompt": "4 + 4"},
        {"id": "none", "insert": ["2"]},
        {"id": "empty", "insert": ["", "2"]},
        {"id": "canvas", "canvas_ids": [5, 0]},
        {"id": "strings", "prompt": "4", "stop_strings": ["e"]},
        {"id": "choices", "prompt": "4", "choices": ["a", "b"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run(
        "generate", "--in", tmp_path / "rows.jsonl", "--model", inserter, "--gen-length", 4, "--insert", "one:stop=1"
    )
    assert ran.code == 1
    text, ids, prompt, *refused = map(json.loads, ran.out.splitlines())
    assert [row["id"] for row in (text, ids, prompt)] == ["text", "ids", "prompt"]
    (span,) = text["inserted"]
    assert span["end"] - span["start"] == 4
    assert text["text"].startswith("2 + 3")
    assert text["text"].endswith("1 2")
    assert len(ids["inserted"]) == 2
    given = [token for token, step in zip(ids["token_ids"], ids["commit_step"], strict=True) if step < 0]
    assert given == [30, 31, 32, 33, 34]
    spans = [span["token_ids"] for span in ids["inserted"]]
    assert ids["token_ids"] == [30, 31, *spans[0], 32, *spans[1], 33, 34]
    assert len(prompt["token_ids"]) == 4
    for row, words in zip(
        refused,
        (
            "insert: found 1 parts, expected [left, right]",
            "insert: begins with an empty part",
            "canvas_ids: found a canvas of masks for an insertion model",
            "stop_strings: found 1 for an insertion model",
            "model: found an insertion model (Insertion), which fills no masks",
        ),
        strict=True,
    ):
        assert words in row["error"], row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "threshold:tau=0.9"), "policy: found threshold:tau=0.9 with an insertion model"),
        (("--cache", "dual"), "cache: found dual with an insertion model"),
        (("--fill", "recap"), "fill: found recap with an insertion model"),
        (("--stop", "eos"), "stop: found eos with an insertion model"),
        (("--stop-string", "e"), "stop-string: found e with an insertion model"),
        (("--forbid-eos",), "forbid-eos: found it with an insertion model"),
        (("--cfg-scale", "1"), "cfg-scale: found 1.0 with an insertion model"),
        (("--block-length", "8"), "block-length: found 8 with an insertion model"),
        (("--insert", "two"), "insert: found 'two', expected one of one, parallel"),
        (("--insert", "parallel:tau=2"), "insert parallel tau: found 2"),
        (("--for-show", "--json"), "for-show, html: found it with an insertion model"),
    ],
)
def test_what_fills_masks_is_refused(inserter, refused, options, words):
    assert words in refused("generate", "26 + 48", "--model", inserter, "--gen-length", 8, *options)


def test_a_model_of_masks_does_not_insert(folder, refused, run, tmp_path):
    words = refused("generate", "26 + 48", "--model", folder, "--gen-length", 32, "--insert", "one")
    assert "insert: found one with a model that fills masks (Llada)" in words
    (tmp_path / "rows.jsonl").write_text(json.dumps({"insert": ["2 + 3", "1 2"]}))
    ran = run("generate", "--in", tmp_path / "rows.jsonl", "--model", folder, "--gen-length", 32)
    assert ran.code == 1
    assert "insert: found a text with holes for a model that fills masks (Llada)" in json.loads(ran.out)["error"]


def test_other_commands_say_what_they_take(inserter, refused, run, tmp_path):
    assert run("inspect", inserter).code == 0
    assert "export: found family insertion, which has no published form" in refused(
        "export", inserter, tmp_path / "new"
    )
    words = "model: found an insertion model (Insertion), which fills no masks"
    assert words in refused("bench", "--model", inserter, "--gen-length", 8, "--no-pytorch")
    assert words in refused(
        "generate", "26 + 48", "--model", inserter, "--gen-length", 8, "--choice", "a", "--choice", "b"
    )


def test_an_evaluation_is_repeated(inserter, run, refused, tmp_path):
    asked = ("eval", "--task", "star_easy", "--model", inserter, "--n", 3, "--insert", "parallel:tau=0.4,stop=0.9")
    ran = run(*asked, "--json", "--out", tmp_path / "rows.jsonl", "--batch-size", 2)
    assert (ran.code, ran.json["insert"], ran.json["policy"]) == (0, "parallel:tau=0.4,stop=0.9", None)
    assert ran.json["gen_length"] == 10
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3
    (tmp_path / "eval.json").write_text(json.dumps(ran.json))
    again = run("eval", "--from", tmp_path / "eval.json", "--json")
    assert (again.code, again.json["agrees"]) == (0, True)
    assert "cache: found dual with an insertion model" in refused(*asked, "--cache", "dual")
