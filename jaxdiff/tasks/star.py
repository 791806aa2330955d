"""The path from the centre of a star graph to the end of one of its arms.

Three arms of 3 to 5 edges leave the centre; their nodes are letters of 20. `tqhbaharldb.../ag>` lists the edges in any
order, each from the centre outwards, then centre and goal; the answer is the path between, both ends included. At the
centre three ways look alike from near, which is what makes it hard to write in order (arXiv 2403.06963).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random

from jaxdiff.tasks.base import Problem, Split, puzzles

NAME = "star"
NODES, ARMS, EDGES = "abcdefghijklmnopqrst", 3, (3, 5)
LENGTH = 8  # the longest path has 6 nodes; end-of-text follows


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """As `tasks.base.puzzles`."""
    return puzzles(NAME, split, seed, _draw)


def verify(answer: str, problem: Problem) -> bool:
    return answer == problem.answer


def _draw(rng: Random) -> tuple[str, str]:
    length = rng.randint(*EDGES)
    centre, *others = rng.sample(NODES, 1 + ARMS * length)
    arms = [[centre, *others[arm * length : (arm + 1) * length]] for arm in range(ARMS)]
    edges = [left + right for arm in arms for left, right in itertools.pairwise(arm)]
    rng.shuffle(edges)
    path = rng.choice(arms)
    return f"t{''.join(edges)}/{centre}{path[-1]}>", "".join(path)
