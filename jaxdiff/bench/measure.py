"""What `jaxdiff bench` measures: ratios of ways that do the same work, medians over rounds, intervals beside them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdiff.bench import ceilings
from jaxdiff.bench.clock import Median, in_turn, ratio
from jaxdiff.decode import Decoder, Guide, Program, lower
from jaxdiff.protocols import Model
from jaxdiff.types import Inputs, Params, Span
from jaxdiff.weights import full


@dataclasses.dataclass(frozen=True)
class Work:
    """The decode that every way runs."""

    model: Model
    params: Params
    prompts: Int[np.ndarray, "B P"]
    origin: Int[np.ndarray, " B"]
    decoder: Decoder
    gen_length: int
    block_length: int
    rounds: int
    target: Mesh | None = None  # devices that need not be here; then nothing can be run
    guide: Guide | None = None

    def program(self, **changes: Any) -> Timing:
        """The decode with these parts of its decoder changed, compiled; run once where there are weights for it."""
        decoder = dataclasses.replace(self.decoder, **changes)
        options = {"gen_length": self.gen_length, "origin": self.origin, "target": self.target, "guide": self.guide}
        return Timing(lower(self.model, self.params, self.prompts, decoder, **options))


class Timing:
    """A compiled decode, and its first run: the seconds, and the result, which is None where nothing can be run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        since = time.perf_counter()
        self.result = program() if program.runs else None
        self.first_seconds = time.perf_counter() - since

    @property
    def steps(self) -> int:
        """Iterations of the loop: the forwards of the row that took most."""
        assert self.result is not None
        return int(jnp.max(self.result.nfe))


def step_over_forward(work: Work, program: Timing, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Seconds of the compiled decode over those of as many bare forwards with the head: policy, loop and scores."""
    masks = np.full((len(work.prompts), work.gen_length), work.model.config.mask_token_id, np.int32)
    least = bare(
        work.model,
        work.params,
        jnp.asarray(np.concatenate([work.prompts, masks], axis=1)),
        jnp.asarray(work.origin),
        first=work.prompts.shape[1],
        window=work.block_length,
        steps=program.steps,
    )
    seconds = in_turn({"decode": program.program, "forward": least}, work.rounds, progress)
    return {
        "ratio": dataclasses.asdict(ratio(seconds["decode"], seconds["forward"])),
        "step_seconds": dataclasses.asdict(Median.of(seconds["decode"] / program.steps)),
        "forward_seconds": dataclasses.asdict(Median.of(seconds["forward"] / program.steps)),
        "steps": program.steps,
    }


def bare(
    model: Model,
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
        block = Span(jnp.full_like(origin, first), window)
        hidden, _ = model.apply(params, Inputs.whole(canvas, origin), read=block)
        head = full(model.head(params), hidden.dtype)
        token = jnp.argmax(jnp.matmul(hidden, head, preferred_element_type=jnp.float32), axis=-1).astype(jnp.int32)
        return params, jax.lax.dynamic_update_slice_in_dim(canvas, token, first, axis=1)

    program = jax.jit(lambda params, canvas: jax.lax.fori_loop(0, steps, body, (params, canvas))[1])
    compiled = program.lower(params, canvas).compile()
    return lambda: jax.block_until_ready(compiled(params, canvas))


def cache_speedups(
    work: Work, program: Timing, caches: dict[str, Any], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Seconds of the decode without a cache over those with each, the same policy and lengths."""
    programs = {name: work.program(cache=cache) for name, cache in caches.items()}
    ways = {"none": program.program} | {name: made.program for name, made in programs.items()}
    seconds = in_turn(ways, work.rounds, progress)
    return {
        name: {
            "ratio": dataclasses.asdict(ratio(seconds["none"], seconds[name])),
            "steps": made.steps,
            "same_tokens": _same(program, made),
        }
        for name, made in programs.items()
    }


def against_plain(
    work: Work, program: Timing, params: Params, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Seconds of the decode with the plain params over those of the work, in int8; and what int8 does to the logits.

    Those are of the first block's masks, all of them; `logit_error` is the norm of the difference over the norm.
    """
    whole = dataclasses.replace(work, params=params)
    other = whole.program()
    seconds = in_turn({"plain": other.program, "int8": program.program}, work.rounds, progress)
    right, found = _logits(whole), _logits(work)
    off = jnp.abs(found - right)
    return {
        "ratio": dataclasses.asdict(ratio(seconds["plain"], seconds["int8"])),
        "steps": program.steps,
        "plain_steps": other.steps,
        "argument_bytes": program.program.argument_bytes,
        "plain_argument_bytes": other.program.argument_bytes,
        "logit_error": float(jnp.linalg.norm(off) / jnp.linalg.norm(right)),
        "largest_logit_error": float(jnp.max(off)),
        "same_argmax": float(jnp.mean(jnp.argmax(found, -1) == jnp.argmax(right, -1))),
        "same_tokens": _same(other, program),
    }


def _logits(work: Work) -> Float[Array, "B W V"]:
    """Of the first block, before any of it is committed."""
    first, c = work.prompts.shape[1], work.model.config
    canvas = jnp.pad(jnp.asarray(work.prompts), ((0, 0), (0, work.gen_length)), constant_values=c.mask_token_id)

    @jax.jit
    def logits(params: Params) -> Float[Array, "B W V"]:
        features, _ = work.model.apply(params, Inputs.whole(canvas, jnp.asarray(work.origin)))
        head = full(work.model.head(params), features.dtype)
        return jnp.matmul(features[:, first : first + work.block_length], head, preferred_element_type=jnp.float32)

    return logits(work.params)


def roofline(work: Work) -> dict[str, Any]:
    """One full forward against this machine's matrix product and its streaming rate, both measured now."""
    model, dtype = work.model, work.model.config.dtype
    rows, tokens = len(work.prompts), work.prompts.shape[1] + work.gen_length
    inputs = Inputs.whole(jnp.zeros((rows, tokens), jnp.int32))
    forward = jax.jit(lambda params, inputs: model.apply(params, inputs)[0])
    seconds = ceilings.best_seconds(lambda: forward(work.params, inputs))
    flops, read = ceilings.forward_cost(model, work.params, rows, tokens, tokens)
    most_flops, most_bytes = ceilings.matmul_flops(dtype), ceilings.stream_bytes(dtype)
    return {
        "forward_seconds": seconds,
        "tokens": rows * tokens,
        "flops_per_second": flops / seconds,
        "matmul_flops_per_second": most_flops,
        "share_of_matmul": flops / seconds / most_flops,
        "bytes_per_second": read / seconds,
        "stream_bytes_per_second": most_bytes,
        "share_of_roofline": max(flops / most_flops, read / most_bytes) / seconds,
    }


def _same(a: Timing, b: Timing) -> float:
    """The share of tokens that two decodes have in common."""
    assert a.result is not None
    assert b.result is not None
    return float(jnp.mean(a.result.tokens == b.result.tokens))
