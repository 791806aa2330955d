"""Insertion: texts that grow by tokens written anywhere, any number of them (ILM, arXiv 2505.05755).

    begin -> State -> while any row is live: step -> finish -> Inserted

A process of its own beside the decode of masks (`jaxdiff.decode`), and not a policy in its loop: there is no canvas of
a given length with holes in it, no block, no position that stays where it is, and so nothing for a policy, a fill, a
cache or a stopper to hold on to. A loop that served both would ask at each step which of the two it is. What they have
in common is shared: the models, `Sampling`, the tiles that the head goes over, `Reason`. This room imports `decode`,
and `decode` does not know it.
"""

from jaxdiff.insertion.api import insert, join
from jaxdiff.insertion.loop import Inserted
from jaxdiff.insertion.ways import WAYS, One, Parallel, Way

__all__ = ["WAYS", "Inserted", "One", "Parallel", "Way", "insert", "join"]
