"""The word problems: held out by content, the same for the same seed, small numbers; what the verifiers accept."""

import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

import jaxdiff
from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.tasks import TASKS, drills, gsm_symbolic, steps, task
from jaxdiff.tasks.base import Problem
from jaxdiff.types import InputError

N = 400


@pytest.fixture(scope="module")
def streams():
    return {
        (split, seed): list(itertools.islice(gsm_symbolic.problems(split, seed), N))
        for split, seed in (("train", 0), ("train", 1), ("validation", 0), ("test", 0), ("test", 1))
    }


def test_no_seed_carries_a_held_out_problem_into_training(streams):
    for (split, _), problems in streams.items():
        assert {gsm_symbolic.split_of(problem.question) for problem in problems} == {split}


def test_case_commas_and_spacing_do_not_move_a_problem_to_another_split(streams):
    for problem in streams["test", 0][:20]:
        changed = "  " + problem.question.upper().replace(" ", "  ").replace(".", " .")
        assert gsm_symbolic.split_of(changed) == "test"


def test_splits_have_their_shares():
    splits = [gsm_symbolic.split_of(f"question {i}") for i in range(5000)]
    assert splits.count("test") / 5000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("validation") / 5000 == pytest.approx(0.1, abs=0.02)


def test_problems_hang_on_the_seed_alone(streams):
    again = list(itertools.islice(gsm_symbolic.problems("test", 0), 60))
    assert again == streams["test", 0][:60]
    assert again != streams["test", 1][:60]


def test_problems_of_a_stream_are_distinct(streams):
    for problems in streams.values():
        assert len({problem.question for problem in problems}) == N


def test_templates_take_turns(streams):
    assert len(gsm_symbolic.TEMPLATES) >= 10
    first = [problem.template for problem in streams["train", 0][: len(gsm_symbolic.TEMPLATES)]]
    assert first == list(gsm_symbolic.TEMPLATES)


def test_numbers_are_whole_and_at_most_two_digits(streams):
    numbers = [
        int(number)
        for problems in streams.values()
        for problem in problems
        for number in re.findall(r"\d+", f"{problem.question} {problem.worked}")
    ]
    assert 10 <= max(numbers) <= gsm_symbolic.LARGEST < 100
    for problems in streams.values():
        with_two_digits = [re.search(r"\d\d", problem.question) is not None for problem in problems]
        assert sum(with_two_digits) > N / 2
        assert not any(re.search(r"\d\.\d", problem.question + problem.worked) for problem in problems)


def test_worked_answers_pass_their_own_verifier(streams):
    for problem in streams["validation", 0]:
        assert gsm_symbolic.verify(problem.worked, problem)
        assert problem.worked.endswith(f"#### {problem.answer}")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("... #### 12", True),
        ("####12", True),
        ("#### 3 no: #### 12", True),
        ("#### 12 no: #### 3", False),
        ("#### 123", False),
        ("#### -12", False),
        ("#### 1 2", False),
        ("12", False),
        ("", False),
        ("####", False),
    ],
)
def test_verifier_reads_the_number_after_the_last_mark(text, right):
    assert gsm_symbolic.verify(text, Problem("?", "", "12")) is right


def test_drills_are_right():
    for problem in itertools.islice(drills.problems("train", 0), N):
        assert problem.question.endswith(("=", "= "))
        assert eval(problem.question.replace("x", "*").rstrip(" =")) == int(problem.worked) == int(problem.answer)
        assert 0 < int(problem.answer) <= drills.LARGEST == gsm_symbolic.LARGEST
        assert drills.verify(f" {problem.worked}\n", problem)
        assert not drills.verify(problem.question, problem)
    first, again, other = (list(itertools.islice(drills.problems("train", seed), 20)) for seed in (0, 0, 1))
    assert first == again != other


def test_steps_are_the_sums_of_worked_answers_and_right():
    operand = r"(?:half|\d+(?: [a-z/]{3,})?)"
    wanted = {}
    for problem in itertools.islice(gsm_symbolic.problems("train", 0), N):
        for line in problem.worked.split("\n")[:-1]:
            wanted[line] = problem.template
    found = list(itertools.islice(steps.problems("train", 0), N))
    assert {problem.template for problem in found} == set(gsm_symbolic.TEMPLATES)
    for problem in found:
        line = next(text for text in wanted if text.startswith(problem.question + problem.worked))
        assert wanted[line] == problem.template
        sum_ = re.search(rf"(?:{operand} ?[-+*/x] ?)+{operand} ?= ?$", re.sub(r"[€£$]", "", problem.question))[0]
        sum_ = re.sub(r"[a-z/]{3,}|=", "", sum_.replace("half", "0.5"))
        assert eval(sum_.replace("x", "*")) == int(problem.answer) == int(problem.worked)
        assert steps.verify(f" {problem.worked}\n", problem)
        assert not steps.verify(problem.question, problem)


@pytest.mark.parametrize("module", [drills, steps])
def test_exercises_have_no_held_out_split(module):
    with pytest.raises(InputError, match=f"split: found 'test', but all {module.NAME} are for training"):
        next(module.problems("test", 0))


def test_worked_answers_are_long_enough_for_a_comparison_of_policies(streams):
    tokenizer = jaxdiff.load().tokenizer
    assert statistics.median(len(tokenizer.encode(p.worked)) for p in streams["test", 0]) >= 48


def test_unknown_task_is_named_with_the_known_ones():
    assert task("drills") is TASKS["drills"] is drills
    with pytest.raises(InputError, match="task: found 'chess', expected one of gsm_symbolic, drills, steps"):
        task("chess")


def test_the_demo_of_the_readme_decodes_held_out_problems():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "jaxdiff demo" in readme
    shown = json.loads((shipped_folder() / SHIPPED / "demo.json").read_text())["problems"]
    made = {problem.question: problem.answer for problem in itertools.islice(gsm_symbolic.problems("test", 0), N)}
    assert len(shown) >= 8
    for problem in shown:
        assert gsm_symbolic.split_of(problem["question"]) == "test"
        assert made[problem["question"]] == problem["answer"]
    for question in re.findall(r'jaxdiff generate "([^"]{40,})"', readme):
        assert gsm_symbolic.split_of(question) == "test"
