"""Speculative decoding on lists, one row at a time, with whole forwards; and the two tables as dictionaries."""

from collections import Counter, defaultdict

import numpy as np

from jaxdiff.drafts import ngram, recycling


def grow(tree, text, candidates):
    """The tokens of a tree's nodes, None where there is no guess."""
    nodes = [text[-1]]
    for parent, rank in zip(tree.parents[1:], tree.ranks[1:], strict=True):
        path, at = [], parent
        while at > 0:
            path, at = [nodes[at], *path], tree.parents[at]
        found = [] if None in path else candidates([*text, *path])
        nodes.append(found[rank] if rank < len(found) else None)
    return nodes


def speculate(said, tree, prompt, room, ends, table):
    """The answer, and the pass that committed each token.

    said(text): the target's logits behind a text, float64.
    """
    answer, steps, passes = [int(np.argmax(said(prompt)))], [0], 1
    table.begin(prompt)
    table.learn([*prompt, *answer], 1, [(prompt[:count], True) for count in range(1, len(prompt) + 1)], said)
    while answer[-1] not in ends and len(answer) < room:
        text = [*prompt, *answer]
        nodes = grow(tree, text, table.after)
        nodes = [
            token if len(answer) + depth <= room else None for token, depth in zip(nodes, tree.depths, strict=True)
        ]
        texts = []
        for node in range(tree.nodes):
            path, at = [], node
            while at > 0:
                path, at = [nodes[at], *path], tree.parents[at]
            texts.append(None if None in path else [*text, *path])
        current, new, on = 0, [], {0}
        while True:
            new.append(int(np.argmax(said(texts[current]))))
            children = [n for n in range(tree.nodes) if tree.parents[n] == current and nodes[n] == new[-1]]
            if not children:
                break
            current = children[0]
            on.add(current)
        stop = next((place + 1 for place, token in enumerate(new) if token in ends), len(new))
        new = new[: min(stop, room - len(answer))]
        answer, steps = [*answer, *new], [*steps, *[passes] * len(new)]
        passes += 1
        table.learn([*prompt, *answer], len(new), [(t, n in on) for n, t in enumerate(texts) if t is not None], said)
    return answer, steps, passes


class Matrix:
    """Of each token what the target last put first behind it."""

    def __init__(self):
        self.rows = {}

    def begin(self, prompt):
        pass

    def after(self, text):
        return self.rows.get(text[-1], [])

    def learn(self, text, new, seen, said):
        for path in (False, True):
            for before, on in seen:
                if on == path:
                    order = np.argsort(-said(before), kind="stable")
                    self.rows[before[-1]] = order[: len(recycling.ACCEPT)].tolist()


class Counts:
    """Of one token, and of two, what followed and how often; of equal counts the latest first."""

    def __init__(self):
        self.seen = defaultdict(dict)

    def _add(self, text, at):
        for size in (1, 2):
            if at >= size:
                own = self.seen[tuple(text[at - size : at])]
                count = own.pop(text[at], 0)
                if len(own) == ngram.SLOTS and not count:
                    del own[min(own, key=own.get)]  # of equals the first that was put in
                own[text[at]] = count + 1

    def begin(self, prompt):
        for at in range(len(prompt)):
            self._add(prompt, at)

    def learn(self, text, new, seen, said):
        for at in range(len(text) - new, len(text)):
            self._add(text, at)

    def after(self, text):
        found = []
        for size in (2, 1):
            own = self.seen.get(tuple(text[-size:]), {}) if len(text) >= size else {}
            order = [token for token, _ in Counter(dict(reversed(own.items()))).most_common()]
            found += [token for token in order if token not in found]
        return found[: ngram.SLOTS]
