"""Do constrained decodes match? Drawn expressions and schemas, every policy, the model that ships and a random one.

    python -m experiments.constraints.match

Each decode has an expression of its own; whether its text matches is asked of Python's `re` (and `json`). Beside it the
same decode without a constraint: where that one matches anyway, and the policy takes nothing back, nothing was ruled
out, and the tokens must be the same. A quarter of the decodes samples. Nothing stops at an end: what a decode under
stop `eos` writes right of an end before it stops could be ruled out and is not seen in its result.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from jaxtyping import Int

import jaxdiff
from jaxdiff.checkpoint import SHIPPED
from jaxdiff.cli.options import Decoding
from jaxdiff.cli.show import progress
from jaxdiff.constraints import Regex, schema_pattern
from jaxdiff.constraints.regex import words_of
from jaxdiff.tasks.evaluate import held_out

GEN_LENGTH, BLOCK_LENGTH, ROWS = 32, 16, 4
POLICIES = (
    *("fixed", "fixed:order=random", "fixed:schedule=dream,steps=8", "threshold:tau=0.9", "threshold:tau=0.3"),
    *("factor:f=2", "factor:rule=code", "margin:tau=0.5", "entropy:tau=0.5", "entropy_bounded:gamma=0.5", "above_mean"),
    *("contiguous:tau=0.7", "contiguous:tau=0.5,sides=both", "revise(threshold:tau=0.4):passes=1"),
    *("multi_block:size=8", "edit:tau=0.6,edit=0.3", "remdm:cap=0.1,steps=12", "remdm:rescale=0.5,steps=12"),
    *("remdm:loop=0.1,steps=12", "remedi:steps=8", "wino:tau=0.5,revoke=0.6", "oracle", "learned"),
    *("any_of(threshold:tau=0.9 + fixed)", "cap(4 + threshold:tau=0.3)", "correct(threshold:tau=0.4 + judge)"),
)
# What the model that ships writes as it is matches most of these, in most of its rows.
WIDE = (r"(?s:.)*", r"[^Q]*", r"[^é]*", r"[ -~\n]*", r"([^\n]*\n?){0,6}", r"[^#]*(####[^#]*)?")
ROOM = 64  # states and kinds of tokens of every table, so that all share a program
RESULT = Path(__file__).parent / "results" / "match.json"


def expression(rng: np.random.Generator, depth: int = 3) -> str:
    """A drawn regular expression over what the model writes."""
    atoms = ("[0-9]", "[a-z]", "[A-Z]", " ", "=", "ab", "the", "####", "[^0-9]", ".", "é", "[0-9]{1,3}")
    kind = "atom" if depth == 0 else rng.choice(["atom", "several", "one of", "again"])
    if kind == "several":
        return "".join(expression(rng, depth - 1) for _ in range(rng.integers(2, 4)))
    if kind == "one of":
        return f"({'|'.join(expression(rng, depth - 1) for _ in range(rng.integers(2, 4)))})"
    if kind == "again":
        return f"({expression(rng, depth - 1)}){rng.choice(['*', '+', '?', '{2}', '{1,4}', '{3,}'])}"
    return str(rng.choice(atoms))


def schema(rng: np.random.Generator) -> dict[str, Any]:
    """A drawn JSON schema."""
    leaves = ({"type": "integer"}, {"type": "boolean"}, {"enum": ["yes", "no"]}, {"type": "string", "maxLength": 6})
    kind = rng.integers(3)
    if kind == 0:
        return dict(leaves[rng.integers(len(leaves))])
    if kind == 1:
        return {"type": "array", "items": leaves[rng.integers(2)], "minItems": 1, "maxItems": 3}
    names = [str(name) for name in rng.choice(["a", "n", "ok", "sum"], rng.integers(1, 3), replace=False)]
    properties = {name: leaves[rng.integers(len(leaves))] for name in names}
    return {"type": "object", "properties": properties, "required": names}


def matches(pattern: str, is_json: bool, tokenizer: jaxdiff.Tokenizer, tokens: Int[np.ndarray, " G"]) -> bool:
    """Whether the text before the first end is UTF-8 of tokens that write something, and matches; and nothing but ends
    stands behind it. A random model writes bytes that are no UTF-8: `decode` shows another character in their place.
    """
    ends = np.isin(tokens, tokenizer.eos_ids)
    stop = int(np.argmax(ends)) if ends.any() else len(tokens)
    words = words_of(tokenizer.stop_strings().spelling)
    written = [words[token] for token in tokens[:stop]]
    try:
        text = b"".join(written).decode()
        if is_json:
            json.loads(text)
    except ValueError:
        return False
    return all(written) and bool(ends[stop:].all()) and re.fullmatch(pattern, text, re.ASCII) is not None


def drawn(rng: np.random.Generator, tokenizer: jaxdiff.Tokenizer) -> tuple[str, bool, Regex]:
    """An expression, whether it is of a schema, and its tables, which are of one shape."""
    spelling = tokenizer.stop_strings().spelling
    while True:
        kind = rng.random()
        is_json = kind < 0.3
        pattern = schema_pattern(schema(rng)) if is_json else expression(rng) if kind < 0.7 else str(rng.choice(WIDE))
        try:
            made = Regex.of_pattern(pattern, spelling, tokenizer.eos_ids, room=ROOM)
        except jaxdiff.InputError:
            continue
        if made.next.shape == (ROOM, ROOM):
            return pattern, is_json, made


def main(decodes: Annotated[int, typer.Option(min=1)] = 1000, seed: int = 0) -> None:
    """Writes results/match.json."""
    checkpoint = jaxdiff.load()
    model, tokenizer = checkpoint.model, checkpoint.tokenizer_for("a regular expression")
    random = jax.tree.map(lambda leaf: 2.0 * leaf, jax.jit(model.init)(jax.random.key(seed)))
    problems = held_out("gsm_symbolic", ROWS, split="test", seed=seed)
    ids = [tokenizer.prompt(problem.question) for problem in problems]
    prompts, origin = jaxdiff.pad_prompts(ids, fill=tokenizer.eos_id, multiple=32)
    rng, wrong, other = np.random.default_rng(seed), [], []
    counts = dict.fromkeys(("decodes", "schemas", "match", "match_without", "steady_and_match_without", "same"), 0)
    calls = -(-decodes // ROWS)
    with progress("decodes", calls * ROWS) as update:
        for policy, of_policy in zip(POLICIES, np.array_split(np.arange(calls), len(POLICIES)), strict=True):
            decoding = Decoding(
                model=SHIPPED, policy=policy, stop="none", gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH
            )
            decoder = decoding.decoder(model, GEN_LENGTH)
            for call in map(int, of_policy):
                pattern, is_json, made = drawn(rng, tokenizer)
                sampling = dataclasses.replace(decoder.sampling, temperature=0.0 if call % 4 else 0.8)
                free = dataclasses.replace(decoder, sampling=sampling)
                params = checkpoint.params if call % 2 else random
                try:
                    held, plain = (
                        jaxdiff.decode(
                            *(model, params, prompts, each),
                            gen_length=GEN_LENGTH,
                            origin=origin,
                            key=jax.random.key(call),
                        )
                        for each in (dataclasses.replace(free, constraint=made), free)
                    )
                except jaxdiff.InputError as error:  # no text of that length matches
                    print(f"{pattern!r}: {error}", file=sys.stderr)
                    continue
                clear = np.asarray(held.near_ties) + np.asarray(plain.near_ties) == 0
                found, without = (np.asarray(each.tokens)[:, -GEN_LENGTH:] for each in (held, plain))
                for row in range(ROWS):
                    counts["decodes"] += 1
                    counts["schemas"] += is_json
                    if matches(pattern, is_json, tokenizer, found[row]):
                        counts["match"] += 1
                    else:
                        wrong.append({"policy": policy, "pattern": pattern, "tokens": found[row].tolist()})
                    if matches(pattern, False, tokenizer, without[row]):
                        counts["match_without"] += 1
                        if clear[row] and not decoder.policy.revises:
                            counts["steady_and_match_without"] += 1
                            same = bool(np.array_equal(found[row], without[row]))
                            counts["same"] += same
                            other += [] if same else [{"policy": policy, "pattern": pattern, "call": call, "row": row}]
                update(counts["decodes"])
    written = counts | {"wrong": wrong, "other": other, "seed": seed, "policies": len(POLICIES)}
    written["met"] = not wrong and counts["same"] == counts["steady_and_match_without"]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(written, indent=1))


if __name__ == "__main__":
    typer.run(main)
