"""What can be refused before compilation: lengths, and parts of a decoder that do not go together."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxdiff.caches import CACHES
from jaxdiff.decode.causal import check_causal, check_filled
from jaxdiff.decode.compatible import check_constraint, check_encoding, check_weighed
from jaxdiff.decode.decoder import BLOCK_LENGTH, Decoder, Sampling
from jaxdiff.decode.guide import Guide, check_asked, check_guide
from jaxdiff.fills import FILLS
from jaxdiff.protocols import Cache, Fill, Model, Policy, Stopper
from jaxdiff.pytree import named_numbers
from jaxdiff.stoppers import StopStrings
from jaxdiff.stoppers.strings import NONE
from jaxdiff.types import REFERENCE, SHADOW, InputError


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


def check_decoder(
    decoder: Decoder,
    model: Model,
    rows: int | None,
    block: int | None,
    *,
    guide: Guide | None = None,
    longest: int | None = None,
) -> None:
    """Raises InputError for numbers that do not fit the rows, and for parts that do not go with each other, with the
    model, the guide or blocks of that length (None: not known yet); `longest` as in `check_guide`.
    """
    check_numbers(decoder, rows)
    check_causal(decoder, model)
    check_encoding(decoder, model)
    check_guide(decoder, model, guide, longest)
    if block is not None:
        check_block(decoder, block)
    check_reference(decoder.policy, decoder.fill)
    check_shadow(decoder.policy, model)
    check_kv(decoder, model)
    check_strings(decoder.stop_strings, rows)
    check_cache(decoder.cache, decoder.stop, model)
    check_length(decoder.length, decoder.cache, model)
    check_end_think(decoder.sampling, model)
    if decoder.constraint is not None:
        check_constraint(decoder.stop, decoder.stop_strings is not None)
        check_weighed(decoder, block)
        decoder.constraint.check(model)


def check_block(decoder: Decoder, block: int) -> None:
    """Raises the InputError of a policy or a fill that cannot serve blocks of so many positions."""
    check_weighed(decoder, block)
    jax.eval_shape(lambda: (decoder.policy.init(1, block), decoder.fill.init(1, block)))


def check_reference(policy: Policy, fill: Fill) -> None:
    """Raises InputError for a policy that decodes towards a reference with a fill that takes other tokens than the
    policy's.
    """
    name = FILLS.name_of(fill)
    if REFERENCE in policy.needs and name != "parallel":
        raise InputError(
            f"fill: found {name} with a policy that decodes towards a reference, expected one that writes its tokens "
            "as they are; take fill parallel"
        )


def check_shadow(policy: Policy, model: Model) -> None:
    """Raises InputError for a policy that needs a shadow, with a model that reads a token at the position before: a
    [MASK] there would stand for the token before, which is to be seen.
    """
    if SHADOW in policy.needs and model.shifted:
        raise InputError(
            "policy: found one that reads each token where a [MASK] stands in its place (wino), with a model whose "
            "logits are shifted by one, expected one that reads a token at its own position; take edit or remedi"
        )


def check_kv(decoder: Decoder, model: Model) -> None:
    """Raises InputError for a cache or a fill that reads keys and values of a model that keeps none."""
    if not decoder.keeps_kv or jax.tree.leaves(jax.eval_shape(lambda: model.empty_kv(1, 1))):
        return
    cached = decoder.cache.window != "canvas"
    part = f"cache: found {CACHES.name_of(decoder.cache)}" if cached else f"fill: found {FILLS.name_of(decoder.fill)}"
    raise InputError(
        f"{part}, which reads keys and values, with a {type(model).__name__}, which keeps none; take cache none and "
        "fill parallel"
    )


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


def check_canvas(decoder: Decoder, model: Model) -> None:
    """Raises InputError where a canvas is to be filled, for a variable length, a policy that asks a guide, and for an
    autoregressive model.
    """
    check_filled(model)
    check_asked(decoder.policy, given=False)
    if decoder.length != "fixed":
        raise InputError(f"length: found {decoder.length} for a canvas, whose length is given; leave it out")


def check_end_think(sampling: Sampling, model: Model) -> None:
    """Raises InputError for a sequence that this model cannot write."""
    tokens = () if sampling.end_think is None else sampling.end_think.tokens
    size, mask = model.config.vocab_size, model.config.mask_token_id
    if wrong := [token for token in tokens if not 0 <= token < size or token == mask]:
        raise InputError(f"end_think: found token {wrong[0]}, expected ids under {size} without [MASK] ({mask})")


def check_no_strings(decoder: Decoder, what: str = "a canvas") -> None:
    """A canvas is filled to its end, as what holds a choice is; else InputError."""
    if decoder.stop_strings is None:
        return
    if found := int(np.sum(np.asarray(decoder.stop_strings.strings)[..., -1] != NONE)):
        raise InputError(f"stop_strings: found {found} for {what}, expected none: all masks are to be filled")


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


def check_numbers(decoder: Any, rows: int | None) -> None:
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
