"""What do fills save? Right answers against full passes and against work; the joint they draw from; a cheap pass' cost.

    python -m experiments.fills.run frontier permutation --model puzzles-1m
    python -m experiments.fills.run frontier gsm_symbolic --model gsm-1m
    python -m experiments.fills.run fed --model puzzles-1m
    python -m experiments.fills.run joint --model puzzles-1m
    python -m experiments.fills.run cost
    python -m experiments.fills.run report

frontier  Held-out problems of a task, each policy's number swept for each fill, three seeds (of the problems and of the
          draws). Rows = problems x values of the policy's number x values of the fill's: one program for a policy and
          a fill. Each point stands beside two of `parallel` on the same problems: the one of the same policy number
          (for `fixed`: equal full passes), and the control that matches work: the cheapest with no less work than the
          point itself, cheap passes counted. Differences are paired.
fed       What keeps `recap` from the careful decode? `permutation` again, with passes of the chosen positions, of the
          whole block, and of the whole canvas: what is not fed again says what it said before the slices were written.
joint     How far is what a fill draws from the true joint? The model that ships answers a prompt of `permutation` whose
          first cells are given: four holes, eight letters left. Under the true joint any four different of them in any
          order are alike, so that each of the 24 orders (the letters' places in the prompt, ranked) has 1/24 whatever
          the letters; what is no answer (a letter twice, one that was given, one that is not in the prompt) is a 25th
          outcome of probability 0. This is the task as it was trained: 12 letters, 8 cells; a prompt of 4 letters would
          be another one, and a model of 4 symbols trained for the purpose would have no drafters fitted to it. Total
          variation from the true joint is exact but for the sample; the chi-square test asks whether a fill's 25 counts
          and those of `parallel` at as many full passes are of one distribution.
cost      FLOPs and bytes of a full pass and of each width of a cheap pass, read from the decode compiled for a
          published shape, here or for a TPU that is not here (--target): on a model of four layers a pass of one layer
          is a quarter, on 32 layers a thirty-second.

Each entry is kept in results/NAME.json when it is done, and the same call goes on after them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from jaxtyping import Int
from scipy import stats

import jaxdiff
from experiments.kept import Kept
from experiments.policies import accuracy, describe, measure, verdicts_of
from jaxdiff import fills, policies
from jaxdiff.bench.cost import step_cost
from jaxdiff.bench.measure import Work
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.cli.show import progress
from jaxdiff.drafters import DRAFTERS, KINDS, drafted_fill, unfitted
from jaxdiff.filters import learned_policy
from jaxdiff.metrics import paired_difference
from jaxdiff.protocols import Fill
from jaxdiff.pytree import pytree, static
from jaxdiff.stoppers import Eos, NoStop
from jaxdiff.tasks import evaluate, permutation, task
from jaxdiff.windows import put

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
N, SLOTS = 500, 16
DRAWS, TOGETHER = 20_000, 500  # answers of one prompt, and rows of a call
HOLES = 4
GRIDS = ("latin", "sums")  # of 16 cells each: the drafters `adjust_grids` and `head_grids` are fitted to both
ORDERS = list(itertools.permutations(range(HOLES)))
SHAPE, PROMPT, GENERATED, BLOCK = "llada-8b", 64, 1216, 32  # 1,280 positions


@dataclasses.dataclass(frozen=True)
class Way:
    """A fill, the values of its number, and how it is made from one of them, or one for each row, for a checkpoint."""

    name: str
    values: tuple[float, ...]
    fill: Callable[[Any, Any], Fill]


def drafted(kind: str, name: str) -> Way:
    def fill(checkpoint: Any, value: Any) -> Fill:
        return dataclasses.replace(drafted_fill(checkpoint.path, kind, name), k=value)

    return Way(kind, (2, 4, 8), fill)


WAYS = (
    Way("parallel", (1,), lambda _, v: fills.Parallel()),
    Way("recap", (2, 4, 8), lambda _, v: fills.Recap(slices=v)),
    Way("recap, left to right", (8,), lambda _, v: fills.Recap(slices=v, order="left")),
    Way("recap, at random", (8,), lambda _, v: fills.Recap(slices=v, order="random")),
)


def ways_of(checkpoint: Any, task_name: str) -> tuple[Way, ...]:
    """`parallel` first; those with a drafter where the model has one that was fitted to such decodes."""
    names = {kind: f"{kind}_grids" if task_name in GRIDS else kind for kind in KINDS}
    fitted = (drafted(kind, name) for kind, name in names.items() if (checkpoint.path / DRAFTERS / name).is_dir())
    return (*WAYS, *fitted)


# Of a model without weights, for `cost`.
SHAPED = {
    "recap": lambda _: fills.Recap(slices=8),
    "adjust": lambda model: unfitted("adjust", model, abstract_params),
    "head": lambda model: unfitted("head", model, abstract_params),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A policy, the values of its number from careful to rash, and how it is made from one, or one for each row."""

    name: str
    values: tuple[float, ...]
    policy: Callable[[str, Any], jaxdiff.Policy]


def fixed(*steps: int, order: str = "confidence") -> Rule:
    return Rule(f"fixed, {order}", steps, lambda _, v: policies.Fixed(steps=v, order=order))


THRESHOLDS, ENTROPIES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3), (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)
LEARNED = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)
FREE = (
    Rule("threshold", THRESHOLDS, lambda _, v: policies.Threshold(tau=v)),
    Rule("entropy", ENTROPIES, lambda _, v: policies.Entropy(tau=v)),
)


@dataclasses.dataclass(frozen=True)
class Ground:
    """How a task is decoded; its length is its own, and a puzzle's one block."""

    rules: tuple[Rule, ...]
    temperature: float = 0.0
    stop: jaxdiff.Stopper = dataclasses.field(default_factory=NoStop)


OF_8, OF_16 = (8, 4, 3, 2, 1), (16, 8, 6, 4, 3, 2, 1)
GROUNDS = {
    "permutation": Ground((fixed(*OF_8), fixed(*OF_8, order="random")), temperature=1.0),
    "latin": Ground((fixed(*OF_16), fixed(*OF_16, order="left"), *FREE)),
    "sums": Ground((fixed(*OF_16), fixed(*OF_16, order="left"), *FREE)),
    "gsm_symbolic": Ground(
        (*FREE, Rule("learned", LEARNED, lambda model, v: learned_policy(model, tau=v))), stop=Eos()
    ),
}


def points(
    checkpoint: jaxdiff.Checkpoint, model: str, name: str, rule: Rule, way: Way, *, n: int, seed: int
) -> list[dict[str, Any]]:
    """One for each value of the rule's number and of the way's; they share a program."""
    ground, grid = GROUNDS[name], list(itertools.product(rule.values, way.values))

    def decoder(index: np.ndarray) -> jaxdiff.Decoder:
        of_rule, of_way = np.asarray(grid)[np.asarray(index, int)].T
        return jaxdiff.Decoder(
            policy=rule.policy(model, of_rule),
            fill=way.fill(checkpoint, of_way),
            stop=ground.stop,
            sampling=jaxdiff.Sampling(temperature=ground.temperature),
        )

    with progress(f"{name}, {rule.name}, {way.name}, seed {seed}", n * len(grid)) as update:
        reports = evaluate.sweep(
            *(checkpoint, name, decoder, range(len(grid))), n=n, seed=seed, batch_size=SLOTS, progress=update
        )
    return [
        point | {"value": value, "fill": number, "cheap": float(report.cheap.mean()), "work": float(report.work.mean())}
        for (value, number), point, report in zip(grid, measure(range(len(grid)), reports), reports, strict=True)
    ]


def pooled(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One point of the seeds' points: means, and all verdicts one after the other."""
    means = {name: float(np.mean([point[name] for point in each])) for name in ("accuracy", "nfe", "cheap", "work")}
    verdicts = "".join(point["correct"] for point in each)
    return {"value": each[0]["value"], "fill": each[0]["fill"], "correct": verdicts, **means}


def beside(point: dict[str, Any], parallel: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a point is compared with: `parallel` with the same number, and the cheapest with no less work, else the one
    with most.
    """
    no_less = [one for one in parallel if one["work"] >= point["work"]]
    control = min(no_less, key=lambda one: one["work"]) if no_less else max(parallel, key=lambda one: one["work"])
    (same,) = [one for one in parallel if one["value"] == point["value"]]
    return {"same number": same, "no less work": control}


@dataclasses.dataclass(frozen=True)
class Refed:
    """The passes of a step, whose `group` feeds the whole block, or all (`canvas`)."""

    passes: Any
    canvas: bool

    def group(self, tokens: Any, among: Any, draw: Any) -> Any:
        del among
        if not self.canvas:
            return self.passes.window(tokens, draw)
        return self.passes.canvas(put(self.passes.state.rows.canvas, tokens, self.passes.place.start), draw)


@pytree
class Wider(fills.Recap):
    """`recap` whose passes feed more than the chosen positions."""

    canvas: bool = static(default=False)

    def write(self, state: Any, score: Any, proposal: Any, commit: Any, passes: Any, key: Any) -> Any:
        refed: Any = Refed(passes, self.canvas)
        return fills.Recap.write(self, state, score, proposal, commit, refed, key)


FED = (
    Way("parallel", (1,), lambda _, v: fills.Parallel()),
    Way("the chosen positions", (8,), lambda _, v: fills.Recap(slices=v)),
    Way("the block", (8,), lambda _, v: Wider(slices=v)),
    Way("the canvas", (8,), lambda _, v: Wider(slices=v, canvas=True)),
)


def order_of(letters: str, question: str, given: str) -> int:
    """Which of ORDERS the letters of the holes are in; the last outcome where they are no answer."""
    places = [question.find(letter) for letter in letters]
    if len(set(letters)) < HOLES or min(places) < 0 or set(letters) & set(given):
        return len(ORDERS)
    return ORDERS.index(tuple(np.argsort(np.argsort(places)).tolist()))


def outcomes(
    checkpoint: jaxdiff.Checkpoint, way: Way, value: float, steps: int, *, seed: int, draws: int
) -> dict[str, Any]:
    """Counts of the 24 orders and of what is no answer, over so many answers of one prompt."""
    tokenizer = checkpoint.tokenizer_for(permutation.NAME)
    problem = next(iter(permutation.problems("test", seed)))
    letters, given = problem.question[1:-1], problem.answer[:-HOLES]
    ids = tokenizer.encode(problem.question + given)
    canvas = np.asarray([*ids, *[checkpoint.model.config.mask_token_id] * HOLES], np.int32)
    decoder = jaxdiff.Decoder(
        policy=policies.Fixed(steps=steps, order="random"),
        fill=way.fill(checkpoint, value),
        sampling=jaxdiff.Sampling(temperature=1.0),
    )
    counts, nfe, cheap, work = np.zeros(len(ORDERS) + 1, int), 0, 0, 0.0
    keys = jax.random.split(jax.random.key(seed), draws)
    for first in range(0, draws, TOGETHER):
        own = keys[first : first + TOGETHER]
        rows = np.repeat(canvas[None], len(own), axis=0)
        result = jaxdiff.infill(checkpoint.model, checkpoint.params, rows, decoder, key=own)
        for row in np.asarray(result.tokens)[:, -HOLES:]:
            counts[order_of(tokenizer.decode(row), letters, given)] += 1
        nfe, cheap, work = nfe + int(result.nfe.sum()), cheap + int(result.cheap.sum()), work + float(result.work.sum())
    return {
        "counts": counts.tolist(),
        "distance": distance(counts),
        **{"nfe": nfe / draws, "cheap": cheap / draws, "work": work / draws},
    }


def distance(counts: Int[np.ndarray, " n"]) -> float:
    """Total variation from the true joint: 1/24 for each order, nothing for what is no answer."""
    found, true = counts / counts.sum(), np.asarray([*[1 / len(ORDERS)] * len(ORDERS), 0.0])
    return float(np.abs(found - true).sum() / 2)


def differ(first: Sequence[int], second: Sequence[int]) -> float:
    """The p of one distribution behind both counts (chi-square); outcomes that neither has are left out."""
    table = np.asarray([first, second])
    table = table[:, table.sum(axis=0) > 0]
    return float(stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0


def costs(name: str, shape: str, target: str | None) -> dict[str, Any]:
    """FLOPs and bytes of the full pass, its part of the head included, and of the fill's at each width."""
    model = shaped(shape)
    work = Work(
        model=model,
        params=abstract_params(model),
        prompts=np.random.default_rng(0).integers(10, 1000, (1, PROMPT)).astype(np.int32),
        origin=np.zeros(1, np.int32),
        decoder=jaxdiff.Decoder(policy=policies.Threshold(0.9), fill=SHAPED[name](model), block_length=BLOCK),
        gen_length=GENERATED,
        block_length=BLOCK,
        rounds=1,
        target=None if target is None else tpu(target),
    )
    step = step_cost(work.program().program.compiled.as_text() or "")
    full, cheap = [], []
    for one in step["passes"]:
        (cheap if one["fill"] else full).extend((one["rungs"] if one["fill"] else []) or [one])
    whole = {kind: sum(each[kind] for each in (step["always"], *full)) for kind in ("flops", "bytes_accessed")}
    share = {kind: [each[kind] / whole[kind] for each in cheap] for kind in whole}
    return {"full": whole, "cheap": [{name: each[name] for name in ("columns", *whole)} for each in cheap], "of": share}


def report(folder: Path) -> str:
    """Every file of results as tables."""
    lines = ["# Fills", ""]
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        lines += [f"## {path.stem}", "", f"`{json.dumps(kept['setting'])}`", ""]
        lines += {"joint": of_joint, "cost": of_cost}.get(path.stem.split("-")[0], of_frontier)(kept["entries"])
    return "\n".join(lines) + "\n"


def of_frontier(entries: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Brackets: 95 % intervals of paired differences over the problems of all seeds."""
    found: dict[tuple[str, str], dict[str, list]] = {}
    for name, each in entries.items():
        rule, way, seed = name.split(" | ")
        found.setdefault((rule, way), {})[seed] = each
    table = {key: [pooled(each) for each in zip(*seeds.values(), strict=True)] for key, seeds in found.items()}
    lines = [
        "| policy | number | fill | its number | right % | full passes | cheap | work | minus parallel, same number | "
        "minus parallel, no less work (its work) |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (rule, way), each in table.items():
        for point in each:
            row = f"| {rule} | {point['value']:g} | {way} | {point['fill']:g} | {point['accuracy']:.1f} | "
            row += f"{point['nfe']:.2f} | {point['cheap']:.2f} | {point['work']:.2f} |"
            for name, other in beside(point, table[rule, WAYS[0].name]).items():
                off = [100 * x for x in paired_difference(verdicts_of(point), verdicts_of(other))]
                work = f" ({other['work']:.2f})" if name == "no less work" else ""
                row += " {:+.1f} [{:+.1f}, {:+.1f}]".format(*off) + f"{work} |"
            lines.append(row)
    return [*lines, ""]


def of_joint(entries: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| full passes | fill | its number | seed | no answer % | distance | p against parallel | cheap | work |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, each in entries.items():
        steps, way, value, seed = name.split(" | ")
        other = entries[" | ".join((steps, WAYS[0].name, "1", seed))]
        lines.append(
            f"| {steps} | {way} | {value} | {seed} | {100 * each['counts'][-1] / sum(each['counts']):.2f} | "
            f"{each['distance']:.4f} | {differ(each['counts'], other['counts']):.2g} | {each['cheap']:.2f} | "
            f"{each['work']:.2f} |"
        )
    return [*lines, ""]


def of_cost(entries: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| fill | pass | TFLOP | of a full pass | GB moved | of a full pass |", "|---|---|---:|---:|---:|---:|"]
    for name, each in entries.items():
        full = each["full"]
        lines.append(f"| {name} | full | {full['flops'] / 1e12:.3f} | | {full['bytes_accessed'] / 1e9:.1f} | |")
        for index, one in enumerate(each["cheap"]):
            flops, moved = (each["of"][kind][index] for kind in ("flops", "bytes_accessed"))
            lines.append(
                f"| {name} | {one['columns'] or 'all'} columns | {one['flops'] / 1e12:.4f} | 1/{1 / flops:.0f} | "
                f"{one['bytes_accessed'] / 1e9:.1f} | {moved:.0%} |"
            )
    return [*lines, ""]


app = typer.Typer(add_completion=False)
Model = Annotated[str, typer.Option(help="A model's name or folder.")]
Out = Annotated[Path, typer.Option(help="Folder of the results.")]


@app.command("frontier")
def frontier_(
    name: Annotated[str, typer.Argument(help=f"{', '.join(GROUNDS)}.")],
    model: Model = "puzzles-1m",
    n: Annotated[int, typer.Option(min=1, help="Test problems of each seed.")] = N,
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS))] = len(SEEDS),
    rule: Annotated[list[str], typer.Option(help="Of these policies alone, by the table's names.")] = [],  # noqa: B006
    way: Annotated[list[str], typer.Option(help="Of these fills alone.")] = [],  # noqa: B006
    out: Out = RESULTS,
) -> None:
    checkpoint = jaxdiff.load(model)
    setting = describe(checkpoint, model, n, type(GROUNDS[name].stop).__name__, 0) | {"task": name}
    setting |= {"gen_length": task(name).LENGTH, "temperature": GROUNDS[name].temperature, "block_length": None}
    setting["seed"] = list(SEEDS[:seeds])
    kept = Kept(out / f"frontier-{name}.json", setting)
    print(f"seeds {setting['seed']}")
    rules = [one for one in GROUNDS[name].rules if not rule or one.name in rule]
    ways = [one for one in ways_of(checkpoint, name) if not way or one.name in way]
    for seed, of, by in itertools.product(SEEDS[:seeds], rules, ways):
        make = functools.partial(points, checkpoint, model, name, of, by, n=n, seed=seed)
        for point in kept.once(f"{of.name} | {by.name} | {seed}", make):
            head = f"{of.name} {point['value']:g}, {by.name} {point['fill']:g}, seed {seed}"
            print(f"{head}: {accuracy(point)} %, full {point['nfe']:.2f}, cheap {point['cheap']:.2f}, ", end="")
            print(f"work {point['work']:.2f}")


@app.command()
def fed(
    model: Model = "puzzles-1m", n: Annotated[int, typer.Option(min=1, help="Test problems.")] = N, out: Out = RESULTS
) -> None:
    checkpoint, name = jaxdiff.load(model), permutation.NAME
    setting = describe(checkpoint, model, n, "none", 0) | {"task": name, "gen_length": permutation.LENGTH}
    setting |= {"temperature": GROUNDS[name].temperature, "block_length": None}
    kept = Kept(out / "fed.json", setting)
    for rule, way in itertools.product(GROUNDS[name].rules, FED):
        make = functools.partial(points, checkpoint, model, name, rule, way, n=n, seed=0)
        for point in kept.once(f"{rule.name} | {way.name} | 0", make):
            print(f"{rule.name} {point['value']:g}, {way.name}: {accuracy(point)} %, work {point['work']:.2f}")


@app.command()
def joint(
    model: Model = "puzzles-1m",
    draws: Annotated[int, typer.Option(min=1, help="Answers for each point.")] = DRAWS,
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS))] = len(SEEDS),
    out: Out = RESULTS,
) -> None:
    checkpoint = jaxdiff.load(model)
    setting = describe(checkpoint, model, draws, "none", 0)
    setting |= {"task": permutation.NAME, "temperature": 1.0, "seed": list(SEEDS[:seeds])}
    setting |= {"gen_length": HOLES, "block_length": None}
    kept = Kept(out / "joint.json", setting)
    print(f"seeds {setting['seed']}")
    for seed, steps, way in itertools.product(SEEDS[:seeds], (HOLES, 2, 1), ways_of(checkpoint, permutation.NAME)):
        if steps == HOLES and way is not WAYS[0]:  # one token a full pass is the same with every fill
            continue
        for value in way.values:
            make = functools.partial(outcomes, checkpoint, way, value, steps, seed=seed, draws=draws)
            each = kept.once(f"{steps} | {way.name} | {value:g} | {seed}", make)
            print(f"{steps} full, {way.name} {value:g}, seed {seed}: distance {each['distance']:.4f}")


@app.command()
def cost(
    shape: Annotated[str, typer.Option(help="A published shape, as of `jaxdiff bench`.")] = SHAPE,
    target: Annotated[str | None, typer.Option(help="A TPU that is not here, such as v5p:1x1x1.")] = None,
    out: Out = RESULTS,
) -> None:
    setting = {"shape": shape, "positions": PROMPT + GENERATED, "block_length": BLOCK, "target": target}
    kept = Kept(out / f"cost-{shape}{'' if target is None else '-' + target.partition(':')[0]}.json", setting)
    for name in SHAPED:
        kept.once(name, functools.partial(costs, name, shape, target))
    print("\n".join(of_cost(kept.entries)))


@app.command("report")
def report_(out: Out = RESULTS) -> None:
    (out / "fills.md").write_text(report(out))
    print(out / "fills.md")


if __name__ == "__main__":
    app()
