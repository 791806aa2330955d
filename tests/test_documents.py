"""The documents: every `jaxdiff ...` command parses with the command line of today, every link and script is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from experiments import reference
from jaxdiff.cli import options
from jaxdiff.cli.main import app
from jaxdiff.cli.options import Decoding
from tests import drafters

HOME = Path(__file__).parents[1]
DOCUMENTS = [HOME / name for name in ("README.md", "BUILD.md", "CONTRIBUTING.md")] + sorted(HOME.glob("docs/*.md"))
SHELL = ("", "sh", "bash", "console")  # what a fenced block may call itself
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)  # in a list too
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
SCRIPT = re.compile(r"python (?:-m (experiments[.\w]+)|(experiments/[\w/]+\.py))")

SYSTEMS = """
Learn2PD, MEAP, MTO, ADED, DupMAE, Yoshida's thesis, Hidden Transfer, ERNIE-Gram, AWRS, ADJUST, Token Recycling,
ELECTRA, ReCAP, Dynamic tokenization retrofit, Learn Your Tokens, Token Prepending, Lexinvariant LMs,
Lexical Unit Decoding, ILM, DySpec, Chimera, FLASH, dParallel, Exact byte-level probabilities,
Token-level correlation compression, ENAT, Hierarchical AR transformers, FreeCache + guided diffusion, CM3, ARC-Encoder,
MDiff4STR, Gated-LoRA multi-token prediction, Byte2Word, X-Decoder, TokenUnify, ToDRE, LUT, STAMP
"""


def commands(text):
    """The arguments of each `jaxdiff` in a piece of shell, one inside the quotes of another command too."""
    text = re.sub(r"\\\n", " ", re.sub(r"(^|\s)#[^\n]*", r"\1", text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    called = None
    for token in lexer:
        if re.fullmatch(r"[;&|\n]+", token):
            if called:
                yield called
            called = None
        elif called is not None:
            called.append(token)
        elif re.fullmatch(r"(.*/)?jaxdiff", token):
            called = []
        elif "jaxdiff " in token:
            yield from commands(token)
    if called:
        yield called


def shell_of(document):
    """The pieces of shell in a document: blocks, and spans of code in its prose and tables."""
    text = document.read_text()
    yield from (body for language, body in FENCED.findall(text) if language in SHELL)
    text = FENCED.sub("", text)
    yield from INDENTED.findall(text)
    yield from (span for span in SPAN.findall(INDENTED.sub("", text)) if span.startswith("jaxdiff "))


def told():
    cases = []
    for document in DOCUMENTS:
        for arguments in (found for piece in shell_of(document) if "jaxdiff" in piece for found in commands(piece)):
            cases.append(pytest.param(arguments, id=f"{document.name}: {shlex.join(arguments)}"))
    return cases


def parsed(arguments):
    """The command's values. Raises a TyperException for a command, option or value that is not known."""
    name, *rest = arguments
    return typer.main.get_command(app).commands[name].make_context(name, rest).params


@pytest.mark.parametrize("arguments", told())
def test_command(arguments, monkeypatch):
    if len(arguments) == 1 and arguments[0] in typer.main.get_command(app).commands:
        return  # the command's name alone: a mention
    given = {name: value for name, value in parsed(arguments).items() if value is not None}
    values = parsed(["generate", "x"]) | given  # what a command does not ask for
    values["policy"] = values.get("answer", values["policy"])
    values["policy"] = re.sub("name=(mine|outcome)", "name=local", values["policy"])
    values["model"] = "gsm-1m"  # a reader's folder is not here, nor are the filters and drafters in it
    monkeypatch.setattr(options, "drafted_fill", lambda model, kind, name, **_: drafters.fill(kind))
    Decoding.of(values)  # what the command line checks before it reads a model


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--tempo", "1"],
        ["dance", "x"],
        ["generate", "x", "--policy", "treshold"],
        ["generate", "x", "--policy", "threshold:limit=1"],
        ["generate", "x", "--fill", "adjust:limit=1"],
        ["eval", "--cache", "triple"],
        ["eval", "--stop", "eotp:way=bold"],
        ["collect", "--out", "x", "--answer", "none"],
    ],
)
def test_a_wrong_command_is_seen(arguments, monkeypatch):
    with pytest.raises((KeyError, ValueError, typer.TyperException)):
        test_command(arguments, monkeypatch)


def test_commands_are_found():
    text = """cd x && A=1 .venv/bin/jaxdiff eval --n 1 \\
      --stop eos # 'tis
    ssh host 'cd jaxdiff && jaxdiff generate "a b" --stop eos'
    git clone URL jaxdiff"""
    assert list(commands(text)) == [["eval", "--n", "1", "--stop", "eos"], ["generate", "a b", "--stop", "eos"]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_scripts(document):
    text = document.read_text()
    named = [document.parent / path for path in LINK.findall(FENCED.sub("", text))]
    for module, script in SCRIPT.findall(text):
        path = HOME / (script or module.replace(".", "/"))
        named.append(path if script or path.is_dir() else path.with_suffix(".py"))
    assert [str(path) for path in named if not path.exists()] == []


def test_systems():
    rows = re.findall(r"^\| ([^|]+?) \|", (HOME / "docs/systems.md").read_text(), re.MULTILINE)
    names = [re.sub(r" \(.*\)", "", row) for row in rows if row != "system"]
    assert names == [name.strip() for name in " ".join(SYSTEMS.split("\n")).split(",")]
    assert len(set(names)) == 38


def test_the_reference_is_what_the_code_says():
    assert reference.FILE.read_text(encoding="utf-8") == reference.reference(), "run python experiments/reference.py"
