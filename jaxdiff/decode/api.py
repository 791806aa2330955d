"""`decode`, `infill` and `lower`: check what can be checked before compilation, lay out the canvas, run the program."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jaxdiff.caches import NoCache
from jaxdiff.decode import arrays, checks, completion, loop
from jaxdiff.decode.decoder import Decoder
from jaxdiff.decode.guide import Guide
from jaxdiff.decode.layout import Layout, Setup, layout_of
from jaxdiff.decode.program import Call, Program
from jaxdiff.decode.result import Result
from jaxdiff.decode.state import Rows
from jaxdiff.models.guided import Guided
from jaxdiff.parallel.mesh import check_axes, everywhere
from jaxdiff.parallel.rules import place
from jaxdiff.policies import Fixed
from jaxdiff.protocols import Model
from jaxdiff.types import REFERENCE, InputError, Params


def decode(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
    reference: Int[Array, "B L"] | np.ndarray | None = None,
    guide: Guide | None = None,
) -> Result:
    """Generate `gen_length` tokens after each prompt, block by block, in one compiled program.

    Args:
        prompts: token ids, [B P], padded on the left up to `origin` (see `pad_prompts`).
        decoder: how; default one token a step, most confident first. Its `block_length` divides `gen_length`. A model
            that attends in blocks has its own, which are counted from the row's first token: the rest of the prompt
            shares the first one. The last one is decoded whole, as the published samplers do, and what lies past
            `gen_length` is then cut off.
        gen_length: in tokens.
        origin: column of each row's first token, [B]; default 0.
        key: one key for each row (a request's seed; its tokens then do not depend on the batch), or one for all,
            from which row i takes `fold_in(key, i)`. Only sampling and random orders use it; default key 0.
        mesh: the devices that rows and weights are spread over (see `make_mesh`); tokens, NFE and commit trace are the
            same on each, but for near-ties. Params that `load(mesh=...)` or `place` has not laid out are laid out in
            each call.
        reference: finished canvases (`Result.tokens`) for a policy that decodes towards them; where it needs one and
            none is given, the standard decode of the same rows is run first. Its forwards are not counted.
        guide: an autoregressive model of the same tokenizer, for a policy that asks one (`agree`): it reads each step's
            draft in one pass, counted in `guide_nfe` and, by its weights, in `work`.

    Returns a `Result`; source of the loop: LLaDA `generate.py` (arXiv 2502.09992).

    Raises InputError before compilation for lengths that do not fit, [MASK] or an empty row in the prompts, ids
    outside the vocabulary, a cache that the stopper or the model cannot go with, a constraint of which no text fits,
    a mesh that the model's heads or widths do not spread over, a guide of another vocabulary.
    """
    options: dict[str, Any] = dict(gen_length=gen_length, origin=origin, key=key, mesh=mesh)
    return prepare(model, params, prompts, decoder, **options, reference=reference, guide=guide).run()


def infill(
    model: Model,
    params: Params,
    canvas: Int[Array, "B L"] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
    reference: Int[Array, "B L"] | np.ndarray | None = None,
) -> Result:
    """Fill the [MASK] positions of a canvas, wherever they stand; all else is kept.

    The canvas has no padding. Blocks tile it from column 0; by default it is one block, so that any hole may be filled
    first. A model that attends in blocks has its own, and they must divide the canvas. The other arguments, the errors
    and the result are `decode`'s, with G = L.
    """
    return prepare_infill(model, params, canvas, decoder, key=key, mesh=mesh, reference=reference).run()


def lower(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    target: Mesh | None = None,
    **options: Any,
) -> Program:
    """The program of a decode, compiled ahead of time and not run: to time it, or to read its memory and HLO.

    Args and errors are `decode`'s; `target` stands in for `mesh`: devices to compile for, one or more, that need
    not be here (`jaxdiff.bench.targets`). Params may be `jax.ShapeDtypeStruct`. Neither reads nor fills JAX's
    persistent compilation cache.
    """
    return Program(prepare(model, params, prompts, decoder, **options), target)


def pad_prompts(prompts: Sequence[Sequence[int]], fill: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of mixed lengths as one array, padded on the left: (prompts [B P], origin [B]).

    P is rounded up to a `multiple`, so that batches share compiled programs. Padding is never attended to.
    """
    width = -(-max(len(p) for p in prompts) // multiple) * multiple
    padded = np.full((len(prompts), width), fill, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return padded, np.asarray([width - len(p) for p in prompts], np.int32)


def prepare(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
    reference: Int[Array, "B L"] | np.ndarray | None = None,
    guide: Guide | None = None,
) -> Call:
    """What `decode` of the same arguments runs. Raises as `decode`."""
    decoder = Decoder() if decoder is None else decoder
    count, width = arrays.shape_of("prompts", prompts)
    if width < 1:
        raise InputError("prompts: found length 0, expected at least one token; give a prompt")
    block = checks.block_of(model, decoder.block_length)
    checks.check_lengths(model, width, gen_length, block)
    origin = arrays.checked_origin(origin, count, width)
    arrays.check_ids(model, prompts, origin, masks_allowed=False)
    completion.check_answer(decoder, model, gen_length)
    masks = jnp.full((count, gen_length + checks.overhang_of(model)), model.config.mask_token_id, jnp.int32)
    canvas = jnp.concatenate([jnp.asarray(prompts, jnp.int32), masks], axis=1)
    layout = layout_of(model, decoder, first=width, generated=gen_length, block=block, mesh=mesh)
    return _call(model, layout, params, decoder, canvas, origin, key, reference, guide)


def prepare_infill(
    model: Model,
    params: Params,
    canvas: Int[Array, "B L"] | np.ndarray,
    decoder: Decoder | None = None,
    *,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    mesh: Mesh | None = None,
    reference: Int[Array, "B L"] | np.ndarray | None = None,
) -> Call:
    """What `infill` of the same arguments runs. Raises as `infill`."""
    decoder = Decoder() if decoder is None else decoder
    count, width = arrays.shape_of("canvas", canvas)
    checks.check_canvas(decoder, model)
    block = checks.block_of(model, decoder.block_length, default=width)
    checks.check_blocks(width, checks.whole_block(model, block))
    checks.check_lengths(model, 0, width, block)
    origin = jnp.zeros((count,), jnp.int32)
    arrays.check_ids(model, canvas, origin, masks_allowed=True)
    checks.check_no_strings(decoder)
    completion.check_filling(decoder, model, canvas)
    layout = layout_of(model, decoder, first=0, generated=width, block=block, mesh=mesh, overhang=0)
    return _call(model, layout, params, decoder, jnp.asarray(canvas, jnp.int32), origin, key, reference)


def standard(decoder: Decoder) -> Decoder:
    """The standard decode with all else the same: one token a step, nothing reused."""
    return dataclasses.replace(decoder, policy=Fixed(), cache=NoCache())


def guided(model: Model, decoder: Decoder) -> Model:
    """The model, under classifier-free guidance where the decoder asks for it."""
    return model if decoder.sampling.cfg_scale is None else Guided(model)


def _call(
    model: Model,
    layout: Layout,
    params: Params,
    decoder: Decoder,
    canvas: Int[Array, "B L"],
    origin: Int[Array, " B"],
    key: Any,
    reference: Any,
    guide: Guide | None = None,
) -> Call:
    count, length = canvas.shape[0], canvas.shape[1] - layout.overhang
    checks.check_decoder(decoder, model, count, layout.block_length, guide=guide, longest=length)
    decoder.policy.check(model, params)
    decoder.fill.check(model, params)
    if reference is not None and REFERENCE not in decoder.policy.needs:
        raise InputError("reference: found one, but this policy does not decode towards an answer; leave it out")
    last = jnp.full((count,), length, jnp.int32)
    rows = Rows(canvas, origin, last, arrays.checked_keys(key, count))
    if decoder.stop_strings is not None:
        lines = jnp.asarray(decoder.stop_strings.strings)
        rows = dataclasses.replace(rows, strings=jnp.broadcast_to(lines, (count, *lines.shape[-2:])))
    model = guided(model, decoder)
    if layout.mesh is not None:
        check_axes(layout.mesh)
        params, guide = place(model.config, params, layout.mesh), None if guide is None else guide.over(layout.mesh)
        rows, decoder = everywhere((rows, decoder), layout.mesh)
    if REFERENCE in decoder.policy.needs:
        if reference is None:
            plain = Setup(model, params, standard(decoder), dataclasses.replace(layout, spans=()))
            reference = loop.run(plain, rows).tokens
        reference = arrays.checked_reference(model, reference, count, length, layout.overhang)
        rows = dataclasses.replace(rows, reference=reference)
        rows = rows if layout.mesh is None else everywhere(rows, layout.mesh)
    return Call(Setup(model, params, decoder, layout, guide), rows)
