"""The console script: what it says before jax is there, what goes wrong meanwhile, and what it does not import."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdiff

HOME = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "jaxdiff_command"]
VERSION = """
import sys
import jaxdiff_command

sys.argv = ["jaxdiff", "--version"]
assert jaxdiff_command.main() == 0
print(sorted({"jax", "numpy", "typer"} & sys.modules.keys()))
"""
GENERATE = """
import sys
from jaxdiff.cli.main import main

main(sys.argv[1:])
print(sorted({"flax.nnx", "matplotlib", "optax", "orbax", "qwix", "torch", "transformers"} & sys.modules.keys()))
"""


def started(command, **changes):
    """A program that finds the source tree; of its environment what is None is left out."""
    named = os.environ | {"PYTHONPATH": str(HOME)} | changes
    environment = {name: value for name, value in named.items() if value is not None}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_version_needs_no_jax():
    ran = started([sys.executable, "-c", VERSION])
    assert (ran.stdout, ran.stderr) == (f"jaxdiff {jaxdiff.__version__}\n[]\n", "")


def test_one_prompt_imports_nothing_slow_and_an_unused_libtpu_is_silent(folder, compilation_cache_folder):
    asked = ("generate", "26 + 48", "--model", folder, "--gen-length", "8", "--block-length", "8")
    changes = {"JAX_PLATFORMS": None, "JAX_COMPILATION_CACHE_DIR": compilation_cache_folder}
    ran = started([sys.executable, "-c", GENERATE, *map(str, asked)], **changes)
    assert ran.stdout.splitlines()[-1] == "[]"
    (line,) = ran.stderr.splitlines()
    assert line.startswith("NFE 8 ")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JAX_ENABLE_X64", "maybe", "invalid truth value 'maybe'"),
        ("JAX_DEFAULT_MATMUL_PRECISION", "bogus", 'Invalid value "bogus"'),
    ],
)
def test_a_variable_that_jax_does_not_take_is_one_line(name, value, words):
    ran = started([*COMMAND, "generate", "x"], **{name: value})
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"jaxdiff: {name}: found {value!r}, which jax does not take ({words}")


def test_a_package_that_is_missing_is_one_line_and_its_traceback_where_asked_for(tmp_path):
    (tmp_path / "jax.py").write_text("import no_such_package\n")
    for debug, said in ((None, False), ("1", True)):
        ran = started([*COMMAND, "generate"], PYTHONPATH=f"{tmp_path}:{HOME}", JAXDIFF_DEBUG=debug)
        assert ran.returncode == 1
        assert ran.stderr.endswith("(No module named 'no_such_package'); pip install no_such_package\n")
        assert ("Traceback" in ran.stderr) is said


def test_ctrl_c_while_jax_is_imported(tmp_path):
    (tmp_path / "jax.py").write_text("import time\nprint('on', flush=True)\ntime.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{HOME}"}
    with subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == b""
