"""A draft from the command line: the same text in fewer passes; and what of it is refused."""

import json

import jax
import pytest

import jaxdiff
from jaxdiff.models import Llama, LlamaConfig
from tests.cli.conftest import CONTEXT

SHORT = ("--gen-length", "12")


@pytest.fixture(scope="module")
def target(folder, checkpoint, tmp_path_factory):
    """A random autoregressive model of the tiny one's tokenizer, of few words."""
    shape = dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden_size=24, max_sequence_length=CONTEXT)
    ids = {name: getattr(checkpoint.model.config, name) for name in ("vocab_size", "mask_token_id", "eos_token_id")}
    model = Llama(LlamaConfig(**shape, **ids, dtype="float32"))
    params = model.init(jax.random.key(3))
    params["head"] = params["head"].at[:, 20:23].multiply(8.0)
    path = tmp_path_factory.mktemp("targets") / "target"
    jaxdiff.save(path, model, params, tokenizer_from=folder)
    return path


def test_the_same_text_in_fewer_passes(run, target, folder, tmp_path):
    asked = ("--model", target, *SHORT)
    first, second = (f"denoiser:model={folder},tokens=4", "recycling:nodes=8")
    ran = [run("generate", "26 + 48", *asked, "--draft", draft, "--json") for draft in (first, second)]
    denoised, recycled = (each.json for each in ran)
    assert f"llama is autoregressive: draft {first}" in ran[0].err
    for key in ("text", "token_ids", "reason", "generated_tokens"):
        assert denoised[key] == recycled[key]
    assert (recycled["nfe"] < recycled["generated_tokens"], recycled["cheap"]) == (True, 0)
    assert denoised["cheap"] == denoised["nfe"] - 1
    rows = [{"id": 7, "prompt": "1 + 1"}, {"canvas_ids": [5, 0, 6]}, {"prompt": "2", "stop_strings": ["e"]}]
    rows += [{"prompt": "4", "choices": ["a", "b"]}, {"insert": ["2", "3"]}, {"prompt": "3 + 30 + 300"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (*asked, "--temperature", 0.8, "--seed", 5)
    ran = run("generate", "--in", tmp_path / "in.jsonl", *options, "--draft", "recycling:nodes=8", "--for-show")
    first, *refused, last = map(json.loads, ran.out.splitlines())
    assert (ran.code, first["id"], first["decoder"]["draft"]) == (1, 7, "recycling:nodes=8")
    plain = run("generate", "--in", tmp_path / "in.jsonl", *options)
    expected = [json.loads(line) for line in plain.out.splitlines()]
    assert [first["token_ids"], last["token_ids"]] == [expected[0]["token_ids"], expected[-1]["token_ids"]]
    for row, words in zip(
        refused,
        (
            "canvas: found one for an autoregressive model",
            "stop_strings: found 1 with a draft",
            "choices: found answers to compare, and --draft guesses",
            "insert: found a text with holes",
        ),
        strict=True,
    ):
        assert words in row["error"]


def test_what_makes_no_sense_is_refused(run, target, folder, ids_folder):
    causal = ("--model", target, *SHORT)
    for asked, words in (
        ((*causal, "--draft", "medusa"), "draft: found 'medusa', expected one of recycling, ngram, denoiser"),
        ((*causal, "--draft", "ngram:nodes=3"), "draft ngram nodes: found '3', expected one of 2, 4"),
        ((*causal, "--draft", "denoiser"), "draft denoiser: found no model, expected the name of one"),
        ((*causal, "--draft", f"denoiser:model={folder},tokens=5"), "draft denoiser tokens: found '5'"),
        ((*causal, "--draft", f"denoiser:model={target}"), "draft: found a Llama, which fills no masks"),
        ((*causal, "--draft", "denoiser:model=gsm-1m"), "draft: found a vocabulary of 1024"),
        ((*causal, "--draft", "recycling:nodes=128"), "draft: found a tree of 128 nodes, expected at most the context"),
        (
            (*causal, "--draft", "ngram", "--policy", "threshold:tau=0.9"),
            "policy: found threshold:tau=0.9 with",
        ),
        ((*causal, "--draft", "ngram", "--stop", "none"), "stop: found none with --draft"),
        ((*causal, "--draft", "ngram", "--stop-string", "a"), "stop-string: found a with --draft"),
        ((*causal, "--draft", "ngram", "--choice", "a"), "--choice compares given answers, and --draft guesses"),
        (("--model", folder, *SHORT, "--draft", "ngram"), "draft: found a Llada as its target, expected an autoreg"),
    ):
        ran = run("generate", "1 + 1", *asked)
        assert (ran.code, ran.out) == (2, ""), asked
        assert words in ran.err.splitlines()[-1]
