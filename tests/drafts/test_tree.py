"""The shape that commits most, and the path that agrees."""

import itertools

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff.drafts.tree import Tree, agreed, best_first, chain

ACCEPT = (0.5, 0.3, 0.1)


def worth(parents, ranks):
    """The chance of each node to be reached, summed."""
    chance = [1.0]
    for parent, rank in zip(parents[1:], ranks[1:], strict=True):
        chance.append(chance[parent] * ACCEPT[rank])
    return sum(chance)


def every_tree(nodes):
    """All shapes: each further node is any candidate, not taken yet, of any node before it."""
    free = itertools.product(range(nodes), range(len(ACCEPT)))
    for chosen in itertools.combinations(free, nodes - 1):
        if all(parent <= place for place, (parent, _) in enumerate(chosen)):
            yield (-1, *(parent for parent, _ in chosen)), (0, *(rank for _, rank in chosen))


def test_the_tree_commits_most_of_all_of_its_size():
    for nodes in range(2, 6):
        tree = best_first(nodes, ACCEPT)
        assert worth(tree.parents, tree.ranks) >= max(worth(*shape) for shape in every_tree(nodes)) - 1e-12
    tree = best_first(32, ACCEPT)
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert sorted(tree.depths) == tree.depths.tolist()
    assert len(set(zip(tree.parents, tree.ranks, strict=True))) == 32
    assert chain(4).is_chain
    assert not tree.is_chain


@given(st.integers(0, 2**32 - 1))
def test_the_path_is_the_longest_that_agrees(seed):
    generator = np.random.default_rng(seed)
    shape = best_first(12, (0.5, 0.45, 0.4))
    tokens, said = generator.integers(-1, 3, (2, 12)), generator.integers(0, 3, (2, 12))
    on, path = agreed(shape, jnp.asarray(tokens, jnp.int32), jnp.asarray(said, jnp.int32))
    for row in range(2):
        walked = [0]
        while True:
            children = [
                node
                for node in range(1, 12)
                if shape.parents[node] == walked[-1] and tokens[row, node] == said[row, walked[-1]]
            ]
            if not children:
                break
            walked.append(children[0])
        assert np.flatnonzero(on[row]).tolist() == walked
        assert path[row].tolist() == walked + [walked[-1]] * (shape.depth + 1 - len(walked))


def test_nodes_see_their_way_from_the_root():
    tree = Tree((-1, 0, 0, 1), (0, 0, 1, 0))
    assert tree.sees.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
