"""A published masked language model through `infill`: parallel against one token a step, on reaction SMILES.

    pip install --no-deps rxnfp
    python experiments/published_weights/reactions.py --file example_rxns.csv

The weights are rxnfp's `bert_pretrained` (MIT; BERT with 12 layers of width 256, trained with 15 % of the tokens
masked), which ship whole in its wheel. The reactions are those of a file, one in each line, of the file's five
commonest lengths, since a canvas has no padding: say `examples/example_rxns.csv` of github.com/rxn4chemistry/rxnmapper
(MIT; 996 reactions of US patents, which the model may have been trained on). Without a file they are the three of
rxnfp's and rxnmapper's documentation, masked 16 times over. 15, 30 and 50 % of a reaction's tokens are masked at
random, and the network's logits are first compared with transformers'. Intervals come from drawing reactions anew,
since the tokens of one hang together.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import typer
from jaxtyping import Array, Float, Int
from transformers import BertForMaskedLM

import jaxdiff
from jaxdiff.convert.engine import InMemory, params_from
from jaxdiff.convert.table import Plan, dense, same, stack
from jaxdiff.policies import Fixed, Threshold
from jaxdiff.types import Inputs, KVCache, Params, Span

RESULTS = Path(__file__).parents[1] / "results"
RATIOS, DRAWS = (0.15, 0.3, 0.5), 16
LENGTHS = 5  # of a file: each has a program of its own
POLICIES = {"one a step": Fixed(), **{f"threshold {tau:g}": Threshold(tau) for tau in (0.0, 0.7, 0.9)}}
RESAMPLES = 2000
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
    dtype: str = "float32"

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.eos_token_id,)

    turn_ends = ()


def linear(p: Params, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    return x @ p["kernel"] + p["bias"]


@dataclasses.dataclass(frozen=True)
class Bert:
    """BERT with its masked-LM head; implements `jaxdiff.protocols.Model`. Norms stand after the residual sums."""

    config: BertConfig

    attention_block = None
    shifted = tempered = False
    copies = 1

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

    def empty_kv(self, rows: int, columns: int) -> KVCache:
        raise NotImplementedError("its decode reuses no keys and values")

    def apply(
        self,
        params: Params,
        inputs: Inputs,
        kv: KVCache | None = None,
        at: Int[Array, " B"] | Int[Array, "B T"] | None = None,
        read: Span | None = None,
    ) -> tuple[Float[Array, "B r D"], KVCache | None]:
        """What the last matrix reads, and a column of ones for its bias."""
        assert kv is None
        assert at is None
        c = self.config
        bias = jnp.where(inputs.valid, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]

        def block(x: Float[Array, "B T D"], p: Params) -> tuple[Float[Array, "B T D"], None]:
            q, k, v = (linear(p[name], x).reshape(*x.shape[:2], c.n_heads, -1) for name in ("query", "key", "value"))
            scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(q.shape[-1]) + bias
            seen = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores), v).reshape(x.shape)
            x = self.norm(p["attn_norm"], x + linear(p["out"], seen))
            return self.norm(p["mlp_norm"], x + linear(p["down"], jax.nn.gelu(linear(p["up"], x), False))), None

        x = params["wte"][inputs.tokens] + params["positions"][inputs.positions] + params["types"][0]
        x, _ = jax.lax.scan(block, self.norm(params["norm"], x), params["layers"])
        x = x if read is None else read.of(x)
        x = self.norm(params["transform_norm"], jax.nn.gelu(linear(params["transform"], x), False))
        return jnp.concatenate([x, jnp.ones((*x.shape[:2], 1), x.dtype)], -1), None

    def embed(self, params: Params, tokens: Int[Array, "B C"]) -> Float[Array, "B C D"]:
        return params["wte"][tokens]

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
    ours, _ = model.apply(params, Inputs.whole(jnp.asarray(ids)))
    return float(np.max(np.abs(np.asarray(ours @ model.head(params)) - theirs)))


def canvases(truth: np.ndarray, mask_id: int, ratio: float) -> np.ndarray:
    """Reactions of one length, of each another part of the tokens masked; its two ends stay."""
    out, inner = truth.copy(), truth.shape[1] - 2
    generator = np.random.default_rng(int(1000 * ratio))
    for row in out:
        row[1 + generator.permutation(inner)[: round(ratio * inner)]] = mask_id
    return out


def reactions(file: Path | None, words: dict[str, int]) -> list[np.ndarray]:
    """Token ids [n L] of reactions of equal length: each group makes one batch."""
    if file is None:
        return [np.repeat(encode(one, words), DRAWS, 0) for one in REACTIONS]
    groups: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    for line in file.read_text().splitlines():
        for cell in line.split(","):
            if ">>" in cell and set(ATOM.findall(cell)) <= words.keys():
                ids = encode(cell, words)
                groups[ids.shape[1]].append(ids)
    commonest = sorted(groups, key=lambda length: (-len(groups[length]), length))[:LENGTHS]
    return [np.concatenate(groups[length]) for length in commonest]


def encode(reaction: str, words: dict[str, int]) -> np.ndarray:
    return np.asarray([[words["[CLS]"], *(words[atom] for atom in ATOM.findall(reaction)), words["[SEP]"]]], np.int32)


def interval(kinds: np.ndarray, value: Any) -> tuple[float, float]:
    """95 % of `value` of rows, when reactions are drawn anew with all of their rows."""
    generator = np.random.default_rng(0)
    of = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    drawn = (np.concatenate([of[i] for i in generator.integers(len(of), size=len(of))]) for _ in range(RESAMPLES))
    low, high = np.quantile([value(rows) for rows in drawn], (0.025, 0.975))
    return float(low), float(high)


def main(
    file: Annotated[Path | None, typer.Option(help="Reaction SMILES, one in each line; CSV will do.")] = None,
) -> None:
    """Infill, print the table, and write results/reactions.json and .md."""
    spec = importlib.util.find_spec("rxnfp")  # found, not imported: its own code is not needed
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("rxnfp is not installed: pip install --no-deps rxnfp")
    home = Path(spec.submodule_search_locations[0]) / "models" / "transformers" / "bert_pretrained"
    model, params, words = read(home)
    mask = model.config.mask_token_id
    groups = reactions(file, words)
    difference = compare(model, params, home, canvases(groups[0], mask, 0.3)[:2])
    _, kinds = np.unique([row.tobytes() for group in groups for row in group], return_inverse=True)

    points: list[dict[str, Any]] = []
    for ratio in RATIOS:
        masked = [canvases(group, mask, ratio) for group in groups]
        counts = {}  # of each policy, per row: right, masked, NFE
        for name, policy in POLICIES.items():
            rows = []
            for truth, canvas in zip(groups, masked, strict=True):
                result = jaxdiff.infill(model, params, canvas, jaxdiff.Decoder(policy=policy))
                holes = canvas == mask
                right = holes & (np.asarray(result.tokens) == truth)
                rows += zip(right.sum(1), holes.sum(1), np.asarray(result.nfe), strict=True)
            counts[name] = np.asarray(rows)
            print(f"{name}, {ratio:.0%} masked: {counts[name].sum(0).tolist()} right, masked, NFE", flush=True)
        base = counts["one a step"]
        for name, found in counts.items():
            holes, nfe = found[:, 1].sum(), found[:, 2].sum()
            points.append(
                {
                    "policy": name,
                    "masked": ratio,
                    "accuracy": found[:, 0].sum() / holes,
                    "interval": interval(kinds, lambda r, f=found: f[r, 0].sum() / f[r, 1].sum()),
                    "difference": (found[:, 0].sum() - base[:, 0].sum()) / holes,
                    "difference_interval": interval(
                        kinds, lambda r, f=found, b=base: (f[r, 0].sum() - b[r, 0].sum()) / f[r, 1].sum()
                    ),
                    "tokens": int(holes),
                    "nfe": nfe / len(found),
                    "tokens_per_forward": holes / nfe,
                }
            )
    result = {
        "largest_difference_of_logits": difference,
        "reactions": len(set(kinds.tolist())),
        "rows": len(kinds),
        "points": points,
        "versions": {name: version(name) for name in ("jax", "torch", "transformers", "rxnfp")},
    }
    table = [
        f"{result['reactions']} reactions, {result['rows']} canvases at each ratio.",
        "",
        "| policy | masked | accuracy | 95 % interval | against one a step | 95 % interval | NFE | tokens a forward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| {p['policy']} | {p['masked']:.0%} | {p['accuracy']:.3f} | {p['interval'][0]:.3f} to {p['interval'][1]:.3f} "
        f"| {p['difference']:+.3f} | {p['difference_interval'][0]:+.3f} to {p['difference_interval'][1]:+.3f} "
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
    typer.run(main)
