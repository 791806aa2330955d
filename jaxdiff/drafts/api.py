"""`speculate`: check what can be checked before compilation, lay out the rows, run the program."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxdiff.decode import arrays, checks
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.program import Runs, direct
from jaxdiff.drafts import loop
from jaxdiff.drafts.base import Draft
from jaxdiff.drafts.loop import Prompts, Setup, Speculated
from jaxdiff.drafts.recycling import Recycling
from jaxdiff.protocols import Autoregressive, Model, is_causal
from jaxdiff.types import InputError, Params, PartState


@dataclasses.dataclass(frozen=True)
class Call:
    """Prompts to answer, checked and laid out: what `loop.run` takes."""

    setup: Setup
    prompts: Prompts

    def run(self, call: Runs = direct) -> Speculated:
        return call(loop.run, self.setup, self.prompts)


def speculate(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    draft: Draft | None = None,
    *,
    sampling: Sampling | None = None,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    warm: PartState | None = None,
) -> Speculated:
    """Answer prompts with a causal model, several tokens a pass: a draft guesses what follows, a pass of the model says
    how far that is what it says itself. One compiled program; a row ends at its first end-of-text.

    The text is that of `decode` with the model alone and the same key, at every temperature, but where two of the
    model's logits are closer than the rounding of a pass over one token and over several (`near_ties`).

    Args:
        prompts: token ids, [B P], padded on the left up to `origin` (see `pad_prompts`).
        draft: default `Recycling()`.
        sampling: temperature, top-p, top-k and `forbid_eos`; the rest of a `Sampling` is of masks, and refused.
        gen_length: in tokens.
        origin: column of each row's first token, [B]; default 0.
        key: as of `decode`; only a temperature uses it.
        warm: the draft's state to begin with, of an earlier call: `Speculated.draft`, of as many rows, or of one row
            (`drafts.of_row`), with which all begin. It changes what a text costs, never the text.

    Raises InputError before compilation for a model that is not causal, a draft made for another target, a tree larger
    than the context, lengths that do not fit, [MASK] or an empty row in the prompts, ids outside the vocabulary, a
    `warm` that is not of this draft, and what of `sampling` says nothing here.
    """
    return prepare_speculate(
        model, params, prompts, draft, sampling=sampling, gen_length=gen_length, origin=origin, key=key, warm=warm
    ).run()


def prepare_speculate(
    model: Model,
    params: Params,
    prompts: Int[Array, "B P"] | np.ndarray,
    draft: Draft | None = None,
    *,
    sampling: Sampling | None = None,
    gen_length: int = 256,
    origin: Int[Array, " B"] | np.ndarray | None = None,
    key: Key[Array, ""] | Key[Array, " B"] | None = None,
    warm: PartState | None = None,
) -> Call:
    """What `speculate` of the same arguments runs. Raises as `speculate`."""
    draft, sampling = Recycling() if draft is None else draft, Sampling() if sampling is None else sampling
    check_target(model)
    count, width = arrays.shape_of("prompts", prompts)
    if width < 1:
        raise InputError("prompts: found length 0, expected at least one token; give a prompt")
    checks.check_lengths(model, width, gen_length, 1)
    check_draft(draft, model, width + gen_length)
    check_sampling(sampling)
    checks.check_numbers(sampling, count)
    origin = arrays.checked_origin(origin, count, width)
    arrays.check_ids(model, prompts, origin, masks_allowed=False)
    setup = Setup(model, params, draft, sampling, _warmed(draft, model, warm, count), gen_length)
    return Call(setup, Prompts(jnp.asarray(prompts, jnp.int32), origin, arrays.checked_keys(key, count)))


def check_target(model: Model) -> None:
    """Raises InputError for a model that is not autoregressive."""
    if not isinstance(model, Model) or not isinstance(model, Autoregressive) or not is_causal(model):
        raise InputError(
            f"draft: found a {type(model).__name__} as its target, expected an autoregressive model, whose next token "
            "a draft guesses; leave the draft out, or take a model of family llama, qwen2 or qwen3"
        )


def check_draft(draft: Any, model: Model, longest: int) -> None:
    """Raises InputError for what is no draft, and for one that does not go with this target, or with rows of so many
    tokens.
    """
    if not isinstance(draft, Draft):
        raise InputError(f"draft: found {draft!r:.40}, expected a draft: drafts.Recycling(), Ngram(), Denoiser(...)")
    if (nodes := draft.tree.nodes) > (context := model.config.max_sequence_length):
        raise InputError(f"draft: found a tree of {nodes} nodes, expected at most the context of {context}; take fewer")
    draft.check(model, longest)


def check_sampling(sampling: Sampling) -> None:
    """Raises InputError for what says how masks are filled."""
    set_to = {
        "cfg_scale": sampling.cfg_scale is not None,
        "defer_eos": sampling.defer_eos,
        "end_think": sampling.end_think is not None,
    }
    if found := [name for name, is_set in set_to.items() if is_set]:
        raise InputError(
            f"{found[0]}: found it with a draft, expected temperature, top_p, top_k and forbid_eos alone; leave it out"
        )


def of_row(state: PartState, row: int) -> PartState:
    """The state of one row of a draft's, as `warm` takes it."""
    return jax.tree.map(lambda leaf: leaf[row : row + 1], state)


def _warmed(draft: Draft, model: Model, warm: PartState | None, rows: int) -> PartState:
    """The state that rows begin with. Raises InputError for one that is not this draft's."""
    if warm is None:
        return draft.empty(model, rows)
    own = jax.eval_shape(lambda: draft.empty(model, 1))
    found = jax.tree.leaves(warm)
    fits = jax.tree.structure(warm) == jax.tree.structure(own) and all(
        (leaf.shape[1:], leaf.dtype) == (like.shape[1:], like.dtype) and leaf.shape[0] in (1, rows)
        for leaf, like in zip(found, jax.tree.leaves(own), strict=True)
    )
    if not fits:
        shapes = [getattr(leaf, "shape", type(leaf).__name__) for leaf in found]
        raise InputError(
            f"warm: found {shapes!s:.60}, expected the state of this draft for this target, of {rows} rows or of one: "
            "Speculated.draft of an earlier call"
        )
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), warm)
