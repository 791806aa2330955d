"""`jaxdiff fit --reward`: its options, what they run, and the card of the filter that comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from jaxdiff.checkpoint import load
from jaxdiff.cli.show import note, progress
from jaxdiff.filters import BEST_FILTER, named_filter, save_filter
from jaxdiff.tasks import TASKS
from jaxdiff.types import InputError

if TYPE_CHECKING:
    from jaxdiff.train.fit_reward import Looked, Rewarded, RewardRecipe

Price = Annotated[
    float | None,
    typer.Option(
        "--reward",
        metavar="PRICE",
        min=0.0,
        help="Go on from a fitted filter by policy gradient: a right answer is worth 1, each forward costs PRICE.",
    ),
]
From = Annotated[
    str | None, typer.Option("--from", metavar="NAME", help=f"With --reward: the filter. Default {BEST_FILTER}.")
]
Task = Annotated[
    str | None,
    typer.Option("--task", help=f"With --reward: whose training problems, {' or '.join(TASKS)}. Default gsm_symbolic."),
]
Rounds = Annotated[int | None, typer.Option("--rounds", min=1, help="With --reward: of decodes. Default 50.")]
Problems = Annotated[int | None, typer.Option("--problems", min=1, help="With --reward: of a round. Default 32.")]
Group = Annotated[int | None, typer.Option("--group", min=2, help="With --reward: decodes of each problem. Default 8.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0.0, help="With --reward: of what is drawn, in nats of the filter. Default 0.25."
    ),
]
Kl = Annotated[
    float | None,
    typer.Option("--kl", min=0.0, help="With --reward: what a nat away from --from costs. Default 0.01."),
]
Every = Annotated[
    int | None,
    typer.Option("--every", min=1, help="With --reward: rounds between two looks at validation problems. Default 5."),
]
Validation = Annotated[
    int | None, typer.Option("--validation", min=1, help="With --reward: validation problems. Default 200.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="With --reward: rows decoded together. Default 32.")
]
GenLength = Annotated[
    int | None, typer.Option("--gen-length", min=1, help="With --reward: tokens to generate. Default the task's.")
]


def run(
    model: str, adapter: Path | str | None, folder: Path, price: float, given: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Fits a filter to rewards and saves it, the best so far whenever there is one: its numbers, and a line of them."""
    from jaxdiff.train.fit_reward import RewardRecipe, fit_reward

    begin, tau, reach = given.pop("from", BEST_FILTER), given.pop("tau", None), given.pop("reach", None)
    recipe = RewardRecipe(price=price, **given)
    if folder.name == begin:
        raise InputError(f"name: found {begin}, which is what --from names too; give the new filter a name of its own")
    learned, _ = named_filter(model, begin, adapter=adapter)
    if tau is not None:
        learned = dataclasses.replace(learned, tau=tau)
    if reach is not None:
        learned = dataclasses.replace(learned, filter=_widened(learned.filter, reach))
    checkpoint = load(model, adapter=adapter)

    def says(done: Any, _: Any) -> str:
        return (
            f"reward {done.reward:.3f}, {done.accuracy:.1%} right, {done.nfe:.2f} forwards, {done.rate:,.1f} decodes/s"
        )

    def looked(look: Looked) -> None:
        note(f"round {look.round}: {_numbers(look)}, on {recipe.validation} validation problems")

    with progress("rounds", recipe.rounds, says) as update:
        fitted = fit_reward(checkpoint, learned, recipe, progress=update, looked=looked)
    save_filter(folder, fitted.learned, quota=False, card=_card(folder.name, model, begin, recipe, fitted))
    numbers = {"filter": str(folder), "from": begin, "stopped": fitted.stopped, "decodes": fitted.decodes}
    numbers |= {"best": dataclasses.asdict(fitted.best)}
    numbers |= {name: [dataclasses.asdict(each) for each in getattr(fitted, name)] for name in ("curve", "rounds")}
    line = f"{folder}: {_numbers(fitted.best)} after round {fitted.best.round}; before {_numbers(fitted.curve[0])}"
    line += f"; {fitted.decodes} decodes, seed {recipe.seed}"
    if fitted.stopped:  # what a pre-empted machine asks for: not a failure
        line += f"; stopped early, --from {folder.name} goes on from it"
    return numbers | {"recipe": dataclasses.asdict(recipe)}, line


def _widened(judge: Any, reach: int) -> Any:
    """Raises InputError for a filter that sees the whole block, and for fewer neighbours than it sees."""
    if not hasattr(judge, "widened"):
        raise InputError(f"reach: found {reach}, but --from names a filter that sees its whole block; leave it out")
    return judge.widened(reach)


def _numbers(look: Looked) -> str:
    return (
        f"{look.accuracy:.1%} right, {look.nfe:.2f} forwards, {look.tpf:.1f} tokens a forward, reward {look.reward:.3f}"
    )


def _card(name: str, model: str, begin: str, recipe: RewardRecipe, fitted: Rewarded) -> str:
    """The filter's README.md."""
    judge, tau = fitted.learned.filter, float(np.asarray(fitted.learned.tau))
    widths = [judge.layers[0].kernel.shape[0], *(layer.kernel.shape[1] for layer in judge.layers)]
    size = f"{recipe.rounds} rounds of {recipe.problems} problems" if not fitted.stopped else "stopped early"
    rows = {
        "began from": f"`{begin}`; {type(judge).__name__}, layers {' x '.join(map(str, widths))}",
        "reward": f"1 for an answer that the verifier of `{recipe.task}` passes, less {recipe.price:g} for a forward",
        "drawn": f"each position on its own, at temperature {recipe.temperature:g}; later than a row's forward "
        f"{recipe.recorded} nothing",
        "fitted to": f"{fitted.decodes} decodes of training problems (seed {recipe.seed}): {size}, each decoded "
        f"{recipe.group} times",
        "optimizer": f"Adam {recipe.learning_rate:g}, {recipe.epochs} epochs of each round in minibatches of "
        f"{recipe.steps} steps, ratios clipped at {recipe.clip:g}, KL {recipe.kl:g}",
        "threshold": f"{tau:g}, at which it was fitted",
        f"validation, {recipe.validation} problems": f"{_numbers(fitted.best)}, after round {fitted.best.round}, the "
        f"best of {len(fitted.curve)} looks",
        "before": _numbers(fitted.curve[0]),
    }
    table = "\n".join(f"| {what} | {text} |" for what, text in rows.items())
    return (
        f"# {name}\n\nA learned filter for `{Path(model).name}`, fitted by `jaxdiff fit --reward` to what its decodes "
        f"are worth: right answers in few\nforwards. `--policy learned:name={name}` decodes with it.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )
