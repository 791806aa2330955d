"""As `permutation`, of capital letters: `pQKXBZHDWLVCM>` -> `KCBXWLQM`.

For models that were trained on `permutation`: whoever has learned what to do with a letter, and not what letters there
are, solves it unseen (Lexinvariant language models, arXiv 2305.16349).
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase

from jaxdiff.tasks import permutation
from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "permutation_upper"
LENGTH = permutation.LENGTH
verify = permutation.verify


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, lambda rng: permutation.drawn(rng, ascii_uppercase))
