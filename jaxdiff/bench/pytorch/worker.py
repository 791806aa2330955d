"""The process that computes with PyTorch: python -m jaxdiff.bench.pytorch.worker FOLDER

FOLDER holds what `client.py` wrote: `setting.json` and `weights.safetensors`. The first line that it prints says which
PyTorch it is; then each line of stdin asks for one decode and is answered by one line of stdout:

    {"loop": "dual", "compiled": true}  ->  {"seconds": 0.031, "forwards": 21, "tokens": [[5, 6, ...]]}
                                        or  {"error": "what went wrong"}

`tokens` are the canvas, prompts and their padding left out; a canvas that was cut is filled with end-of-text. The first
decode of a compiled loop compiles it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from jaxdiff.bench.pytorch import loops
from jaxdiff.bench.pytorch.model import Filter, Llada

COMPILES = 64  # of one step for different shapes, at most


class Worker:
    """One model, one set of prompts, and the loops that were asked for so far."""

    def __init__(self, folder: Path) -> None:
        setting = json.loads((folder / "setting.json").read_text(encoding="utf-8"))
        device = setting["device"]
        weights = load_file(folder / "weights.safetensors", device=device)
        self.model = Llada(setting["config"], weights).to(device)
        tau = setting["filter_tau"]
        self.filter = None if tau is None else Filter(weights, tau).to(device)
        self.gen_length = setting["gen_length"]
        self.task = loops.Task.of(setting["prompts"], self.gen_length, setting["block_length"], device)
        self.loops: dict[tuple[str, bool], loops.Loop] = {}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One decode."""
        key = asked["loop"], asked["compiled"]
        if key not in self.loops:
            if asked["compiled"]:
                torch._dynamo.reset()
                self.loops = {known: each for known, each in self.loops.items() if not known[1]}
            self.loops[key] = loops.loop(
                key[0], self.model, self.filter, loops.compiled if asked["compiled"] else loops.eager
            )
        with torch.inference_mode():
            since = time.perf_counter()
            canvas, forwards = self.loops[key](self.task)
            canvas = canvas.cpu()
            seconds = time.perf_counter() - since
        width = self.task.prompts.shape[1]
        cut = width + self.gen_length - canvas.shape[1]
        tokens = F.pad(canvas, (0, cut), value=self.model.eos)[:, width:].tolist()
        return {"seconds": seconds, "forwards": forwards, "tokens": tokens}


def serve(worker: Worker, tell: Callable[[dict[str, Any]], None]) -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        try:
            tell(worker.answer(json.loads(line)))
        except Exception as error:  # whatever it is, who asked is to say it
            tell({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a compiler prints is no answer

    def tell(said: dict[str, Any]) -> None:
        print(json.dumps(said), file=answers, flush=True)

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch._dynamo.config.recompile_limit = COMPILES
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # and do not go on eagerly, in silence
    worker = Worker(Path(sys.argv[1]))
    tell({"torch": torch.__version__, "threads": torch.get_num_threads()})
    serve(worker, tell)


if __name__ == "__main__":
    main()
