"""Fast-dLLM v2's sampler as a plain PyTorch loop over one row, its keys and values in hand: float64.

Written from the description of `batch_sample` and of the model's own `generate`, with [MASK] excluded, and with the
whole blocks of a prompt always stored: the published code forgets a prompt that is one block long.
"""

import dataclasses

import torch
from torch.nn import functional as F


@dataclasses.dataclass
class Rows:
    """Keys and values [T K E] of each layer, at these positions."""

    at: torch.Tensor
    layers: list

    def __getitem__(self, index):
        return Rows(self.at[index], [(k[index], v[index]) for k, v in self.layers])

    def __add__(self, other):
        both = zip(self.layers, other.layers, strict=True)
        return Rows(torch.cat([self.at, other.at]), [tuple(map(torch.cat, zip(a, b, strict=True))) for a, b in both])


class Fed:
    """A Qwen2 of transformers that is fed some tokens over kept keys and values, attending in blocks."""

    def __init__(self, module, block):
        self.module, self.block, self.passes = module, block, 0

    @torch.no_grad()
    def __call__(self, tokens, at, kept=None):
        """(logits [T V] as the network gives them, keys and values of these tokens)."""
        self.passes += 1
        config, model = self.module.config, self.module.model
        heads, kv = config.num_attention_heads, config.num_key_value_heads
        size = config.hidden_size // heads
        angle = at[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

        def rotate(x):
            return x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

        x, layers = model.embed_tokens(tokens), []
        there = at if kept is None else torch.cat([kept.at, at])
        seen = there[None] // self.block <= at[:, None] // self.block
        for number, layer in enumerate(model.layers):
            own, normed = layer.self_attn, layer.input_layernorm(x)
            q = rotate(own.q_proj(normed).view(len(at), heads, size))
            new = rotate(own.k_proj(normed).view(len(at), kv, size)), own.v_proj(normed).view(len(at), kv, size)
            layers.append(new)
            k, v = new if kept is None else map(torch.cat, zip(kept.layers[number], new, strict=True))
            k, v = (part.repeat_interleave(heads // kv, dim=1) for part in (k, v))
            scores = torch.einsum("qhe,khe->hqk", q, k) / size**0.5
            weights = scores.masked_fill(~seen[None], -torch.inf).softmax(-1)
            x = x + own.o_proj(torch.einsum("hqk,khe->qhe", weights, v).reshape(len(at), -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.module.lm_head(model.norm(x)), Rows(at, layers)


@dataclasses.dataclass
class Decoded:
    """A row's tokens, prompt included; at each token the forwards that the row has had when it was committed.

    `passes`: of each block, the forwards when its last token was committed, and when it was stored.
    """

    tokens: list
    known: list
    passes: list

    def stopped(self, prompt, ends):
        """(length, forwards) where the row ends at the first end that has no mask left of it, as `generate` does."""
        for place in range(prompt, len(self.tokens)):
            if self.tokens[place] in ends:
                return place + 1 - prompt, max(self.known[prompt : place + 1])
        return None


def decode(fed, prompt, *, blocks, tau, mask, small=8, cached=False):
    """`blocks` blocks from position 0 on, and the first token of the next one. `cached`: `use_block_cache`."""
    fed.passes, size = 0, fed.block
    x = torch.full((blocks * size + 1,), mask)
    x[: len(prompt)] = torch.tensor(prompt)
    known = torch.where(x == mask, -1, 0)
    passes, kept = [], None

    def take(column, token):
        x[column], known[column] = token, fed.passes

    def best(logits):
        logits = logits.clone()
        logits[..., mask] = -torch.inf
        prob, token = F.softmax(logits, -1).max(-1)
        return prob, token

    if whole := len(prompt) // size * size:
        logits, kept = fed(x[:whole], torch.arange(whole))
        if whole == len(prompt):
            take(whole, best(logits[-1])[1])
    for first in range(whole, blocks * size, size):
        at, block, inner = torch.arange(first, first + size), x[first : first + size], None
        for start in range(0, size, small):
            part = slice(start, start + small)
            while (block[part] == mask).any():
                if cached and inner is not None and block[start] != mask:
                    others = torch.ones(size, dtype=torch.bool)
                    others[part] = False
                    past = inner[others] if kept is None else kept + inner[others]
                    logits, rows = fed(block[part], at[part], past)
                    for old, new in zip(inner.layers, rows.layers, strict=True):
                        for each, fresh in zip(old, new, strict=True):
                            each[part] = fresh
                    logits = torch.cat([logits[:1], logits[:-1]])
                else:
                    logits, inner = fed(block, at, kept)
                    logits = torch.cat([logits[:1], logits[:-1]])[part]
                prob, token = best(logits)
                prob = torch.where(block[part] == mask, prob, -torch.inf)
                chosen = prob > tau
                chosen[prob.argmax()] = True
                for column in torch.nonzero(chosen)[:, 0].tolist():
                    take(first + start + column, token[column])
        done = fed.passes
        logits, rows = fed(block, at, kept)
        kept = rows if kept is None else kept + rows
        if first + size < blocks * size + 1:
            take(first + size, best(logits[-1])[1])
        passes.append((done, fed.passes))
    return Decoded(x.tolist(), known.tolist(), passes)
