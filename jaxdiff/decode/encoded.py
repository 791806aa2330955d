"""The full pass of a model that encodes visible tokens apart from masks (`jaxdiff.protocols.Encodes`).

cache none      canvas [B L] -> all visible tokens encoded, all masks decoded
cache encoded   new tokens [B n] -> into the KV cache;  masks [B m] over it -> features of the block [B W D]

n and m are the shortest of a few compiled widths that hold the row with most. The encoder's mask is by reveal step,
the row's step at which a token was committed and one more, 0 for what was given: so both ways compute the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdiff.decode.full import FullPass, Reading
from jaxdiff.decode.pieces import shortest
from jaxdiff.decode.tail import Wide
from jaxdiff.protocols import Model, is_encoding
from jaxdiff.types import Inputs, KVCache, Score, Tail
from jaxdiff.windows import take

# The least tokens of a pass that are compiled, and how many times as many the next width has. Of new tokens most steps
# have a few, so that coarse widths do; masks are many, and what is not needed of a width costs as much as a mask.
NEW, MASKS = (4, 4), (16, 2)


def pass_of(model: Model) -> type[FullPass]:
    """The full pass that a model takes in a step."""
    return EncodedPass if is_encoding(model) else FullPass


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPass(FullPass):
    """A step's passes through the encoder and through the decoder, which count as one forward.

    What is right of a row's end, and no mask, stays seen: what was revealed while it was there has seen it too.
    """

    def run(self, live: Bool[Array, " B"]) -> tuple[Score, Tail | None, Reading]:
        """As `FullPass.run`."""
        if self.setup.decoder.cache.window == "canvas":
            return super().run(live)
        columns, before = self.state.given.shape[1], self._nothing()
        encoded = self._some(live, EncodedPass._encode, columns, _count(self._new), before)
        reading = self._some(live, EncodedPass._decode, columns, _count(self._masks), encoded)
        tail = None if reading.wide is None else self._tail(live, reading.wide)
        return self._score(reading), tail, reading

    def inputs(
        self,
        tokens: Int[Array, "B T"],
        at: Int[Array, " B"] | Int[Array, "B T"] | None,
        columns: int,
        fresh: Bool[Array, "B T"] | None,
        *,
        given: Bool[Array, "B T"],
        store: bool = True,
    ) -> Inputs:
        """As `StepPasses.inputs`, with what the encoder asks."""
        plain = super().inputs(tokens, at, columns, fresh, given=given, store=store)
        valid = plain.valid | self._visible[:, :columns]
        return dataclasses.replace(plain, valid=valid, revealed=self._revealed[:, :columns])

    def _encode(self, rows: Bool[Array, " B"] | None, before: Reading) -> Reading:
        """The KV cache with what was revealed in these rows since their last step: at the first, all that was given."""
        new = self._new if rows is None else self._new & rows[:, None]

        def on(at: Int[Array, "B n"], inputs: Inputs) -> KVCache:
            return self._model.encode(self.setup.params, inputs, before.kv, at)

        kv = self._fed(new, NEW, on)
        return dataclasses.replace(before, kv=kv, work=before.work + self._work(_count(new), 0))

    def _decode(self, rows: Bool[Array, " B"] | None, before: Reading) -> Reading:
        """What the decoder says of the masks of these rows."""
        masks = self._masks if rows is None else self._masks & rows[:, None]
        rank = jnp.cumsum(masks, axis=1, dtype=jnp.int32) - 1
        start, window = self.place.start, self.setup.layout.block_length

        def on(at: Int[Array, "B m"], inputs: Inputs) -> tuple[Float[Array, "B W D"], Float[Array, "B L D"] | None]:
            features, _ = self._model.apply(self.setup.params, inputs, before.kv, at)

            def of(rank: Int[Array, "B c"], masks: Bool[Array, "B c"]) -> Float[Array, "B c D"]:
                own = jnp.take_along_axis(features, jnp.maximum(rank, 0)[..., None], axis=1)
                return jnp.where(masks[..., None], own, jnp.zeros_like(own))

            wide = None if before.wide is None else of(rank, masks)
            return of(take(rank, start, window), take(masks, start, window)), wide

        hidden, wide = self._fed(masks, MASKS, on)
        if wide is not None:
            everywhere = jnp.zeros_like(start)
            wide = Wide(wide, everywhere, everywhere + masks.shape[1])
        work = before.work + self._work(0, _count(masks))
        return dataclasses.replace(before, hidden=hidden, wide=wide, work=work)

    def _fed(
        self, among: Bool[Array, "B L"], widths: tuple[int, int], on: Callable[[Int[Array, "B n"], Inputs], Any]
    ) -> Any:
        """`on` the columns of these tokens and a pass over them alone. What fills up a width are other columns, each
        once, of which nothing is fresh.
        """
        columns = among.shape[1]
        order = jnp.argsort(~among, axis=1, stable=True).astype(jnp.int32)

        def run(width: int) -> Callable[[], Any]:
            at = order[:, :width]
            tokens, given, fresh = (
                jnp.take_along_axis(x, at, axis=1) for x in (self.state.rows.canvas, self.state.given, among)
            )
            return lambda: on(at, self.inputs(tokens, at, columns, fresh, given=given))

        least, times = widths
        shorter = [least]
        while shorter[-1] < columns:
            shorter.append(shorter[-1] * times)
        return shortest(run, (*shorter[:-1], columns), jnp.max(_count(among)))

    def _read(self, rows: Bool[Array, " B"] | None, before: Reading, new: Reading, tokens: Int[Array, " B"]) -> Reading:
        """As `FullPass._read`: of a pass over the canvas."""
        read, work = super()._read(rows, before, new, tokens), self._work(_count(self._visible), _count(self._masks))
        return dataclasses.replace(read, work=work if rows is None else jnp.where(rows, work, before.work))

    def _work(self, encoded: int | Int[Array, " B"], decoded: int | Int[Array, " B"]) -> Float[Array, " B"]:
        """So many tokens of each row through the encoder and through the decoder, in forwards over its canvas."""
        none, share = jnp.zeros_like(self.place.start), self._model.encoder_share
        return share * self.work(none + encoded) + (1.0 - share) * self.work(none + decoded)

    @property
    def _model(self) -> Any:
        return self.setup.model

    @property
    def _masked(self) -> Bool[Array, "B L"]:
        return self.state.rows.canvas == self.setup.model.config.mask_token_id

    @property
    def _revealed(self) -> Int[Array, "B L"]:
        return jnp.where(self._masked, -1, self.state.commit_step + 1)

    @property
    def _visible(self) -> Bool[Array, "B L"]:
        """What the encoder sees, or will have seen."""
        return ~self._masked & (self._column >= self.state.rows.origin[:, None])

    @property
    def _new(self) -> Bool[Array, "B L"]:
        return self._visible & (self._revealed == self.state.row_step[:, None])

    @property
    def _masks(self) -> Bool[Array, "B L"]:
        """Those that the row attends to: none past its end, and none of its padding."""
        return self._masked & (self._column >= self.state.rows.origin[:, None]) & (self._column < self.seen[:, None])

    @property
    def _column(self) -> Int[Array, "1 L"]:
        return jnp.arange(self.state.given.shape[1], dtype=jnp.int32)[None]


def _count(among: Bool[Array, "B L"]) -> Int[Array, " B"]:
    return jnp.sum(among, axis=1, dtype=jnp.int32)
