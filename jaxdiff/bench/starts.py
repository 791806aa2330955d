"""How long a decode takes to compile where JAX's persistent cache holds its program already."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxdiff.bench.measure import Work
from jaxdiff.decode import loop
from jaxdiff.decode.api import prepare
from jaxdiff.decode.program import Call, ahead_of_time

KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


def warm_compile_seconds(work: Work, **changes: Any) -> float:
    """Tracing, and reading the program from disk; `changes` as of `Work.program`."""
    decoder = dataclasses.replace(work.decoder, **changes)
    options = {"gen_length": work.gen_length, "origin": work.origin}
    call = prepare(work.model, work.params, work.prompts, decoder, **options)
    with _new_cache():
        _compile_seconds(call)
        return _compile_seconds(call)


def _compile_seconds(call: Call) -> float:
    jax.clear_caches()  # what was traced before would not be traced again
    since = time.perf_counter()
    with ahead_of_time():
        jax.jit(lambda *given: loop.run(*given)).lower(call.setup, call.rows).compile()
    return time.perf_counter() - since


@contextlib.contextmanager
def _new_cache() -> Iterator[None]:
    """JAX's persistent cache in a new folder, for all programs however quickly they compile."""
    with tempfile.TemporaryDirectory(prefix="jaxdiff-bench-") as folder:
        wanted = KEEP_ALL | {"jax_compilation_cache_dir": folder, "jax_enable_compilation_cache": True}
        before = {name: jax.config.values[name] for name in wanted}
        _configure(wanted)
        try:
            yield
        finally:
            _configure(before)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at them once
