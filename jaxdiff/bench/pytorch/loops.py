"""The published sampling loops: Python steps and PyTorch computes, eagerly or with each step compiled.

All rows of a batch step until none has a mask left in the block. A step chooses by the candidate of each position (the
argmax) and its confidence (the candidate's probability).

| loop | source | a step's forward | what it commits |
|---|---|---|---|
| `standard` | LLaDA `generate` | canvas | the most confident mask of the block |
| `threshold` | Fast-dLLM `generate` | canvas | what reaches 0.9, and the most confident |
| `prefix` | Fast-dLLM `generate_with_prefix_cache` | block and all behind it | the same |
| `dual` | Fast-dLLM `generate_with_dual_cache` | block | the same |
| `learn2pd` | Learn2PD `generate_learn2parallel` | canvas | what the filter accepts, and the most confident |
| `eotp` | Learn2PD `generate_l2p_eot` | canvas, which is cut | the same |

Confidences are computed in float64 by Fast-dLLM's code, in the model's dtype by the two others', where confident
positions then often tie, and the first is taken. Where the published code goes over rows and positions in Python to
choose, this computes with whole tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from jaxdiff.bench.pytorch.model import KV, Filter, Join, Llada, alone

TAU = 0.9  # Fast-dLLM's threshold


@runtime_checkable
class Choice(Protocol):
    """What a step commits, [B T]."""

    def __call__(self, confidence: torch.Tensor, open_: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Of positions [B T], those `open_` may be committed; `block`: which of T are the block's, [w]."""
        ...


@runtime_checkable
class Compile(Protocol):
    """A step as it is, or compiled; `dynamic` where its shapes change from step to step."""

    def __call__(self, step: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]: ...


def eager(step: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    del dynamic
    return step


def compiled(step: Callable[..., Any], *, dynamic: bool) -> Callable[..., Any]:
    return torch.compile(step, dynamic=dynamic, fullgraph=True)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is decoded.

    Attributes:
        prompts: ids [B P], padded on the left.
        seen: the canvas' columns that are no padding, [B 1 1 L]; None where none is.
    """

    prompts: torch.Tensor
    seen: torch.Tensor | None
    gen_length: int
    block_length: int

    @classmethod
    def of(cls, prompts: list[list[int]], gen_length: int, block_length: int, device: str = "cpu") -> Task:
        """From prompts of any lengths."""
        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        first = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        columns = torch.arange(longest + gen_length, device=device)
        seen = (columns >= first[:, None])[:, None, None] if first.any() else None
        return cls(padded, seen, gen_length, block_length)

    def canvas(self, mask: int) -> torch.Tensor:
        return F.pad(self.prompts, (0, self.gen_length), value=mask)

    def starts(self) -> range:
        """The blocks' first columns."""
        first = self.prompts.shape[1]
        return range(first, first + self.gen_length, self.block_length)


def most_confident(confidence: torch.Tensor, open_: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """One in each row that has an open position."""
    del block
    best = confidence.where(open_, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(open_).scatter(-1, best, True) & open_


def confident(confidence: torch.Tensor, open_: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Those that reach the threshold, and the most confident."""
    return (open_ & (confidence >= TAU)) | most_confident(confidence, open_, block)


@dataclasses.dataclass(frozen=True)
class Accepted:
    """Those that the filter accepts, and the most confident."""

    filter: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, confidence: torch.Tensor, open_: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        return self.alone(confidence, open_, block) | most_confident(confidence, open_, block)

    def alone(self, confidence: torch.Tensor, open_: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Without the most confident."""
        accepted = self.filter(confidence.index_select(1, block))
        return torch.zeros_like(open_).index_copy(1, block, accepted) & open_


class Loop:
    """Without a cache: each step runs the whole canvas.

    `confidence`: what the softmax computes in; None for the model's dtype.
    """

    def __init__(self, model: Llada, choose: Any, compile_: Compile, confidence: torch.dtype | None = None) -> None:
        self.model, self.choose, self.confidence = model, choose, confidence
        self.prepare(compile_)

    def prepare(self, compile_: Compile) -> None:
        self.step = compile_(lambda *given: self.advance(*given)[0], dynamic=False)

    def __call__(self, task: Task) -> tuple[torch.Tensor, int]:
        """The canvas when it is done, [B L] or shorter, and the number of forwards."""
        canvas, forwards = task.canvas(self.model.mask), 0
        columns = torch.arange(canvas.shape[1], device=canvas.device)
        for start in task.starts():
            block = columns[start : start + task.block_length]
            while self.unfinished(canvas, block):
                canvas = self.step(canvas, columns, block, task.seen)
                forwards += 1
        return canvas, forwards

    def unfinished(self, canvas: torch.Tensor, block: torch.Tensor) -> bool:
        return bool((canvas[:, block] == self.model.mask).any())

    def advance(
        self,
        tokens: torch.Tensor,
        columns: torch.Tensor,
        block: torch.Tensor,
        seen: torch.Tensor | None,
        join: Join = alone,
    ) -> tuple[torch.Tensor, KV]:
        """Tokens [B T] at `columns` after one step, and their keys and values; `block`: which of T are the block's."""
        candidate, confidence, kv = self.believe(tokens, columns, seen, join)
        open_ = (tokens == self.model.mask) & (columns <= columns[block[-1:]])
        return candidate.where(self.choose(confidence, open_, block), tokens), kv

    def believe(
        self, tokens: torch.Tensor, columns: torch.Tensor, seen: torch.Tensor | None, join: Join = alone
    ) -> tuple[torch.Tensor, torch.Tensor, KV]:
        """Candidates and confidences, over all of the tokens as published, [B T]; and keys and values."""
        logits, kv = self.model(tokens, columns, seen, join)
        candidate = logits.argmax(-1, keepdim=True)
        prob = logits.softmax(-1, dtype=self.confidence).gather(-1, candidate)
        return candidate[..., 0], prob[..., 0], kv


class Cached(Loop):
    """A block's first step runs the canvas and keeps keys and values; the others run a window that holds the block."""

    dynamic: ClassVar[bool] = False  # whether windows differ in length

    def prepare(self, compile_: Compile) -> None:
        self.first = compile_(self.advance, dynamic=False)
        self.step = compile_(self._later, dynamic=self.dynamic)

    def __call__(self, task: Task) -> tuple[torch.Tensor, int]:
        canvas, forwards = task.canvas(self.model.mask), 0
        columns = torch.arange(canvas.shape[1], device=canvas.device)
        own = columns[: task.block_length]
        for start in task.starts():
            block = columns[start : start + task.block_length]
            canvas, kv = self.first(canvas, columns, block, task.seen)
            forwards += 1
            window, kept = self.window(start, task.block_length), self.kept(kv, start)
            while self.unfinished(canvas, block):
                canvas[:, window] = self.step(canvas[:, window], columns[window], own, task.seen, kept)
                forwards += 1
        return canvas, forwards

    def window(self, start: int, block_length: int) -> slice:
        """The columns of a later step; it begins with the block."""
        raise NotImplementedError

    def kept(self, kv: KV, start: int) -> KV:
        """What of the first step's keys and values is kept."""
        raise NotImplementedError

    def joined(self, kept: torch.Tensor, columns: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Keys, or values, that a later step attends to, given its own."""
        raise NotImplementedError

    def _later(
        self, tokens: torch.Tensor, columns: torch.Tensor, own: torch.Tensor, seen: torch.Tensor | None, kept: KV
    ) -> torch.Tensor:
        def join(layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.joined(kept[layer][0], columns, k), self.joined(kept[layer][1], columns, v)

        return self.advance(tokens, columns, own, seen, join)[0]


class Prefix(Cached):
    """Keeps what lies left of the block; runs all the rest."""

    dynamic = True

    def window(self, start: int, block_length: int) -> slice:
        del block_length
        return slice(start, None)

    def kept(self, kv: KV, start: int) -> KV:
        return [(k[:, :, :start], v[:, :, :start]) for k, v in kv]

    def joined(self, kept: torch.Tensor, columns: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([kept, new], 2)


class Dual(Cached):
    """Keeps all; runs the block, whose keys and values replace those that were there."""

    def window(self, start: int, block_length: int) -> slice:
        return slice(start, start + block_length)

    def kept(self, kv: KV, start: int) -> KV:
        return kv

    def joined(self, kept: torch.Tensor, columns: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return kept.index_copy_(2, columns, new)


class Predicted(Loop):
    """Each step cuts the canvas behind the end-of-text that it foresees: the next one runs a shorter one. One row.

    That is the leftmost that the filter accepts; else, of all masks of the canvas, the most confident. What it kept may
    still be a mask. `choose` is an `Accepted`.
    """

    def prepare(self, compile_: Compile) -> None:
        self.step = compile_(self._cutting, dynamic=True)

    def __call__(self, task: Task) -> tuple[torch.Tensor, int]:
        canvas, forwards = task.canvas(self.model.mask), 0
        columns = torch.arange(canvas.shape[1], device=canvas.device)
        for start in task.starts():
            while self.unfinished(canvas, block := columns[start : start + task.block_length]):
                canvas, end = self.step(canvas, columns, block)
                canvas, columns = canvas[:, : int(end)], columns[: int(end)]
                forwards += 1
        return canvas, forwards

    def _cutting(
        self, canvas: torch.Tensor, columns: torch.Tensor, block: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        candidate, confidence, _ = self.believe(canvas, columns, None)
        masked = canvas == self.model.mask
        open_ = masked & (columns <= columns[block[-1:]])
        ends = candidate == self.model.eos
        accepted = ends & self.choose.alone(confidence, open_, block)
        foreseen = confidence.where(ends & masked, -torch.inf)
        surest = torch.where((ends & masked).any(-1), foreseen.argmax(-1) + 1, canvas.shape[1])
        end = torch.where(accepted.any(-1), accepted.int().argmax(-1) + 1, surest)
        return candidate.where(self.choose(confidence, open_, block), canvas), end


def loop(name: str, model: Llada, filter_: Filter | None, compile_: Compile) -> Loop:
    """One of the table above. Raises KeyError for another name."""
    makes: dict[str, Callable[[], Loop]] = {
        "standard": lambda: Loop(model, most_confident, compile_),
        "threshold": lambda: Loop(model, confident, compile_, torch.float64),
        "prefix": lambda: Prefix(model, confident, compile_, torch.float64),
        "dual": lambda: Dual(model, confident, compile_, torch.float64),
        "learn2pd": lambda: Loop(model, Accepted(_given(filter_)), compile_),
        "eotp": lambda: Predicted(model, Accepted(_given(filter_)), compile_),
    }
    return makes[name]()


def _given(filter_: Filter | None) -> Filter:
    assert filter_ is not None
    return filter_
