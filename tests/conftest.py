"""Every test: CPU with 8 simulated devices, annotations checked at run time, warnings are errors.

JAX_PLATFORMS names another device; tests that need several devices then fail unless it has them.
"""

import gc
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Importing and tracing make many objects that live as long as the process or the program; by default each 700 of them
# are a reason to look for garbage.
gc.set_threshold(50_000, 20, 100)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # where no hub is: no test asks the internet
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Programs are tiny and many: without optimisation, and without the slower of XLA's two ways to emit a fusion, they are
# compiled several times as fast. From jaxlib 0.11.1 that flag is unknown, which ends the process. The workers fill the
# cores: a program that is emitted in one piece takes a tenth less of them.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if tuple(map(int, version("jaxlib").split(".")[:3])) < (0, 11, 1):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

# Where in Python each operation comes from no test reads: it takes a part of the time to trace, lower and compile.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# What one worker has compiled, the others and the programs that tests start need not; nothing is left for the next run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="jaxdiff-tests-xla-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# A shell that runs the suite in the background has it ignore Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

install_import_hook("jaxdiff", "beartype.beartype")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture
def compilation_cache_folder():
    """Where the programs that this run compiles are kept."""
    return os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Compiled programs hold memory maps, of which Linux allows a process 65,530; XLA's compiler aborts at the next."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 40_000:
        jax.clear_caches()


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A hub of ours that this process asks in place of the internet's, with an empty cache and no token."""
    from huggingface_hub import constants

    from tests.hub import serving

    monkeypatch.delenv("HF_TOKEN", raising=False)
    home = tmp_path_factory.mktemp("hub")
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
        yield server


@pytest.fixture
def strict():
    """No implicit dtype or rank promotion: for our own code (optax and Flax's layers do not bear it)."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def pytest_xdist_auto_num_workers():
    """One more than there are cores: a worker often waits for a process that it started, or for a disk."""
    return (os.cpu_count() or 1) + 1
