"""How far from the exact constrained posterior? Masking, one draw by rejection, and particles, where all is enumerated.

    python -m experiments.constraints.particles

A tiny random model over 12 ids, answers of 8 tokens, written left to right; the language is that of balanced brackets
of two kinds, four of the ten ids that the model may write. The exact posterior is the model's probability of each text
of the language (a product of its beliefs), normalised. The law of masking is exact too: at each token the belief,
renormalised over what some completion allows, which is what `--constraint regex:` draws at temperature 1. That of the
particles is their mean weight on each text, over many requests: its distance holds the noise of so many, for which
`tv_floor` is that of as many exact draws as there are requests.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jaxtyping import Float, Int

import jaxdiff
from jaxdiff import Decoder, Inputs, Sampling, policies
from jaxdiff.cli.show import progress
from jaxdiff.constraints import Awrs, Regex
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.stoppers.strings import Spelling

MASK, END, PROMPT, FIRST = 0, 1, 2, 3  # brackets are the four ids from FIRST on
BRACKETS = (b"(", b")", b"[", b"]")
TOGETHER = 1000  # requests of one call
RESULT = Path(__file__).parent / "results" / "particles.json"


def model_of(vocabulary: int, sharp: float, seed: int) -> tuple[jaxdiff.Model, Any]:
    """A random model whose beliefs hang on what is written."""
    model = Llada(
        LladaConfig(
            vocab_size=vocabulary,
            d_model=16,
            n_layers=2,
            n_heads=2,
            n_kv_heads=2,
            mlp_hidden_size=32,
            mask_token_id=MASK,
            eos_token_id=END,
            max_sequence_length=16,
            dtype="float32",
        )
    )
    params = jax.jit(model.init)(jax.random.key(seed))
    return model, params | {"wte": params["wte"] * 3.0, "head": params["head"] * sharp}


def language(length: int) -> Int[np.ndarray, "n G"]:
    """All balanced texts of the length."""

    def texts(left: int, open_: tuple[int, ...]) -> list[list[int]]:
        if left == len(open_):
            return [[FIRST + kind + 1 for kind in reversed(open_)]]
        found = [[FIRST + kind, *rest] for kind in (0, 2) for rest in texts(left - 1, (*open_, kind))]
        if open_:
            found += [[FIRST + open_[-1] + 1, *rest] for rest in texts(left - 1, open_[:-1])]
        return found

    return np.asarray(texts(length, ()), np.int32)


def expression(depth: int) -> str:
    """Balanced brackets, at most so deep."""
    return "" if depth == 0 else rf"(\({expression(depth - 1)}\)|\[{expression(depth - 1)}\])*"


def laws(
    model: jaxdiff.Model, params: Any, texts: Int[np.ndarray, "n G"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Of each text its probability without the constraint, and under masking."""

    @jax.jit
    def beliefs(canvas: Int[jax.Array, "B L"]) -> Float[jax.Array, "B L V"]:
        logits = model.apply(params, Inputs.whole(canvas))[0] @ model.head(params)
        return jax.nn.log_softmax(logits.at[..., jnp.asarray([MASK, END])].set(-jnp.inf), axis=-1)

    count, length = texts.shape
    free, masked = np.zeros(count), np.zeros(count)
    for at in range(length):
        before, which = np.unique(texts[:, :at], axis=0, return_inverse=True)
        which = which.ravel()
        canvas = np.full((len(before), 1 + length), MASK, np.int32)
        canvas[:, 0], canvas[:, 1 : 1 + at] = PROMPT, before
        belief = np.asarray(beliefs(jnp.asarray(canvas)), np.float64)[:, 1 + at]
        allowed = np.zeros(belief.shape, bool)
        allowed[which, texts[:, at]] = True
        mass = np.log(np.sum(np.exp(belief) * allowed, axis=1))
        own = belief[which, texts[:, at]]
        free, masked = free + own, masked + own - mass[which]
    return np.exp(free), np.exp(masked)


def compare(
    length: int = 8,
    vocabulary: int = 12,
    requests: int = 5000,
    particles: int = 8,
    block_length: int = 2,
    sharp: float = 0.5,
    threshold: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """The total variation to the exact posterior of each way, and the estimate of the normalizer."""
    model, params = model_of(vocabulary, sharp, seed)
    texts = language(length)
    free, masked = laws(model, params, texts)
    exact = free / free.sum()
    words = [b"", b"", b"p", *BRACKETS, *(bytes([97 + i]) for i in range(vocabulary - FIRST - len(BRACKETS))), b""]
    made = Awrs.of(Regex.of_pattern(expression(length // 2), Spelling.of(words), [END]))
    decoder = Decoder(
        policies.Fixed(order="left"),
        constraint=made,
        block_length=block_length,
        sampling=Sampling(1.0, forbid_eos=True),
    )
    number = {text.tobytes(): i for i, text in enumerate(texts)}
    law, normalizers, resampled, checks = np.zeros(len(texts)), [], 0, 0
    draw = functools.partial(
        jaxdiff.particles, model, params, decoder=decoder, n=particles, threshold=threshold, gen_length=length
    )
    with progress("requests", requests) as update:
        for first in range(0, requests, TOGETHER):
            some = min(TOGETHER, requests - first)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed + 1), jnp.arange(first, first + some))
            found = draw(prompts=np.full((some, 1), PROMPT, np.int32), key=keys)
            said = np.asarray(found.result.tokens)[:, 1:].astype(np.int32)
            at = np.asarray([number[text.tobytes()] for text in said]).reshape(some, particles)
            np.add.at(law, at, found.weights / requests)
            normalizers.append(np.exp(found.log_normalizer))
            resampled += int(found.resampled.sum())
            checks += int(np.asarray(found.result.checks).sum())
            update(first + some)
    every = np.concatenate(normalizers)
    floor = np.random.default_rng(seed).multinomial(requests, exact) / requests

    def distance(other: Float[np.ndarray, " n"]) -> float:
        return float(0.5 * np.abs(other / other.sum() - exact).sum())

    return {
        "length": length,
        "vocabulary": vocabulary,
        "texts": len(texts),
        "requests": requests,
        "particles": particles,
        "tv_masking": distance(masked),
        "tv_particles": distance(law),
        "tv_floor": distance(floor),
        "normalizer_exact": float(free.sum()),
        "normalizer": float(every.mean()),
        "normalizer_error": float(every.std() / np.sqrt(requests)),
        "resampled": resampled / requests,
        "checks_per_token": checks / (requests * particles * length),
    }


def main(requests: Annotated[int, typer.Option(min=1)] = 5000, seeds: Annotated[int, typer.Option(min=1)] = 3) -> None:
    """Writes results/particles.json: a model for each seed, with 8 particles and, for the first, with other numbers."""
    rows = [compare(requests=requests, seed=seed) | {"seed": seed} for seed in range(seeds)]
    rows += [compare(requests=requests, particles=n) | {"seed": 0} for n in (1, 2, 4, 16)]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    for row in rows:
        typer.echo(json.dumps(row))


if __name__ == "__main__":
    typer.run(main)
