"""Many requests through few programs: batches of one shape, a key for each request, compile time told apart."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array, Int, Key

from jaxdiff.decode import loop
from jaxdiff.decode.api import pad_prompts
from jaxdiff.decode.state import Settings
from jaxdiff.types import Model, Params

BUCKET = 32  # prompts are padded to a multiple of this, so that batches share compiled programs


class Timed:
    """What `decode(..., run=...)` takes: compiles each shape once, ahead of time, and times that apart from running.

    Attributes:
        compile_seconds: tracing and compiling, so far.
        seconds: the runs, so far; a program that is compiled ahead of time is warm at its first run.
    """

    def __init__(self, *, persistent_cache: bool = True) -> None:
        """`persistent_cache` False: compile even what JAX's cache on disk holds, for the time that compiling takes."""
        self.compile_seconds = 0.0
        self.seconds = 0.0
        self._around = contextlib.nullcontext if persistent_cache else past_persistent_cache
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(
        self,
        model: Model,
        params: Params,
        canvas: Int[Array, "B L"],
        origin: Int[Array, " B"],
        keys: Key[Array, " B"],
        settings: Settings,
    ) -> loop.Result:
        """`loop.run` of the same arguments; returns when the result is there."""
        return self.call(loop.run, (model,), params, canvas, origin, keys, settings)

    def call(
        self, program: Callable[..., Any], static: tuple[Any, ...], *arguments: Any, donate: tuple[int, ...] = ()
    ) -> Any:
        """`program(*static, *arguments)`, compiled for the shapes of the arguments; `donate` numbers among these."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (program, static, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        since = time.perf_counter()
        if shapes not in self._programs:
            with self._around():
                # A jit of its own: what an earlier call of `loop.run` left in memory would make compiling look free.
                compiled = jax.jit(lambda *arguments: program(*static, *arguments), donate_argnums=donate)
                self._programs[shapes] = compiled.lower(*arguments).compile()
        ready = time.perf_counter()
        result = jax.block_until_ready(self._programs[shapes](*arguments))
        self.compile_seconds += ready - since
        self.seconds += time.perf_counter() - ready
        return result

    @property
    def programs(self) -> int:
        """How many were compiled so far."""
        return len(self._programs)


def batches(count: int, size: int) -> Iterator[Int[np.ndarray, " B"]]:
    """Numbers 0 to count - 1 in batches of one size; the last one repeats its own, so that no new shape compiles."""
    size = min(size, count)
    for first in range(0, count, size):
        yield np.resize(np.arange(first, min(first + size, count)), size)


def pad_to_bucket(prompts: Sequence[Sequence[int]], fill: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """`pad_prompts` to a multiple of BUCKET, or to the `room` that the context leaves where that is less."""
    longest = max(len(prompt) for prompt in prompts)
    return pad_prompts(prompts, fill, multiple=min(-(-longest // BUCKET) * BUCKET, room))


def bucket(length: int, room: int) -> int:
    """The width that a prompt of `length` is padded to in a stream: BUCKET doubled until it fits, at most `room`.

    Few programs, and no prompt in twice the columns that it needs.
    """
    width = BUCKET
    while width < length:
        width *= 2
    return min(width, room)


def request_keys(seed: int, requests: Int[np.ndarray, " B"]) -> Key[Array, " B"]:
    """The key of each request of a run: the same in whatever batch it is decoded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(requests))


@contextlib.contextmanager
def past_persistent_cache() -> Iterator[None]:
    """Nothing is read from JAX's persistent cache or written to it. JAX looks at the flag once: hence the resets."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
