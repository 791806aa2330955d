"""The published caches in plain numpy, one row at a time: what the compiled ones are held against.

Written from Fast-dLLM's and FreeCache's algorithms. The network is the small model in float64, with keys and values in
hand: kept before the rotation, as the published code keeps them, and rotated at each use. It shares no code with the
library. Each cache is the `logits_of` of `tests.reference.decode`: it is asked with the canvas, and what it did not
compute is NaN.
"""

import numpy as np

from tests import small


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, positions, theta):
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


class Network:
    """`features` of some columns of a canvas; keys and values of the others are those in `self.kept`."""

    def __init__(self, tree, config):
        self.config = config
        wanted = {k: v for k, v in tree.items() if k != "layers"}
        self.tree = {k: np.asarray(v["weight"] if k == "ln_f" else v, np.float64) for k, v in wanted.items()}
        layers = {
            (name, leaf): np.asarray(x, np.float64) for name, d in tree["layers"].items() for leaf, x in d.items()
        }
        self.layers = [{k: v[i] for k, v in layers.items()} for i in range(config.n_layers)]
        self.kept = [None] * config.n_layers

    def forward(self, x, columns, prompt=0, shadow=()):
        """Logits of the columns. Keys and values of all others are read from, and those of these written to, `kept`.

        `prompt`: that many first columns do not see the rest. `shadow`: columns whose positions have a [MASK] beside
        the canvas, which sees all of it but that column, and the others beside; their logits follow.
        """
        c, at, own = self.config, np.concatenate([np.arange(len(x)), shadow]).astype(int), len(columns)
        fed = np.concatenate([columns, shadow]).astype(int)
        hidden = self.tree["wte"][[*x[columns], *[small.MASK] * len(shadow)]]
        is_shadow, column = np.arange(len(fed))[:, None] >= own, np.arange(len(at))[None]
        hides = np.where(is_shadow, column == fed[:, None], column >= len(x))
        hides |= (fed[:, None] < prompt) & (at[None] >= prompt)
        for number, layer in enumerate(self.layers):
            normed = norm(hidden, layer["attn_norm", "weight"], c.rms_norm_eps)

            def project(name, count, normed=normed, layer=layer):
                out = normed @ layer[name, "kernel"] + layer.get((name, "bias"), 0.0)
                return out.reshape(len(fed), count, c.head_dim)

            fresh = [project("k_proj", c.n_kv_heads), project("v_proj", c.n_kv_heads)]
            both = []
            for i in range(2):
                whole = np.full((len(x), *fresh[i].shape[1:]), np.nan)
                if self.kept[number] is not None:
                    whole[:] = self.kept[number][i][: len(x)]
                whole[columns] = fresh[i][:own]
                both.append(whole)
            self.kept[number] = both
            both = [np.concatenate([whole, new[own:]]) for whole, new in zip(both, fresh, strict=True)]
            q = rotate(project("q_proj", c.n_heads), fed, c.rope_theta)
            k, v = (np.repeat(z, c.n_heads // c.n_kv_heads, 1) for z in (rotate(both[0], at, c.rope_theta), both[1]))
            score = np.einsum("the,she->hts", q, k) / np.sqrt(c.head_dim)
            score[:, hides] = -np.inf
            weight = np.exp(score - score.max(-1, keepdims=True))
            weight /= weight.sum(-1, keepdims=True)
            hidden = hidden + np.einsum("hts,she->the", weight, v).reshape(len(fed), -1) @ layer["attn_out", "kernel"]
            normed = norm(hidden, layer["ff_norm", "weight"], c.rms_norm_eps)
            gate = normed @ layer["ff_proj", "kernel"]
            gated = gate / (1 + np.exp(-gate)) * (normed @ layer["up_proj", "kernel"])
            hidden = hidden + gated @ layer["ff_out", "kernel"]
        return norm(hidden, self.tree["ln_f"], c.rms_norm_eps) @ self.tree["head"]


def whole(tree, x, model=small.MODEL):
    """The uncached model on one row alone, in float64: [L, V]."""
    table = Network(tree, model.config).forward(np.asarray(x), np.arange(len(x)))
    return np.concatenate([table[:1], table[:-1]]) if model.shifted else table


class Cached:
    """One row's decode: `network(x, columns)` for the columns that the cache feeds at this step."""

    def __init__(self, tree, prompt, cache, refresh=None, model=small.MODEL):
        self.network, self.first, self.cache, self.refresh = Network(tree, model.config), len(prompt), cache, refresh
        self.shifted, self.prompt = model.shifted, len(prompt) if model.config.prefix_lm else 0
        self.start, self.block_step, self.steps = None, 0, 0
        self.fed = 0  # tokens, over all forwards so far

    def __call__(self, x):
        hole = np.flatnonzero(x[self.first :] == small.MASK)[0]
        start = self.first + hole // small.BLOCK * small.BLOCK
        before, self.start = self.start, start
        self.block_step = self.block_step + 1 if before == start else 0
        counted = self.steps if self.cache in ("clean", "commit", "prompt") else self.block_step
        self.steps += 1
        if counted == 0 or (self.refresh and counted % self.refresh == 0):
            columns = np.arange(len(x))
        else:
            # where the window begins and ends
            left = {"clean": before, "prompt": self.first}.get(self.cache, start)
            right = min(start + small.BLOCK, len(x)) if self.cache == "dual" else len(x)
            columns = np.arange(left - self.shifted, right)  # a shifted model reads the first from the one before it
        # Nothing is written between rebuilds that a later step of the block would read; FreeCache writes its window.
        self.fed += len(columns)
        table = np.full((len(x), small.VOCAB), np.nan)
        table[columns] = self.network.forward(x, columns, self.prompt)
        if self.shifted:
            table[1:] = table[:-1].copy()
        return table
