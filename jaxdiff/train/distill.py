"""`jaxdiff distill`: a model learns from a teacher's decodes of training problems.

    problems -> the teacher's decode, compiled and batched -> answers.jsonl -> Corpus -> steps (`loop.py`) -> model/

The teacher may be the model itself, and its policy any; of its answers a verifier may keep the right ones alone. A run
is a folder: killed while answers are made or steps are taken, it goes on with what it holds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from jaxdiff import checkpoint, parts
from jaxdiff.checkpoint import SHIPPED, Checkpoint, load
from jaxdiff.convert.description import describe
from jaxdiff.convert.low_rank import save_adapter
from jaxdiff.decode.batches import widths_of
from jaxdiff.decode.checks import block_of, check_decoder, check_lengths
from jaxdiff.decode.decoder import Decoder
from jaxdiff.files import parse_json, refusing, whole_lines
from jaxdiff.filters import learned_policy
from jaxdiff.judges import named_judge
from jaxdiff.models import lora
from jaxdiff.policies import parse as parse_policy
from jaxdiff.protocols import Policy
from jaxdiff.serve import Answer, Meter, Refusal, Request, decode_stream
from jaxdiff.stoppers import STOPPERS
from jaxdiff.tasks import TASKS, lengths, task
from jaxdiff.tasks.base import Problem, Split
from jaxdiff.tasks.evaluate import evaluate, prompt_ids
from jaxdiff.train.data import NEVER_WRITTEN, Bucket, Corpus, Row
from jaxdiff.train.loop import MODEL, SAVED_RECIPE, Frozen, Run, check_model, take_steps, until_sigterm
from jaxdiff.train.objectives import Network
from jaxdiff.train.recipe import (
    MOST,
    Schedule,
    Spans,
    check_buckets,
    check_keys,
    check_numbers,
    check_task,
    check_texts,
    noise_text,
)
from jaxdiff.types import InputError, Params
from jaxdiff.weights import check_weights

ANSWERS, ADAPTER = "answers.jsonl", "adapter"
KEEPS = ("right", "all")
NUMBERS: Spans = {
    "problems": (1, MOST),
    "gen_length": (1, MOST),
    "block_length": (1, MOST),
    "batch_size": (1, MOST),
    "watch_every": (1, MOST),
    "watch_problems": (0, MOST),
}
MAY_BE_NULL = ("gen_length", "block_length")  # the task's
TEXTS = ("model", "teacher", "policy", "stop", "keep", "watch_policy")
Progress = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Schedule):
    """What is learned from whom.

    Attributes:
        task: whose training problems the teacher answers; `problems`: how many.
        buckets: the shapes of the training's batches, as of `jaxdiff train`.
        model: what is trained, a name as `--model` takes it; `weights`: `int8`, beside which an adapter is trained.
        adapter: `rank`, `alpha`, `targets`, `gated` of `models.lora.LoraRecipe`; None: all weights are trained.
        teacher: the same; None: the model itself, before it is trained.
        policy, stop, gen_length, block_length, batch_size: how the teacher decodes, as of `jaxdiff eval`.
        keep: `right`, the answers that the task's verifier passes, or `all`; an answer that does not end is never kept.
        watch_policy: with which the model is scored on `watch_problems` validation problems, every `watch_every` steps.
    """

    task: str
    problems: int
    model: str = SHIPPED
    weights: str | None = None
    adapter: dict[str, Any] | None = None
    teacher: str | None = None
    policy: str = "fixed"
    stop: str = "eos"
    gen_length: int | None = None
    block_length: int | None = None
    batch_size: int = 16
    keep: str = "right"
    objective: str = "certainty"
    watch_policy: str = "entropy:tau=0.1"
    watch_problems: int = 100
    watch_every: int = 500

    free: ClassVar[tuple[str, ...]] = (
        *Schedule.free,
        *("batch_size", "watch_policy", "watch_problems", "watch_every"),  # no weight hangs on them
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        objective, noise = self.parts()
        if any(bucket.pack for bucket in self.buckets) and objective.needs | noise.needs:
            raise InputError(
                f"buckets: found a packed one with objective {self.objective} and noise {noise_text(self)}, which "
                "follow the decode of one problem a row; leave pack out"
            )

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Distillation:
        check_keys("", raw, cls)
        given = {name: value for name, value in raw.items() if value is not None or name not in MAY_BE_NULL}
        check_numbers("", given, NUMBERS)
        check_texts(raw, {name: name == "teacher" for name in TEXTS})
        check_task("task", raw.get("task"), list(TASKS))
        check_task("keep", raw.get("keep", "right"), list(KEEPS))
        check_buckets(raw.get("buckets"), [raw["task"]])
        check_weights(raw.get("weights"))
        if raw.get("weights") is not None and raw.get("adapter") is None:
            raise InputError(f"weights: found {raw['weights']}, which are not trained; name an adapter")
        if raw.get("adapter") is not None:
            lora_recipe(raw["adapter"])
        return cls(**raw | {"buckets": tuple(Bucket(**bucket) for bucket in raw["buckets"])})

    def part(self, student: Checkpoint) -> tuple[Params, Params | None, Callable[[Params, Params | None], Params]]:
        """Of the model's parameters what is trained, what is not, and how the two are put together again.

        Raises InputError for an adapter that the model cannot have.
        """
        if self.adapter is None:
            return student.params, None, lambda trained, base: trained
        adapted = lora.adapt(student.params, jax.random.key(self.seed), lora_recipe(self.adapter))
        return *lora.split(adapted), lora.join

    def save(self, folder: Path, student: Checkpoint, params: Params) -> Path:
        """`model/`, or `adapter/` where that alone was trained."""
        if self.adapter is None:
            checkpoint.save(folder / MODEL, student.model, params, tokenizer_from=student.path)
            return folder / MODEL
        tensors = describe(student.path).tensors  # weights in int8 do not tell what they were made from
        save_adapter(folder / ADAPTER, student.model, params, base=self.model, tensors=tensors)
        return folder / ADAPTER

    def decoder(self, policy: Policy, model: Any) -> tuple[Decoder, int]:
        """How the teacher, or the model while it is watched, decodes; and how many tokens."""
        length, block = lengths(self.task, self.gen_length, self.block_length, model.attention_block)
        decoder = Decoder(policy=policy, stop=STOPPERS.parse(self.stop), block_length=block)
        check_lengths(model, 0, length, block_of(model, block))
        return decoder, length


def lora_recipe(raw: Any) -> lora.LoraRecipe:
    """What the recipe's `adapter` says. Raises InputError for another key, or a value that makes no adapter."""
    known = [field.name for field in dataclasses.fields(lora.LoraRecipe)]
    if not isinstance(raw, dict) or set(raw) - set(known):
        raise InputError(f"adapter: found {raw!r:.80}, expected an object of {', '.join(known)}, or null")
    targets, gated = raw.get("targets", [lora.ALL]), raw.get("gated", False)
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise InputError(f"adapter.targets: found {targets!r:.80}, expected a list of names")
    if not isinstance(gated, bool):
        raise InputError(f"adapter.gated: found {gated!r:.80}, expected true or false")
    try:
        return lora.LoraRecipe(**raw | {"targets": tuple(targets), "gated": gated})
    except InputError as error:
        raise InputError(f"adapter.{error}") from None


def distill(
    recipe: Distillation,
    folder: Path,
    *,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Run a recipe to its last step, from what the folder holds of it.

    Writes `answers.jsonl` (a line for each problem: number, prompt, tokens, order, nfe, ended, correct),
    `checkpoints/`, `log.jsonl` with losses and what was watched, and at the end `model/`, or `adapter/` as peft saves
    one. SIGTERM saves and returns early.

    Args:
        progress: called after each answer of the teacher with the answers, the tokens and the seconds so far.
        note: told in a line what the teacher's answers are.

    Returns the folder of the model or the adapter, or None where a signal ended the run early.

    Raises InputError, before the teacher decodes: where the folder is another run's, a policy is not known, the two
    vocabularies differ, the model attends in blocks; before any step: where no answer is left to learn from, or a
    bucket stays empty; and as `take_steps`.
    """
    with until_sigterm() as asked:
        return _run(recipe, folder, progress, note, asked)


def _run(
    recipe: Distillation, folder: Path, progress: Progress | None, note: Callable[[str], None], asked: threading.Event
) -> Path | None:
    if (saved := folder / SAVED_RECIPE).is_file():
        recipe.check_same(saved)
    policies = [
        parse_policy(text, learned=functools.partial(learned_policy, name), judge=functools.partial(named_judge, name))
        for text, name in ((recipe.policy, recipe.teacher or recipe.model), (recipe.watch_policy, recipe.model))
    ]
    STOPPERS.parse(recipe.stop)
    _problems(recipe.task, "validation", 0, recipe.watch_problems, "watch_problems")
    student = load(recipe.model, dtype="float32", weights=recipe.weights)
    check_model(recipe, student.model)
    if recipe.watch_problems:
        check_decoder(recipe.decoder(policies[1], student.model)[0], student.model, None, None)
    trained, base, given = recipe.part(student)
    taught = _taught(student, recipe, policies[0], folder, progress, asked)
    if taught is None:
        return None
    lines, teacher = taught
    rows = kept_rows(lines, recipe)
    right, nfe = sum(line["correct"] for line in lines), np.mean([line["nfe"] for line in lines])
    note(f"{len(lines)} answers of the teacher, {right} right, {nfe:.2f} forwards each; {len(rows)} kept")
    tokenizer = student.tokenizer_for(recipe.task)
    corpus = Corpus(recipe.buckets, {recipe.task: rows}, recipe.seed, tokenizer)
    run = Run(
        recipe,
        student.model,
        trained,
        corpus.batch,
        frozen=Frozen(teacher, base),
        given=given,
        watch=functools.partial(_watched, student, recipe, policies[1], Meter()) if recipe.watch_problems else None,
        watch_every=recipe.watch_every,
    )
    params = take_steps(run, folder, asked)
    return None if params is None else recipe.save(folder, student, params)


def _taught(
    student: Checkpoint,
    recipe: Distillation,
    policy: Policy,
    folder: Path,
    progress: Progress | None,
    asked: threading.Event,
) -> tuple[list[parts.Line], Network | None] | None:
    """The teacher's answers, as `answered`, and the teacher where the objective asks it: else its weights go here."""
    teacher = load(recipe.model if recipe.teacher is None else recipe.teacher)
    check_vocabulary(student, teacher, recipe.task)
    decoder, length = recipe.decoder(policy, teacher.model)
    lines = answered(teacher, recipe, decoder, length, folder, progress, asked)
    objective, _ = recipe.parts()
    if lines is None:
        return None
    return lines, Network(teacher.params, teacher.model) if objective.asks_teacher else None


def check_vocabulary(student: Checkpoint, teacher: Checkpoint, task_name: str) -> None:
    """Raises InputError where a token would not mean the same to both."""
    ours, theirs = student.tokenizer_for(task_name), teacher.tokenizer_for(task_name)
    sizes = [(c.model.config.vocab_size, c.model.config.mask_token_id) for c in (teacher, student)]
    tokens = [tokenizer.backend.get_vocab(with_added_tokens=True) for tokenizer in (theirs, ours)]
    if sizes[0] != sizes[1] or tokens[0] != tokens[1] or theirs.eos_ids != ours.eos_ids:
        other = sum(tokens[0].get(token) != number for token, number in tokens[1].items())
        raise InputError(
            f"teacher: found a vocabulary of {sizes[0][0]} ids with [MASK] {sizes[0][1]}, expected the model's, of "
            f"{sizes[1][0]} with [MASK] {sizes[1][1]}; {other} of the model's tokens are others there; name a teacher "
            "with the same tokenizer"
        )


def answered(
    teacher: Checkpoint,
    recipe: Distillation,
    decoder: Decoder,
    length: int,
    folder: Path,
    progress: Progress | None,
    asked: threading.Event,
) -> list[parts.Line] | None:
    """The teacher's answer to each problem, in the task's order: decoded, or read where the folder has them already.

    None where it was `asked` to stop before all are there; those that are stay.
    """
    tokenizer, module = teacher.tokenizer_for(recipe.task), task(recipe.task)
    problems = _problems(recipe.task, "train", recipe.seed, recipe.problems, "problems")
    prompts = [prompt_ids(tokenizer, problem) for problem in problems]
    check_lengths(teacher.model, max(map(len, prompts)), length, block_of(teacher.model, decoder.block_length))
    depends = parts.run_of(
        prompts=parts.digest_of_tree([np.asarray(prompt, np.int64) for prompt in prompts]),
        teacher=parts.digest(repr(teacher.model).encode(), parts.digest_of_tree(teacher.params).encode()),
        decoder=parts.digest_of_tree(decoder),
        gen_length=length,
        seed=recipe.seed,
    )
    parts.claim(folder, "answers", depends)
    out = folder / ANSWERS
    if not out.is_file():
        lines = parts.written(out, depends)
        meter, tokens = Meter(), 0
        left = sorted((n for n in range(len(prompts)) if n not in lines), key=lambda n: -len(prompts[n]))
        with parts.Part(out, 0, depends) as part:
            answers = decode_stream(
                *(teacher.model, teacher.params, [Request(prompts[n], number=n) for n in left], decoder),
                slots=recipe.batch_size,
                gen_length=length,
                key=jax.random.key(recipe.seed),
                widths=widths_of(map(len, prompts), length, teacher.model.config.max_sequence_length - length),
                meter=meter,
            )
            for answer in answers:
                if isinstance(answer, Refusal):
                    raise InputError(answer.error)
                row = _line(answer, prompts, problems, tokenizer, module)
                lines[row["number"]] = {"number": row["number"], "row": row}
                part.write(lines[row["number"]])
                tokens += answer.length
                if progress is not None:
                    progress(len(lines), tokens, max(meter.seconds, 1e-9))
                if asked.is_set():
                    return None
        parts.finish(out, [lines[n] for n in range(len(prompts))])
        parts.remove(out)
    with refusing(f"{out}: damaged", "delete it, and the teacher answers again", (OSError, ValueError, RecursionError)):
        return [parse_json(line.decode()) for line in whole_lines(out)]


def _problems(name: str, split: Split, seed: int, count: int, key: str) -> list[Problem]:
    """The first of a task's split. Raises InputError, which names the recipe's key, where there are not so many."""
    problems = list(itertools.islice(task(name).problems(split, seed), count))
    if len(problems) < count:
        raise InputError(f"{key}: found {count}, but {name} has {len(problems)} of {split}; ask for fewer")
    return problems


def _line(
    answer: Answer, prompts: Sequence[list[int]], problems: Sequence[Problem], tokenizer: Any, module: Any
) -> dict[str, Any]:
    """One answer: its tokens without the end-of-text that fills what follows; and the forward that wrote each, those of
    what follows too.
    """
    number, tokens = answer.request.number, answer.tokens[: answer.length].tolist()
    written = np.flatnonzero(answer.commit_step >= 0)
    return {
        "number": number,
        "prompt": prompts[number],
        "tokens": tokens[:-1] if tokens[-1] == tokenizer.eos_id else tokens,
        "order": answer.commit_step[: written[-1] + 1].tolist(),
        "nfe": answer.nfe,
        "ended": tokens[-1] in tokenizer.eos_ids,
        "correct": bool(module.verify(tokenizer.decode(answer.tokens), problems[number])),
    }


def kept_rows(lines: Sequence[parts.Line], recipe: Distillation) -> list[Row]:
    """The answers to learn from. Raises InputError where there is none."""
    kept = [line for line in lines if line["ended"] and (line["correct"] or recipe.keep == "all")]
    if not kept:
        ended, right = (sum(line[what] for line in lines) for what in ("ended", "correct"))
        raise InputError(
            f"keep {recipe.keep}: found {len(lines)} answers of the teacher, of which {ended} end and {right} are "
            "right, expected one to learn from; ask for more problems, another policy or teacher, or keep all"
        )
    return [
        Row(line["prompt"], line["tokens"], [NEVER_WRITTEN if at < 0 else at for at in line["order"]]) for line in kept
    ]


def _watched(student: Checkpoint, recipe: Distillation, policy: Policy, meter: Meter, params: Params) -> dict[str, Any]:
    """Accuracy, forwards and tokens a forward on the first validation problems."""
    decoder, length = recipe.decoder(policy, student.model)
    report = evaluate(
        dataclasses.replace(student, params=params),
        recipe.task,
        decoder,
        n=recipe.watch_problems,
        split="validation",
        batch_size=recipe.batch_size,
        gen_length=length,
        meter=meter,
    )
    return {name: report.summary()[name] for name in ("accuracy", "nfe", "tpf")}
