"""A published masked language model through `infill`: parallel against one token a step, on reaction SMILES.

    pip install --no-deps rxnfp && python experiments/published_weights/reactions.py

The weights are rxnfp's `bert_pretrained` (MIT; BERT with 12 layers of width 256, trained with 15 % of the tokens
masked), which ship whole in its wheel. The three reactions are those of rxnfp's and rxnmapper's own documentation; 15,
30 and 50 % of their tokens are masked at random, and the network's logits are first compared with transformers'.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Bool, Float, Int
from transformers import BertForMaskedLM

import jaxdiff
from jaxdiff.convert.engine import InMemory, params_from
from jaxdiff.convert.table import Plan, dense, same, stack
from jaxdiff.metrics import wilson
from jaxdiff.policies import Fixed, Threshold
from jaxdiff.types import Params

RESULTS = Path(__file__).parents[1] / "results"
RATIOS, DRAWS = (0.15, 0.3, 0.5), 16
TAUS = (0.0, 0.7, 0.9)
REACTIONS = (
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "C1COCCO1.CC(C)(C)OC(=O)CONC(=O)NCc1cccc2ccccc12.Cl>>O=C(O)CONC(=O)NCc1cccc2ccccc12",
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
)
ATOM = re.compile(r"\[[^\]]+]|Br?|Cl?|>>?|%[0-9]{2}|[NOSPFIbcnosp().=#+\\/:~@?*$0-9-]")

_BLOCK = (
    *(dense(f"attention.self.{name}.weight", f"{name}/kernel") for name in ("query", "key", "value")),
    *(same(f"attention.self.{name}.bias", f"{name}/bias") for name in ("query", "key", "value")),
    dense("attention.output.dense.weight", "out/kernel"),
    same("attention.output.dense.bias", "out/bias"),
    same("attention.output.LayerNorm.weight", "attn_norm/weight"),
    same("attention.output.LayerNorm.bias", "attn_norm/bias"),
    dense("intermediate.dense.weight", "up/kernel"),
    same("intermediate.dense.bias", "up/bias"),
    dense("output.dense.weight", "down/kernel"),
    same("output.dense.bias", "down/bias"),
    same("output.LayerNorm.weight", "mlp_norm/weight"),
    same("output.LayerNorm.bias", "mlp_norm/bias"),
)
TABLE = (
    same("bert.embeddings.word_embeddings.weight", "wte"),
    same("bert.embeddings.position_embeddings.weight", "positions"),
    same("bert.embeddings.token_type_embeddings.weight", "types"),
    same("bert.embeddings.LayerNorm.weight", "norm/weight"),
    same("bert.embeddings.LayerNorm.bias", "norm/bias"),
    *stack("bert.encoder.layer.{n}.", "layers/", *_BLOCK),
    dense("cls.predictions.transform.dense.weight", "transform/kernel"),
    same("cls.predictions.transform.dense.bias", "transform/bias"),
    same("cls.predictions.transform.LayerNorm.weight", "transform_norm/weight"),
    same("cls.predictions.transform.LayerNorm.bias", "transform_norm/bias"),
    dense("cls.predictions.decoder.weight", "head"),
    same("cls.predictions.bias", "head_bias"),
)
UNUSED = ("bert.pooler.", "cls.seq_relationship.")  # of the other pretraining task


@dataclasses.dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    mlp_hidden_size: int
    max_sequence_length: int
    mask_token_id: int
    eos_token_id: int
    eps: float

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,)


def linear(p: Params, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    return x @ p["kernel"] + p["bias"]


@dataclasses.dataclass(frozen=True)
class Bert:
    """BERT with its masked-LM head; implements `jaxdiff.types.Model`. Norms stand after the residual sums."""

    config: BertConfig

    attention_block = None
    shifted = tempered = False

    def leaves(self) -> dict[str, tuple[int, ...]]:
        """The shape of each leaf."""
        c = self.config
        d, f, v = c.d_model, c.mlp_hidden_size, c.vocab_size
        shapes: dict[str, tuple[int, ...]] = {"wte": (v, d), "positions": (c.max_sequence_length, d), "types": (2, d)}
        shapes |= {"head": (d, v), "head_bias": (v,)}
        kernels = {f"layers/{name}": (d, d) for name in ("query", "key", "value", "out")}
        for name, (wide, out) in (kernels | {"layers/up": (d, f), "layers/down": (f, d), "transform": (d, d)}).items():
            n = (c.n_layers,) if name.startswith("layers/") else ()
            shapes |= {f"{name}/kernel": (*n, wide, out), f"{name}/bias": (*n, out)}
        for name in ("layers/attn_norm", "layers/mlp_norm", "norm", "transform_norm"):
            n = (c.n_layers,) if name.startswith("layers/") else ()
            shapes |= {f"{name}/weight": (*n, d), f"{name}/bias": (*n, d)}
        return shapes

    def init(self, key: Any) -> Params:
        raise NotImplementedError("its weights are published")

    def norm(self, p: Params, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.config.eps) * p["weight"] + p["bias"]

    def features(
        self, params: Params, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """What the last matrix reads, and a column of ones for its bias."""
        c = self.config
        bias = jnp.where(valid, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]

        def block(x: Float[Array, "B T D"], p: Params) -> tuple[Float[Array, "B T D"], None]:
            q, k, v = (linear(p[name], x).reshape(*x.shape[:2], c.n_heads, -1) for name in ("query", "key", "value"))
            scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1]) + bias
            seen = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores), v).reshape(x.shape)
            x = self.norm(p["attn_norm"], x + linear(p["out"], seen))
            return self.norm(p["mlp_norm"], x + linear(p["down"], jax.nn.gelu(linear(p["up"], x), False))), None

        x = params["wte"][tokens] + params["positions"][positions] + params["types"][0]
        x, _ = jax.lax.scan(block, self.norm(params["norm"], x), params["layers"])
        x = self.norm(params["transform_norm"], jax.nn.gelu(linear(params["transform"], x), False))
        return jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], -1)

    def head(self, params: Params) -> Float[Array, "D V"]:
        return jnp.concatenate([params["head"], params["head_bias"][None]])


def read(home: Path) -> tuple[Bert, Params, dict[str, int]]:
    """The model, its params and its vocabulary."""
    words = {word: i for i, word in enumerate((home / "vocab.txt").read_text().splitlines())}
    raw = json.loads((home / "config.json").read_text())
    config = BertConfig(
        raw["vocab_size"],
        raw["hidden_size"],
        raw["num_hidden_layers"],
        raw["num_attention_heads"],
        raw["intermediate_size"],
        raw["max_position_embeddings"],
        words["[MASK]"],
        words["[SEP]"],
        raw["layer_norm_eps"],
    )
    state = torch.load(home / "pytorch_model.bin", map_location="cpu", weights_only=True)
    tensors = {key: tensor.numpy() for key, tensor in state.items() if not key.startswith(UNUSED)}
    model = Bert(config)
    return model, params_from(Plan.make(TABLE, model.leaves()), InMemory(tensors)), words


def compare(model: Bert, params: Params, home: Path, ids: np.ndarray) -> float:
    """The largest difference of logits from transformers'."""
    reference = BertForMaskedLM.from_pretrained(home).eval()
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    ours = model.features(params, jnp.asarray(ids), jnp.asarray(positions), jnp.ones(ids.shape, bool))
    return float(np.max(np.abs(np.asarray(ours @ model.head(params)) - theirs)))


def canvases(ids: np.ndarray, mask_id: int, ratio: float) -> np.ndarray:
    """DRAWS copies of a reaction, of each another part of the tokens masked; its two ends stay."""
    out = np.repeat(ids[None], DRAWS, 0)
    generator = np.random.default_rng(int(1000 * ratio))
    for row in out:
        row[1 + generator.permutation(len(ids) - 2)[: round(ratio * (len(ids) - 2))]] = mask_id
    return out


def main() -> None:
    """Infill, print the table, and write results/reactions.json and .md."""
    spec = importlib.util.find_spec("rxnfp")  # found, not imported: its own code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("rxnfp is not installed: pip install --no-deps rxnfp")
    home = Path(spec.submodule_search_locations[0]) / "models" / "transformers" / "bert_pretrained"
    model, params, words = read(home)
    rows = [[words["[CLS]"], *(words[a] for a in ATOM.findall(r)), words["[SEP]"]] for r in REACTIONS]
    ids = [np.asarray(row, np.int32) for row in rows]
    difference = compare(model, params, home, canvases(ids[0], model.config.mask_token_id, 0.3)[:2])

    counts: dict[tuple[str, float], list[int]] = {}  # right, masked, NFE, rows
    for truth in ids:
        masked = np.concatenate([canvases(truth, model.config.mask_token_id, ratio) for ratio in RATIOS])
        taus = np.repeat(np.asarray(TAUS, np.float32), len(masked))
        runs = (
            (["one a step"], jaxdiff.infill(model, params, masked, policy=Fixed())),
            (
                [f"threshold {tau:g}" for tau in TAUS],
                jaxdiff.infill(model, params, np.tile(masked, (len(TAUS), 1)), policy=Threshold(taus)),
            ),
        )
        for names, result in runs:
            tokens, nfe = np.asarray(result.tokens), np.asarray(result.nfe)
            for i, (name, ratio) in enumerate((name, ratio) for name in names for ratio in RATIOS):
                part = slice(i * DRAWS, (i + 1) * DRAWS)
                holes = masked[part.start % len(masked) :][:DRAWS] == model.config.mask_token_id
                right = holes & (tokens[part] == truth[None])
                numbers = (right.sum(), holes.sum(), nfe[part].sum(), DRAWS)
                kept = counts.setdefault((name, ratio), [0] * 4)
                counts[name, ratio] = [old + int(new) for old, new in zip(kept, numbers, strict=True)]

    points = [
        {
            "policy": name,
            "masked": ratio,
            "accuracy": right / holes,
            "interval": wilson(right, holes),
            "tokens": holes,
            "nfe": nfe / count,
            "tokens_per_forward": holes / nfe,
        }
        for (name, ratio), (right, holes, nfe, count) in counts.items()
    ]
    result = {
        "largest_difference_of_logits": difference,
        "reactions": len(REACTIONS),
        "draws": DRAWS,
        "points": points,
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "rxnfp")},
    }
    table = ["| policy | masked | accuracy | 95 % interval | NFE | tokens a forward |", "|---|---|---|---|---|---|"]
    table += [
        f"| {p['policy']} | {p['masked']:.0%} | {p['accuracy']:.3f} | {p['interval'][0]:.3f} to {p['interval'][1]:.3f} "
        f"| {p['nfe']:.1f} | {p['tokens_per_forward']:.2f} |"
        for p in points
    ]
    print(f"largest difference of logits from transformers': {difference:.2g}", *table, sep="\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "reactions.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / "reactions.md").write_text("\n".join(table) + "\n")
    if difference > 1e-3:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
