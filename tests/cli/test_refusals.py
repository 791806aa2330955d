"""Bad input: exit code 2, one line that names the value and the mend, no traceback, nothing written."""

import json
import shutil

import jax
import pytest

SHORT = ("--gen-length", 16, "--block-length", 8)
KNOWN = (
    "fixed, threshold, factor, margin, entropy, entropy_bounded, above_mean, contiguous, multi_block, edit, remdm, "
    "remedi, wino, agree, oracle, learned"
)
OPTIONS = [
    (("--policy", "unlearned"), f"policy: found 'unlearned', expected one of {KNOWN}"),
    (("--policy", "learned"), "policy learned: found name 'local', but "),
    (("--policy", "any_of(fixed + learned:name=x)"), "holds none; name one, or fit a filter"),
    (("--policy", "learned:tau=3"), "holds none"),
    (("--policy", "oracle:tau=1"), "policy oracle: found argument 'tau=1', expected none"),
    (("--policy", "threshold:limit=1"), "policy threshold: found argument 'limit=1', expected tau="),
    (("--policy", "threshold:tau=3"), "tau: found 3"),
    (("--policy", ""), "policy: found ''"),
    (("--policy", "threshold:tau=0.1,tau=0.2"), "policy threshold: found tau twice, expected it once"),
    (("--policy", "remdm:steps=4,cap=0.05,loop"), "policy remdm: found cap and loop, expected one of the two"),
    (("--policy", "remdm:loop,rescale=0.1"), "policy remdm: found loop and rescale, expected one of the two"),
    (
        ("--policy", "remdm:alpha=0.9"),
        "policy remdm: found argument 'alpha=0.9', expected steps=, cap=, rescale=",
    ),
    (("--policy", "remdm:cap=2"), "policy remdm cap: found 2"),
    (("--policy", "remdm:steps=0"), "policy remdm steps: found 0"),
    (("--policy", "wino:revoke=1.5"), "policy wino revoke: found 1.5"),
    (("--policy", "revise(edit):passes=2"), "policy revise: found a policy that takes commits back or waits itself"),
    (("--policy", "revise:pass=2"), "policy revise: found argument 'pass=2', expected passes=, tau=, sure="),
    (("--policy", "fixed:schedule=dream"), "schedule=dream: the schedule needs its number of steps; set --steps or"),
    (("--fill", "recup"), "fill: found 'recup', expected one of parallel, recap"),
    (("--fill", "recap:k=3"), "fill recap: found argument 'k=3', expected slices=, order="),
    (("--fill", "recap:slices=0"), "fill recap slices: found 0, expected a whole number from 1 to"),
    (("--fill", "recap:order=up"), "fill recap order: found 'up', expected one of priority, left, random"),
    (("--fill", "recap:slices=9"), "fill recap slices: found 9 for blocks of 8 positions, expected at most 8"),
    (("--cache", "triple"), "cache: found 'triple', expected one of none, prefix, dual, frozen, block"),
    (("--cache", "frozen:freeze=often"), "cache frozen freeze: found 'often', expected one of clean, commit, prompt"),
    (("--cache", "dual", "--stop", "eotp"), "cache: found dual with a stopper that asks for end-of-text on the whole"),
    (("--cache", "block"), "cache: found block with a model whose positions all see each other"),
    (("--mesh", "2by1"), "mesh: found '2by1', expected DxM, the data and the model devices, such as 4x2"),
    (("--mesh", "0x1"), "mesh: found 0x1 = 0 devices, expected 1 to 8"),
    (("--mesh", "4x4"), "mesh: found 4x4 = 16 devices, expected 1 to 8, as many as there are"),
    (("--mesh", "1x8"), "mesh: found 4 attention heads for a model axis of 8, expected a multiple of it; try a model"),
    (("--stop", "never"), "stop: found 'never', expected one of none, eos, eotp"),
    (("--stop", "eotp:way=bold"), "stop eotp way: found 'bold', expected one of official, block, safe"),
    (("--stop", "eotp:tau=0.8,keep=64,tau=0.9"), "stop eotp: found tau twice, expected it once"),
    (("--stop", "eotp:way=safe,way=block"), "stop eotp: found way twice, expected it once"),
    (("--stop", "eotp:way=safe,keep=0"), "stop eotp keep: found 0"),
    (("--stop", "eotp:way=block,keep=64"), "stop eotp: found argument 'keep=64', expected way="),
    (("--stop", "eos:way=safe"), "stop eos: found argument 'way=safe', expected none"),
    (("--dtype", "int8"), "dtype: found 'int8', expected float32 or bfloat16"),
    (("--weights", "int4"), "weights: found 'int4', expected int8; leave it out for the plain ones"),
    (("--steps", "3"), "steps: found 3 for 2 blocks (16 / 8), expected a multiple of the blocks; try --steps 4"),
    (("--steps", "x"), "--steps"),
    (("--gen-length", "15"), "gen_length: found 15 with block_length 8, expected a multiple of the block; try"),
    (("--gen-length", "0"), "--gen-length"),
    (("--temperature", "-1"), "--temperature"),
    (("--temperature", "nan"), "temperature"),
    (("--cfg-scale", "inf"), "cfg_scale: found inf"),
    (("--top-p", "1.5"), "--top-p"),
    (("--top-k", "0"), "--top-k"),
    (("--policy", "fixed:order=random,alg_temp=1"), "fixed alg_temp: found order=random"),
    (("--seed", "-1"), "--seed"),
    (("--batch-size", "0"), "--batch-size"),
    (("--tempo", "1"), "--tempo"),
    (("--length", "long"), "length: found 'long', expected one of fixed, var"),
    (("--length", "var", "--cache", "dual"), "length: found var with cache dual, expected none"),
    (("--end-think-boost", "3"), "say how hard to push; give --end-think TEXT too"),
    (("--end-think", ""), "end_think: found tokens (), expected the ids of a sequence"),
    (("--end-think", "x", "--end-think-power", "-1"), "--end-think-power"),
    (("--constraint", "[0-9]"), "constraint: found '[0-9]', expected regex:PATTERN, or json: and a schema or its file"),
    (("--constraint", "regex:("), "constraint: found '(', which outlines-core reads as no regular expression"),
    (("--constraint", "regex:a)(b"), "constraint: found 'a)(b', which outlines-core reads as no regular expression"),
    (("--constraint", "regex:a", "--stop", "eotp"), "constraint: found one with stop eotp, which ends a row where"),
    (("--constraint", "regex:a", "--stop-string", "b"), "constraint: found one with stop strings, which would end"),
    (("--constraint", 'json:{"$ref": "#"}'), "constraint: found a schema that refers to itself, expected one of"),
    (("--constraint", "json:nowhere.json"), "nowhere.json"),
    (("--constraint", "regex:[ab]{3000}"), "constraint: found '[ab]{3000}', which takes more than 1024 states"),
    (("--constraint", "regex:[ab]{500}"), "constraint: no text that matches is of at most 16 tokens"),
    (("--constraint", "awrs"), "constraint: found 'awrs', which says nothing of a text, expected regex:PATTERN"),
    (("--constraint", "awrs+regex:a"), "constraint: found one that draws by rejection with policy fixed, whose order"),
    (("--constraint", "not_empty", "--policy", "entropy"), "temperature: found 0 with a constraint that draws by rej"),
    (("--particles", "4"), "--particles are weighed by how a constraint draws; give --constraint awrs+regex:PATTERN"),
    (("--particles", "4", "--constraint", "regex:a"), "--particles are weighed by how a constraint draws; give"),
    (("--particles", "0"), "--particles"),
    (("--particles", "2", "--constraint", "not_empty", "--choice", "x"), "--choice compares given answers; leave"),
    (("--particles", "2", "--constraint", "not_empty", "--watch"), "leave --watch and --html out"),
]
PROMPTS = [
    ("", "prompt: found an empty text"),
    (" \n", "prompt: found an empty text"),
    ("\udcff", "UTF-8"),
    ("word " * 30, "expected at most the context of 96; shorten the prompt or the generation"),
]
MEET = ("--distributed", "--coordinator", "127.0.0.1:1", "--processes", "2")
COMMANDS = [
    (("generate",), "give a PROMPT or --in FILE.jsonl"),
    (("generate", "x", "--in", "a", "--out", "b"), "one of the two"),
    (("generate", "--in", "a", "--json"), "--json sums up a file on stdout, where its rows go without --out"),
    (("generate", "x", "--out", "b"), "--out is for the rows of a file; name it with --in"),
    (("generate", "--in", "a", "--out", "b", "--watch"), "--watch shows a single PROMPT"),
    (("generate", "x", "--distributed"), "--distributed shares a file between hosts; give --in and --out"),
    (("generate", "x", "--processes", "2"), "say where hosts meet; give --distributed too"),
    (("generate", "--in", "a", "--out", "b", "--distributed", "--process-id", "0"), "go together; give all three or"),
    (("generate", "--in", "a", "--out", "b", *MEET, "--process-id", "2"), "process-id: found 2, expected 0 to 1"),
    (("generate", "x", "--model", "nowhere"), "model: no config.json in 'nowhere'"),
    (("eval", "--task", "chess"), "task: found 'chess', expected one of gsm_symbolic, drills"),
    (("eval", "--n", "0"), "--n"),
    (("eval", "--gen-length", "30"), "gen_length: found 30 with block_length 32"),
    (("train",), "--out"),
    (("train", "--out", "new", "--recipe", "nowhere.json"), "recipe nowhere.json: cannot be read"),
    (("train", "--out", "new", "--steps", "5"), "steps: found 5, expected warmup + decay"),
    (("collect",), "--out"),
    (("collect", "--out", "new", "--task", "chess"), "task: found 'chess'"),
    (("fit", "--traces", "nowhere", "--name", "x"), "traces: no part-*.npz in nowhere"),
    (("fit", "--traces", "nowhere", "--name", "../x"), "name: found '../x', expected letters"),
    (("fit", "--traces", "nowhere", "--name", "x", "--kind", "wide"), "kind: found 'wide', expected block"),
    (("dance",), "dance"),
]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("option", "words"), OPTIONS)
def test_option(option, words, refused, folder):
    assert words in refused("generate", "26 + 48", "--model", folder, *SHORT, *option)


@pytest.mark.parametrize(("prompt", "words"), PROMPTS)
def test_prompt(prompt, words, refused, folder):
    assert words in refused("generate", prompt, "--model", folder, *SHORT)


@pytest.mark.parametrize(("command", "words"), COMMANDS)
def test_command(command, words, refused):
    assert words in refused(*command)


BEFORE = [
    ("policy", "treshold"),
    ("policy", "fixed:schedule=dream"),
    ("policy", "remdm:cap=0.1,loop"),
    ("dtype", "int8"),
    ("weights", "int4"),
    ("fill", "recup"),
]
BUT_BENCH = [("cache", "triple"), ("stop", "never"), ("mesh", "0x1")]
WHO = [
    *((command, *option) for command in ("generate x", "eval") for option in BEFORE + BUT_BENCH),
    *(("bench", *option) for option in BEFORE),
]


@pytest.mark.parametrize(("command", "option", "value"), WHO)
def test_refused_before_the_model_is_read(command, option, value, refused):
    line = refused(*command.split(), "--model", "nowhere", f"--{option}", value)
    assert line.startswith(f"jaxdiff: {option}")
    assert "nowhere" not in line


def test_processes_that_cannot_meet(refused):
    jax.devices()  # a process that has asked for devices can join no other
    assert "the processes cannot meet (" in refused("generate", "--in", "a", "--out", "b", *MEET, "--process-id", "0")


def test_file_with_the_wrong_decoding_is_refused_as_a_whole(refused, folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    file = ("generate", "--in", "in.jsonl", "--out", "out.jsonl", "--model", folder)
    assert "steps: found 3" in refused(*file, *SHORT, "--steps", 3)
    assert "gen_length: found 15" in refused(*file, "--gen-length", 15)


def test_files_that_cannot_be_used(refused, folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "folder").mkdir()
    options = ("--model", folder, *SHORT)
    assert "no.jsonl: No such file" in refused("generate", "--in", "no.jsonl", "--out", "out.jsonl", *options)
    assert "folder is not a file" in refused("generate", "--in", "in.jsonl", "--out", "folder", *options)
    assert "nowhere is no folder" in refused("generate", "--in", "in.jsonl", "--out", "nowhere/out.jsonl", *options)
    assert "in.jsonl is the file to read" in refused("generate", "--in", "in.jsonl", "--out", "./in.jsonl", *options)
    assert "in.jsonl is a file" in refused("train", "--out", "in.jsonl")


def damage_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "config cut": (lambda folder: truncate(folder / "config.json"), "config.json: damaged"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: damaged"),
    "config wrong": (lambda folder: damage_config(folder, n_heads=0), "config.json: makes no model"),
    "config of another model": (
        lambda folder: damage_config(folder, d_model=64, head_dim=16),
        "config.json says (64, 280)",
    ),
    "config of another family": (lambda folder: damage_config(folder, family="gpt"), "family 'gpt'"),
    "tokenizer cut": (lambda folder: truncate(folder / "tokenizer.json"), "tokenizer.json: damaged"),
    "no params": (lambda folder: shutil.rmtree(folder / "params"), "params: missing"),
    "params cut": (
        lambda folder: [truncate(path) for path in (folder / "params").rglob("d/*")],
        "params: cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model(damage, refused, folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    do, words = DAMAGES[damage]
    do(copy)
    assert words in refused("generate", "26 + 48", "--model", copy, *SHORT)


UNKNOWN = [
    ("generate", "26 + 48", "--model"),
    ("eval", "--n", "1", "--model"),
    ("bench", "--model"),
    ("collect", "--out", "traces", "--model"),
    ("export",),
]


@pytest.mark.parametrize("command", UNKNOWN, ids=[command[0] for command in UNKNOWN])
def test_an_unknown_key_of_a_config(command, refused, folder, tmp_path):
    """Refused by name by every command that loads a model, and left alone where it is told to."""
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage_config(copy, colour="red", smell=3)
    target = ("new",) if command == ("export",) else ()
    words = refused(*command, copy, *target)
    assert "config.json: colour: found 'red', smell: found 3, expected keys that LladaConfig knows" in words
    assert "--ignore-config colour --ignore-config smell" in words
    words = refused(*command, copy, *target, "--ignore-config", "colour")
    assert "colour" not in words
    assert "config.json: smell: found 3" in words
    words = refused(*command, copy, *target, "--ignore-config", "d_model")
    assert "config.json: ignore: found 'd_model', which LladaConfig reads" in words


def test_a_model_with_ignored_keys_answers(run, folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage_config(copy, colour="red", smell=3)
    ignored = ("--ignore-config", "colour", "--ignore-config", "smell")
    ran = run("generate", "26 + 48", "--model", copy, *SHORT, *ignored)
    assert ran.code == 0
    assert ran.out == run("generate", "26 + 48", "--model", folder, *SHORT).out
