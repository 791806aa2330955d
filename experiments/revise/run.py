r"""Does a model that was trained to doubt what it sees mend it?

    python -m experiments.revise.run mend revise        # the adapter that ships, or a folder
    python -m experiments.revise.run after revise
    python -m experiments.revise.run choose revise      # --only KIND for a piece of it
    python -m experiments.revise.run test revise
    python -m experiments.revise.run report

mend    A tenth of the tokens of worked answers is replaced, by random tokens (`chance`) or by what the base might write
        there and is wrong (`own`): what share of these does one pass without masks make right, and what share of the
        right ones does it spoil? The base and the adapted model; the pass's threshold is chosen on validation problems
        (the most mended at no more than half a percent spoilt), and measured on test problems.
after   The base's own rash decodes, finished, and two such passes over them: how many answers become right, and wrong?
choose  Whole decodes, `threshold` at rash numbers: alone, with a pass at the end of each block, editing while there are
        masks too (`edit`), and, of the base, what these are compared with at the same policy: `wino`, random remasking,
        remasking by the commit's own confidence, and two oracles on fewer problems (a pass that is told the standard
        decode's answer, and one that takes back exactly what is not that answer's). Validation problems.
test    Of each kind the fastest that loses at most a point of the base's standard decoding, and the most accurate for
        the work of the base's `threshold:tau=0.99`, once on test problems.

Standard decoding is that of `experiments/judge/results/judge.json`, of the same problems. Each entry is kept in
`results/revise.json` when it is done; `--n` makes a small one, in a file of its own.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

import jaxdiff
from experiments.judge import run as judged
from experiments.judge.controls import Random, confidence
from experiments.judge.controls import Told as TakenBack
from experiments.kept import Kept
from experiments.parallel.run import BASE, LENGTH, SEED, Row, points
from experiments.policies import accuracy, describe, verdicts_of
from experiments.revise.controls import Told
from jaxdiff import pad_prompts, policies
from jaxdiff.metrics import paired_difference, wilson
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

N_CHOOSE, N_TEST, N_TOLD = 200, 300, 100
RASH = (0.5, 0.7, 0.9)  # of `threshold`
CAREFUL = (*RASH, 0.97, 0.99)
WRITES = (0.5, 0.9)  # what a token must exceed to overwrite another
DOUBTS, DRAWN = (0.1, 0.3), (0.9, 0.97)  # of confidence; 1 minus the chance to be taken back
REVOKES = (0.5, 0.9)  # what a token must have without itself, to stay

app = typer.Typer(add_completion=False)
Adapter = Annotated[str, typer.Argument(help="The adapter's folder, or its name.")]
N = Annotated[int | None, typer.Option(min=1, help="Problems; default as many as are reported.")]
Only = Annotated[list[str] | None, typer.Option(help="A model's kinds, as `base wino`; default all.")]


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
    for write in WRITES:
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
    for name, tau in itertools.product(models, RASH[::2]):
        make = functools.partial(after, models, name, tau, "validation", n or N_CHOOSE)
        for point in kept.once(f"after | {name} | {tau}", make)["passes"]:
            print(name, tau, point, flush=True)


# --- whole decodes ----------------------------------------------------------------------------------------------------


def grid(make: Callable[..., jaxdiff.Policy], *numbers: tuple[float, ...]) -> tuple[tuple[Any, ...], Any]:
    """All combinations of numbers, and the policy of some of them, each a vector with a number for each row."""
    combined = tuple(itertools.product(*numbers))
    table = np.asarray(combined, np.float32)
    return combined, lambda number: make(*table[np.asarray(number, int)].T)


def rows_of(name: str) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Of each kind its combinations, `threshold`'s number first, and the policy of their numbers."""
    rash = policies.Threshold
    own = {
        "alone": grid(rash, CAREFUL),
        "revise": grid(lambda t, w: policies.revise(rash(t), passes=1, tau=w), RASH, WRITES),
        "edit": grid(lambda t, w: Edit(t, w, 1), RASH, WRITES),
    }
    if name != BASE:
        return own
    return own | {
        "wino": grid(policies.Wino, RASH, REVOKES),
        "confidence": grid(lambda t, d: Correct(rash(t), confidence(), d, 0.5), RASH, DOUBTS),
        "random": grid(lambda t, d: Random(rash(t), confidence(), d, 0.5), RASH, DRAWN),
        "told, a pass": grid(lambda t: Told(rash(t), passes=1), RASH[:1]),
        "told, taken back": grid(lambda t: TakenBack(rash(t), confidence(), 0.5, 0.5), RASH[:1]),
    }


def size_of(kind: str, n: int) -> int:
    """Problems: fewer of an oracle, each of whose rows has a standard decode first."""
    return min(n, N_TOLD) if kind.startswith("told") else n


def swept(
    kept: Kept, checkpoint: jaxdiff.Checkpoint, called: str, row: Any, numbers: list[int], split: str, n: int
) -> list[dict[str, Any]]:
    """A point for each of the numbers; one that is done is kept, so that a call may be cut off anywhere."""
    combined, policy = row

    def one(number: int) -> dict[str, Any]:
        (point,) = points(checkpoint, Row(called, (), policy), [number], n=n, split=split, length=LENGTH)
        return point | {"numbers": combined[number]}

    return [kept.once(f"{called} | {split} | {number}", functools.partial(one, number)) for number in numbers]


def standard(split: str, n: int) -> dict[str, Any]:
    """Of the first n problems the verdicts; the work is that of all that were measured there."""
    (point,) = json.loads(judged.PATH.read_text())["entries"][f"standard | {split}"]
    found = verdicts_of(point)[:n]
    return point | {
        "n": len(found),
        "correct": point["correct"][:n],
        "accuracy": 100 * float(found.mean()),
        "interval": [100 * end for end in wilson(int(found.sum()), len(found))],
    }


def points_of(entries: dict[str, Any], name: str, kind: str, split: str) -> list[dict[str, Any]]:
    begin = f"{name} | {kind} | {split} | "
    return [entry for called, entry in entries.items() if called.startswith(begin)]


def chosen_of(entries: dict[str, Any], name: str, kind: str) -> dict[str, dict[str, Any]]:
    """The fastest point within one of standard decoding, and the most accurate for the work of a careful threshold."""
    found = points_of(entries, name, kind, "validation")
    least = standard("validation", found[0]["n"])["accuracy"] - 1.0
    most = points_of(entries, BASE, "alone", "validation")[-1]["work"]
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


def every_row(only: list[str] | None) -> Iterator[tuple[str, str, Any]]:
    """A model's name, a kind, and its row."""
    for name in (BASE, "revise"):
        yield from ((name, kind, row) for kind, row in rows_of(name).items() if not only or f"{name} {kind}" in only)


@app.command()
def choose(adapter: Adapter, n: N = None, only: Only = None) -> None:
    kept, models = opened(adapter, n)
    for name, kind, row in every_row(only):
        every, count = list(range(len(row[0]))), size_of(kind, n or N_CHOOSE)
        for point in swept(kept, models[name], f"{name} | {kind}", row, every, "validation", count):
            tell(name, kind, point)


@app.command("test")
def measure_chosen(adapter: Adapter, n: N = None, only: Only = None) -> None:
    kept, models = opened(adapter, n)
    for name, kind, row in every_row(only):
        numbers = sorted({int(point["value"]) for point in chosen_of(kept.entries, name, kind).values()})
        if kind.startswith("told") or not numbers:
            continue
        for point in swept(kept, models[name], f"{name} | {kind}", row, numbers, "test", n or N_TEST):
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
    lines += [
        "",
        "Passes of a model over the base's finished rash decodes: how many are right, before and after each.",
        "",
    ]
    lines += [
        "| passes of | `threshold` | a pass's tau | right | made right | made wrong |",
        "|---|---:|---:|---|---|---|",
    ]
    for entry, found in entries.items():
        if entry.startswith("after"):
            rows = ((p["tau"], p["right"], p["mended"], p["spoilt"]) for p in found["passes"])
            told = (" | ".join(", ".join(map(str, each)) for each in row[1:]) for row in rows)
            each = zip(found["passes"], told, strict=True)
            lines += [f"| {entry.split(' | ')[1]} | {found['threshold']:g} | {p['tau']:g} | {row} |" for p, row in each]
    called = [entry.split(" | ")[:3] for entry in entries if not entry.startswith(("mend", "after"))]
    decodes = [decode for at, decode in enumerate(called) if decode not in called[:at]]
    tested = [decode for decode in decodes if decode[2] == "test"]
    careful = standard("test", points_of(entries, *tested[0])[0]["n"])
    lines += ["", f"Whole decodes, {careful['n']} test problems.", ""]
    lines += ["| model | kind | chosen as | numbers | accuracy % | minus standard | NFE | TPF | work |"]
    lines += ["|---|---|---|---|---:|---:|---:|---:|---:|", "| base | standard | " + line_of(careful, "")]
    for name, kind, _ in tested:
        why = chosen_of(entries, name, kind)
        for point in points_of(entries, name, kind, "test"):
            names = " and ".join(reason for reason, each in why.items() if each["numbers"] == point["numbers"])
            off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(careful))]
            lines.append(f"| {name} | {kind} | {names} " + line_of(point, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*off)))
    lines += ["", f"Validation, n {content['setting']['n']}.", ""]
    lines += ["| model | kind | numbers | accuracy % | NFE | TPF | work |", "|---|---|---|---:|---:|---:|---:|"]
    for name, kind, split in decodes:
        if split == "validation":
            lines += [f"| {name} | {kind} " + line_of(point) for point in points_of(entries, name, kind, split)]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(path.with_suffix(".md"))


def line_of(point: dict[str, Any], off: str | None = None) -> str:
    numbers = ", ".join(f"{number:g}" for number in point.get("numbers", ()))
    middle = "" if off is None else f" {off} |"
    return f"| {numbers} | {accuracy(point)} |{middle} {point['nfe']:.2f} | {point['tpf']:.2f} | {point['work']:.2f} |"


if __name__ == "__main__":
    app()
