"""A tiny ENAT of random weights, and its network in plain numpy: one row, float64, a token encoded when it is revealed.

It shares no code with the library. What was encoded is kept as it was made, and never looked at again.
"""

import dataclasses

import jax
import numpy as np

from jaxdiff.models import Enat, EnatConfig
from tests import small
from tests.cached import norm, rotate

MODEL = Enat(EnatConfig(**dataclasses.asdict(small.CONFIG) | {"n_layers": 4}, decoder_layers=2))


class Plain:
    """Logits [L V] of a canvas whose visible tokens only get more; those of visible tokens are zeros.

    `encoded`, `decoded`: tokens so far that went through either.
    """

    def __init__(self, tree, config=MODEL.config):
        self.config = config
        self.tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        depth = config.n_layers - config.decoder_layers
        self.kept = [[] for _ in range(depth)]  # of each layer, (keys, values) of each token, keys rotated
        self.memory = [[] for _ in range(config.decoder_layers)]
        self.columns = []  # that were encoded, in that order
        self.encoded = self.decoded = 0

    def __call__(self, x):
        visible = [column for column, token in enumerate(x) if token != small.MASK]
        if new := [column for column in visible if column not in self.columns]:
            self.encode(x, np.asarray(new))
        return self.decode(x, np.flatnonzero(np.asarray(x) == small.MASK))

    def encode(self, x, new):
        self.columns += new.tolist()
        self.encoded += len(new)
        hidden = self.tree["wte"][np.asarray(x)[new]]
        for number, kept in enumerate(self.kept):
            layer = self.layer("layers", number)
            normed = self.norm(hidden, layer["attn_norm"])
            kept += zip(*self.pair(normed, layer, "k_proj", "v_proj", new), strict=True)
            hidden = self.mixed(hidden, normed, layer, new, kept)
        hidden = self.norm(hidden, self.tree["encoded_norm"])
        for number, memory in enumerate(self.memory):
            layer = self.layer("decoder", number)
            memory += zip(*self.pair(hidden, layer, "k_encoded", "v_encoded", new), strict=True)

    def decode(self, x, masks):
        self.decoded += len(masks)
        hidden = self.tree["wte"][np.full(len(masks), small.MASK)]
        for number, memory in enumerate(self.memory):
            layer = self.layer("decoder", number)
            normed = self.norm(hidden, layer["attn_norm"])
            own = zip(*self.pair(normed, layer, "k_proj", "v_proj", masks), strict=True)
            hidden = self.mixed(hidden, normed, layer, masks, [*memory, *own])
        logits = np.zeros((len(x), self.config.vocab_size))
        logits[masks] = self.norm(hidden, self.tree["ln_f"]) @ self.tree["head"]
        return logits

    def layer(self, group, number):
        return jax.tree.map(lambda leaf: leaf[number], self.tree[group])

    def norm(self, x, leaf):
        return norm(x, leaf["weight"], self.config.rms_norm_eps)

    def heads(self, x, layer, name):
        out = x @ layer[name]["kernel"] + layer[name].get("bias", 0.0)
        return out.reshape(len(x), out.shape[1] // self.config.head_dim, self.config.head_dim)

    def pair(self, x, layer, keys, values, at):
        return rotate(self.heads(x, layer, keys), at, self.config.rope_theta), self.heads(x, layer, values)

    def mixed(self, hidden, normed, layer, at, seen):
        """A layer's output: attention over the keys and values that are seen, and the MLP."""
        c = self.config
        q = rotate(self.heads(normed, layer, "q_proj"), at, c.rope_theta)
        k, v = (np.repeat(np.stack(each), c.n_heads // c.n_kv_heads, 1) for each in zip(*seen, strict=True))
        weight = np.einsum("the,she->hts", q, k) / np.sqrt(c.head_dim)
        weight = np.exp(weight - weight.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        hidden = hidden + np.einsum("hts,she->the", weight, v).reshape(len(at), -1) @ layer["attn_out"]["kernel"]
        normed = self.norm(hidden, layer["ff_norm"])
        gate = normed @ layer["ff_proj"]["kernel"]
        return hidden + gate / (1 + np.exp(-gate)) * (normed @ layer["up_proj"]["kernel"]) @ layer["ff_out"]["kernel"]


def shares(tree):
    """Weights of the layers that a token meets when it is encoded, and when it is decoded, of all; norms left out."""
    met = np.zeros(2)
    for group, layers in tree.items():
        for name, leaf in layers.items() if group in ("layers", "decoder") else ():
            met[int(group == "decoder" and "encoded" not in name)] += leaf["kernel"].size if "kernel" in leaf else 0
    return met / met.sum()
