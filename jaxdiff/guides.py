"""A second model from a folder, a guide or a draft beside the first: both must mean the same by each id."""

from __future__ import annotations

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.guide import Guide
from jaxdiff.drafts import Denoiser
from jaxdiff.types import InputError


def guide_of(guide: Checkpoint, denoiser: Checkpoint) -> Guide:
    """The guide for `decode(guide=)`.

    Raises InputError for a model that is not autoregressive, and as `check_alike`.
    """
    made = Guide(guide.model, guide.params)
    check_alike("guide", guide, denoiser)
    return made


def denoiser_of(denoiser: Checkpoint, target: Checkpoint) -> Denoiser:
    """The draft for `speculate`, with its default of tokens.

    Raises InputError for a model that fills no masks, and as `check_alike`.
    """
    made = Denoiser(denoiser.model, denoiser.params)
    check_alike("draft", denoiser, target)
    return made


def check_alike(what: str, beside: Checkpoint, first: Checkpoint) -> None:
    """Raises InputError where one model's vocabulary or its tokenizer's ids are others than the first's. A folder
    without a tokenizer speaks ids alone: of these nothing but the number is known.
    """
    ours, theirs = (None if each.tokenizer is None else each.tokenizer.backend for each in (first, beside))
    sizes = first.model.config.vocab_size, beside.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{what}: found a vocabulary of {sizes[1]} in {beside.path}, expected {sizes[0]} as in {first.path}; take "
            f"a {what} that was trained on its tokenizer"
        )
    if ours is None or theirs is None:
        return
    expected, found = ours.get_vocab(with_added_tokens=True), theirs.get_vocab(with_added_tokens=True)
    if other := sorted(set(expected.items()) ^ set(found.items()), key=lambda pair: (pair[1], pair[0])):
        number = other[0][1]
        words = [next((word for word, at in each.items() if at == number), None) for each in (found, expected)]
        raise InputError(
            f"{what}: found {words[0]!r:.40} as id {number} in {beside.path}, expected {words[1]!r:.40} as in "
            f"{first.path}: {len({at for _, at in other})} ids differ; take a {what} of the same tokenizer"
        )
