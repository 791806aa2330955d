"""`jaxdiff generate`: one prompt, a file of them, the live view."""

import dataclasses
import io
import json
import re
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxdiff
from jaxdiff.caches import Dual
from jaxdiff.cli import requests, watch
from jaxdiff.cli.options import Decoding
from jaxdiff.files import write_lines
from jaxdiff.fills import Parallel
from jaxdiff.models import build
from jaxdiff.policies import Fixed
from jaxdiff.stoppers import Eos, NoStop, SafeEotp

SHORT = ("--gen-length", 16, "--block-length", 8)
DECODING, JOB = Decoding(model="gsm-1m", gen_length=16, block_length=8), requests.Job(seed=0, slots=8)
ROWS = [
    '{"id": "a", "prompt": "26 + 48"}',
    '{"id": "b", "prompt_ids": [5, 6, 7]}',
    "not JSON",
    "",
    '{"prompt": "3 * 4"}',
    '{"id": "hole", "canvas_ids": [5, 0, 0, 6, 7, 0, 0, 8]}',
    '{"id": 7, "prompt": ""}',
]
BAD_ROWS = [
    ("[1]", "found list, expected a JSON object"),
    ('"text"', "found str"),
    ("{}", "found no prompt, expected one of prompt, messages, prompt_ids, canvas_ids"),
    ('{"prompt": "x", "prompt_ids": [5]}', "found prompt and prompt_ids"),
    ('{"prompt": "x", "messages": []}', "found prompt and messages"),
    ('{"messages": []}', "found no turns"),
    ('{"messages": [{"role": "tool", "content": "x"}]}', "turn 1 role: found 'tool'"),
    ('{"messages": [{"role": "user", "content": 5}]}', "turn 1 content: found int, expected a text"),
    ('{"messages": [{"role": "user", "content": "x", "name": "y"}]}', "turn 1: found key 'name'"),
    ('{"prompt": "x", "stop_strings": "y"}', "stop_strings: found str, expected a list of texts"),
    ('{"prompt": "x", "stop_strings": ["<|user|>"]}', r"found '<\|user\|>', a special token"),
    ('{"prompt": "x", "stop_strings": null}', "stop_strings: found NoneType"),
    ('{"prompt": "x", "stop_strings": [""]}', "found '', expected a text of at least one character"),
    ('{"canvas_ids": [0, 0, 0, 0, 0, 0, 0, 5], "stop_strings": ["y"]}', "found 1 for a canvas, expected none"),
    ('{"prompt": 5}', "found int, expected a text"),
    ('{"prompt": "  "}', "empty text"),
    ('{"prompt": "\\ud800"}', "UTF-8"),
    ('{"prompt_ids": []}', "no ids"),
    ('{"prompt_ids": [5, 0]}', r"holds \[MASK\] \(id 0\) in column 1"),
    ('{"prompt_ids": [280]}', "found id 280, expected 0 to 279"),
    ('{"prompt_ids": [1267650600228229401496703205376]}', "found id 1267650600228229401496703205376"),
    ('{"prompt_ids": [true]}', "a list of whole numbers"),
    ('{"prompt_ids": [1.5]}', "a list of whole numbers"),
    (json.dumps({"prompt_ids": [5] * 81}), r"81 tokens \+ gen_length 16 = 97, expected at most the context of 96"),
    ('{"canvas_ids": [5, 6, 7, 8, 9, 10, 11, 12]}', r"no mask \(id 0\)"),
    ('{"canvas_ids": [5, 0, 0]}', "found 3 ids in blocks of 8"),
    ('{"canvas_ids": [0, 0, 0, 0, 0, 0, 0, 900]}', "found id 900"),
]


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_is_one_object_with_what_the_library_decodes(run, folder, checkpoint):
    ran = run("generate", "26 + 48", "--model", folder, *SHORT, "--json")
    assert (ran.code, ran.err) == (0, "")
    prompts, origin = jaxdiff.pad_prompts([checkpoint.tokenizer.prompt("26 + 48")], fill=1, multiple=32)
    decoder = jaxdiff.Decoder(block_length=8)
    result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompts, decoder, origin=origin, gen_length=16)
    got = ran.json
    assert got["token_ids"] == result.tokens[0, prompts.shape[1] :].tolist()
    assert got["commit_step"] == result.commit_step[0].tolist()
    assert got["text"] == checkpoint.tokenizer.decode(got["token_ids"])
    assert (got["nfe"], got["generated_tokens"]) == (16, int(result.lengths[0]))
    assert got["tpf"] == got["generated_tokens"] / 16
    assert got["work"] == 16.0 == float(result.work[0])
    assert got["seconds"] > 0
    assert got["compile_seconds"] > 0
    assert set(got) == {
        *("text", "token_ids", "commit_step", "nfe", "cheap", "generated_tokens", "tpf", "near_ties", "work", "reason"),
        *("guide_nfe", "seconds", "compile_seconds", "seed", "not_finite", "revision", "adapter", "prompt_text"),
    }
    assert got["prompt_text"] == "<|user|>26 + 48<|assistant|>"
    asked = run("generate", "26 + 48", "--model", folder, *SHORT, "--json", "--log-prob").json
    assert set(asked) - set(got) == {"log_prob"}
    assert asked["log_prob"] == result.log_prob[0].tolist()


def test_log_prob_where_it_is_asked_for(run, folder, tmp_path):
    """In every row that is answered; a canvas' given tokens have none."""
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run("generate", "--in", source, "--out", out, "--model", folder, *SHORT, "--log-prob").code == 1
    first, second, bad, third, hole, _ = read(out)
    for row in (first, second, third):
        assert len(row["log_prob"]) == len(row["token_ids"]) == 16
        assert np.isfinite(row["log_prob"]).all()
        assert max(row["log_prob"]) < 0
    assert [p == 0 for p in hole["log_prob"]] == [step < 0 for step in hole["commit_step"]]
    assert np.isfinite(hole["log_prob"]).all()
    assert set(bad) == {"id", "error"}


def test_a_cached_decode_works_less(run, folder):
    """Each of the 2 blocks begins with a refresh of 48 columns at the most; the 7 other steps of a block feed 8."""
    got = run("generate", "26 + 48", "--model", folder, *SHORT, "--cache", "dual", "--json").json
    assert got["nfe"] == 16
    assert type(got["work"]) is float
    assert 2 < got["work"] < 16


@pytest.mark.parametrize("mode", ["steps=4,cap=0.05", "steps=4,loop", "rescale=0.5"])
def test_a_policy_that_takes_commits_back(mode, run, folder):
    """Its steps are those of a block, in its own arguments or as all of --steps; all of them are taken."""
    total = () if "steps" in mode else ("--steps", 8)
    options = ("--policy", f"remdm:{mode}", *total, "--temperature", 1, "--json")
    got = run("generate", "26 + 48", "--model", folder, *SHORT, *options).json
    assert (got["nfe"], got["work"]) == (8, 8.0)
    assert len(got["token_ids"]) == 16
    assert 0 not in got["token_ids"]
    assert 0 <= min(got["commit_step"]) < max(got["commit_step"]) <= 7


def test_numbers_of_a_stopper(run, folder, checkpoint):
    asked = "eotp:way=safe,tau=0.8,keep=64"
    stop = dataclasses.replace(DECODING, stop=asked).decoder(checkpoint.model, 16).stop
    assert isinstance(stop, SafeEotp)
    assert (float(stop.tau), int(stop.keep)) == (pytest.approx(0.8), 64)
    ran = run("generate", "26 + 48", "--model", folder, *SHORT, "--stop", asked, "--json")
    assert ran.code == 0, ran.err
    assert 1 <= ran.json["nfe"] <= 16


def test_text_on_stdout_and_the_numbers_on_stderr(run, folder):
    plain = run("generate", "26 + 48", "--model", folder, *SHORT)
    watched = run("generate", "26 + 48", "--model", folder, *SHORT, "--watch")
    as_json = run("generate", "26 + 48", "--model", folder, *SHORT, "--json").json
    assert plain.out == as_json["text"] + "\n"
    assert plain.err.startswith(f"NFE 16 · {as_json['generated_tokens']} tokens · TPF ")
    assert plain.err.count("\n") == 1
    assert watched.out == plain.out  # no terminal: no live view
    assert "\x1b" not in watched.err


def test_steps_are_the_total_of_all_blocks(run, folder):
    assert run("generate", "26 + 48", "--model", folder, *SHORT, "--steps", 4, "--json").json["nfe"] == 4


def test_every_option_reaches_the_decode(checkpoint):
    decoding = Decoding(
        model="gsm-1m",
        policy="fixed",
        fill="parallel",
        cache="dual",
        stop="eos",
        steps=8,
        gen_length=32,
        block_length=16,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        cfg_scale=1.5,
        forbid_eos=True,
        defer_eos=True,
        mesh="2x4",
        dtype="bfloat16",
    )
    decoder = decoding.decoder(checkpoint.model, 32)
    assert isinstance(decoder.policy, Fixed)
    assert int(decoder.policy.steps) == 4
    assert isinstance(decoder.fill, Parallel)
    assert isinstance(decoder.stop, Eos)
    assert isinstance(decoder.cache, Dual)
    assert decoder.block_length == 16
    assert {f.name: getattr(decoder.sampling, f.name) for f in dataclasses.fields(decoder.sampling)} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "cfg_scale": 1.5,
        "forbid_eos": True,
        "defer_eos": True,
        "end_think": None,
    }


@pytest.mark.parametrize(("tokenizer", "asked"), [(True, "26 + 48"), (False, "12, 13")])
def test_a_variable_length_and_its_push_reach_the_decoder(checkpoint, tokenizer, asked):
    decoding = dataclasses.replace(DECODING, length="var", end_think=asked, end_think_power=3.0)
    decoder = decoding.decoder(checkpoint.model, 32, tokenizer=checkpoint.tokenizer if tokenizer else None)
    push = decoder.sampling.end_think
    assert decoder.length == "var"
    assert push.tokens == (tuple(checkpoint.tokenizer.encode(asked)) if tokenizer else (12, 13))
    assert (float(push.boost), float(push.power)) == (100.0, 3.0)
    if tokenizer:
        with pytest.raises(jaxdiff.InputError, match=r"end-think: found '26 \+ 48' for a model without a tokenizer"):
            decoding.decoder(checkpoint.model, 32)


def test_a_file_s_answers_grow_block_by_block(run, folder, checkpoint, tmp_path):
    """A push that nothing withstands: every answer begins with the sequence, whose first id is no end."""
    source = write(tmp_path / "in.jsonl", ['{"prompt_ids": [5, 6, 7]}', '{"canvas_ids": [5, 0, 6, 7, 8, 9, 10, 11]}'])
    options = ("--length", "var", "--end-think", "+", "--end-think-boost", 1e6, "--end-think-power", 0)
    ran = run("generate", "--in", source, "--out", tmp_path / "out.jsonl", "--model", folder, *SHORT, *options)
    answer, refused = read(tmp_path / "out.jsonl")
    assert ran.code == 1
    assert checkpoint.tokenizer.encode("+")[0] == answer["token_ids"][0]
    assert answer["work"] < answer["nfe"]  # no forward is of the whole canvas until the last block
    assert "length: found var for a canvas, whose length is given" in refused["error"]


def test_a_constraint_holds_for_prompts_and_canvases_of_a_file(run, folder, checkpoint, tmp_path):
    """An expression, and a schema in a file; what no text fits is refused alone."""
    hidden = [0 if token % 2 else token for token in checkpoint.tokenizer.encode("12345678")]
    plain = checkpoint.tokenizer.encode("a")
    rows = [{"prompt": "26 + 48"}, {"canvas_ids": [*plain, *[0] * 6, *plain]}, {"canvas_ids": [0, *plain * 6, 0]}]
    rows.append({"canvas_ids": [*plain, 0, *hidden, 0, *plain] + plain * (16 - 4 - len(hidden))})
    source = write(tmp_path / "in.jsonl", map(json.dumps, rows))
    command = ("generate", "--in", source, "--out", tmp_path / "out.jsonl", "--model", folder, *SHORT)
    command += ("--temperature", 1, "--policy", "threshold:tau=0.1")
    assert run(*command, "--constraint", "regex:[0-9]{2,40}").code == 1
    prompt, canvas, bad, mixed = read(tmp_path / "out.jsonl")
    assert re.fullmatch("[0-9]{2,40}", prompt["text"])
    assert re.fullmatch("a[0-9]{2,40}a", checkpoint.tokenizer.show(canvas["token_ids"]))
    assert "constraint: no text that matches fills the 8 columns from 0 to 7" in bad["error"]
    assert re.fullmatch("a[0-9]{2,40}a+", checkpoint.tokenizer.show(mixed["token_ids"]))

    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    alone = run("generate", "26 + 48", *command[5:], "--constraint", f"json:{schema}", "--json")
    assert isinstance(json.loads(alone.json["text"])["n"], int)


def test_rows_drawn_by_rejection_weigh_something_and_particles_are_weighed(run, folder, checkpoint, tmp_path):
    """Predicates and a regular expression together; particles of a row are those of the prompt alone."""
    plain = checkpoint.tokenizer.encode("a")
    rows = [{"prompt": "26 + 48"}, {"prompt": "3 * 4 - 5"}, {"canvas_ids": [*plain, *[0] * 6, *plain]}]
    source = write(tmp_path / "in.jsonl", map(json.dumps, rows))
    options = (*SHORT, "--model", folder, "--temperature", 1, "--policy", "fixed:order=random")
    options += ("--constraint", "not_empty+no_repeat:n=2+regex:([0-9]| )*")
    assert run("generate", "--in", source, "--out", tmp_path / "out.jsonl", *options).code == 0
    for row in read(tmp_path / "out.jsonl"):
        if row["log_weight"] is not None:  # no_repeat does not look ahead
            assert row["log_weight"] < 0
            filled = row.get("filled", [{"text": row["text"]}])[0]["text"]
            assert re.fullmatch("[0-9 ]*", filled)
            assert "filled" in row or row["text"].strip()  # of a canvas what is given counts
        assert row["checks"] > 0

    assert run("generate", "--in", source, "--out", tmp_path / "some.jsonl", *options, "--particles", 3).code == 1
    first, second, canvas = read(tmp_path / "some.jsonl")
    assert "canvas_ids: found a canvas with --particles" in canvas["error"]
    for row in (first, second):
        assert row["text"] == row["particles"][row["drawn"]]["text"]
        weights = [each["weight"] for each in row["particles"]]
        assert sum(weights) == pytest.approx(1.0)
        assert row["ess"] == pytest.approx(1.0 / sum(weight**2 for weight in weights))
        assert row["log_normalizer"] < 0
    alone = run("generate", "26 + 48", *options, "--particles", 3, "--json").json
    for name in ("text", "token_ids", "drawn", "best", "resampled"):
        assert alone[name] == first[name]
    shown = run("generate", "26 + 48", *options, "--particles", 3)
    assert shown.out.strip() == first["text"]
    assert "3 particles, worth" in shown.err


@pytest.mark.parametrize("parts", [{"fill": "recap:slices=9"}, {"policy": "multi_block:size=9"}])
def test_a_canvas_that_a_part_of_the_decoder_cannot_serve_is_refused_alone(checkpoint, parts):
    """Blocks of a canvas are as long as it, where no length is given."""
    decoding = Decoding(model="gsm-1m", gen_length=16, **parts)
    with_holes = [json.dumps({"canvas_ids": [5, *[0] * count]}) for count in (7, 15)]
    bad, good = requests.read("\n".join(with_holes).encode(), checkpoint, decoding, JOB)
    assert isinstance(bad, jaxdiff.Refusal)
    assert "found 9 for blocks of 8" in bad.error or "found size 9 and a window of 8" in bad.error
    assert good.is_canvas


def test_the_mesh_reaches_the_decode(checkpoint, monkeypatch):
    seen = []
    monkeypatch.setattr(requests, "decode_stream", lambda *_, mesh, **options: seen.append(mesh) or iter(()))
    decoding = dataclasses.replace(DECODING, mesh="2x4")
    assert list(requests.answers(checkpoint, [jaxdiff.Request([5], number=0)], decoding, JOB, jaxdiff.Meter())) == []
    (mesh,) = seen
    assert dict(mesh.shape) == {"data": 2, "model": 4}


def test_file_keeps_its_order_and_reports_bad_rows(run, folder, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS)
    ran = run("generate", "--in", source, "--out", tmp_path / "out.jsonl", "--model", folder, *SHORT, "--json")
    rows = read(tmp_path / "out.jsonl")
    assert ran.code == 1
    assert [row["id"] for row in rows] == ["a", "b", 3, 5, "hole", 7]
    assert ran.err.splitlines() == [f"{source} line 3: {rows[2]['error']}", f"{source} line 7: {rows[5]['error']}"]
    assert (ran.json["rows"], ran.json["refused"]) == (4, 2)
    for row in (rows[0], rows[1], rows[3]):
        assert set(row) == {
            *("id", "text", "token_ids", "nfe", "cheap", "work", "not_finite", "reason", "commit_step", "seconds"),
            "guide_nfe",
        }
        assert (len(row["token_ids"]), len(row["commit_step"]), row["nfe"]) == (16, 16, 16)
        assert row["work"] == 16.0
        assert 0 not in row["token_ids"]
    hole = rows[4]
    assert [token for token, step in zip(hole["token_ids"], hole["commit_step"], strict=True) if step < 0] == [
        5,
        6,
        7,
        8,
    ]
    assert 0 not in hole["token_ids"]
    assert sorted(tmp_path.iterdir()) == [source, tmp_path / "out.jsonl"]


def test_rows_go_to_stdout_as_they_are_done_in_the_files_order(run, folder, tmp_path, monkeypatch):
    source, written = write(tmp_path / "in.jsonl", ROWS), []
    whole = ("generate", "--in", source, "--model", folder, *SHORT)
    run(*whole, "--out", tmp_path / "out.jsonl")
    plain = requests.line_of
    # As each row is done: how many are on stdout by then. Those done before it in the order of the file are.
    monkeypatch.setattr(
        requests, "line_of", lambda *a, **k: written.append(sys.stdout.getvalue().count("\n")) or plain(*a, **k)
    )
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    ran = run(*whole, "--batch-size", 1)
    rows, kept = [json.loads(line) for line in sys.stdout.getvalue().splitlines()], read(tmp_path / "out.jsonl")
    assert ran.code == 1
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in kept]
    assert written == [0, 1, 3, 4]  # the third and the last line were refused before any was decoded


def test_a_file_compiles_one_width(checkpoint):
    """Prompts of 3 to 70 ids, in buckets that double three widths and the way from each to the next."""
    rows = [jaxdiff.Request([5] * length, number=n) for n, length in enumerate((3, 70, 40, 66, 10))]
    job, meter = requests.Job(seed=0, slots=2), jaxdiff.Meter()
    meter._programs = {}  # not those that this package's tests share
    done = {answer.request.number: answer for answer in requests.answers(checkpoint, rows, DECODING, job, meter)}
    assert meter.programs == 2  # blank slots, and a serve step
    (alone,) = requests.answers(checkpoint, rows[:1], DECODING, job, jaxdiff.Meter())
    np.testing.assert_array_equal(done[0].tokens, alone.tokens)
    assert len(done) == len(rows)


def test_rows_do_not_depend_on_the_batch(run, folder, tmp_path):
    """Nor on bad rows beside them, nor on the padding; drawn at random, so that the keys matter too."""
    source = write(tmp_path / "in.jsonl", ROWS)
    hot = ("--model", folder, *SHORT, "--temperature", 1.0, "--seed", 3)
    for size in (1, 8):
        run("generate", "--in", source, "--out", tmp_path / f"{size}.jsonl", *hot, "--batch-size", size)
    small, large = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read(tmp_path / name)]
        for name in ("1.jsonl", "8.jsonl")
    )
    assert small == large
    alone = run("generate", "26 + 48", *hot, "--json").json
    assert alone["token_ids"] == small[0]["token_ids"]


@pytest.mark.parametrize(("line", "words"), BAD_ROWS)
def test_bad_row(line, words, folder, checkpoint, tmp_path):
    source = write(tmp_path / "in.jsonl", ['{"id": "fine", "prompt": "x"}', line])
    fine, bad = requests.read(source.read_bytes(), checkpoint, DECODING, JOB)
    assert (fine.number, fine.id) == (0, "fine")
    assert (bad.number, bad.id) == (1, 2)
    assert re.search(words, bad.error)


def test_file_that_is_not_text(checkpoint, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xff\xfe\n\xef\xbb\xbf{"prompt_ids": [5]}\r\n')
    bad, fine = requests.read((tmp_path / "in.jsonl").read_bytes(), checkpoint, DECODING, JOB)
    assert "not JSON" in bad.error
    assert fine.ids == [5]


def test_model_without_a_tokenizer_speaks_ids(run, refused, ids_folder, tmp_path):
    source = write(tmp_path / "in.jsonl", ['{"id": "b", "prompt_ids": [5, 6, 7]}'])
    out = tmp_path / "out.jsonl"
    assert run("generate", "--in", source, "--out", out, "--model", ids_folder, *SHORT).code == 0
    (row,) = read(out)
    assert row["text"] is None
    assert len(row["token_ids"]) == 16
    assert "no tokenizer.json" in refused("generate", "26 + 48", "--model", ids_folder, *SHORT)


def test_output_is_whole_or_untouched(tmp_path):
    out = tmp_path / "out.jsonl"
    write_lines(out, [{"id": 1}])
    with pytest.raises(TypeError):
        write_lines(out, [{"id": 2}, {"id": object()}])
    assert read(out) == [{"id": 1}]
    assert list(tmp_path.iterdir()) == [out]


def test_frames_show_masks_fresh_and_settled_tokens():
    steps = np.asarray([2, 0, 1, -1], np.int32)
    pieces = ["c", "a", "b", ""]
    assert watch.frame(pieces, steps, -1, 0).plain == watch.MASK * 4
    second = watch.frame(pieces, steps, 1, 2)
    assert second.plain == f"{watch.MASK}ab{watch.MASK}"
    assert [str(span.style) for span in second.spans] == ["dim", watch.FRESH, "dim"]


def test_replay_draws_on_terminals_only(checkpoint):
    tokens, steps = np.asarray([50, 51, 52, 53], np.int32), np.asarray([3, 1, 0, 2], np.int32)
    for tokenizer in (checkpoint.tokenizer, None):
        screen, pipe = io.StringIO(), io.StringIO()
        terminal = Console(file=screen, force_terminal=True, width=60)
        watch.replay(tokens, steps, tokenizer, terminal, seconds_a_frame=0.0)
        assert screen.getvalue().count(watch.MASK) == 4 + 3 + 2 + 1
        watch.replay(tokens, steps, tokenizer, Console(file=pipe), seconds_a_frame=0.0)
        assert pipe.getvalue() == ""


def test_a_mesh_changes_nothing_in_the_file(run, folder, tmp_path):
    rows = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[1], ROWS[4]])
    out = {}
    for mesh in ("1x1", "2x4"):
        file = ("generate", "--in", rows, "--out", tmp_path / "out.jsonl", "--model", folder, "--mesh", mesh)
        options = ("--policy", "threshold:tau=0.3", "--temperature", 0.7, "--stop-string", "e", "--stop-string", "zz")
        assert run(*file, *SHORT, *options).code == 0
        lines = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        out[mesh] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    assert out["1x1"] == out["2x4"]


def test_sampling_options_reach_the_decode(run, folder):
    """Among one token there is nothing to sample, at whatever temperature; positions drawn at random are others."""
    options = ("generate", "26 + 48", "--model", folder, *SHORT, "--temperature", 5, "--json")
    alone, reach = run(*options, "--top-k", 1).json, run(*options, "--top-p", 0).json
    assert alone["token_ids"] == reach["token_ids"]
    assert run(*options, "--top-k", 1, "--seed", 3).json["token_ids"] == alone["token_ids"]
    drawn = ("--top-k", 1, "--policy", "fixed:alg_temp=100")
    steps = [run(*options, *drawn, "--seed", seed).json["commit_step"] for seed in (0, 3)]
    assert steps[0] != steps[1] != alone["commit_step"]


def test_a_model_that_attends_in_blocks(run, tmp_path):
    """Through a folder on disk: the block is the model's own, and no length need divide."""
    model = build(
        {
            "family": "sdar",
            "vocab_size": 50,
            "d_model": 32,
            "n_layers": 1,
            "n_heads": 2,
            "mlp_hidden_size": 32,
            "head_dim": 8,
            "mask_token_id": 0,
            "eos_token_id": 1,
            "dtype": "float32",
        }
    )
    jaxdiff.save(tmp_path / "blocks", model, model.init(jax.random.key(0)))
    rows = write(tmp_path / "in.jsonl", ['{"prompt_ids": [5, 6, 7, 8, 9]}', '{"prompt_ids": [5, 6]}'])
    options = ("generate", "--in", rows, "--out", tmp_path / "out.jsonl", "--model", tmp_path / "blocks")
    assert run(*options, "--gen-length", 7).code == 0
    first, second = read(tmp_path / "out.jsonl")
    assert (len(first["token_ids"]), len(second["token_ids"])) == (7, 7)
    assert (first["nfe"], second["nfe"]) == (7, 10)  # 5 + 7 fill three blocks of 4; 2 + 7 leave three to be cut off
    refused = run(*options, "--block-length", 8)
    assert (refused.code, "attends in blocks of 4" in refused.err) == (2, True)


def test_a_prompt_ends_at_its_text_and_a_canvas_is_filled_where_no_stopper_is_named():
    given = {"model": "gsm-1m", "stop": None, "gen_length": None}
    assert isinstance(Decoding.of(given).stopper(), Eos)
    assert isinstance(Decoding.of(given).stopper(canvas=True), NoStop)
    assert isinstance(Decoding.of(given | {"stop": "none"}).stopper(), NoStop)
    assert Decoding.of(given).gen_length == 256
