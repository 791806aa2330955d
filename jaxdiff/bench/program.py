"""A decode as a compiled program that can be run again: what `decode(..., run=Program())` leaves behind."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Int, Key

from jaxdiff.decode import loop
from jaxdiff.decode.many import past_persistent_cache
from jaxdiff.decode.state import Settings
from jaxdiff.parallel import compiling_for
from jaxdiff.types import InputError, Model, Params, Remembering, Span
from jaxdiff.weights import full


class Program:
    """Compiles a decode ahead of time, past JAX's persistent cache, and keeps it with its arguments.

    Args:
        target: a chip that is not here (`targets.py`): compiled for, not run.

    Attributes:
        compile_seconds: tracing and compiling.
        argument_bytes: the parameters above all, as the device holds them.
        temp_bytes: what the program needs beyond its arguments and results, keys and values included, from the
            compiler's memory analysis.
        result: of the first run; None where nothing is run.
    """

    compile_seconds: float
    argument_bytes: int
    temp_bytes: int
    result: loop.Result | None = None

    def __init__(self, target: jax.Device | None = None) -> None:
        self.target = target

    def __call__(
        self,
        model: Model,
        params: Params,
        canvas: Int[Array, "B L"],
        origin: Int[Array, " B"],
        keys: Key[Array, " B"],
        settings: Settings,
    ) -> loop.Result:
        """`loop.run` of the same arguments; parameters given as `jax.ShapeDtypeStruct` are compiled for, not run, and
        the result holds shapes.

        Raises InputError for a target that is too small.
        """
        arguments: Any = (params, canvas, origin, keys, settings)
        if self.target is not None:
            there = SingleDeviceSharding(self.target)
            arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
        since = time.perf_counter()
        with past_persistent_cache(), compiling_for(None if self.target is None else self.target.platform):
            lowered = jax.jit(lambda *given: loop.run(model, *given)).lower(*arguments)
            compiled = self._compiled(lowered)
        self.compile_seconds = time.perf_counter() - since
        memory: Any = compiled.memory_analysis()
        self.argument_bytes = int(memory.argument_size_in_bytes)
        self.temp_bytes = int(memory.temp_size_in_bytes)
        if (self.target or jax.devices()[0]).platform == "tpu":  # whose compiler may count its heap twice there
            self.temp_bytes = int(memory.peak_memory_in_bytes) - self.argument_bytes
        if isinstance(jax.tree.leaves(arguments)[0], jax.ShapeDtypeStruct):
            return lowered.out_info
        self.again: Callable[[], loop.Result] = lambda: jax.block_until_ready(compiled(*arguments))
        self.result = self.again()
        return self.result

    def _compiled(self, lowered: Any) -> Any:
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if self.target is None or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            what = re.sub(r".*?RESOURCE_EXHAUSTED: ", "", str(error).splitlines()[0])
            raise InputError(
                f"target: found a program too large for {self.target.device_kind}: {what} Take --weights int8, fewer "
                "rows or a larger chip"
            ) from error

    @property
    def steps(self) -> int:
        """Iterations of the loop: the forwards of the row that took most."""
        assert self.result is not None
        return int(jnp.max(self.result.nfe))


def bare(
    model: Remembering,
    params: Params,
    canvas: Int[Array, "B L"],
    origin: Int[Array, " B"],
    *,
    first: int,
    window: int,
    steps: int,
) -> Callable[[], Any]:
    """The least that `steps` decoding steps without a cache can cost, compiled: forward and head alone.

    Each iteration runs the whole canvas [B L] for the features of the block [B W D] from column `first`, multiplies
    them with the head, and writes the argmax into the block, so that no iteration can be left out or moved.
    """

    def body(_: Any, carry: Any) -> Any:
        params, canvas = carry
        column = jnp.arange(canvas.shape[1], dtype=jnp.int32)[None]
        positions = jnp.maximum(column - origin[:, None], 0)
        block = Span(jnp.full_like(origin, first), window)
        hidden = model.features(params, canvas, positions, column >= origin[:, None], read=block)
        head = full(model.head(params), hidden.dtype)
        token = jnp.argmax(jnp.matmul(hidden, head, preferred_element_type=jnp.float32), axis=-1).astype(jnp.int32)
        return params, jax.lax.dynamic_update_slice_in_dim(canvas, token, first, axis=1)

    program = jax.jit(lambda params, canvas: jax.lax.fori_loop(0, steps, body, (params, canvas))[1])
    compiled = program.lower(params, canvas).compile()
    return lambda: jax.block_until_ready(compiled(params, canvas))
