"""`decode` and `infill`: check what can be checked before compilation, lay out the canvas, run the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jaxdiff.decode import loop
from jaxdiff.decode.cache import Cache, NoCache, check_cache, doublings, spans
from jaxdiff.decode.state import Settings
from jaxdiff.decode.stop import NoStop
from jaxdiff.parallel import check_axes, everywhere, place
from jaxdiff.policies import Fixed
from jaxdiff.types import Count, InputError, Leaf, Model, NeedsReference, Params, Policy, Stopper

BLOCK_LENGTH = 32


def decode(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    *,
    policy: Policy | None = None,
    stop: Stopper | None = None,
    cache: Cache | None = None,
    gen_length: int = 256,
    block_length: int | None = None,
    temperature: Leaf | float = 0.0,
    top_p: Leaf | float | None = None,
    top_k: Count | int | None = None,
    cfg_scale: Leaf | float | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    forbid_eos: bool = False,
    defer_eos: bool = False,
    mesh: Mesh | None = None,
    run: Callable[..., loop.Result] = loop.run,
) -> loop.Result:
    """Generate `gen_length` tokens after each prompt, block by block, in one compiled program.

    Args:
        prompts: token ids, [B P], padded on the left up to `origin` (see `pad_prompts`).
        policy: which positions commit at each step; default one token a step, most confident first.
        stop: when a row's end moves left; default never.
        cache: which keys and values are reused (`decode/cache.py`); default none, the only exact one on every model.
        gen_length: in tokens.
        block_length: in tokens, a divisor of the length; default 32. A model that attends in blocks has its own, which
            are counted from the row's first token: the rest of the prompt shares the first one. The last one is
            decoded whole, as the published samplers do, and what lies past `gen_length` is then cut off.
        temperature: 0 is greedy; a [B] vector gives each row its own.
        top_p, top_k: sample among the most likely tokens alone: those that together reach `top_p`, and of them the
            `top_k` best; one number, or one for each row. They take effect after the temperature. At temperature 0 the
            token stays the same, but its confidence is that among those left, as in Dream's `generation_utils.py`.
            `near_ties` does not count where float rounding decides who is left.
        cfg_scale: classifier-free guidance, w in un + (w + 1) (cond - un); None is off, and each guided forward
            costs 2 NFE.
        key: one key for each row (a request's seed; its tokens then do not depend on the batch), or one for all,
            from which row i takes `fold_in(key, i)`. Only sampling and random orders use it; default key 0.
        origin: column of each row's first token, [B]; default 0.
        forbid_eos: LLaDA's `logits_eos_inf`: end-of-text is never predicted.
        defer_eos: LLaDA's `confidence_eos_eot_inf`: positions predicted end-of-text or end-of-turn commit last.
            (The official code's chained assignment spares one of the two ids above temperature 0; here both wait.)
        mesh: the devices that rows and weights are spread over (see `make_mesh`); tokens, NFE and commit trace are the
            same on each, but for near-ties. Params that `load(mesh=...)` or `place` has not laid out are laid out in
            each call.
        run: what runs the program; a `Timed` compiles it ahead of time and tells compiling from running.

    Returns a `Result`; source of the loop: LLaDA `generate.py` (arXiv 2502.09992).

    Raises InputError before compilation for lengths that do not fit, [MASK] or an empty row in the prompts, ids
    outside the vocabulary, a cache that the stopper or the model cannot go with, a mesh that the model's heads or
    widths do not spread over.
    """
    rows, width = _shape("prompts", prompts)
    if width < 1:
        raise InputError("prompts: found length 0, expected at least one token; give a prompt")
    block_length = block_of(model, block_length)
    check_lengths(model, width, gen_length, block_length)
    origin = _origin(origin, rows, width)
    check_ids(model, prompts, origin, masks_allowed=False)
    overhang = overhang_of(model)
    masks = jnp.full((rows, gen_length + overhang), model.config.mask_token_id, jnp.int32)
    canvas = jnp.concatenate([jnp.asarray(prompts, jnp.int32), masks], axis=1)
    ways = (model, policy, stop, cache, temperature, cfg_scale, forbid_eos, defer_eos, mesh)
    settings = _settings(
        *ways,
        top_p=top_p,
        top_k=top_k,
        rows=rows,
        first=width,
        generated=gen_length,
        block=block_length,
        overhang=overhang,
    )
    return _run(run, model, params, canvas, origin, _keys(key, rows), settings)


def infill(
    model: Model,
    params: Params,
    canvas: Int[Array, "B L"] | np.ndarray,
    *,
    policy: Policy | None = None,
    stop: Stopper | None = None,
    cache: Cache | None = None,
    block_length: int | None = None,
    temperature: Leaf | float = 0.0,
    top_p: Leaf | float | None = None,
    top_k: Count | int | None = None,
    cfg_scale: Leaf | float | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    forbid_eos: bool = False,
    defer_eos: bool = False,
    mesh: Mesh | None = None,
    run: Callable[..., loop.Result] = loop.run,
) -> loop.Result:
    """Fill the [MASK] positions of a canvas, wherever they stand; all else is kept.

    The canvas has no padding. Blocks tile it from column 0; by default it is one block, so that any hole may be filled
    first. A model that attends in blocks has its own, and they must divide the canvas. The other arguments, the errors
    and the result are `decode`'s, with G = L.
    """
    rows, width = _shape("canvas", canvas)
    block_length = block_of(model, block_length, default=width)
    check_blocks(width, block_length)
    check_lengths(model, 0, width, block_length)
    origin = jnp.zeros((rows,), jnp.int32)
    check_ids(model, canvas, origin, masks_allowed=True)
    ways = (model, policy, stop, cache, temperature, cfg_scale, forbid_eos, defer_eos, mesh)
    settings = _settings(*ways, top_p=top_p, top_k=top_k, rows=rows, first=0, generated=width, block=block_length)
    return _run(run, model, params, jnp.asarray(canvas, jnp.int32), origin, _keys(key, rows), settings)


def pad_prompts(prompts: Sequence[Sequence[int]], fill: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of mixed lengths as one array, padded on the left: (prompts [B P], origin [B]).

    P is rounded up to a `multiple`, so that batches share compiled programs. Padding is never attended to.
    """
    width = -(-max(len(p) for p in prompts) // multiple) * multiple
    padded = np.full((len(prompts), width), fill, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return padded, np.asarray([width - len(p) for p in prompts], np.int32)


def _run(
    run: Callable[..., loop.Result],
    model: Model,
    params: Params,
    canvas: Int[Array, "B L"],
    origin: Int[Array, " B"],
    keys: Key[Array, " B"],
    settings: Settings,
) -> loop.Result:
    """`run`; before it, uncounted and untimed, the standard decode for a policy that lacks its answer.

    Raises InputError, before compilation, for what the policy refuses.
    """
    if settings.mesh is not None:
        check_axes(settings.mesh)
        params = place(model.config, params, settings.mesh)
        canvas, origin, keys, settings = everywhere((canvas, origin, keys, settings), settings.mesh)
    policy = settings.policy
    if isinstance(policy, NeedsReference) and policy.lacks_reference:
        standard = dataclasses.replace(settings, policy=Fixed(), cache=NoCache(), spans=())
        policy = policy.bind(loop.run(model, params, canvas, origin, keys, standard).tokens)
    jax.eval_shape(lambda: policy.init(canvas.shape[0], settings.block_length))
    return run(model, params, canvas, origin, keys, dataclasses.replace(settings, policy=policy))


def _shape(name: str, array: Any) -> tuple[int, int]:
    if getattr(array, "ndim", None) != 2 or array.shape[0] < 1:
        raise InputError(f"{name}: found shape {getattr(array, 'shape', type(array))}, expected [rows, length]")
    return array.shape


def check_blocks(generated: int, block: int) -> None:
    """Blocks divide what is generated; else InputError."""
    if generated < 1 or block < 1 or generated % block:
        raise InputError(
            f"gen_length: found {generated} with block_length {block}, expected a multiple of the block; "
            f"try gen_length {max(1, -(-generated // max(block, 1))) * max(block, 1)}"
        )


def block_of(model: Model, asked: int | None, *, default: int = BLOCK_LENGTH) -> int:
    """The block length of a decode: the one asked for, or the model's own, or `default`.

    Raises InputError for another one than that which the model attends in.
    """
    own = model.attention_block
    if own is not None and asked not in (None, own):
        raise InputError(f"block_length: found {asked}, but this model attends in blocks of {own}; leave it out")
    if own is not None:
        return own
    return default if asked is None else asked


def overhang_of(model: Model) -> int:
    """Columns past what is generated, for each row's last block to be whole where blocks hang on positions."""
    return 0 if model.attention_block is None else model.attention_block - 1


def check_lengths(model: Model, prompt: int, generated: int, block: int) -> None:
    """What is generated fits the context with the prompt, and the blocks divide it unless the model has its own.

    Raises InputError where not.
    """
    check_blocks(generated, block if model.attention_block is None else 1)
    context = model.config.max_sequence_length
    if prompt + generated > context:
        raise InputError(
            f"prompt: found {prompt} tokens + gen_length {generated} = {prompt + generated}, expected at most the "
            f"context of {context}; shorten the prompt or the generation"
        )


def check_ids(model: Model, ids: Any, origin: Any, *, masks_allowed: bool) -> None:
    """Ids lie in the vocabulary, and [MASK] only where it is allowed; else InputError.

    On concrete arrays; under a trace the caller vouches for them.
    """
    if isinstance(ids, jax.core.Tracer) or isinstance(origin, jax.core.Tracer):
        return
    ids, config = np.asarray(ids), model.config
    real = np.arange(ids.shape[1])[None] >= np.asarray(origin)[:, None]
    outside = np.argwhere(real & ((ids < 0) | (ids >= config.vocab_size)))
    if outside.size:
        row, column = outside[0]
        raise InputError(f"row {row}: found id {ids[row, column]}, expected 0 to {config.vocab_size - 1}")
    masks = np.argwhere(real & (ids == config.mask_token_id))
    if masks.size and not masks_allowed:
        raise InputError(
            f"prompt: row {masks[0][0]} holds [MASK] (id {config.mask_token_id}) in column {masks[0][1]}, expected "
            "none; take it out, or fill holes with infill"
        )


def _origin(origin: Any, rows: int, width: int) -> Int[Array, " B"]:
    if origin is None:
        return jnp.zeros((rows,), jnp.int32)
    if getattr(origin, "shape", None) != (rows,):
        raise InputError(f"origin: found shape {getattr(origin, 'shape', None)}, expected ({rows},), one for each row")
    if not isinstance(origin, jax.core.Tracer) and np.any((np.asarray(origin) < 0) | (np.asarray(origin) >= width)):
        raise InputError(f"origin: found {np.asarray(origin).tolist()}, expected 0 to {width - 1}: no row may be empty")
    return jnp.asarray(origin, jnp.int32)


def _keys(key: Any, rows: int) -> Key[Array, " B"]:
    key = jax.random.key(0) if key is None else key
    if not jnp.issubdtype(getattr(key, "dtype", None) or np.asarray(key).dtype, jax.dtypes.prng_key):
        raise InputError("key: found no typed key; make one with jax.random.key(seed)")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))
    if key.shape != (rows,):
        raise InputError(f"key: found shape {key.shape}, expected () or ({rows},), one for each row")
    return key


def _ladder(first: int, generated: int, block: int) -> tuple[int, ...]:
    """Canvas lengths with 1, 2, 4 ... blocks to generate: few programs, and no forward twice as long as it need be."""
    return tuple(first + length for length in doublings(generated, block))


def _settings(
    model: Model,
    policy: Policy | None,
    stop: Stopper | None,
    cache: Cache | None,
    temperature: Any,
    guidance: Any,
    forbid_eos: bool,
    defer_eos: bool,
    mesh: Mesh | None = None,
    *,
    rows: int,
    first: int,
    generated: int,
    block: int,
    overhang: int = 0,
    top_p: Any = None,
    top_k: Any = None,
) -> Settings:
    for name, value, low, high in (
        ("temperature", temperature, 0, np.inf),
        ("cfg_scale", guidance, 0, np.inf),
        ("top_p", top_p, 0, 1),
        ("top_k", top_k, 1, np.inf),
    ):
        if value is None or isinstance(value, jax.core.Tracer):
            continue
        array = np.asarray(value)
        fits = np.all(np.isfinite(array)) and np.all((array >= low) & (array <= high))
        if array.shape not in ((), (rows,)) or not fits or (name == "top_k" and np.any(array % 1)):
            most = "or more" if high == np.inf else f"to {high}"
            kind = "a whole number" if name == "top_k" else "a number"
            raise InputError(f"{name}: found {value}, expected {kind} of {low} {most}, or {rows} of them")
    stop, cache = stop or NoStop(), cache or NoCache()
    check_cache(cache, stop, model)
    return Settings(
        policy=policy or Fixed(),
        stop=stop,
        cache=cache,
        temperature=jnp.asarray(temperature, jnp.float32),
        guidance=None if guidance is None else jnp.asarray(guidance, jnp.float32),
        top_p=None if top_p is None else jnp.asarray(top_p, jnp.float32),
        top_k=None if top_k is None else jnp.asarray(top_k, jnp.int32),
        block_length=block,
        first=first,
        overhang=overhang,
        ladder=_ladder(first, generated, block) if stop.cuts else (),
        spans=() if cache.window == "canvas" else spans(cache, generated + 2 * overhang, block),
        forbid_eos=forbid_eos,
        defer_eos=defer_eos,
        mesh=mesh,
    )
