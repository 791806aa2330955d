"""Programs as values: a decode compiled ahead of time, and a clock that tells compiling from running."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from jaxdiff.decode import loop
from jaxdiff.decode.layout import Setup
from jaxdiff.decode.result import Result
from jaxdiff.decode.state import Rows
from jaxdiff.parallel.mesh import WHOLE, compiling_for
from jaxdiff.parallel.rules import shardings
from jaxdiff.types import InputError

Runs = Callable[..., Any]  # (program, *arguments) -> its result: `direct`, or `Timed.call`


def direct(program: Callable[..., Any], *arguments: Any) -> Any:
    """`program(*arguments)`, compiled for 32 bits."""
    with jax.enable_x64(False):
        return program(*arguments)


@dataclasses.dataclass(frozen=True)
class Call:
    """One decode, checked and laid out: what `loop.run` takes."""

    setup: Setup
    rows: Rows

    def run(self, call: Runs = direct) -> Result:
        return call(loop.run, self.setup, self.rows)

    def on(self, mesh: Mesh) -> Call:
        """Its shapes, laid over devices that need not be here as `prepare` lays arrays over a mesh; nothing to run.

        Raises InputError for a model that does not spread over them.
        """
        there = NamedSharding(mesh, WHOLE)
        setup, rows = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), (self.setup, self.rows)
        )
        if mesh.size > 1:  # one device needs no mesh
            params = shardings(setup.model.config, setup.params, mesh)
            layout, guide = dataclasses.replace(setup.layout, mesh=mesh), setup.guide
            if guide is not None:
                laid = shardings(guide.model.config, guide.params, mesh)
                guide = dataclasses.replace(guide, params=laid)
            setup = dataclasses.replace(setup, params=params, layout=layout, guide=guide)
        return Call(setup, rows)


class Program:
    """A decode compiled ahead of time, past JAX's persistent cache, kept with its arguments.

    Attributes:
        compile_seconds: tracing and compiling.
        argument_bytes: the parameters above all, as the device holds them; over a mesh, each of its devices.
        temp_bytes: what the program needs there beyond its arguments and results, keys and values included, from
            the compiler's memory analysis.
        out_info: shapes of the result.
        compiled: JAX's own `jax.stages.Compiled`, with its HLO and cost analysis.
    """

    def __init__(self, call: Call, target: Mesh | None = None) -> None:
        """`target`: devices that need not be here: compiled for, not run.

        Raises InputError for a target that is too small, or that the model does not spread over.
        """
        self._chip = None if target is None else target.devices.flat[0]
        call = call if target is None else call.on(target)
        self._arguments = (call.setup, call.rows)
        since = time.perf_counter()
        with ahead_of_time(), past_persistent_cache(), compiling_for(self._chip and self._chip.platform):
            lowered = jax.jit(lambda *given: loop.run(*given)).lower(*self._arguments)
            self.compiled = self._compile(lowered)
        self.compile_seconds = time.perf_counter() - since
        self.out_info: Any = lowered.out_info
        memory: Any = self.compiled.memory_analysis()
        self.argument_bytes = int(memory.argument_size_in_bytes)
        self.temp_bytes = int(memory.temp_size_in_bytes)
        if (self._chip or jax.devices()[0]).platform == "tpu":  # whose compiler may count its heap twice there
            self.temp_bytes = int(memory.peak_memory_in_bytes) - self.argument_bytes

    def __call__(self) -> Result:
        """Run it; returns when the result is there. Raises InputError where there are shapes alone to run on."""
        if not self.runs:
            raise InputError("program: found shapes, expected arrays; it was compiled to be inspected")
        return jax.block_until_ready(self.compiled(*self._arguments))

    @property
    def runs(self) -> bool:
        """Whether it was given arrays, and not shapes alone."""
        return not isinstance(jax.tree.leaves(self._arguments)[0], jax.ShapeDtypeStruct)

    def _compile(self, lowered: Any) -> Any:
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if self._chip is None or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            what = re.sub(r".*?RESOURCE_EXHAUSTED: ", "", str(error).splitlines()[0])
            raise InputError(
                f"target: found a program too large for {self._chip.device_kind}: {what} Take --weights int8, fewer "
                "rows, a larger chip or a mesh of several"
            ) from error


class Timed:
    """Compiles each shape once, ahead of time, and times that apart from running.

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

    def run(self, call: Call) -> Result:
        """`call.run()`, timed: what `prepare` or `prepare_infill` made."""
        return call.run(self.call)

    def call(self, program: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
        """`program(*arguments)`, compiled for what of them is static and for their shapes; `donate`: by number."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = (program, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        since = time.perf_counter()
        if shapes not in self._programs:
            with self._around(), ahead_of_time():
                # A jit of its own: what an earlier call of `loop.run` left in memory would make compiling look free.
                compiled = jax.jit(lambda *arguments: program(*arguments), donate_argnums=donate)
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


@contextlib.contextmanager
def ahead_of_time() -> Iterator[None]:
    """Programs are of 32 bits, whatever JAX_ENABLE_X64 says. Raises InputError where JAX is told not to compile."""
    if jax.config.values["jax_disable_jit"]:
        raise InputError("JAX_DISABLE_JIT: found it set, but programs are compiled ahead of time; unset it")
    with jax.enable_x64(False):
        yield


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
