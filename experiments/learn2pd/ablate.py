"""Step 4: what the filters owe to depth, to data and to the threshold; how they fare where they were not fitted.

    python -m experiments.learn2pd.ablate

On the validation split, stop `eos` and n = CHOSEN_ON unless said. The filters of this step are fitted to the traces of
step 1, not kept. `official` judges blocks of the length that it was fitted for; what `local` does at other lengths of
blocks and canvases is its transfer, as is what it does on templates that it was not fitted to, and in infilling
(`transfer.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

import jaxdiff
from experiments.learn2pd.common import CHOSEN_ON, MODEL, RESULTS, Results, learned, points
from experiments.learn2pd.fit import FITS, OFFICIAL, load_all, rows_for
from experiments.learn2pd.transfer import TAUS, transfer
from experiments.policies import accuracy
from jaxdiff.filters import FILTERS, load_filter
from jaxdiff.train.fit_filter import FilterRecipe, fit_filter
from jaxdiff.train.traces import Traces

LAYERS = (1, 4)  # 2: see step 2
SHARES = (0.01, 0.1)  # of the published set's prompts; all of them: see step 2
NOTE = """Validation split, stop eos unless said; brackets: 95 % intervals (Wilson). In infilling a row is right whose
every mask got the token that stood there, and TPF counts masks. `local` is fitted to canvases of 256 in blocks of 16,
32 and 64, and of 1024 in blocks of 32; `earlier local`, of half its width, to 900 prompts at 256 in blocks of 32."""
COLOURS = ("#56b4e9", "#009e73", "#0072b2", "#000000")


def main() -> None:
    checkpoint = jaxdiff.load(MODEL)
    traces, results, fits = load_all(), Results("ablate", checkpoint), Results("fit", checkpoint)
    shipped, _ = load_filter(checkpoint.path / FILTERS / "local")
    published, whole = traces["published"], fits.content["chosen"]["local"]
    local, everything = FITS["local"][whole], rows_for(whole, traces)
    prompts = {
        f"{len(np.unique(few.prompt))} prompts": few
        for few in (published.take(published.prompt < s * (published.prompt.max() + 1)) for s in (*SHARES, 1.0))
    }
    official = "official from all replays, validation"
    results.once(f"official, 2 layers, {list(prompts)[-1]}", lambda: fits.entries[official])
    for layers in LAYERS:
        deep = dataclasses.replace(OFFICIAL, layers=layers)
        fit_and_sweep(checkpoint, results, f"official, {layers} layers, {list(prompts)[-1]}", [published], deep)
    for count, few in prompts.items():
        fit_and_sweep(checkpoint, results, f"official, 2 layers, {count}", [few], OFFICIAL)
        fit_and_sweep(checkpoint, results, f"local, {count}", [few], local)
    results.once("local, all sets", lambda: fits.entries[f"{whole}, validation"])
    transfer(checkpoint, results, everything, local, shipped)
    (RESULTS / "ablate.md").write_text(report(results))
    draw(results)
    print(report(results))


def fit_and_sweep(
    checkpoint: jaxdiff.Checkpoint, results: Results, name: str, traces: Sequence[Traces], recipe: FilterRecipe
) -> None:
    def make() -> list[dict]:
        policy = learned(fit_filter(traces, recipe).filter, quota=recipe.kind == "block")
        return points(checkpoint, name, policy, TAUS, n=CHOSEN_ON, split="validation")

    results.once(name, make)


def report(results: Results) -> str:
    lines = ["# What the filters owe", "", NOTE, ""]
    lines += ["| what | tau | n | accuracy % | NFE | TPF |", "|---|---:|---:|---:|---:|---:|"]
    for name, swept in results.entries.items():
        for point in swept:
            tau = f"{point['value']:g}" if len(swept) > 1 else "-"
            lines.append(
                f"| {name} | {tau} | {point['n']} | {accuracy(point)} | {point['nfe']:.1f} | {point['tpf']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def prompts_of(name: str) -> float:
    """How many prompts a filter was fitted to, as its entry's name says; infinity where it says none: all of them."""
    said = re.search(r"(\d+) prompts", name)
    return float(said[1]) if said else float("inf")


def draw(results: Results) -> None:
    """Accuracy against TPF by depth, and by data."""
    found = sorted(results.entries, key=prompts_of)
    groups = {
        "official, by depth": [f"official, {layers} layers, 900 prompts" for layers in (1, 2, 4)],
        "official, by data": [name for name in found if name.startswith("official, 2 layers")],
        "local, by data": [name for name in found if re.fullmatch(r"local, (\d+ prompts|all sets)", name)],
    }
    figure, axes = plt.subplots(1, len(groups), figsize=(13, 4.2), layout="constrained", sharex=True, sharey=True)
    for axis, (title, names) in zip(np.ravel(axes), groups.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            swept = results.entries[name]
            axis.plot([p["tpf"] for p in swept], [p["accuracy"] for p in swept], "o-", color=colour, label=name)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("TPF")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    axes[0].set_ylabel("accuracy (%)")
    figure.savefig(RESULTS / "ablate.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
