"""Draw the README's pictures: `python experiments/picture.py` (CPU, a minute; Debian's chromium is found on the path).

One held-out problem of the model that ships, decoded one token a step, by threshold and by the learned filter, on the
page of `jaxdiff show`, after three forwards; in the light and in the dark.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import jaxdiff
from jaxdiff import Decoder, policies, show, stoppers
from jaxdiff.files import read_object

DOCS = Path(__file__).parents[1] / "docs"
PROBLEM, GEN_LENGTH, STEP = 2, 256, 3  # of checkpoints/gsm-1m/demo.json; tokens; after how many forwards
SIZE, SCALE = "1280,734", 1.5  # of the window in pixels, and pixels of the picture in each
THEMES = {"light": 1, "dark": 0}  # as chromium numbers them
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=2000"),
)


def main() -> None:
    checkpoint = jaxdiff.load()
    tokenizer = checkpoint.tokenizer_for("the picture")
    question = read_object(checkpoint.path / "demo.json")["problems"][PROBLEM]["question"]
    prompts, origin = jaxdiff.pad_prompts([tokenizer.prompt(question)], fill=tokenizer.eos_id)
    ways = {
        "fixed": policies.Fixed(),
        "threshold:tau=0.9": policies.Threshold(0.9),
        "learned": jaxdiff.learned_policy(checkpoint.path),
    }
    rows = []
    for name, policy in ways.items():
        decoder = Decoder(policy=policy, stop=stoppers.Eos())
        result = jaxdiff.decode(
            checkpoint.model, checkpoint.params, prompts, decoder, gen_length=GEN_LENGTH, origin=origin
        )
        told = {"policy": name, "fill": "parallel", "cache": "none", "stop": "eos", "block_length": 32}
        rows.append(show.row_of(result, 0, tokenizer, told, prompt_text=question))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(show.page(rows), encoding="utf-8")
        for theme, number in THEMES.items():
            picture = DOCS / f"page-{theme}.png"
            asked = [f"--blink-settings=preferredColorScheme={number}", f"--window-size={SIZE}"]
            asked += [
                f"--force-device-scale-factor={SCALE}",
                f"--screenshot={picture}",
                f"--user-data-dir={folder}/home",
            ]
            subprocess.run([*CHROMIUM, *asked, f"{page.as_uri()}#step={STEP}"], check=True, capture_output=True)
            print(picture)


if __name__ == "__main__":
    main()
