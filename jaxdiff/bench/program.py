"""A decode as a compiled program that can be run again: what `decode(..., run=Program())` leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from jaxdiff.decode import loop
from jaxdiff.decode.many import past_persistent_cache
from jaxdiff.decode.state import Settings
from jaxdiff.types import Model, Params, Remembering, Span
from jaxdiff.weights import full


class Program:
    """Compiles a decode ahead of time, past JAX's persistent cache, and keeps it with its arguments.

    Attributes:
        compile_seconds: tracing and compiling.
        argument_bytes: the parameters above all, as the device holds them.
        temp_bytes: what the program needs beyond its arguments and results, from the compiler's memory analysis.
        result: of the first run; None where the parameters are shapes alone.
    """

    compile_seconds: float
    argument_bytes: int
    temp_bytes: int
    result: loop.Result | None = None

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
        """
        arguments = (params, canvas, origin, keys, settings)
        since = time.perf_counter()
        with past_persistent_cache():
            lowered = jax.jit(lambda *given: loop.run(model, *given)).lower(*arguments)
            compiled = lowered.compile()
        self.compile_seconds = time.perf_counter() - since
        memory: Any = compiled.memory_analysis()
        self.argument_bytes = int(memory.argument_size_in_bytes)
        self.temp_bytes = int(memory.temp_size_in_bytes)
        if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
            return lowered.out_info
        self.again: Callable[[], loop.Result] = lambda: jax.block_until_ready(compiled(*arguments))
        self.result = self.again()
        return self.result

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
