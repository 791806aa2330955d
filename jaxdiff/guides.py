"""A guide from a model folder, for the denoiser of another: both must mean the same by each id."""

from __future__ import annotations

from jaxdiff.checkpoint import Checkpoint
from jaxdiff.decode.guide import Guide
from jaxdiff.types import InputError


def guide_of(guide: Checkpoint, denoiser: Checkpoint) -> Guide:
    """The guide for `decode(guide=)`.

    Raises InputError for a model that is not autoregressive, and for one whose vocabulary or whose tokenizer's ids are
    others than the denoiser's. A folder without a tokenizer speaks ids alone: of these nothing but the number is known.
    """
    made = Guide(guide.model, guide.params)
    ours, theirs = (None if each.tokenizer is None else each.tokenizer.backend for each in (denoiser, guide))
    sizes = denoiser.model.config.vocab_size, guide.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(
            f"guide: found a vocabulary of {sizes[1]} in {guide.path}, expected {sizes[0]} as in {denoiser.path}; take "
            "a guide that was trained on its tokenizer"
        )
    if ours is None or theirs is None:
        return made
    expected, found = ours.get_vocab(with_added_tokens=True), theirs.get_vocab(with_added_tokens=True)
    if other := sorted(set(expected.items()) ^ set(found.items()), key=lambda pair: (pair[1], pair[0])):
        number = other[0][1]
        words = [next((word for word, at in each.items() if at == number), None) for each in (found, expected)]
        raise InputError(
            f"guide: found {words[0]!r:.40} as id {number} in {guide.path}, expected {words[1]!r:.40} as in "
            f"{denoiser.path}: {len({at for _, at in other})} ids differ; take a guide of the same tokenizer"
        )
    return made
