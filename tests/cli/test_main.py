"""The entry point: version, help, signals, pipes, the compilation cache."""

import signal
import subprocess
import sys

import jax
import pytest

import jaxdiff
from jaxdiff.cli import main as entry


def test_version_and_help(run):
    assert run("--version").out == f"jaxdiff {jaxdiff.__version__}\n"
    for command in ((), ("generate",), ("eval",), ("train",), ("convert",)):
        ran = run(*command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert "Usage: jaxdiff" in ran.out
    assert run().code == 2


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_interrupt_and_broken_pipe_leave_no_traceback(error, code, run, folder, monkeypatch):
    def stop(*_, **__):
        raise error(32, "Broken pipe")

    monkeypatch.setattr("jaxdiff.cli.options.jaxdiff.load", stop)
    try:
        ran_code = run("generate", "x", "--model", folder).code
    except SystemExit as exit_:
        ran_code = exit_.code
    assert ran_code == code


def test_ctrl_c_ends_even_a_program_that_does_not_come_back_to_python():
    busy = """
import hashlib, sys
import jaxdiff.cli.main as m

m._leave_on_interrupt()
try:
    print("on", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
except KeyboardInterrupt:  # as `main` has it; the signal may come before the long call
    sys.exit(130)
"""
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == b""


def test_compiled_programs_go_to_the_users_cache(compilation_cache_folder, monkeypatch, tmp_path):
    entry._use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == compilation_cache_folder  # one that is set is kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        entry._use_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "jaxdiff" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", compilation_cache_folder)
