"""A masked diffusion model as a draft: what it puts into the masks right of the text, in one pass."""

from __future__ import annotations

import jax.numpy as jnp

from jaxdiff.decode.causal import check_masks
from jaxdiff.decode.decoder import Sampling
from jaxdiff.decode.score import believe
from jaxdiff.decode.vocabulary import Vocabulary
from jaxdiff.drafts.base import Proposed, Seen, Text
from jaxdiff.drafts.noise import one_by_one
from jaxdiff.drafts.tree import Tree, chain
from jaxdiff.leaves import weights_met
from jaxdiff.protocols import Model, is_causal
from jaxdiff.pytree import choice, pytree, static
from jaxdiff.types import HOLE, InputError, Inputs, Params, PartState, Span

TOKENS = ("1", "2", "4", "8", "16", "32", "64")


@pytree
class Denoiser:
    """A masked diffusion model of the same tokenizer fills the next masks, in one pass over the canvas for each pass of
    the target; its tokens are a chain.

    At a temperature it draws with the noise that the target draws with, so that the two agree where their
    distributions do. `jaxdiff.denoiser_of` makes one of two folders.

    Attributes:
        model, params: the denoiser's; the command line names its folder: `denoiser:model=gsm-1m`.
        tokens: that it guesses, the length of the chain.
    """

    model: Model = static()
    params: Params
    tokens: str = choice(TOKENS, default="32")

    def __post_init__(self) -> None:
        """Raises InputError for a model that fills no masks."""
        if not isinstance(self.model, Model) or is_causal(self.model):
            raise InputError(
                f"draft: found a {type(self.model).__name__}, which fills no masks, expected a masked diffusion model; "
                "take one, or draft recycling or ngram"
            )
        check_masks(self.model)

    @property
    def tree(self) -> Tree:
        return chain(int(self.tokens) + 1)

    @property
    def likely(self) -> int:
        return 0

    def check(self, target: Model, longest: int) -> None:
        ours, theirs = self.model.config, target.config
        if ours.vocab_size != theirs.vocab_size:
            raise InputError(
                f"draft: found a denoiser with a vocabulary of {ours.vocab_size}, expected the target's of "
                f"{theirs.vocab_size}: both must read one tokenizer's ids; take one that was trained on it"
            )
        if longest > ours.max_sequence_length:
            raise InputError(
                f"draft: found a denoiser with a context of {ours.max_sequence_length}, expected {longest} or more, "
                "prompt and generation; shorten one of them"
            )

    def empty(self, target: Model, rows: int) -> PartState:
        del target, rows
        return ()

    def begin(self, state: PartState, text: Text) -> PartState:
        del text
        return state

    def propose(self, state: PartState, target: tuple[Model, Params], text: Text, sampling: Sampling) -> Proposed:
        config, count = self.model.config, min(self.tree.depth, text.end)
        column = jnp.arange(text.end, dtype=jnp.int32)[None]
        canvas = jnp.where(column < text.known[:, None], text.canvas[:, : text.end], config.mask_token_id)
        inputs = Inputs.whole(canvas, text.origin, prompt_length=text.first - text.origin)
        start = jnp.minimum(text.known, text.end - count)
        features, _ = self.model.apply(self.params, inputs, read=Span(start, count))
        columns = start[:, None] + jnp.arange(count, dtype=jnp.int32)[None]
        ids = Vocabulary.of(target[0], sampling)
        ids = Vocabulary(ids.size, tuple(sorted({*ids.forbidden, config.mask_token_id})))
        flat, own, draws = one_by_one(features, columns, text, sampling)
        guess = believe(flat, self.model.head(self.params), ids, own, draws).token.reshape(columns.shape)
        at = text.known[:, None] + jnp.arange(self.tree.depth, dtype=jnp.int32)[None] - start[:, None]
        guess = jnp.where(at < count, jnp.take_along_axis(guess, jnp.minimum(at, count - 1), axis=1), HOLE)
        root = text.at(text.known[:, None] - 1)
        share = weights_met(self.params, config) / weights_met(target[1], target[0].config)
        return Proposed(
            tokens=jnp.concatenate([root, guess], axis=1),
            cheap=jnp.ones_like(text.known) * self.model.copies,
            fed=(text.end - text.origin).astype(jnp.float32) * (share * self.model.copies),
        )

    def update(self, state: PartState, seen: Seen) -> PartState:
        del seen
        return state
