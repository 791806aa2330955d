"""What the devices of a mesh tell each other in one step of the decode, counted in the compiled program.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python experiments/collectives.py

A vocabulary of LLaDA-8B's size over 8 model devices. The window and the vocabulary are what matters; the network is few
and narrow layers, so that it compiles in seconds. Counted are elements, not bytes: the CPU backend promotes bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdiff
from jaxdiff.bench.hlo import Collective, Hlo, collectives
from jaxdiff.bench.shapes import abstract_params
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.parallel.mesh import make_mesh
from jaxdiff.policies import Threshold

ROWS, PROMPT, GEN_LENGTH, BLOCK_LENGTH = 4, 64, 64, 32
MESH = (1, 8)
CONFIG = LladaConfig(
    vocab_size=126464,
    d_model=256,
    n_layers=4,
    n_heads=8,
    n_kv_heads=8,
    mlp_hidden_size=512,
    mask_token_id=126336,
    eos_token_id=126081,
)
SUMMARIES = 9  # numbers that each shard of the vocabulary says of a position
RESULTS = Path(__file__).parent / "results"


def compiled_text(
    model: jaxdiff.Model,
    mesh: Any,
    *,
    rows: int,
    prompt: int,
    generated: int,
    block: int,
    cache: jaxdiff.Cache | None = None,
) -> str:
    """The compiled program of a decode on a mesh, from shapes alone."""
    decoder = jaxdiff.Decoder(
        policy=Threshold(0.9), cache=cache or jaxdiff.caches.NoCache(), stop=jaxdiff.stoppers.Eos(), block_length=block
    )
    prompts = np.full((rows, prompt), model.config.vocab_size - 1, np.int32)
    program = jaxdiff.lower(model, abstract_params(model), prompts, decoder, gen_length=generated, target=mesh)
    return program.compiled.as_text() or ""


def count(config: Any, found: list[Collective]) -> dict[str, Any]:
    """What a step moves, beside the least that tensor parallelism moves."""
    fed = ROWS * (PROMPT + GEN_LENGTH)
    layers, embedding = 2 * (config.n_layers - 1) * fed * config.d_model, fed * config.d_model
    layers += 2 * ROWS * BLOCK_LENGTH * config.d_model  # the last one answers for the block alone
    merge = SUMMARIES * MESH[1] * ROWS * BLOCK_LENGTH
    step = [each for each in found if each.step]
    moved = sum(each.times * each.elements for each in step)
    return {
        "elements_per_step": moved,
        "minimum": layers + embedding + merge,
        "minimum_of": {"layers": layers, "embedding": embedding, "score": merge},
        "ratio": moved / (layers + embedding + merge),
        "outside_the_loop": sum(each.times * each.elements for each in found if not each.step),
        "largest": max(each.elements for each in found),
        "vocabulary_sized": [each.line for each in found if vocabulary_sized(each, config.vocab_size)],
        "collectives": [
            {
                "kind": each.kind,
                "shapes": [array.shape for array in each.results],
                "times": each.times,
                "elements": each.elements,
            }
            for each in step
        ],
    }


def vocabulary_sized(each: Collective, vocabulary: int) -> bool:
    """Whether an axis of what it carries is as long as the vocabulary, or as one shard of it."""
    return any(axis >= vocabulary // MESH[1] for array in each.results for axis in array.shape)


def main() -> None:
    text = compiled_text(
        Llada(CONFIG),
        make_mesh(*MESH),
        rows=ROWS,
        prompt=PROMPT,
        generated=GEN_LENGTH,
        block=BLOCK_LENGTH,
    )
    numbers: dict[str, Any] = {
        "mesh": "x".join(map(str, MESH)),
        "jax": jax.__version__,
        "rows": ROWS,
        "canvas": PROMPT + GEN_LENGTH,
        "block": BLOCK_LENGTH,
        "model": {k: getattr(CONFIG, k) for k in ("vocab_size", "d_model", "n_layers", "n_heads", "mlp_hidden_size")},
    } | count(CONFIG, collectives(Hlo(text).runs()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "collectives.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for each in numbers["collectives"]:
        print(f"{each['times']} x {each['kind']}: {each['shapes']}")
    print(
        f"{numbers['elements_per_step']:,} elements a step, {numbers['ratio']:.3f} times the minimum of "
        f"{numbers['minimum']:,}; {len(numbers['vocabulary_sized'])} collectives of the vocabulary's size"
    )


if __name__ == "__main__":
    main()
