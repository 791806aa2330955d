"""An environment that lacks something: what can be done is done, and the rest is one line."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.cli import main as entry
from jaxdiff.decode import Timed
from jaxdiff.policies import Threshold
from tests import small


@pytest.fixture
def cache_folder(monkeypatch):
    """Where compiled programs would go, in an environment of these variables."""

    def call(**variables):
        for name in ("HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return entry._cache_folder()

    return call


def test_a_cache_folder_where_there_can_be_one(cache_folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert cache_folder(HOME=tmp_path) == tmp_path / ".cache/jaxdiff/xla"
    assert cache_folder(HOME=tmp_path, XDG_CACHE_HOME=tmp_path / "x") == tmp_path / "x/jaxdiff/xla"
    assert cache_folder(HOME=tmp_path, XDG_CACHE_HOME="relative") == tmp_path / ".cache/jaxdiff/xla"
    assert cache_folder(HOME=tmp_path / "file") is None
    assert cache_folder(XDG_CACHE_HOME=tmp_path / "file") is None
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cache_folder(HOME=tmp_path) is None  # it is there, and can only be read
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # no HOME, and no entry of the user
    monkeypatch.setattr("pathlib.Path.home", _no_home)
    assert cache_folder() is None


def _no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_device_is_asked_for_only_where_one_is_needed():
    """In one process without a device: the version, a help, a misspelt policy, and a decode."""
    script = """
import sys
from jaxdiff.cli.main import main
codes = [main(a) for a in (["--version"], ["bench", "--help"], ["generate", "x", "--policy", "thresold"],
    ["generate", "x", "--policy", "any_of(threshold:tau=0.9 + fixed:steps=4)", "--steps", "3", "--cache", "dual"],
    ["generate", "x", "--policy", "threshold:tau=2"], ["generate", "x", "--gen-length", "32"])]
print(codes)
"""
    environment = os.environ | {"JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"COLUMNS": "1", "TERM": "dumb", "PYTHONOPTIMIZE": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[0, 0, 2, 2, 2, 2]"
    lines = ran.stderr.splitlines()
    assert [line[9:16] for line in lines] == ["policy:", "steps: ", "policy ", "JAX_PLA"]
    assert "found 'nonsense', for which JAX has no device here" in lines[-1]


def test_streams_that_are_closed_and_a_locale_of_ascii(tmp_path):
    """`>&- 2>&- <&-`: what is opened then must not become stdout."""
    script = """
import os, sys
from jaxdiff.cli.main import main
code = main(["--version"])
opened = os.open("opened", os.O_CREAT | os.O_WRONLY)
open("told", "w").write(f"{code} {opened > 2} {sys.stdout.errors}")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "C", "PYTHONUTF8": "0"}
    closed = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&- <&-', sys.executable, script]
    subprocess.run(closed, env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "told").read_text(encoding="utf-8") == "0 True replace"


def test_jax_settings_of_the_user():
    """64 bits change nothing; without compiling there is nothing to run."""
    plain = small.decode(policy=Threshold(0.9))
    with jax.enable_x64(True):
        wide = small.decode(policy=Threshold(0.9))
    np.testing.assert_array_equal(wide.tokens, plain.tokens)
    assert wide.tokens.dtype == jnp.int32
    with jax.disable_jit(), pytest.raises(InputError, match="JAX_DISABLE_JIT: found it set"):
        Timed().call(lambda x: x, jnp.zeros(1))
