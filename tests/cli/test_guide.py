"""A guide from the command line: generate, eval, bench; and what of it is refused before anything is decoded."""

import json
import shutil

import jax
import pytest

import jaxdiff
from jaxdiff.models import Llama, LlamaConfig
from tests.cli.conftest import CONTEXT

SHORT = ("--gen-length", "16", "--block-length", "8")
SPECULATE = ("--policy", "agree:on_reject=guide")


@pytest.fixture(scope="module")
def guide(folder, checkpoint, tmp_path_factory):
    """A random autoregressive model of the tiny one's tokenizer."""
    shape = dict(d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, mlp_hidden_size=24, max_sequence_length=CONTEXT)
    ids = {name: getattr(checkpoint.model.config, name) for name in ("vocab_size", "mask_token_id", "eos_token_id")}
    model = Llama(LlamaConfig(**shape, **ids, dtype="float32"))
    params = model.init(jax.random.key(3))
    params["head"] = params["head"] * 8
    path = tmp_path_factory.mktemp("guides") / "guide"
    jaxdiff.save(path, model, params, tokenizer_from=folder)
    return path


def test_generate_writes_the_guide_s_text(run, folder, guide, tmp_path):
    asked = ("generate", "26 + 48", "--model", folder, *SHORT, *SPECULATE, "--guide", guide)
    ran = run(*asked, "--json")
    alone = run("generate", "26 + 48", "--model", guide, "--gen-length", 16, "--json")
    assert (ran.code, ran.json["text"]) == (0, alone.json["text"])
    assert ran.json["token_ids"] == alone.json["token_ids"]
    assert 0 < ran.json["guide_nfe"] == ran.json["nfe"] <= 16
    assert alone.json["guide_nfe"] == 0
    assert f"{ran.json['guide_nfe']} passes of the guide" in run(*asked).err
    rows = [{"prompt": "1 + 1"}, {"canvas_ids": [5, 0, 6, 0, 7, 0, 8, 0]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run("generate", "--in", tmp_path / "in.jsonl", *asked[2:], "--for-show")
    first, second = map(json.loads, ran.out.splitlines())
    assert (ran.code, first["decoder"]["guide"], first["guide_nfe"]) == (1, str(guide), first["nfe"])
    assert "policy: found agree, which asks a guide, and no guide" in second["error"]


def test_eval_and_bench_count_it(run, parity, folder, ids_folder, guide, tmp_path):
    asked = ("eval", "--task", "parity", "--n", 2, "--model", folder, *SHORT, "--policy", "agree:rule=topk,k=200")
    ran = run(*asked, "--guide", guide, "--out", tmp_path / "rows.jsonl", "--json")
    assert (ran.code, ran.json["guide"]) == (0, str(guide))
    assert 0 < ran.json["guide_nfe"] == ran.json["nfe"] < 16
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert sum(row["guide_nfe"] for row in rows) == pytest.approx(2 * ran.json["guide_nfe"])
    moved = shutil.copytree(guide, tmp_path / "moved")
    (tmp_path / "eval.json").write_text(ran.out)
    again = run("eval", "--from", tmp_path / "eval.json", "--guide", moved, "--json")
    assert again.json["agrees"]
    ran = run("bench", "--model", ids_folder, *SHORT, *SPECULATE, "--guide", guide, "--compile-only", "--json")
    assert ran.json["setting"]["guide"] == str(guide)


def test_what_is_refused(refused, folder, guide, tmp_path):
    def line(*arguments):
        return refused("generate", "26 + 48", "--model", folder, *SHORT, *arguments)

    assert "policy: found agree, which asks a guide, and no guide; give --guide NAME" in line(*SPECULATE)
    assert "guide: found one, but policy fixed asks none" in line("--guide", guide)
    assert "guide: found a Llada, expected an autoregressive model" in line(*SPECULATE, "--guide", folder)
    assert "temperature: found 0.5 with a policy that writes" in line(
        *SPECULATE, "--guide", guide, "--temperature", "0.5"
    )
    assert "policy agree: found argument 'k=3'" in line("--policy", "agree:k=3", "--guide", guide)
    assert "expected one of argmax, topk, ratio, threshold" in line("--policy", "agree:rule=best", "--guide", guide)
    other = shutil.copytree(guide, tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    file.write_text(json.dumps(tokenizer))
    assert "take a guide of the same tokenizer" in line(*SPECULATE, "--guide", other)
    for asked, words in ((("--shape", "llada-8b"), "--shape, whose ids no guide reads"), ((), "PyTorch's loops")):
        assert f"guide: found it beside {words}" in refused("bench", *SPECULATE, "--guide", guide, *asked)
