"""What is missing, and where: the objective of an insertion model (ILM, arXiv 2505.05755; dhruvdcoder/ILM `ilm_v2.py`).

One softmax goes over all gaps and tokens of a row. Its target is how often each token is missing from each gap, divided
by the count of all that are missing: with any one of them inserted next, the model is right. The estimate is biased and
of low variance, which is the paper's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.protocols import Completes, Model, is_insertion
from jaxdiff.pytree import InputError, number, pytree
from jaxdiff.train.data import Batch
from jaxdiff.train.noises import Noise, View
from jaxdiff.train.noises.base import is_packed
from jaxdiff.train.objectives.base import Network, ObjectiveBase, Rows, by_chunks
from jaxdiff.types import NEVER, Inputs, Leaf
from jaxdiff.weights import full


@pytree
class Gaps:
    """A row as an insertion model sees it.

    Attributes:
        kept: what stands in the text: prompt and answer without the tokens that are missing, and without end-of-text.
        open: tokens that own a gap of the answer: those of it that stand, and the one before its first.
        owner: of each column, the last column before it that is kept: where a missing token is to be inserted.
    """

    kept: Bool[Array, "R T"]
    open: Bool[Array, "R T"]
    owner: Int[Array, "R T"]

    @classmethod
    def of(cls, batch: Batch, missing: Bool[Array, "R T"]) -> Gaps:
        """`missing`: of the views of a batch one below the other."""
        views, length = missing.shape[0] // batch.tokens.shape[0], missing.shape[1]
        column = jnp.arange(length, dtype=jnp.int32)[None]
        last = jnp.max(jnp.where(batch.answers, column, -1), axis=1, keepdims=True)
        end = (batch.prompt_lengths + batch.answer_lengths)[:, None] - 1
        text = jnp.tile(column < jnp.where(is_packed(batch), last + 1, end), (views, 1))
        answers = jnp.tile(jnp.asarray(batch.answers), (views, 1))
        kept = text & ~missing
        before = jnp.concatenate([answers[:, 1:], jnp.zeros_like(answers[:, :1])], axis=1)
        standing = jax.lax.cummax(jnp.where(kept, column, 0), axis=1)
        owner = jnp.concatenate([jnp.zeros_like(standing[:, :1]), standing[:, :-1]], axis=1)
        return cls(kept, kept & (answers | before), owner)

    def inputs(self, tokens: Int[Array, "R T"]) -> Inputs:
        """What stands, at positions without holes; nobody sees the rest."""
        position = jnp.cumsum(self.kept, axis=1, dtype=jnp.int32) - 1
        origin = jnp.zeros((tokens.shape[0],), jnp.int32)
        return Inputs(tokens, jnp.where(self.kept, position, -1), self.kept, origin)


@pytree
class Insertion(ObjectiveBase):
    """The cross entropy of (gap, token), in nats, plus `stop` times that of whether anything is missing.

    A row from which nothing is missing has the second part alone. The first is over the gaps of the answer: a prompt's
    are closed, as in decoding.

    Attributes:
        stop: the weight of the stop head's loss; 1 as published for star graphs.
    """

    stop: Leaf = number(default=1.0, low=0.0, high=1e3)

    noise: ClassVar[str] = "drop"

    def check(self, noise: Noise) -> None:
        if not noise.drops:
            raise InputError(
                "objective insertion: found a noise that masks what is to be learned, expected drop, which leaves it "
                "out; leave the noise out"
            )

    def check_model(self, model: Model) -> None:
        if not is_insertion(model):
            raise InputError(
                f"objective insertion: found a {type(model).__name__}, which has no stop head, expected an insertion "
                "model; name its family in the recipe (model.family: insertion), or take objective denoise"
            )

    def loss(self, network: Network, batch: Batch, views: Sequence[View], teacher: Network | None) -> Float[Array, ""]:
        del teacher
        model = network.model
        assert isinstance(model, Completes)
        rows = Rows.of(batch, views)
        gaps = Gaps.of(batch, rows.learn)
        features = model.apply(network.params, gaps.inputs(rows.tokens))[0]
        (mass,) = by_chunks(lambda features: (jax.nn.logsumexp(network.logits(features), axis=1),), gaps.open, features)
        whole = jax.nn.logsumexp(jnp.where(gaps.open, mass, NEVER), axis=1)
        # The logits of the missing tokens alone, from their columns of the head: no second [C, V].
        at = jnp.take_along_axis(features, gaps.owner[..., None], axis=1)
        columns = full(model.head(network.params), features.dtype).T[rows.targets]
        logit = jnp.sum((at * columns).astype(jnp.float32), axis=-1)
        count = jnp.sum(rows.learn, axis=1)
        own = jnp.sum(jnp.where(rows.learn, logit, 0.0), axis=1) / jnp.maximum(count, 1)
        nats = jnp.where(count > 0, whole - own, 0.0)
        odds = model.whole(network.params, features[:, 0])  # that nothing is missing
        stop = jnp.where(count > 0, jax.nn.softplus(odds), jax.nn.softplus(-odds))
        return jnp.sum(nats + jnp.asarray(self.stop) * stop) / batch.tokens.shape[0]
