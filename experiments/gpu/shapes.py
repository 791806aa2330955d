"""LLaDA-8B's shape with random weights, against what the GPU can do at most, both measured in the same minute.

A stage measures its ceilings itself: a large matrix product, and a copy, which reads and writes each byte.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gpu.job import Job
from jaxdiff.bench.ceilings import forward_cost
from jaxdiff.bench.clock import Median, in_turn
from jaxdiff.bench.shapes import random_params, shaped
from jaxdiff.caches import Dual, NoCache
from jaxdiff.decode import Decoder
from jaxdiff.decode.api import prepare
from jaxdiff.models.attention import _products, attend
from jaxdiff.policies import Fixed
from jaxdiff.protocols import Model
from jaxdiff.types import Inputs, Params
from jaxdiff.weights import full

SHAPE, BLOCK = "llada-8b", 32
STEPS = 8  # forwards of a block: four tokens each, as a threshold commits on an easy text; random weights pass none
PAIR = (16, 32)  # steps of a block whose difference is that of steps in the window alone
TRIES, BUDGET = 9, 4.0  # of a measurement: calls at most, and seconds
ROUNDS = 3  # of two decodes in turn
LOOP = 10  # forwards, products and copies in one program


@dataclasses.dataclass(frozen=True)
class Size:
    """Of the model (changes to the shape), of a decode, and of the ceilings' arrays."""

    model: dict[str, Any]
    prompt: int
    generated: int
    rows: tuple[int, ...]
    square: int  # side of the product
    copied: int  # bytes
    heads: tuple[int, int]  # of attention: count, size


FULL = Size({}, 1024, 256, (1, 8, 32), 8192, 2**32, (32, 128))
SMALL = Size(
    {
        "vocab_size": 512,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "mlp_hidden_size": 128,
        "mask_token_id": 0,
        "eos_token_id": 1,
    },
    *(64, 64, (1, 2), 256, 2**22, (4, 16)),
)


def size_of(job: Job) -> Size:
    return SMALL if job.small else FULL


def median(call: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of calls; one more before them warms up."""
    jax.block_until_ready(call())
    return warm_median(call)


def warm_median(call: Callable[[], Any]) -> dict[str, Any]:
    seconds, since = [], time.perf_counter()
    while len(seconds) < 2 or (len(seconds) < TRIES and time.perf_counter() - since < BUDGET):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return dataclasses.asdict(Median.of(seconds))


def ceilings(size: Size) -> dict[str, float]:
    """FLOP/s of a bfloat16 product of random numbers; bytes/s of a copy, reads and writes counted."""
    left, right = (
        jax.random.normal(jax.random.key(i), (size.square, size.square), jnp.bfloat16) / size.square**0.5
        for i in range(2)
    )
    product = jax.jit(lambda a, b: jax.lax.fori_loop(0, LOOP, lambda _, x: a @ x, b))
    seconds = median(lambda: product(left, right))["median"]
    data = jnp.ones(size.copied // 2, jnp.bfloat16)
    # The barrier keeps the compiler from making one of several copies.
    step = lambda _, x: jax.lax.optimization_barrier(-x)  # noqa: E731
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, LOOP, step, x), donate_argnums=0)
    held = [copy(data)]

    def again() -> Any:
        held[0] = copy(held[0])
        return held[0]

    copied = median(again)["median"]
    return {
        "matmul_flops_per_second": LOOP * 2 * size.square**3 / seconds,
        "copy_bytes_per_second": LOOP * 2 * size.copied / copied,
    }


def made(job: Job, weights: str | None = None) -> tuple[Size, Model, Params, dict[str, float]]:
    """The model, its weights, and the ceilings, which are put."""
    job.device()
    size = size_of(job)
    limits = job.part("ceilings", lambda: ceilings(size)) or {}
    model = shaped(SHAPE, "bfloat16", **size.model)
    params = jax.block_until_ready(random_params(model, weights))
    job.memory()
    return size, model, params, limits


def shape(job: Job) -> None:
    """Forwards and decodes in bfloat16, from what needs least memory to what needs most."""
    size, model, params, limits = made(job)
    tokens = jax.random.randint(jax.random.key(1), (1, size.prompt + size.generated), 2, model.config.vocab_size // 2)
    job.part("full_forward", lambda: full_forward(model, params, tokens, limits))
    job.part("bare_window_forward", lambda: window_forward(model, params, tokens, size.prompt, limits))
    job.part("dual_block_step", lambda: block_step(size, model, params, limits))
    decodes = [(Dual(), rows) for rows in size.rows]
    for cache, rows in [*decodes[:-1], (NoCache(), 1), decodes[-1]]:
        name = f"{type(cache).__name__.lower()}, {rows} rows"
        job.part(name, lambda rows=rows, cache=cache: throughput(size, model, params, rows, cache))
        job.memory()


def int8(job: Job) -> None:
    """The same with int8 weights (qwix), one row and a few."""
    size, model, params, limits = made(job, "int8")
    job.part("dual_block_step", lambda: block_step(size, model, params, limits))
    job.part(f"dual, {size.rows[1]} rows", lambda: throughput(size, model, params, size.rows[1], Dual()))
    job.memory()


def full_forward(model: Model, params: Params, tokens: Any, limits: dict[str, float]) -> dict[str, Any]:
    """One forward of the whole canvas, without the head."""
    run = jax.jit(lambda params, tokens: model.apply(params, Inputs.whole(tokens))[0])
    found = median(lambda: run(params, tokens))
    flops, read = forward_cost(model, params, 1, tokens.shape[1], tokens.shape[1])
    rate = flops / found["median"]
    shares = {"share_of_matmul": rate / limits["matmul_flops_per_second"]} if limits else {}
    return found | {"flops": flops, "bytes": read, "flops_per_second": rate, "columns": tokens.shape[1]} | shares


def window_forward(model: Model, params: Params, tokens: Any, first: int, limits: dict[str, float]) -> dict[str, Any]:
    """A forward of one block over the keys and values of all, with the head; neither policy nor loop."""
    seconds = median(bare_window(model, params, tokens, first))["median"] / LOOP
    return {"seconds": seconds} | streaming(model, params, tokens.shape[1], seconds, limits)


def bare_window(model: Model, params: Params, tokens: Any, first: int) -> Callable[[], Any]:
    """LOOP forwards of the block from column `first` on, over a cache, with the head and its argmax."""
    rows, length = tokens.shape
    at = jnp.full((rows,), first, jnp.int32)
    filled = jax.jit(lambda params, kv: model.apply(params, Inputs.whole(tokens), kv)[1], donate_argnums=1)

    def body(_: Any, carry: Any) -> Any:
        params, kv, block = carry
        positions = at[:, None] + jnp.arange(BLOCK, dtype=jnp.int32)[None]
        seen, fresh = jnp.ones((rows, length), bool), jnp.ones(block.shape, bool)
        inputs = Inputs(block, positions, seen, jnp.zeros_like(at), fresh)
        hidden, kv = model.apply(params, inputs, kv, at)
        head = full(model.head(params), hidden.dtype)
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        return params, kv, jnp.argmax(logits, axis=-1).astype(jnp.int32)

    many = jax.jit(
        lambda params, kv, block: jax.lax.fori_loop(0, LOOP, body, (params, kv, block))[1:], donate_argnums=1
    )
    state = [filled(params, model.empty_kv(rows, length)), tokens[:, first : first + BLOCK]]

    def call() -> Any:
        state[:] = many(params, *state)
        return state[1]

    return call


def streaming(model: Model, params: Params, length: int, seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """The bytes that a pass over a block reads (weights, head, one row's keys and values), and how long a copy's rate
    takes for them: its share of `seconds`.
    """
    read = forward_cost(model, params, 1, BLOCK, length)[1] + sum(
        leaf.nbytes for leaf in jax.tree.leaves(model.head(params))
    )
    shares = {"share_of_copy_rate": read / limits["copy_bytes_per_second"] / seconds} if limits else {}
    return {"bytes": read} | shares


def attention(job: Job) -> None:
    """The library's attention against `jax.nn.dot_product_attention` on the shapes of this forward.

    Seconds of one layer's attention, and the largest difference from float32 arithmetic over the largest result.
    """
    job.device()
    size = size_of(job)
    length, (heads, width) = size.prompt + size.generated, size.heads
    for rows, queries in ((1, length), (1, BLOCK), (size.rows[1], length)):
        keys = jax.random.split(jax.random.key(rows), 3)
        q = jax.random.normal(keys[0], (rows, queries, heads, width), jnp.bfloat16)
        k, v = (jax.random.normal(key, (rows, heads, length, width), jnp.bfloat16) for key in keys[1:])
        mask = jnp.ones((rows, 1, length), bool)  # of rows without padding
        right = jax.jit(_exact)(q, k, v, mask)
        for name, way in _ways().items():
            call = functools.partial(_attention, way, q, k, v, mask, right)
            job.part(f"{name}, {rows} x {queries} over {length}", call)


def _ways() -> dict[str, Callable[..., Any]]:
    def theirs(implementation: str, masked: bool) -> Callable[..., Any]:
        def way(q: Any, k: Any, v: Any, mask: Any) -> Any:
            k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
            seen = jnp.broadcast_to(mask[:, None], (len(q), 1, q.shape[1], mask.shape[-1]))  # as cuDNN wants it
            given = {"mask": seen} if masked else {}
            return jax.nn.dot_product_attention(q, k, v, implementation=implementation, **given)  # type: ignore[arg-type]

        return way

    return {
        "the library's": attend,
        "plain products": _products,
        "xla": theirs("xla", True),
        "cudnn": theirs("cudnn", True),
        "cudnn without a mask": theirs("cudnn", False),
    }


def _attention(way: Callable[..., Any], q: Any, k: Any, v: Any, mask: Any, right: Any) -> dict[str, Any]:
    one = jax.jit(way)(q, k, v, mask)
    off = float(jnp.max(jnp.abs(one.astype(jnp.float32) - right)) / jnp.max(jnp.abs(right)))

    @jax.jit
    def many(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return jax.lax.fori_loop(0, LOOP, lambda _, q: q + 1e-3 * way(q, k, v, mask).astype(q.dtype), q)

    return {"seconds": median(lambda: many(q, k, v, mask))["median"] / LOOP, "largest_error": off}


def _exact(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Attention in float32, with exact products; a row and a head at a time."""

    def head(q: Any, k: Any, v: Any, mask: Any) -> Any:
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
        logits = jnp.matmul(q, k.T, precision="highest") * q.shape[-1] ** -0.5
        return jnp.matmul(jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1), v, precision="highest")

    def row(args: Any) -> Any:
        q, k, v, mask = args
        return jax.lax.map(lambda one: head(one[0], one[1], one[2], mask), (jnp.moveaxis(q, 1, 0), k, v))

    return jnp.moveaxis(jax.lax.map(row, (q, k, v, mask)), 1, 2)


def block_step(size: Size, model: Model, params: Params, limits: dict[str, float]) -> dict[str, Any]:
    """Seconds of one step inside a block, with scores and policy: two decodes that differ in such steps alone.

    They are one program: the number of steps is a traced value.
    """
    calls = {steps: decoding(size, model, params, 1, Dual(), steps) for steps in PAIR}
    found = in_turn({str(steps): call for steps, call in calls.items()}, ROUNDS)
    between = (PAIR[1] - PAIR[0]) * size.generated // BLOCK
    apart = Median.of((found[str(PAIR[1])] - found[str(PAIR[0])]) / between)
    columns = size.prompt + size.generated
    return {
        "seconds": dataclasses.asdict(apart),
        "decode_seconds": {name: dataclasses.asdict(Median.of(seconds)) for name, seconds in found.items()},
    } | streaming(model, params, columns, apart.median, limits)


def throughput(size: Size, model: Model, params: Params, rows: int, cache: Any) -> dict[str, Any]:
    since = time.perf_counter()
    call = decoding(size, model, params, rows, cache, STEPS)
    result = call()
    first = time.perf_counter() - since
    seconds = warm_median(call)
    return {
        "seconds": seconds,
        "first_call_seconds": first,
        "nfe": np.asarray(result.nfe).tolist()[:1],
        "tokens_per_second": rows * size.generated / seconds["median"],
    }


def decoding(size: Size, model: Model, params: Params, rows: int, cache: Any, steps: int) -> Callable[[], Any]:
    """A decode of random prompts, ready to be called; each call returns when it is done."""
    prompts = np.random.default_rng(0).integers(2, model.config.vocab_size // 2, (rows, size.prompt), np.int32)
    decoder = Decoder(policy=Fixed(steps=steps), cache=cache, block_length=BLOCK)
    call = prepare(model, params, prompts, decoder, gen_length=size.generated)
    return lambda: jax.block_until_ready(call.run())
