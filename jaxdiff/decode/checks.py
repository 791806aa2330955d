"""What can be refused before compilation: shapes, lengths, ids, keys, and parts that do not go together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.caches import CACHES
from jaxdiff.decode.decoder import BLOCK_LENGTH, Decoder, Sampling
from jaxdiff.decode.state import row_keys
from jaxdiff.protocols import Cache, Model, Stopper
from jaxdiff.pytree import named_numbers
from jaxdiff.stoppers import StopStrings
from jaxdiff.stoppers.strings import NONE
from jaxdiff.types import InputError, Params


def shape_of(name: str, array: Any) -> tuple[int, int]:
    """(rows, length) of an array of ids; else InputError."""
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

    Raises InputError for one that is no whole number, or does not divide that which the model attends in.
    """
    own = model.attention_block
    check_whole("block_length", asked)
    if own is None:
        return default if asked is None else asked
    if asked is not None and (asked < 1 or own % asked):
        raise InputError(
            f"block_length: found {asked}, but this model attends in blocks of {own}; leave it out, or take a divisor"
        )
    return own if asked is None else asked


def check_whole(name: str, length: Any) -> None:
    """A length, where one is given, is a whole number; else InputError."""
    if length is not None and not isinstance(length, int | np.integer):
        raise InputError(f"{name}: found {length!r:.40}, expected a whole number of tokens")


def whole_block(model: Model, block: int) -> int:
    """The length of the blocks that the model attends in, which blocks of length `block` tile; `block` where it has
    none.
    """
    return block if model.attention_block is None else model.attention_block


def overhang_of(model: Model) -> int:
    """Columns past what is generated, for each row's last block to be whole where blocks hang on positions."""
    return 0 if model.attention_block is None else model.attention_block - 1


def check_lengths(model: Model, prompt: int, generated: int, block: int) -> None:
    """What is generated fits the context with the prompt, and the blocks divide it unless the model has its own.

    Raises InputError where not.
    """
    check_whole("gen_length", generated)
    check_blocks(generated, block if model.attention_block is None else 1)
    context = model.config.max_sequence_length
    if prompt + generated > context:
        raise InputError(
            f"prompt: found {prompt} tokens + gen_length {generated} = {prompt + generated}, expected at most the "
            f"context of {context}; shorten the prompt or the generation"
        )


def check_ids(model: Model, ids: Any, origin: Any, *, masks_allowed: bool, alone: bool = False) -> None:
    """Ids lie in the vocabulary, and [MASK] only where it is allowed; else InputError.

    On concrete arrays; under a trace the caller vouches for them. `alone`: they are one request's, and no row is named.
    """
    if isinstance(ids, jax.core.Tracer) or isinstance(origin, jax.core.Tracer):
        return
    ids, config = np.asarray(ids), model.config
    real = np.arange(ids.shape[1])[None] >= np.asarray(origin)[:, None]
    outside = np.argwhere(real & ((ids < 0) | (ids >= config.vocab_size)))
    if outside.size:
        row, column = outside[0]
        where = f"token {column}" if alone else f"row {row}"
        raise InputError(f"{where}: found id {ids[row, column]}, expected 0 to {config.vocab_size - 1}")
    masks = np.argwhere(real & (ids == config.mask_token_id))
    if masks.size and not masks_allowed:
        row, column = masks[0]
        where = "" if alone else f"row {row} "
        raise InputError(
            f"prompt: {where}holds [MASK] (id {config.mask_token_id}) in column {column}, expected none; take it out, "
            "or fill holes with infill"
        )


def checked_origin(origin: Any, rows: int, width: int) -> Int[Array, " B"]:
    """The column of each row's first token, 0 where it is not given; no row may be empty, else InputError."""
    if origin is None:
        return jnp.zeros((rows,), jnp.int32)
    if getattr(origin, "shape", None) != (rows,):
        raise InputError(f"origin: found shape {getattr(origin, 'shape', None)}, expected ({rows},), one for each row")
    if not isinstance(origin, jax.core.Tracer) and np.any((np.asarray(origin) < 0) | (np.asarray(origin) >= width)):
        raise InputError(f"origin: found {np.asarray(origin).tolist()}, expected 0 to {width - 1}: no row may be empty")
    return jnp.asarray(origin, jnp.int32)


def checked_keys(key: Any, rows: int) -> Key[Array, " B"]:
    """A key for each row: those given, or the one given (default key 0) folded with the row's number."""
    key = jax.random.key(0) if key is None else key
    check_typed(key)
    if key.ndim == 0:
        return row_keys(key, np.arange(rows, dtype=np.int32))
    if key.shape != (rows,):
        raise InputError(f"key: found shape {key.shape}, expected () or ({rows},), one for each row")
    return key


def check_typed(key: Any) -> None:
    """Raises InputError for what is no key, nor an array of them."""
    if not jnp.issubdtype(getattr(key, "dtype", None) or np.asarray(key).dtype, jax.dtypes.prng_key):
        raise InputError("key: found no typed key; make one with jax.random.key(seed)")


def checked_reference(model: Model, reference: Any, rows: int, length: int, overhang: int) -> Int[Array, "B L"]:
    """The finished canvases [rows, length] that a policy decodes towards, with [MASK] in the overhang.

    Raises InputError for another shape, and for a canvas with masks left.
    """
    if getattr(reference, "shape", None) != (rows, length):
        found = getattr(reference, "shape", None)
        raise InputError(f"reference: found shape {found}, expected the canvas' {(rows, length)}")
    mask = model.config.mask_token_id
    if not isinstance(reference, jax.core.Tracer) and np.any(np.asarray(reference) == mask):
        row = int(np.argwhere(np.asarray(reference) == mask)[0][0])
        raise InputError(f"reference: row {row} holds [MASK] (id {mask}), expected a canvas that is filled")
    return jnp.pad(jnp.asarray(reference, jnp.int32), ((0, 0), (0, overhang)), constant_values=mask)


def check_decoder(decoder: Decoder, model: Model, params: Params, rows: int | None) -> None:
    """Raises InputError for numbers that do not fit the rows, and for parts that do not go with each other or with the
    model.
    """
    check_numbers(decoder, rows)
    check_strings(decoder.stop_strings, rows)
    check_cache(decoder.cache, decoder.stop, model)
    check_length(decoder.length, decoder.cache, model)
    decoder.fill.check(model, params)
    check_end_think(decoder.sampling, model)


def check_length(length: str, cache: Cache, model: Model | None = None) -> None:
    """Raises InputError for a variable length with a cache or a model (None: not known yet) it does not fit."""
    if length == "fixed":
        return
    if cache.window != "canvas":
        raise InputError(
            f"length: found {length} with cache {CACHES.name_of(cache)}, expected none: with each block that is added "
            "all keys and values change; leave one of the two out"
        )
    if model is not None and model.attention_block is not None:
        raise InputError(
            f"length: found {length} with a model that attends in blocks of {model.attention_block}, and sees nothing "
            "right of them as it is; leave it out"
        )


def check_canvas(decoder: Decoder) -> None:
    """Raises InputError for a variable length where a canvas is to be filled."""
    if decoder.length != "fixed":
        raise InputError(f"length: found {decoder.length} for a canvas, whose length is given; leave it out")


def check_end_think(sampling: Sampling, model: Model) -> None:
    """Raises InputError for a sequence that this model cannot write."""
    tokens = () if sampling.end_think is None else sampling.end_think.tokens
    size, mask = model.config.vocab_size, model.config.mask_token_id
    if wrong := [token for token in tokens if not 0 <= token < size or token == mask]:
        raise InputError(f"end_think: found token {wrong[0]}, expected ids under {size} without [MASK] ({mask})")


def check_no_strings(decoder: Decoder) -> None:
    """A canvas is filled to its end; else InputError."""
    if decoder.stop_strings is None:
        return
    if found := int(np.sum(np.asarray(decoder.stop_strings.strings)[..., -1] != NONE)):
        raise InputError(f"stop_strings: found {found} for a canvas, expected none: its holes are all to be filled")


def check_strings(found: StopStrings | None, rows: int | None) -> None:
    """Raises InputError for stop strings of each row that are of another count than the rows; None: the same for all
    are expected.
    """
    each = () if found is None else found.strings.shape[:-2]
    if each and rows is None:
        raise InputError(
            "stop_strings: found some for each row, expected the same for all; a stream has slots, not rows: a "
            "request's own are its stop_strings"
        )
    if each not in ((), (rows,)):
        raise InputError(f"stop_strings: found {each[0]} sets, expected one, or {rows}: one for each row")


def check_numbers(decoder: Decoder, rows: int | None) -> None:
    """Raises InputError for numbers of another count than the rows; None: one for all is expected."""
    for name, value in named_numbers(decoder):
        shape: tuple[int, ...] = getattr(value, "shape", ())
        if shape and rows is None:
            raise InputError(f"{name}: found a value for each row, expected one for all; a stream has slots, not rows")
        if shape not in ((), (rows,)):
            raise InputError(f"{name}: found {shape[0]} values, expected one, or {rows}: one for each row")


def check_cache(cache: Cache, stop: Stopper, model: Model | None = None) -> None:
    """Raises InputError for a cache that does not go with the stopper or the model (None: not known yet)."""
    if cache.block_causal and model is not None and model.attention_block is None:
        raise InputError(
            f"cache: found {CACHES.name_of(cache)} with a model whose positions all see each other, expected one that "
            "attends in blocks; take cache prefix, dual or frozen"
        )
    if cache.seeds and model is not None and not model.shifted:
        raise InputError(
            f"cache: found {CACHES.name_of(cache)} with a model that reads a block's first token inside the block, "
            "expected one whose logits are shifted by one; take cache block"
        )
    if cache.window == "block" and stop.wants_tail:
        raise InputError(
            f"cache: found {CACHES.name_of(cache)} with a stopper that asks for end-of-text on the whole canvas, "
            "expected one that asks for the block alone; take stop eos or eotp:way=block, or cache prefix or frozen"
        )
