"""A tiny autoregressive guide for the tiny denoisers, and both of few words, so that they agree now and then."""

import dataclasses
import functools

from jaxdiff import Guide
from jaxdiff.models import Llama
from tests import small

# As the denoisers, it has a [MASK] that it never predicts; of another width, so that neither is taken for the other.
MODEL = Llama(
    dataclasses.replace(
        small.LLAMA.config, mask_token_id=small.MASK, d_model=24, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8
    )
)


@functools.cache
def params(seed, model):
    """Of `small.params`, with a few ids that are likely everywhere."""
    tree = dict(small.params(seed, model))
    tree["head"] = tree["head"].at[:, 10:13].multiply(3.0)
    return tree


def guide(seed=7):
    return Guide(MODEL, params(seed, MODEL))
