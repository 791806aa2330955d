"""jaxdiff's side of the comparison: starts the worker, asks it for decodes, waits meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from safetensors.flax import save_file

from jaxdiff.models import Llada
from jaxdiff.models.lora import is_adapted
from jaxdiff.policies import Learned
from jaxdiff.policies.filters import BlockFilter
from jaxdiff.protocols import Model
from jaxdiff.types import InputError, Params
from jaxdiff.weights import plain


@dataclasses.dataclass(frozen=True)
class Ran:
    """One decode of the worker; the tokens are the generated ones."""

    seconds: float
    forwards: int
    tokens: Int[np.ndarray, "B G"]


class Worker:
    """The process; made by `worker`."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors
        self.version: str = self._read()["torch"]

    def run(self, loop: str, *, compiled: bool) -> Ran:
        """Raises InputError where the worker cannot."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer that is missing says more
            print(json.dumps({"loop": loop, "compiled": compiled}), file=self._process.stdin, flush=True)
        said = self._read()
        return Ran(said["seconds"], said["forwards"], np.asarray(said["tokens"], np.int32))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise InputError(f"pytorch: its process ended: {''.join(last) or 'it said nothing'}")
        said = json.loads(line)
        if "error" in said:
            raise InputError(f"pytorch: {said['error']}")
        return said


@contextlib.contextmanager
def worker(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    gen_length: int,
    block_length: int,
    learned: Learned | None,
    compiled: Path,
) -> Iterator[Worker]:
    """A worker for these prompts, on the device that JAX computes on; it ends with the block.

    Args:
        learned: Learn2PD's filter and threshold, for the loops that ask it.
        compiled: the folder where torch.compile keeps what it made.

    Raises InputError where PyTorch is not installed, for another family than LLaDA, and for a filter of another kind.
    """
    check_pytorch(model, params)
    if learned is not None and not isinstance(learned.filter, BlockFilter):
        raise InputError(f"pytorch: found a {type(learned.filter).__name__}, expected Learn2PD's, a BlockFilter")
    with tempfile.TemporaryDirectory(prefix="jaxdiff-bench-") as name:
        folder = Path(name)
        write_task(folder, model, params, prompts, gen_length, block_length, learned)
        place = {"TORCHINDUCTOR_CACHE_DIR": str(compiled), "JAX_PLATFORMS": "cpu"}
        with (folder / "stderr").open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "jaxdiff.bench.pytorch.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=os.environ | place,
            )
            with process:
                try:
                    yield Worker(process, folder / "stderr")
                except BaseException:
                    process.kill()
                    raise


def check_pytorch(model: Model, params: Params) -> None:
    """Raises InputError where PyTorch is not installed, for another family than LLaDA, a tied head, and an adapter that
    is kept beside the weights.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("pytorch: not installed; install torch, or pass --no-pytorch")
    if not isinstance(model, Llada):
        raise InputError(f"pytorch: found {type(model).__name__}, expected Llada; pass --no-pytorch")
    if model.config.tied:
        raise InputError("pytorch: found a head that is the embedding, expected one of its own; pass --no-pytorch")
    if is_adapted(params):
        raise InputError("pytorch: found a gated adapter, expected one that is merged, or none; pass --no-pytorch")


def write_task(
    folder: Path,
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    gen_length: int,
    block_length: int,
    learned: Learned | None,
) -> None:
    """What the worker reads, into its folder."""
    weights = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(plain(params))
    }
    for index, layer in enumerate(() if learned is None else learned.filter.layers):
        weights |= {f"filter/{index}/kernel": layer.kernel, f"filter/{index}/bias": layer.bias}
    save_file(weights, folder / "weights.safetensors")
    setting = {
        "config": dataclasses.asdict(model.config),
        "prompts": [[int(token) for token in prompt] for prompt in prompts],
        "gen_length": gen_length,
        "block_length": block_length,
        "filter_tau": None if learned is None else float(np.asarray(learned.tau)),
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
    }
    (folder / "setting.json").write_text(json.dumps(setting), encoding="utf-8")
