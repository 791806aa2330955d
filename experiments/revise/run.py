r"""Does a model that was trained to doubt what it sees mend it?

    jaxdiff distill --recipe experiments/revise/recipe.json --out runs/revise
    python -m experiments.revise.run mend runs/revise/adapter --n 200
    python -m experiments.revise.run after runs/revise/adapter
    python -m experiments.revise.run choose runs/revise/adapter
    python -m experiments.revise.run test runs/revise/adapter
    python -m experiments.revise.run report

mend    A tenth of the tokens of worked answers is replaced, by random tokens (`chance`) or by what the base might write
        there and is wrong (`own`): what share of these does one pass without masks make right, and what share of the
        right ones does it spoil? The base and the adapted model; the pass's threshold is chosen on validation problems
        (the most mended at no more than half a percent spoilt), and measured on test problems.
after   The base's own rash decodes, finished, and two such passes over them: how many answers become right, and wrong?
choose  Whole decodes, `threshold` at rash numbers: alone, with a pass at the end of each block, and what that is
        compared with at the same policy: editing while there are masks too (`edit`), random remasking, remasking by the
        commit's own confidence, and a pass that is told the standard decode's answer. Both models, validation problems.
test    Of each kind the fastest that loses at most a point of the base's standard decoding, and the most accurate for
        the work of the base's `threshold:tau=0.99`, once on test problems.

Each entry is kept in `results/revise.json` when it is done; `--n` makes a small one, in a file of its own.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

import jaxdiff
from experiments.judge.controls import Random, confidence
from experiments.kept import Kept
from experiments.parallel.run import BASE, LENGTH, N_CHOOSE, N_TEST, SEED, Row, points
from experiments.policies import accuracy, describe, verdicts_of
from experiments.revise.controls import Told
from jaxdiff import pad_prompts, policies
from jaxdiff.metrics import paired_difference
from jaxdiff.policies.edit import Edit
from jaxdiff.policies.judge import Correct
from jaxdiff.stoppers import Eos
from jaxdiff.tasks import gsm_symbolic
from jaxdiff.tasks.evaluate import prompt_ids
from jaxdiff.train.network import Network
from jaxdiff.types import Inputs

RESULTS = Path(__file__).parent / "results"
BLOCK = 32
SHARE, SPOILT = 0.1, 0.5  # of the tokens that are replaced; percent of the right ones that may be spoilt
PASS_TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
KINDS = ("chance", "own")
ROWS = 25  # of worked answers in a pass

RASH = (0.3, 0.5, 0.7, 0.9)  # of `threshold`
CAREFUL = (*RASH, 0.97, 0.99)
WRITES = (0.5, 0.9)  # what a token must exceed to overwrite another
SURE = (0.9, 2.0)
DOUBTS, DRAWN = (0.1, 0.3), (0.9, 0.97)  # of confidence; 1 minus the chance to be taken back

app = typer.Typer(add_completion=False)
Adapter = Annotated[str, typer.Argument(help="The adapter's folder, or its name.")]
N = Annotated[int | None, typer.Option(min=1, help="Problems; default as many as are reported.")]


# --- one pass over worked answers -------------------------------------------------------------------------------------


def worked(checkpoint: jaxdiff.Checkpoint, split: Any, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Canvases as a decode has them when the text's last block is full, [n L]: [MASK] from the end of that block on;
    the column of each row's first token, and where its text is, the first end-of-text included.
    """
    tokenizer = checkpoint.tokenizer_for("problems")
    problems = list(itertools.islice(gsm_symbolic.problems(split, SEED), n))
    prompts, origin = pad_prompts([prompt_ids(tokenizer, each) for each in problems], 0, 32)
    first, mask = prompts.shape[1], checkpoint.model.config.mask_token_id
    canvas = np.concatenate([prompts, np.full((n, LENGTH), mask, np.int32)], axis=1)
    text = np.zeros(canvas.shape, bool)
    for row, problem in enumerate(problems):
        answer = [*tokenizer.encode(problem.worked), tokenizer.eos_id]
        block = -(-len(answer) // BLOCK) * BLOCK
        canvas[row, first : first + block] = tokenizer.eos_id
        canvas[row, first : first + len(answer)] = answer
        text[row, first : first + len(answer)] = True
    return canvas, origin, text


@jax.jit
def ask(network: Network, tokens: jax.Array, origin: jax.Array) -> jax.Array:
    """Of canvases and the column of each row's first token the logits [B L V], where [MASK] has none."""
    logits = jax.vmap(network.logits)(network.model.apply(network.params, Inputs.whole(tokens, origin))[0])
    return logits.at[..., network.model.config.mask_token_id].set(-jnp.inf)


def replaced(base: Network, kind: str, canvas: np.ndarray, origin: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The canvases with a tenth of each text's tokens (rounded up) replaced."""
    rng, config = np.random.default_rng(SEED), base.model.config
    gone = np.zeros(text.shape, bool)
    for row in range(len(text)):
        columns = np.flatnonzero(text[row])
        gone[row, rng.choice(columns, int(np.ceil(SHARE * len(columns))), replace=False)] = True
    if kind == "chance":
        other = rng.integers(0, config.vocab_size - 2, canvas.shape)
        for taken in np.sort(np.stack([canvas, np.full_like(canvas, config.mask_token_id)]), axis=0):
            other += other >= taken  # neither [MASK] nor the right token
        return np.where(gone, other, canvas).astype(np.int32)
    wrong = canvas.copy()
    for at in range(0, len(canvas), ROWS):
        rows = slice(at, at + ROWS)
        hidden = np.where(gone[rows], config.mask_token_id, canvas[rows])
        logits = np.array(ask(base, hidden, origin[rows]))
        np.put_along_axis(logits, canvas[rows][..., None], -np.inf, axis=-1)
        drawn = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
        wrong[rows] = np.where(gone[rows], drawn, canvas[rows])
    return wrong


def passed(network: Network, canvas: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each position what the model takes for likeliest, and its probability."""
    token, prob = [], []
    for at in range(0, len(canvas), ROWS):
        logits = np.asarray(ask(network, canvas[at : at + ROWS], origin[at : at + ROWS]))
        token.append(logits.argmax(-1))
        prob.append(1.0 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
    return np.concatenate(token), np.concatenate(prob)


def mended(network: Network, base: Network, kind: str, checkpoint: jaxdiff.Checkpoint, split: str, n: int) -> Any:
    """Of each threshold the percentages mended and spoilt by one pass."""
    canvas, origin, text = worked(checkpoint, split, n)
    seen = replaced(base, kind, canvas, origin, text)
    token, prob = passed(network, seen, origin)
    wrong, found = text & (seen != canvas), []
    for tau in PASS_TAUS:
        now = np.where(text & (prob > tau), token, seen)
        found.append(
            {
                "tau": tau,
                "mended": 100 * float((now == canvas)[wrong].mean()),
                "spoilt": 100 * float((now != canvas)[text & ~wrong].mean()),
            }
        )
    return found


@app.command()
def mend(adapter: Adapter, n: N = None) -> None:
    kept, models = opened(adapter, n)
    base, count = Network(models[BASE].params, models[BASE].model), n or N_CHOOSE
    for name, checkpoint in models.items():
        network = Network(checkpoint.params, checkpoint.model)
        for kind, split in itertools.product(KINDS, ("validation", "test")):
            make = functools.partial(mended, network, base, kind, models[BASE], split, count)
            swept = kept.once(f"mend | {name} | {kind} | {split}", make)
            print(name, kind, split, *(f"{p['tau']}: {p['mended']:.1f}/{p['spoilt']:.2f}" for p in swept), flush=True)


# --- passes over rash decodes -----------------------------------------------------------------------------------------


def after(models: dict[str, jaxdiff.Checkpoint], name: str, tau: float, split: Any, n: int) -> dict[str, Any]:
    """The base's answers under `threshold` at a rash number, and what passes of a model over these texts make of them:
    how many are right, and of each pass how many it makes right and how many wrong.
    """
    base, network = models[BASE], Network(models[name].params, models[name].model)
    tokenizer, mask = base.tokenizer_for("problems"), base.model.config.mask_token_id
    problems = list(itertools.islice(gsm_symbolic.problems(split, SEED), n))
    prompts, origin = pad_prompts([prompt_ids(tokenizer, each) for each in problems], 0, 32)
    decoder = jaxdiff.Decoder(policy=policies.Threshold(tau), stop=Eos(), block_length=BLOCK)
    canvas, lengths = np.zeros((n, prompts.shape[1] + LENGTH), np.int32), np.zeros(n, int)
    for at in range(0, n, ROWS):
        rows = slice(at, at + ROWS)
        given = (base.model, base.params, prompts[rows], decoder)
        result = jaxdiff.decode(*given, gen_length=LENGTH, origin=origin[rows])
        canvas[rows], lengths[rows] = np.asarray(result.tokens), np.asarray(result.lengths)
    place = np.arange(canvas.shape[1])[None] - prompts.shape[1]
    text = (place >= 0) & (place < lengths[:, None])
    canvas[place >= -(-lengths[:, None] // BLOCK) * BLOCK] = mask

    def right() -> np.ndarray:
        answers = [row[own] for row, own in zip(canvas, text, strict=True)]
        return np.asarray([gsm_symbolic.verify(tokenizer.decode(a), p) for a, p in zip(answers, problems, strict=True)])

    start, found = canvas.copy(), []
    for write in PASS_TAUS[4:]:
        canvas = start
        told: dict[str, Any] = {"tau": write, "right": [int(right().sum())], "mended": [], "spoilt": []}
        for _ in range(2):
            before = right()
            token, prob = passed(network, canvas, origin)
            canvas = np.where(text & (prob > write), token, canvas)
            now = right()
            told["right"].append(int(now.sum()))
            told["mended"].append(int((now & ~before).sum()))
            told["spoilt"].append(int((before & ~now).sum()))
        found.append(told)
    return {"threshold": tau, "n": n, "passes": found}


@app.command("after")
def measure_after(adapter: Adapter, n: N = None) -> None:
    kept, models = opened(adapter, n)
    for name, tau in itertools.product(models, RASH):
        make = functools.partial(after, models, name, tau, "validation", n or N_CHOOSE)
        for point in kept.once(f"after | {name} | {tau}", make)["passes"]:
            print(name, tau, point, flush=True)


# --- whole decodes ----------------------------------------------------------------------------------------------------


def grid(make: Callable[..., jaxdiff.Policy], *numbers: tuple[float, ...]) -> tuple[tuple[Any, ...], Any]:
    """All combinations of numbers, and the policy of some of them, each a vector with a number for each row."""
    combined = tuple(itertools.product(*numbers))
    table = np.asarray(combined, np.float32)
    return combined, lambda number: make(*table[np.asarray(number, int)].T)


def rows_of() -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Of each kind its combinations, `threshold`'s number first, and the policy of their numbers."""
    rash = policies.Threshold
    return {
        "alone": grid(rash, CAREFUL),
        "revise": grid(lambda t, w, s: policies.revise(rash(t), passes=1, tau=w, sure=s), RASH, WRITES, SURE),
        "revise twice": grid(lambda t, w: policies.revise(rash(t), passes=2, tau=w), RASH[:2], WRITES),
        "edit": grid(lambda t, w: Edit(t, w, 1), RASH, WRITES),
        "confidence": grid(lambda t, d: Correct(rash(t), confidence(), d, 0.5), RASH, DOUBTS),
        "random": grid(lambda t, d: Random(rash(t), confidence(), d, 0.5), RASH, DRAWN),
        "told": grid(lambda t: Told(rash(t), passes=1), RASH[:2]),  # each row has a standard decode first
    }


def swept(checkpoint: jaxdiff.Checkpoint, kind: str, row: Any, numbers: list[int], split: str, n: int) -> Any:
    combined, policy = row
    made = points(checkpoint, Row(kind, (), policy), numbers, n=n, split=split, length=LENGTH)
    return [point | {"numbers": combined[number]} for number, point in zip(numbers, made, strict=True)]


def standard(kept: Kept, checkpoint: jaxdiff.Checkpoint, split: str, n: int) -> dict[str, Any]:
    row = Row("standard", (0.0,), lambda _: policies.Fixed())
    make = functools.partial(points, checkpoint, row, row.values, n=n, split=split, length=LENGTH)
    return kept.once(f"{BASE} | standard | {split}", make)[0]


def chosen_of(entries: dict[str, Any], name: str, kind: str) -> dict[str, dict[str, Any]]:
    """The fastest point within one of standard decoding, and the most accurate for the work of a careful threshold."""
    found = entries[f"{name} | {kind} | validation"]
    least = entries[f"{BASE} | standard | validation"][0]["accuracy"] - 1.0
    most = entries[f"{BASE} | alone | validation"][-1]["work"]
    near, cheap = [p for p in found if p["accuracy"] >= least], [p for p in found if p["work"] <= most]
    best = {"fastest": min(near, key=lambda p: p["work"], default=None)}
    best["most accurate"] = max(cheap, key=lambda p: (p["accuracy"], -p["work"]), default=None)
    return {why: point for why, point in best.items() if point is not None}


def opened(adapter: str, n: int | None) -> tuple[Kept, dict[str, jaxdiff.Checkpoint]]:
    """The results, and the base and the adapted model."""
    models = {BASE: jaxdiff.load("gsm-1m"), "revise": jaxdiff.load("gsm-1m", adapter=adapter)}
    setting = describe(models[BASE], BASE, n or N_CHOOSE, "eos", SEED)
    setting["adapter"] = describe(models["revise"], adapter, 0, "eos", SEED)["weights"]
    return Kept(RESULTS / ("revise.json" if n is None else f"revise-{n}.json"), setting), models


def tell(name: str, kind: str, point: dict[str, Any]) -> None:
    told = f"{accuracy(point)} %, NFE {point['nfe']:.2f}, TPF {point['tpf']:.2f}, work {point['work']:.2f}"
    print(name, kind, point["numbers"], told, flush=True)


@app.command()
def choose(adapter: Adapter, n: N = None, only: Annotated[list[str] | None, typer.Option()] = None) -> None:
    kept, models = opened(adapter, n)
    if only is None:
        careful = standard(kept, models[BASE], "validation", n or N_CHOOSE)
        print(f"standard {careful['accuracy']:.1f} %, work {careful['work']:.2f}")
    for (kind, row), (name, checkpoint) in itertools.product(rows_of().items(), models.items()):
        if only is None or kind in only:
            every = list(range(len(row[0])))
            make = functools.partial(swept, checkpoint, kind, row, every, "validation", n or N_CHOOSE)
            for point in kept.once(f"{name} | {kind} | validation", make):
                tell(name, kind, point)


@app.command("test")
def measure_chosen(adapter: Adapter, n: N = None) -> None:
    kept, models = opened(adapter, n)
    standard(kept, models[BASE], "test", n or N_TEST)
    for (kind, row), (name, checkpoint) in itertools.product(rows_of().items(), models.items()):
        chosen = chosen_of(kept.entries, name, kind).values()
        numbers = sorted({int(point["value"]) for point in chosen})
        make = functools.partial(swept, checkpoint, kind, row, numbers, "test", n or N_TEST)
        for point in kept.once(f"{name} | {kind} | test", make):
            tell(name, kind, point)


# --- tables -----------------------------------------------------------------------------------------------------------


@app.command()
def report(n: N = None) -> None:
    """What one pass mends, the chosen points on test problems, and every validation point."""
    path = RESULTS / ("revise.json" if n is None else f"revise-{n}.json")
    content = json.loads(path.read_text())
    entries, lines = content["entries"], []
    lines += [f"One pass over worked answers of {content['setting']['n']} test problems, in percent.", ""]
    lines += ["| model | replaced by | tau, chosen | mended | spoilt |", "|---|---|---:|---:|---:|"]
    for name, kind in itertools.product((BASE, "revise"), KINDS):
        tried, found = (entries[f"mend | {name} | {kind} | {split}"] for split in ("validation", "test"))
        within = [i for i, p in enumerate(tried) if p["spoilt"] <= SPOILT]
        best = max(within, key=lambda i: tried[i]["mended"], default=len(tried) - 1)
        point = found[best]
        lines.append(f"| {name} | {kind} | {point['tau']:g} | {point['mended']:.1f} | {point['spoilt']:.2f} |")
    if (careful := entries.get(f"{BASE} | standard | test", [None])[0]) is not None:
        lines += ["", f"Whole decodes, {careful['n']} test problems.", ""]
        lines += ["| model | kind | chosen as | numbers | accuracy % | minus standard | NFE | TPF | work |"]
        lines += ["|---|---|---|---|---:|---:|---:|---:|---:|", "| base | standard | " + line_of(careful, "")]
    decodes = [
        name.split(" | ") for name in entries if not name.startswith(("mend", "after")) and "| standard |" not in name
    ]
    for name, kind, split in decodes:
        if split != "test":
            continue
        why = chosen_of(entries, name, kind)
        for point in entries[f"{name} | {kind} | test"]:
            names = " and ".join(reason for reason, each in why.items() if each["numbers"] == point["numbers"])
            off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(careful))]
            lines.append(f"| {name} | {kind} | {names} " + line_of(point, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*off)))
    lines += ["", f"Validation, n {content['setting']['n']}.", ""]
    lines += ["| model | kind | numbers | accuracy % | NFE | TPF | work |", "|---|---|---|---:|---:|---:|---:|"]
    for name, kind, split in decodes:
        if split == "validation":
            lines += [f"| {name} | {kind} " + line_of(point) for point in entries[f"{name} | {kind} | validation"]]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(path.with_suffix(".md"))


def line_of(point: dict[str, Any], off: str | None = None) -> str:
    numbers = ", ".join(f"{number:g}" for number in point.get("numbers", ()))
    middle = "" if off is None else f" {off} |"
    return f"| {numbers} | {accuracy(point)} |{middle} {point['nfe']:.2f} | {point['tpf']:.2f} | {point['work']:.2f} |"


if __name__ == "__main__":
    app()
