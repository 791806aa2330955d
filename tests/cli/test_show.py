"""`jaxdiff show`, and `jaxdiff generate --html`: the page holds what was decoded."""

import json

import pytest

from jaxdiff.files import write_lines
from tests.show.test_page import Seen

SHORT = ("--gen-length", 16, "--block-length", 8)


def test_the_page_of_a_prompt(run, folder, checkpoint, tmp_path):
    page = tmp_path / "page.html"
    ran = run("generate", "26 + 48", "--model", folder, *SHORT, "--seed", 3, "--json", "--html", page)
    (prompt,) = Seen(page.read_text(encoding="utf-8")).data["prompts"]
    (decode,) = prompt["of"]
    assert ran.err.startswith(f"{page}: 0.0")
    assert prompt["text"] == ran.json["prompt_text"]
    assert "pieces" not in ran.json
    assert (decode["ids"], decode["nfe"], decode["work"]) == (ran.json["token_ids"], ran.json["nfe"], ran.json["work"])
    assert [max(step, -1) for step in decode["steps"]] == ran.json["commit_step"]
    fast = checkpoint.tokenizer.fast
    assert "".join(filter(None, decode["pieces"])) == fast.decode(decode["ids"], skip_special_tokens=True)
    assert decode["label"] == "fixed"
    assert dict(decode["settings"]) == {
        **{"fill": "parallel", "cache": "none", "stop": "eos", "block length": 8, "model": str(folder), "seed": 3}
    }


def test_files_of_several_policies_stand_side_by_side(run, refused, folder, tmp_path):
    source, page = tmp_path / "in.jsonl", tmp_path / "page.html"
    rows = [{"prompt": "26 + 48"}, {"prompt": ""}, {"id": "hole", "canvas_ids": [5, 0, 0, 6, 7, 0, 0, 8]}]
    write_lines(source, rows)
    for tau in (0.9, 0.05):
        asked = ("generate", "--in", source, "--model", folder, *SHORT, "--policy", f"threshold:tau={tau}")
        assert run(*asked, "--out", tmp_path / f"{tau}.jsonl", "--for-show").code == 1
    shown = ("show", tmp_path / "0.9.jsonl", tmp_path / "0.05.jsonl", "--html", page)
    ran = run(*shown)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.splitlines()[1] == "2 refused rows left out"
    prompt, hole = Seen(page.read_text(encoding="utf-8")).data["prompts"]
    assert (prompt["name"], hole["name"], hole["text"]) == (1, "hole", None)
    for group in (prompt, hole):
        assert [decode["label"] for decode in group["of"]] == ["threshold:tau=0.9", "threshold:tau=0.05"]
    assert [step == -1 for step in hole["of"][0]["steps"]] == [token != 0 for token in rows[2]["canvas_ids"]]

    plain = tmp_path / "plain.jsonl"
    whole = [json.loads(line) for line in (tmp_path / "0.9.jsonl").read_text().splitlines()]
    write_lines(plain, [{name: value for name, value in whole[0].items() if name not in ("pieces", "decoder")}])
    line = refused("show", plain, "--html", tmp_path / "new.html")
    assert line == (
        f"jaxdiff: {plain} line 1: found no pieces, decoder; write the rows with jaxdiff generate --for-show"
    )
    assert f"{source} line 1: found no token_ids" in refused("show", source, "--html", tmp_path / "new.html")
    assert "html: " in refused("show", plain, "--html", plain)
    write_lines(plain, whole[1:2])
    assert "found no rows, and 1 that were refused" in refused("show", plain, "--html", tmp_path / "new.html")
    plain.write_text("{\n")
    assert f"{plain} line 1: not JSON" in refused("show", plain, "--html", tmp_path / "new.html")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("x", "--for-show"), "--for-show goes into the rows of a file and into --json; or give --html for a page"),
        (("--in", "a", "--html", "b"), "--html is a page of a single PROMPT"),
        (("x", "--html", "nowhere/b"), "html: nowhere is no folder that can be written to"),
    ],
)
def test_options_that_do_not_fit(options, words, refused):
    assert words in refused("generate", *options)
