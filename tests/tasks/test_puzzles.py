"""The puzzles: held out by content, the same for the same seed, right answers of one length; what verifiers accept."""

import itertools

import numpy as np
import pytest

import jaxdiff
from jaxdiff.policies import Fixed
from jaxdiff.tasks import PUZZLES, STARS, brackets, latin, lengths, permutation, sort, star, stars
from jaxdiff.tasks.base import Problem, split_of
from jaxdiff.tasks.evaluate import prompt_ids

N = 200
PATHS = (star, *STARS)  # of any length, with room for end-of-text
EACH = pytest.mark.parametrize("module", PUZZLES, ids=lambda module: module.NAME)


def first(module, split="train", seed=0):
    return list(itertools.islice(module.problems(split, seed), N))


@EACH
def test_splits_are_apart_and_hang_on_the_seed_alone(module):
    streams = {
        (split, seed): first(module, split, seed) for split in ("train", "validation", "test") for seed in (0, 1)
    }
    for (split, _), problems in streams.items():
        assert {split_of(problem.question) for problem in problems} == {split}
        assert len({problem.question for problem in problems}) == N
    assert first(module) == streams["train", 0] != streams["train", 1]


@EACH
def test_right_answers_have_the_length_and_pass_and_others_do_not(module):
    problems = first(module)
    for problem in problems:
        assert len(problem.worked) == module.LENGTH or (module in PATHS and len(problem.worked) <= module.LENGTH - 2)
        assert (problem.question + problem.worked).isascii()
        assert module.verify(problem.worked, problem)
        for wrong in ("", problem.worked[:-1], problem.worked + problem.worked[-1], "?" + problem.worked[1:]):
            assert not module.verify(wrong, problem)
    swapped = [module.verify(other.worked, problem) for problem, other in itertools.pairwise(problems)]
    assert sum(swapped) < N / 4  # the answer of another puzzle is seldom right


def test_any_right_answer_will_do():
    assert permutation.verify("hgfedcba", Problem("pabcdefghijkl>", "", ""))
    assert not permutation.verify("hgfedcbb", Problem("pabcdefghijkl>", "", ""))
    assert not permutation.verify("hgfedcbz", Problem("pabcdefghijkl>", "", ""))
    for square in ("1234214334124321", "1234341221434321"):
        assert latin.verify(square, Problem("l1..............1>", "", ""))
        assert not latin.verify(square, Problem("l1..............4>", "", ""))
    assert not latin.verify("1234" * 4, Problem(f"l{'.' * 16}>", "", ""))
    assert len(latin._squares()) == 576


@pytest.mark.parametrize(
    ("text", "right"),
    [("()", True), ("([{}])", True), ("([{()}])", False), ("([)]", False), ("(", False), (")(", False), ("", True)],
)
def test_brackets_close_the_last_open_one_and_are_three_deep(text, right):
    assert brackets.is_balanced(text) is right


def test_a_star_has_three_arms_of_one_length():
    for problem in first(star):
        edges, ends = problem.question[1:-1].split("/")
        pairs = list(map("".join, zip(edges[::2], edges[1::2], strict=True)))
        assert len(pairs) in (9, 12, 15)
        assert sum(pair[0] == ends[0] for pair in pairs) == 3
        assert all(left + right in pairs for left, right in itertools.pairwise(problem.worked))
        assert problem.worked[0] + problem.worked[-1] == ends


@pytest.mark.parametrize("task", STARS, ids=lambda task: task.NAME)
def test_paths_cross_in_the_centre(task):
    """Three or five of them, the one asked for among them; no node but the centre is on two."""
    starts = set()
    for problem in first(task):
        edges, ends = problem.question[1:-1].split("/")
        pairs = edges.split(",")
        assert problem.question[0] == task.mark
        path = [problem.worked[at : at + 2] for at in range(0, len(problem.worked), 2)]
        assert set(path) <= set(pairs)
        assert len(set(pairs)) == len(pairs)
        assert all(left[1] == right[0] for left, right in itertools.pairwise(path))
        assert problem.worked[0] + problem.worked[-1] == ends
        assert task.shortest <= len(path) + 1 <= task.longest
        away = {node: sum(pair[0] == node for pair in pairs) for pair in pairs for node in pair}
        (centre,) = (node for node, count in away.items() if count == task.paths)
        assert max(count for node, count in away.items() if node != centre) == 1
        assert set("".join(pairs)) <= set(stars.SYMBOLS[: task.nodes])
        starts.add(centre == problem.worked[0])
        assert centre in [pair[0] for pair in path[:-1]]
        assert not any(
            task.verify(other, problem) for other in (problem.worked[2:], problem.worked[:-2], "".join(pairs))
        )
    assert starts == ({True, False} if task.crossing else {True})


def test_lengths_are_a_tasks_own_where_none_is_asked_for():
    assert lengths("gsm_symbolic", None, None, None) == (256, None)
    assert lengths("gsm_symbolic", None, 8, None) == (256, 8)
    assert lengths("permutation", None, None, None) == (8, 8)
    assert lengths("permutation", 8, None, None) == (8, 8)
    assert lengths("permutation", None, 2, None) == (8, 2)
    assert lengths("permutation", None, None, 4) == (8, None)
    assert lengths("permutation", 32, None, None) == (32, None)


@pytest.fixture(scope="module")
def shipped():
    return jaxdiff.load("puzzles-1m")


def right(checkpoint, module, steps, temperature=0.0):
    """How many of 50 held-out problems, whose answers are one block each."""
    tokenizer = checkpoint.tokenizer_for(module.NAME)
    problems = list(itertools.islice(module.problems("test", 0), 50))
    prompts, _ = jaxdiff.pad_prompts([prompt_ids(tokenizer, p) for p in problems], fill=tokenizer.eos_id)
    sampling = jaxdiff.Sampling(temperature=temperature)
    decoder = jaxdiff.Decoder(policy=Fixed(steps=steps), sampling=sampling, block_length=module.LENGTH)
    result = jaxdiff.decode(checkpoint.model, checkpoint.params, prompts, decoder, gen_length=module.LENGTH)
    texts = [tokenizer.decode(ids) for ids in np.asarray(result.tokens)[:, prompts.shape[1] :]]
    return sum(module.verify(text, problem) for text, problem in zip(texts, problems, strict=True))


def test_the_model_that_ships_solves_them(shipped):
    assert right(shipped, sort, steps=sort.LENGTH) >= 47


def test_letters_drawn_in_one_forward_do_not_know_of_each_other(shipped):
    """One after the other they do."""
    assert right(shipped, permutation, steps=permutation.LENGTH, temperature=1.0) >= 45
    assert right(shipped, permutation, steps=1, temperature=1.0) <= 10
