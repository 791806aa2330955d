"""Draw docs/commit-order.svg, the README's picture: `python experiments/commit_order.py` (CPU, half a minute).

One held-out problem of the model that ships, decoded one token a step, by threshold and by the learned filter. Each
token's colour is the forward that committed it, from the first (dark) to the last (light) of its own decode.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

import jaxdiff
from jaxdiff import Decoder, policies, stoppers
from jaxdiff.files import read_object

FILE = Path(__file__).parents[1] / "docs" / "commit-order.svg"
PROBLEM, GEN_LENGTH = 2, 256  # of checkpoints/gsm-1m/demo.json
WIDTH, MARGIN, LINE, CHARACTER = 500, 18, 26, 8.45  # in pixels; monospace at 14 px
DARK, LIGHT = np.array([38, 70, 120]), np.array([222, 235, 247])


def main() -> None:
    checkpoint = jaxdiff.load()
    tokenizer = checkpoint.tokenizer_for("commit_order")
    problem = read_object(checkpoint.path / "demo.json")["problems"][PROBLEM]
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(problem["question"])], fill=tokenizer.eos_id)
    ways = {
        "one token a forward": policies.Fixed(),
        "threshold 0.9": policies.Threshold(0.9),
        "learned filter": jaxdiff.learned_policy(checkpoint.path),
    }
    parts, top = [], MARGIN
    for name, policy in ways.items():
        decoder = Decoder(policy=policy, stop=stoppers.Eos())
        result = jaxdiff.decode(
            checkpoint.model, checkpoint.params, prompts, decoder, gen_length=GEN_LENGTH, origin=origin
        )
        count = int(result.lengths[0])
        tokens = np.asarray(result.tokens[0, prompts.shape[1] :])[: count - 1]  # the last one is the end of the text
        steps = np.asarray(result.commit_step[0])[: count - 1]
        pieces = [tokenizer.fast.decode([int(token)]) for token in tokens]
        title = f"{name}: {count} tokens in {int(result.nfe[0])} forwards"
        drawn, top = panel(title, pieces, steps, top)
        parts += drawn
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}">'
    background = f'<rect width="{WIDTH}" height="{top}" fill="#ffffff"/>'
    FILE.write_text("\n".join([head, background, *parts, "</svg>"]) + "\n", encoding="utf-8")
    print(FILE)


def panel(title: str, pieces: list[str], steps: np.ndarray, top: float) -> tuple[list[str], float]:
    """The title and the tokens of one decode from `top` down, and where the next one begins."""
    parts = [text(title, MARGIN, top + 14, weight="bold", family="sans-serif")]
    x, y, last = float(MARGIN), top + 28, max(int(steps.max()), 1)
    for piece, step in zip(pieces, steps, strict=True):
        shown = piece.strip("\n") or "⏎"
        width = CHARACTER * len(shown) + 4
        if x + width > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LINE
        share = step / last
        colour = "#" + "".join(f"{round(c):02x}" for c in DARK + share * (LIGHT - DARK))
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="22" rx="3" fill="{colour}"/>')
        parts.append(text(shown, x + 2, y + 16, fill="#ffffff" if share < 0.5 else "#1b1b1b"))
        x += width + 2
        if "\n" in piece:
            x, y = float(MARGIN), y + LINE
    return parts, y + LINE + MARGIN


def text(
    words: str, x: float, y: float, *, fill: str = "#1b1b1b", weight: str = "normal", family: str = "monospace"
) -> str:
    style = f'font-family="{family}" font-size="14" font-weight="{weight}" fill="{fill}" xml:space="preserve"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    main()
