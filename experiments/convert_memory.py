"""How much memory converting, exporting and loading a model of LLaDA-8B's layout takes; are the bits kept?

    python experiments/convert_memory.py --layers 12

A synthetic folder with the widths of LLaDA-8B and fewer layers is made, converted, exported, compared tensor by tensor
and loaded. Each command is a process of its own, whose anonymous memory is read every 10 ms.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import typer
from safetensors import safe_open
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results"
# ML-GSAI/LLaDA-8B's config.json
CONFIG = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "weight_tying": False,
}
SLACK = 2e9  # the interpreter, JAX, orbax and what they buffer
SHARD_GB = 2.0


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the published files, [out, in]."""
    d, f, v = CONFIG["d_model"], CONFIG["mlp_hidden_size"], CONFIG["vocab_size"]
    square: dict[str, tuple[int, ...]] = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (d, d))
    block = square | {"attn_norm": (d,), "ff_norm": (d,), "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)}
    ends: dict[str, tuple[int, ...]] = {"wte": (v, d), "ln_f": (d,), "ff_out": (v, d)}
    return {f"model.transformer.{name}.weight": shape for name, shape in ends.items()} | {
        f"model.transformer.blocks.{n}.{name}.weight": shape for n in range(layers) for name, shape in block.items()
    }


def make(folder: Path, layers: int) -> None:
    """A published folder of bfloat16 numbers, each tensor other ones, in shards of about 2 GB."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"n_layers": layers}))
    pool = np.random.default_rng(0).normal(0, 0.02, 1 << 26).astype(ml_dtypes.bfloat16)
    shards: list[dict[str, np.ndarray]] = [{}]
    names: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(shards):05}.safetensors"
        save_file(shards[-1], folder / name)
        names.update(dict.fromkeys(shards[-1], name))
        shards[-1].clear()

    for i, (key, shape) in enumerate(shapes(layers).items()):
        if sum(array.nbytes for array in shards[-1].values()) > SHARD_GB * 1e9:
            flush()
            shards.append({})
        shards[-1][key] = np.resize(np.roll(pool, 4099 * i), shape)
    flush()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def watched(command: list[str]) -> dict[str, float]:
    """Run a program; its peak RssAnon in bytes, and the seconds that it took."""
    peak, start = 0, time.perf_counter()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:  # it has just ended
                break
            peak = max([peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return {"peak_rss_anon": peak, "seconds": round(time.perf_counter() - start, 1)}


def every_tensor(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            yield from ((key, (lambda key=key, file=file: file.get_tensor(key))) for key in file.keys())  # noqa: SIM118


def differing(left: Path, right: Path) -> int:
    """How many tensors differ in a bit, or are in one of the folders alone."""
    files = {key: path for path in right.glob("*.safetensors") for key in safe_open(path, "np").keys()}  # noqa: SIM118
    wrong, seen = 0, set()
    for key, read in every_tensor(left):
        seen.add(key)
        if key not in files:
            wrong += 1
            continue
        with safe_open(files[key], framework="np") as file:
            wrong += not np.array_equal(read().view(np.uint16), file.get_tensor(key).view(np.uint16))
    return wrong + len(files.keys() - seen)


def run(
    layers: Annotated[int, typer.Option(min=1, help="LLaDA-8B has 32.")] = 12,
    at: Annotated[Path | None, typer.Option(help="Where the folders are made; removed afterwards.")] = None,
) -> None:
    """Measure, print, and write results/convert_memory.json."""
    sizes = {key: 2 * int(np.prod(shape)) for key, shape in shapes(layers).items()}
    stacked = [layers * size for key, size in sizes.items() if ".blocks.0." in key]
    leaf, tensor, total = max(stacked + list(sizes.values())), max(sizes.values()), sum(sizes.values())
    bounds = {
        "convert": leaf + tensor + SLACK,
        "export": leaf + max(tensor, SHARD_GB * 1e9) + SLACK,
        "load": total + leaf + tensor + SLACK,
    }
    jaxdiff = [sys.executable, "-m", "jaxdiff.cli.main"]
    with tempfile.TemporaryDirectory(dir=at) as scratch:
        source, ours, back = (Path(scratch) / name for name in ("published", "ours", "back"))
        make(source, layers)
        load = f"import jaxdiff; jaxdiff.load({str(source)!r}, dtype='bfloat16')"
        found = {
            "convert": watched([*jaxdiff, "convert", str(source), str(ours)]),
            "export": watched([*jaxdiff, "export", str(ours), str(back), "--max-shard-gb", str(SHARD_GB)]),
            "load": watched([sys.executable, "-c", load]),
        }
        wrong = differing(source, back)
    result = {
        "layers": layers,
        "bytes": {"all": total, "largest_stacked_leaf": leaf, "largest_tensor": tensor},
        "runs": {name: run | {"bound": bounds[name]} for name, run in found.items()},
        "tensors": len(sizes),
        "tensors_that_differ": wrong,
        "machine": {"system": platform.platform(), "python": platform.python_version(), "device": "cpu"},
        "versions": {name: version(name) for name in ("jax", "orbax-checkpoint", "safetensors", "tensorstore")},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "convert_memory.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, numbers in result["runs"].items():
        peak, bound = numbers["peak_rss_anon"] / 1e9, numbers["bound"] / 1e9
        print(f"{name}: peak RssAnon {peak:.2f} GB, bound {bound:.2f} GB, {numbers['seconds']} s")
    print(f"{total / 1e9:.2f} GB in {len(sizes)} tensors; {wrong} differ after convert and export")
    if wrong or any(numbers["peak_rss_anon"] > numbers["bound"] for numbers in result["runs"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(run)
