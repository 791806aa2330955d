"""Star graphs as insertion language models are measured on (ILM, arXiv 2505.05755; dhruvdcoder/ILM `star_v2.py`).

`star_easy`: three arms of four edges leave the centre, the path goes from the centre to the end of one arm; 13 of 20
nodes. `star_medium` and `star_hard`: paths of different lengths cross in one node, each at a place of its own, its last
two edges behind the crossing; the path asked for goes from the start of one of them to its end. So the centre is
somewhere on it, and its length is not known: 3 to 6 nodes with three paths and 20 nodes, 6 to 12 with five and 56.

`mab,ca,.../cb>` lists the edges in any order, each along its path, then start and goal; the answer is the path between
as its edges, `caab`. So it is in the published code, but for the commas: its tokens do not say where an edge ends.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from random import Random
from string import ascii_letters, digits

from jaxdiff.tasks.base import Problem, Split, puzzles

SYMBOLS = ascii_letters + digits
BEHIND = 2  # edges of a path behind the crossing, at least


@dataclasses.dataclass(frozen=True)
class Stars:
    """A task of star graphs.

    Attributes:
        mark: the first letter of its questions.
        nodes: how many letters there are.
        paths: how many of them meet in the centre.
        shortest, longest: nodes of a path, the centre included.
        crossing: whether the centre may lie anywhere on a path but near its end; else it is the start of each.
    """

    NAME: str
    LENGTH: int  # two tokens for each edge of the longest path, and two for end-of-text
    mark: str
    nodes: int
    paths: int
    shortest: int
    longest: int
    crossing: bool

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """As `tasks.base.puzzles`."""
        return puzzles(self.NAME, split, seed, self._draw)

    def verify(self, answer: str, problem: Problem) -> bool:
        """There is one path from the start to the goal."""
        return answer == problem.answer

    def _draw(self, rng: Random) -> tuple[str, str]:
        lengths = [rng.randint(self.shortest, self.longest) for _ in range(self.paths)]
        centre, *others = rng.sample(SYMBOLS[: self.nodes], 1 + sum(lengths) - self.paths)
        left = iter(others)
        paths = []
        for length in lengths:
            path = list(itertools.islice(left, length - 1))
            path.insert(rng.randrange(length - BEHIND) if self.crossing else 0, centre)
            paths.append(path)
        edges = [first + second for path in paths for first, second in itertools.pairwise(path)]
        rng.shuffle(edges)
        path = paths[0]
        return f"{self.mark}{','.join(edges)}/{path[0]}{path[-1]}>", "".join(map("".join, itertools.pairwise(path)))


EASY = Stars("star_easy", 10, "e", nodes=20, paths=3, shortest=5, longest=5, crossing=False)
MEDIUM = Stars("star_medium", 12, "m", nodes=20, paths=3, shortest=3, longest=6, crossing=True)
HARD = Stars("star_hard", 24, "h", nodes=56, paths=5, shortest=6, longest=12, crossing=True)
