"""A tiny random model, confident enough for thresholds to bite, and the one batch shape that decode tests share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff
from jaxdiff import Decoder, Inputs, Sampling, pad_prompts
from jaxdiff.models import (
    Dream,
    DreamConfig,
    FastDllmV2,
    FastDllmV2Config,
    Llada,
    LladaConfig,
    Llama,
    LlamaConfig,
    Sdar,
    SdarConfig,
)
from jaxdiff.models.config import Config
from jaxdiff.stoppers import StopStrings
from jaxdiff.stoppers.strings import Spelling

MASK, EOS, EOT, VOCAB = 3, 1, 2, 61
GEN, BLOCK = 16, 8
PROMPTS = [[5, 6, 7], [9, 8, 30, 31, 32, 33], [40], [11, 12, 13, 14]]

# What its tokens write: one or two letters of three; é in halves; the first ids, among them the ends, nothing.
WORDS = [bytes(97 + digit % 3 for digit in divmod(i, 7)[: 1 + i % 2]) for i in range(VOCAB)]
WORDS[:5], WORDS[7], WORDS[8] = [b""] * 5, b"\xc3", b"\xa9"

CONFIG = LladaConfig(
    vocab_size=VOCAB,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    mlp_hidden_size=48,
    mask_token_id=MASK,
    eos_token_id=EOS,
    eot_token_id=EOT,
    rope_theta=500_000.0,
    max_sequence_length=64,
    dtype="float32",
)
MODEL = Llada(CONFIG)
_SAMPLING = tuple(f.name for f in dataclasses.fields(Sampling))
_SHAPE = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(Config)}
DREAM = Dream(DreamConfig(**_SHAPE))
SDAR = Sdar(SdarConfig(**_SHAPE, attention_block=4))
LLAMA = Llama(LlamaConfig(**_SHAPE | {"mask_token_id": None}))  # autoregressive
FAST = FastDllmV2(FastDllmV2Config(**_SHAPE, attention_block=2 * BLOCK))  # its blocks are two of a decode's


@functools.cache
def _init(model):
    """One program, where a call as it is compiles each operation; kept, as a method's own is forgotten with it."""
    return jax.jit(model.init)


@functools.cache
def params(seed=0, model=MODEL):
    """Random weights; the head is sharpened, and end-of-text made likely enough to occur."""
    tree = _init(model)(jax.random.key(seed))
    tree["wte"] = tree["wte"] * 3.0
    head = tree["head"] * 5.0
    tree["head"] = head.at[:, EOS].set(head[:, EOS] * 1.6)
    return tree


def batch(prompts=PROMPTS, multiple=1):
    return pad_prompts(prompts, fill=EOS, multiple=multiple)


def keys(rows, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(rows))


def spelling(words=WORDS):
    """As a tokenizer makes it, for ids without a token too."""
    return Spelling.of([*words, "\ufffd".encode()])


def stop_strings(texts=(), **room):
    return StopStrings.of(spelling(), texts, **room)


def text(tokens):
    """What generated tokens write, up to the first that ends an answer."""
    ends = (i for i, token in enumerate(tokens) if token in (EOS, EOT))
    return b"".join(WORDS[token] for token in tokens[: next(ends, len(tokens))]).decode(errors="replace")


def decoder(**parts):
    """A `Decoder` in blocks of BLOCK, but for a model that has its own; fields of `Sampling` go there."""
    sampling = {name: parts.pop(name) for name in _SAMPLING if name in parts}
    return Decoder(**{"block_length": BLOCK, **parts}, sampling=Sampling(**sampling))


def decode(*, order=range(4), seed=0, model_seed=0, model=MODEL, prompts=PROMPTS, multiple=1, gen_length=GEN, **parts):
    """`jaxdiff.decode` of PROMPTS, rows in that order; `parts` are the decoder's, or `mesh` and `reference`."""
    options = {name: parts.pop(name) for name in ("mesh", "reference") if name in parts}
    ids, origin = batch(prompts, multiple)
    order = list(order)
    own = {} if (model.attention_block or BLOCK) % BLOCK == 0 else {"block_length": None}
    return jaxdiff.decode(
        model,
        params(model_seed, model),
        ids[order],
        decoder(**own, **parts),
        gen_length=gen_length,
        origin=origin[order],
        key=keys(len(prompts), seed)[jnp.asarray(order)],
        **options,
    )


@functools.cache
def _forward(model):
    def forward(tree, tokens):
        features = model.apply(tree, Inputs.whole(tokens[None]))[0][0]
        return features, features @ model.head(tree)

    return jax.jit(forward)


def features(tree, tokens, model=MODEL):
    """One row alone, without padding: [L, D]."""
    return np.asarray(_forward(model)(tree, jnp.asarray(tokens, jnp.int32))[0])


def logits(tree, tokens, model=MODEL):
    """One row alone, without padding: float64 [L, V]."""
    return np.asarray(_forward(model)(tree, jnp.asarray(tokens, jnp.int32))[1], np.float64)
