"""The decode seen again: masks turn into text in the order in which they were committed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.live import Live
from rich.text import Text

from jaxdiff.checkpoint import Tokenizer
from jaxdiff.show import pieces_of

FRAMES_A_SECOND = 8
MOST_FRAMES = 48  # longer decodes show several forwards in one frame
MASK, FRESH = "░", "black on green"


def replay(
    tokens: Int[np.ndarray, " G"],
    commit_step: Int[np.ndarray, " G"],
    tokenizer: Tokenizer | None,
    console: Console,
    seconds_a_frame: float = 1 / FRAMES_A_SECOND,
) -> None:
    """Play one row's decode on a terminal and wipe it away; anywhere else do nothing."""
    if not console.is_terminal:
        return
    pieces = [f"{token} " for token in tokens] if tokenizer is None else pieces_of(tokens.tolist(), tokenizer.fast)
    forwards = int(commit_step.max()) + 1
    stride = -(-forwards // MOST_FRAMES)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for done in range(0, forwards + stride, stride):
            live.update(frame(pieces, commit_step, done - stride, done), refresh=True)
            time.sleep(seconds_a_frame)


def frame(pieces: Sequence[str | None], commit_step: Int[np.ndarray, " G"], since: int, done: int) -> Text:
    """The canvas after `done` forwards; what was committed from forward `since` on is highlighted.

    A character that is cut over several tokens is there once all of them are; until then each is a mask.
    """
    text, group = Text(), []
    for piece, step in zip(pieces, commit_step.tolist(), strict=True):
        group.append(step)
        if piece is None:
            continue
        if min(group) < 0 or max(group) >= done:  # a position past the end stays a mask until the row ends
            text.append(MASK * len(group), "dim")
        else:
            text.append(piece, FRESH if max(group) >= since else "")
        group = []
    return text
