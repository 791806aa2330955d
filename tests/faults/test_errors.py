"""Errors from outside jaxdiff are one line with the cause and the mend; its own mistakes keep their traceback."""

import ast
import errno
import io
import json
import os
import types
from pathlib import Path

import jax
import jinja2
import numpy as np
import pytest
from rich.console import Console
from safetensors import SafetensorError
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

import jaxdiff
from jaxdiff import InputError
from jaxdiff.cli import errors, watch
from jaxdiff.cli import main as entry
from jaxdiff.cli.main import main
from jaxdiff.cli.options import Decoding

NAMED = {
    errno.ENOSPC: "free space there",
    errno.EMFILE: "ulimit -n",
    errno.EACCES: "change its rights",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ELOOP: "round in a circle",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EFBIG: "ulimit -f",
    errno.EROFS: "can only be read",
}


@pytest.fixture
def failing(monkeypatch, capsys):
    """Runs a command whose model fails to load so: (code, stderr)."""

    def call(error, *before):
        def load(*_, **__):
            raise error

        monkeypatch.setattr("jaxdiff.cli.options.jaxdiff.load", load)
        code = main([*before, "generate", "x"])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return call


@pytest.mark.parametrize("number", NAMED, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["some/file.json", b"caf\xe9.json", None])
def test_the_system(number, name):
    line = errors.line_of(OSError(number, os.strerror(number), name))
    assert os.strerror(number) in line
    assert NAMED[number] in line
    assert line.startswith("some/file.json: " if name == "some/file.json" else "caf" if name else os.strerror(number))


OUTSIDE = {
    "memory": (MemoryError("Unable to allocate 9 TiB"), "--batch-size"),
    "device memory": (
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"),
        "--batch-size",
    ),
    "device": (jax.errors.JaxRuntimeError("INTERNAL: it broke\nat length"), "INTERNAL: it broke; `jaxdiff --debug"),
    "depth": (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    "bytes": (UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte"), "the byte 0xff at 1"),
    "characters": (UnicodeEncodeError("ascii", "\u4e2d", 0, 1, "ordinal not in range"), "that ascii cannot hold"),
    "extra": (ModuleNotFoundError("No module named 'qwix'", name="qwix"), "pip install 'jaxdiff[int8]'"),
    "package": (ModuleNotFoundError("No module named 'torch'", name="torch"), "pip install torch"),
    "safetensors": (SafetensorError("Error while deserializing header"), "safetensors"),
    "template": (jinja2.TemplateSyntaxError("unexpected '}'", 1), "mend the folder's chat template"),
    "no numbers": (FloatingPointError("invalid value (nan) encountered in jit"), "JAX_DEBUG_NANS"),
    "offline": (OSError("Can't load the tokenizer for 'x'.\nMore."), "Can't load the tokenizer for 'x'.; `jaxdiff"),
    "bad input": (InputError("tau: found 2, expected 1"), "tau: found 2, expected 1"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_ours_is_one_line(name, failing):
    error, words = OUTSIDE[name]
    code, err = failing(error)
    (line,) = err.splitlines()
    assert (code, line[:9]) == (2, "jaxdiff: ")
    assert words in line


def test_a_built_in_error_belongs_to_where_it_was_raised():
    """In a library's frame it is the library's; in ours it keeps its traceback, with the request to report it."""
    library = types.ModuleType("orbax.checkpoint")
    exec("def fail():\n    raise ValueError('no such array')", vars(library))
    with pytest.raises(ValueError, match="no such array") as caught:
        library.fail()
    assert not errors.ours(caught.value)
    assert errors.line_of(caught.value).startswith(
        "orbax: ValueError: no such array; the folder's params may be damaged"
    )
    own = {"json": json}
    exec(compile("def fail(): json.dumps(object())", str(errors.HOME / "some.py"), "exec"), own)
    with pytest.raises(TypeError) as caught:  # raised in Python's own library, which does what it is told
        own["fail"]()
    assert errors.ours(caught.value)


def test_our_mistake_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("jaxdiff.cli.options.check_weights", lambda: None)  # called with an argument
    with pytest.raises(TypeError) as caught:
        main(["generate", "x"])
    assert caught.value.__notes__ == [errors.REPORT]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback_beside_the_line(how, failing, monkeypatch):
    if how == "environment":
        monkeypatch.setenv("JAXDIFF_DEBUG", "1")
    code, err = failing(OSError(errno.EIO, "Input/output error", "disk"), *(["--debug"] if how == "option" else []))
    assert code == 2
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("jaxdiff: disk: Input/output error; ")


def test_policies_nested_too_deeply(capsys):
    depth = 1500
    assert main(["generate", "x", "--policy", "cap(1 + " * depth + "fixed" + ")" * depth]) == 2
    assert (
        capsys.readouterr().err == "jaxdiff: the input is nested too deeply; take out some of the brackets or levels\n"
    )


STEPS = [
    "threshold",
    "fixed:steps=2",
    "any_of(threshold + entropy)",
    "cap(2 + above_mean)",
    "all_of(fixed:steps=4 + margin)",
]


@pytest.mark.parametrize("policy", STEPS)
def test_steps_beside_a_policy_that_takes_none(policy):
    with pytest.raises(
        InputError, match=r"^steps: found 16, but policy .* takes no number of steps from it; leave it out"
    ):
        Decoding(model="nowhere", policy=policy, steps=16)


@pytest.mark.parametrize("policy", ["fixed", "remdm", "fixed:schedule=dream", "any_of(threshold + cap(2 + fixed))"])
def test_steps_beside_a_policy_that_takes_them(policy):
    assert Decoding(model="nowhere", policy=policy, steps=16).steps == 16


IDLE = [
    (("--compile-only", "--roofline"), "roofline: found it beside --compile-only"),
    (("--compile-only", "--rounds", "3"), "rounds: found it beside --compile-only"),
    (("--no-plain",), "no-plain: found it beside no --weights"),
    (("--shape", "llada-8b", "--model", "mine"), "model: found it beside --shape"),
    (("--shape", "llada-8b", "--ignore-config", "x"), "ignore-config: found it beside --shape"),
]


@pytest.mark.parametrize(("options", "words"), IDLE)
def test_options_of_bench_that_would_do_nothing(options, words, capsys):
    assert main(["bench", *options]) == 2
    assert words in capsys.readouterr().err


def test_log_prob_beside_a_text(capsys):
    assert main(["generate", "x", "--log-prob"]) == 2
    assert "--log-prob goes into the rows of a file and into --json" in capsys.readouterr().err


def byte_level():
    """A tokenizer whose every token is one byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    fast = FastTokenizer(models.BPE({char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}, []))
    fast.pre_tokenizer, fast.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return fast


def test_watch_shows_whole_characters():
    fast = byte_level()
    tokens = fast.encode("a中😀").ids
    pieces = watch.pieces_of(tokens, fast)
    assert pieces == ["a", None, None, "中", None, None, None, "😀"]
    steps = np.asarray([0, 1, 4, 2, 3, 3, 3, 3], np.int32)
    seen = [watch.frame(pieces, steps, done - 1, done).plain for done in range(6)]
    mask = watch.MASK
    assert seen == [mask * 8, "a" + mask * 7, "a" + mask * 7, "a" + mask * 7, f"a{mask * 3}😀", "a中😀"]
    assert watch.pieces_of(tokens[:3], fast) == ["a", None, "\ufffd"]  # what stays cut is shown as the text has it


def test_a_stream_that_cannot_show_a_character_shows_another(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    entry._open_streams()
    print("中 \udcff 7")
    Console().print("─ 中")
    assert entry._flushed()
    assert raw.getvalue().split() == [b"?", b"?", b"7", b"?", b"?"]
    print("·中", file=entry.sys.stderr)


def test_every_text_file_is_opened_with_its_encoding():
    """Python's default is the locale's."""
    found = []
    for file in Path(jaxdiff.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node) and "encoding" not in {k.arg for k in node.keywords}:
                found.append(f"{file}:{node.lineno}")
    assert found == []


def _opens_text(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if name == "open":
        owner = getattr(getattr(call.func, "value", None), "id", None)
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        return owner not in ("os", "safetensors") and not any("b" in mode for mode in modes[-1:])
    return name in ("read_text", "write_text")


def test_numbers_that_float32_cannot_hold_are_refused():
    with pytest.raises(InputError, match="temperature: found 1e"):
        jaxdiff.Sampling(temperature=1e300)
    with pytest.raises(InputError, match="top_k: found 1000"):
        jaxdiff.Sampling(top_k=10**400)
