"""`jaxdiff generate` with conversations and stop strings."""

import json
import re

import pytest

from jaxdiff.stoppers.strings import cut
from tests.cli.test_generate import SHORT, read, write

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "26 + 48"},
    {"role": "assistant", "content": "It is"},
]
TURNS = "<|user|>26 + 48<|assistant|>"


def test_chats_of_a_file_and_of_one_prompt(run, folder, tmp_path):
    lines = [
        {"messages": CHAT},
        {"messages": CHAT[1:2]},
        {"prompt": "26 + 48"},
        {"prompt_ids": [5, 6]},
        {"messages": CHAT[1:]},
        {"canvas_ids": [5, 0, 0, 6, 7, 0, 0, 8]},
        {"messages": CHAT[:1]},
    ]
    source, out = write(tmp_path / "in.jsonl", map(json.dumps, lines)), tmp_path / "out.jsonl"
    options = ("--model", folder, *SHORT)
    asked = ("--in", source, "--out", out, *options, "--prompt-text")
    assert run("generate", *asked, "--system", "Add.").code == 1
    *rows, canvas, bad = read(out)
    system = "<|system|>Add."
    assert [row["prompt_text"] for row in rows[:3]] == [f"<|system|>Be brief.{TURNS}It is"] + [system + TURNS] * 2
    assert rows[4]["prompt_text"] == f"{system}{TURNS}It is"
    assert "prompt_text" not in canvas
    assert "found no turn of a user" in bad["error"]
    assert rows[1]["token_ids"] == rows[2]["token_ids"]
    alone = run("generate", "26 + 48", *options, "--system", "Add.", "--json").json
    assert alone["prompt_text"] == system + TURNS
    assert alone["token_ids"] == rows[2]["token_ids"]
    assert run("generate", "26 + 48", *options, "--json").json["prompt_text"] == TURNS

    assert run("generate", *asked, "--no-chat").code == 1
    rows = read(out)
    assert rows[2]["prompt_text"] == "26 + 48"
    assert "--no-chat asks for plain text" in rows[0]["error"]
    assert run("generate", "26 + 48", *options, "--no-chat", "--json").json["prompt_text"] == "26 + 48"


def test_stop_strings_cut_the_text_and_end_the_row(run, folder, tmp_path):
    """A row's own in place of the command line's; each as the text of the whole decode, cut."""
    prompts = [{"prompt": "26 + 48"}, {"prompt": "7"}, {"prompt_ids": [5, 6]}, {"prompt": "26 + 48"}, {"prompt": "9"}]
    source, out = write(tmp_path / "in.jsonl", map(json.dumps, prompts)), tmp_path / "out.jsonl"
    command = ("generate", "--in", source, "--out", out, "--model", folder, *SHORT, "--temperature", 1)
    assert run(*command).code == 0
    whole = read(out)
    texts = [row["text"] for row in whole]
    # Of the model's random text, what is text.
    first, second, third = (re.search("[!-~]", text[1:])[0] for text in texts[:3])
    strings = [[first], [second, "nowhere"], [third], [], [first]]
    own = [row | {"stop_strings": each} for row, each in zip(prompts, strings, strict=True)]
    del own[0]["stop_strings"], own[4]["stop_strings"]
    write(source, map(json.dumps, [*own, {"canvas_ids": [5, 0, 0, 6, 7, 0, 0, 8]}]))
    ran = run(*command, "--stop-string", first)
    *rows, canvas = read(out)
    assert ran.code == 1
    assert "stop_strings: found 1 for a canvas" in canvas["error"]
    assert f" {sum(row['reason'] == 'string' for row in rows)} ended at a stop string" in ran.err
    for before, row, each in zip(whole, rows, strings, strict=True):
        assert row["text"] == cut(before["text"], each)
        assert (row["reason"] == "string") == (row["text"] != before["text"])
        assert row["nfe"] <= before["nfe"]
    assert [row["reason"] == "string" for row in rows[:4]] == [True, True, True, False]
    assert sum(row["nfe"] for row in rows) < sum(row["nfe"] for row in whole)
    options = ("--temperature", 1, "--json", "--stop-string", first)
    alone = run("generate", "26 + 48", "--model", folder, *SHORT, *options).json
    assert (alone["text"], alone["nfe"], alone["reason"]) == (rows[0]["text"], rows[0]["nfe"], "string")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("x", "--system", " "), "--system: found an empty text"),
        (("x", "--system", "y", "--no-chat"), "--system is a turn of the chat, and --no-chat asks for none"),
        (("x", "--prompt-text"), "--prompt-text is for the rows of a file"),
        (("x", "--stop-string", ""), "stop_strings: found '', expected a text of at least one"),
        (("x", "--stop-string", "a" * 1025), "stop_strings: found one of 1025 bytes, expected at most 1024"),
    ],
)
def test_options_that_make_no_sense(options, words, refused, folder):
    assert re.search(words, refused("generate", *options, "--model", folder))


def test_a_model_without_a_tokenizer_has_no_chats(refused, ids_folder, tmp_path):
    source = write(tmp_path / "in.jsonl", ['{"prompt_ids": [5]}'])
    for options, words in (
        (("--system", "x"), "prompt: .*no tokenizer"),
        (("--stop-string", "x"), "stop_strings: .*no"),
    ):
        said = refused("generate", "--in", source, "--out", tmp_path / "o", "--model", ids_folder, *SHORT, *options)
        assert re.search(words, said)
