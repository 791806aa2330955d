"""What does loading a model of the hub take, and what is left of a download that was interrupted?

    python -m experiments.hub

A hub on loopback (tests/hub.py) serves a random sharded model of LLaDA's layout. First a process with four simulated
devices loads one of 2 GB over a mesh of 1x4; its anonymous memory is read every 10 ms, and the hub counts what it
sends. Then a small one is fetched and converted by the command line, 20 times, each with an empty cache and interrupted
at a random byte: by a connection that is cut once, by one that is cut for good, or by a kill. The same command follows.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import ml_dtypes
import numpy as np
import typer
from safetensors.numpy import save_file

import jaxdiff
from experiments.convert_memory import watched
from tests.hub import Hub, Repository, commit_of, serving

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 126464  # of LLaDA-8B, whose width and layers are 4096 and 32
LARGE = {"d_model": 2048, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 6144, "n_layers": 9}
SMALL = {"d_model": 512, "n_heads": 8, "n_kv_heads": 8, "mlp_hidden_size": 1536, "n_layers": 4}
SMALL_VOCABULARY = 8192
SLACK = 2e9
SHARDS = 6
POINTS, KINDS = 20, ("cut once", "cut for good", "killed")
SEED = 0
LOAD = "import jaxdiff; jaxdiff.load('org/large', dtype='bfloat16', mesh=jaxdiff.make_mesh(1, 4))"
COMMIT = commit_of("first")


def config_of(sizes: Mapping[str, int], vocabulary: int) -> dict[str, Any]:
    ids = {"mask_token_id": vocabulary - 128, "eos_token_id": vocabulary - 383, "pad_token_id": vocabulary - 383}
    named = {"architectures": ["LLaDAModelLM"], "model_type": "llada", "weight_tying": False}
    return named | dict(sizes) | ids | {"vocab_size": vocabulary, "embedding_size": vocabulary}


def shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of the published files, [out, in]."""
    d, f, v = config["d_model"], config["mlp_hidden_size"], config["vocab_size"]
    block: dict[str, tuple[int, ...]] = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (d, d))
    block |= {"attn_norm": (d,), "ff_norm": (d,), "ff_proj": (f, d), "up_proj": (f, d), "ff_out": (d, f)}
    ends: dict[str, tuple[int, ...]] = {"wte": (v, d), "ln_f": (d,), "ff_out": (v, d)}
    return {f"model.transformer.{name}.weight": shape for name, shape in ends.items()} | {
        f"model.transformer.blocks.{n}.{name}.weight": shape
        for n in range(config["n_layers"])
        for name, shape in block.items()
    }


def make(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """A published folder of bfloat16 numbers in shards of about one size; the bytes of its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = shapes_of(config)
    sizes = {key: 2 * int(np.prod(shape)) for key, shape in shapes.items()}
    pool = np.random.default_rng(SEED).normal(0, 0.02, 1 << 24).astype(ml_dtypes.bfloat16)
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        min(shards, key=lambda keys: sum(sizes[key] for key in keys)).append(key)
    where = {}
    for number, keys in enumerate(shards):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({key: np.resize(np.roll(pool, 4099 * number), shapes[key]) for key in keys}, folder / name)
        where |= dict.fromkeys(keys, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    stacked = [config["n_layers"] * size for key, size in sizes.items() if ".blocks.0." in key]
    return {
        "all": sum(sizes.values()),
        "largest_leaf": max(stacked + list(sizes.values())),
        "largest_tensor": max(sizes.values()),
    }


def load_large(hub: Hub, home: Path) -> dict[str, Any]:
    """Two loads over a mesh of 1x4, the second from the cache: memory, seconds, and what the hub sent."""
    sizes = make(home / "large", config_of(LARGE, VOCABULARY))
    hub.repositories["org/large"] = Repository.of(home / "large")
    os.environ["HF_HOME"] = str(home / "cache")
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    runs = {}
    for name in ("fetched", "from the cache"):
        hub.sent.clear()
        took = watched([sys.executable, "-c", LOAD])
        runs[name] = took | {
            "requests": len(hub.sent),
            "files_sent": len(hub.bodies()),
            "files_sent_twice": len(hub.bodies()) - len({one.file for one in hub.bodies()}),
            "bytes_sent": sum(one.count for one in hub.bodies()),
        }
    del os.environ["XLA_FLAGS"]
    shutil.rmtree(home / "large")
    shutil.rmtree(home / "cache")
    bound = sizes["largest_leaf"] + sizes["largest_tensor"] + SLACK
    return {"config": LARGE, "bytes": sizes, "bound": bound, "runs": runs}


def interrupt(hub: Hub, home: Path, kind: str, file: str, byte: int) -> dict[str, Any]:
    """One interrupted command, and the same again: how each ended, and how many bytes each was sent."""
    cache, target = home / "cache", home / "ours"
    os.environ["HF_HOME"] = str(cache)
    command = [sys.executable, "-m", "jaxdiff_command", "convert", "org/small", str(target)]
    hub.sent.clear()
    hub.cuts[file] = [byte] + [0] * (99 if kind == "cut for good" else 0)
    if kind == "killed":
        hub.cuts[file] = [byte] + [0] * 99  # it waits to try again when it is killed
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        while kind == "killed" and program.poll() is None and not any(one.file == file for one in hub.bodies()):
            time.sleep(0.001)
        if kind == "killed":
            program.kill()
        said = (program.stderr.read() if program.stderr else "").splitlines()
    snapshot = cache / "hub" / "models--org--small" / "snapshots" / COMMIT
    half = False
    if program.returncode:
        try:  # what was left, named as a folder
            jaxdiff.load(snapshot)
            half = True
        except jaxdiff.InputError:
            half = target.exists()
    first = sum(one.count for one in hub.bodies())
    hub.cuts.clear()
    hub.sent.clear()
    shutil.rmtree(target, ignore_errors=True)
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    there = {"whole": again.returncode == 0 and jaxdiff.inspect(target).facts()["parameters"] > 0}
    shutil.rmtree(cache)
    shutil.rmtree(target, ignore_errors=True)
    return there | {
        "kind": kind,
        "file": file,
        "byte": byte,
        "ended": program.returncode,
        "lines": len([line for line in said if line.startswith("jaxdiff: ")]),
        "other_lines": len([line for line in said if not line.startswith(("jaxdiff: ", "org/small: revision"))]),
        "half_loads": half,
        "bytes_sent": first,
        "bytes_sent_again": sum(one.count for one in hub.bodies()),
    }


def sound(point: Mapping[str, Any]) -> bool:
    """Whether a point ended as it must: whole, in one line, or killed; and whole by the next command."""
    ended = {"cut once": (0, 0), "cut for good": (2, 1), "killed": (-9, 0)}[point["kind"]]
    told = (point["ended"], point["lines"]) == ended and not point["other_lines"]
    return told and point["whole"] and not point["half_loads"]


def run(at: Annotated[Path | None, typer.Option(help="Where 4 GB are made; removed afterwards.")] = None) -> None:
    """Measure, print, and write results/hub.json."""
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory(dir=at) as scratch, serving() as hub:
        home = Path(scratch)
        os.environ |= {"HF_ENDPOINT": hub.address, "JAX_PLATFORMS": "cpu", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        large = load_large(hub, home)
        make(home / "small", config_of(SMALL, SMALL_VOCABULARY))
        hub.repositories["org/small"] = Repository.of(home / "small")
        shards = sorted((home / "small").glob("*.safetensors"))
        points = []
        for number in range(POINTS):
            file = draw.choice(shards)
            byte = draw.randrange(file.stat().st_size)
            points.append(interrupt(hub, home, KINDS[number % len(KINDS)], file.name, byte))
            print(json.dumps(points[-1]))
    result = {
        "large": large,
        "interrupted": {
            "config": SMALL,
            "points": points,
            "as_they_must": sum(map(sound, points)),
            "half_loads": sum(point["half_loads"] for point in points),
        },
        "versions": {name: version(name) for name in ("jax", "huggingface_hub", "safetensors")},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "hub.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, took in large["runs"].items():
        print(
            f"{name}: peak RssAnon {took['peak_rss_anon'] / 1e9:.2f} GB, bound {large['bound'] / 1e9:.2f} GB; "
            f"{took['requests']} requests, {took['files_sent']} files, {took['bytes_sent'] / 1e9:.2f} GB sent, "
            f"{took['files_sent_twice']} twice; {took['seconds']} s"
        )
    print(f"interrupted: {result['interrupted']['as_they_must']} of {POINTS} as they must")
    over = any(took["peak_rss_anon"] > large["bound"] or took["files_sent_twice"] for took in large["runs"].values())
    if over or not all(map(sound, points)):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(run)
