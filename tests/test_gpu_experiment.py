"""The stages for a machine with a GPU: they fit into a visit, their functions are there, the recording loads."""

import ast
import json

from experiments.gpu import stages
from experiments.gpu.job import HERE, Job


def test_stages_fit_into_a_visit_and_their_functions_are_there():
    names = [stage.name for stage in stages.STAGES]
    assert len(set(names)) == len(names)
    assert sum(stage.limit for stage in stages.STAGES) <= stages.TOTAL
    assert [stage.rest for stage in stages.STAGES] == [False] * (len(names) - 1) + [True]
    for stage in stages.STAGES:
        module, function = stage.where.split(".")
        tree = ast.parse((HERE / f"{module}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_recording_holds_a_row_for_each_prompt():
    said = json.loads((HERE / "expected.json").read_text())
    assert len({len(said[name]) for name in ("prompts", "tokens", "nfe", "near_ties")}) == 1
    assert said["prompts"]
    assert said["environment"]["platform"] == "cpu"


def test_a_stage_that_fails_or_takes_too_long_leaves_what_it_found(tmp_path, monkeypatch):
    job = Job(tmp_path / "found.json", tmp_path, 10.0, small=True)
    job.part("good", lambda: 1)
    job.part("bad", lambda: 1 / 0)
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "good": 1,
        "bad": {"error": "ZeroDivisionError: division by zero"},
    }
    monkeypatch.setattr(stages, "WORK", tmp_path)
    failed = stages.run(stages.Stage("none", "nowhere.nothing", 1), 20.0, tmp_path, "small")
    assert failed["status"] == "failed"
    assert "nowhere" in failed["error"]
    late = stages.run(stages.Stage("late", "parity.decode", 1), 0.0, tmp_path, "small")
    assert late["status"] == "timed out"


def test_results_of_another_machine_or_size_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "none")
    stages.write(tmp_path / "results.json", {"stages": {"decode": {}}, "setting": {"gpu": "A", "size": "full"}})
    assert "decode" in stages.earlier(tmp_path, "A", "full")["stages"]
    assert not stages.earlier(tmp_path, "B", "full")["stages"]
    assert not stages.earlier(tmp_path, "A", "small")["stages"]
