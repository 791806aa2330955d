"""The policy experiment's points, of reports that are made up."""

import numpy as np
import pytest

from experiments import policies as experiment
from jaxdiff.tasks.evaluate import Report


def test_measure_and_compare_report_what_was_decoded():
    sweep = experiment.SWEEPS[0]
    nfe = [20, 10, 5, 4, 2, 1]
    verdicts = np.asarray([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    four = np.ones(4, int)
    reports = [
        Report(
            task="",
            split="",
            seed=0,
            problems=(),
            texts=(),
            correct=right,
            nfe=forwards * four,
            cheap=0 * four,
            work=forwards * four.astype(float),
            not_finite=0 * four,
            lengths=10 * four,
            near_ties=0 * four,
            seconds=1.0,
            compile_seconds=1.0,
            guide_nfe=0 * four,
        )
        for right, forwards in zip(verdicts, nfe, strict=True)
    ]
    results = {"sweeps": {sweep.name: {"points": experiment.measure(sweep.values, reports)}}}
    experiment.compare(results)
    points = results["sweeps"][sweep.name]["points"]
    assert [point["accuracy"] for point in points] == [100, 100, 75, 25, 0, 0]
    assert [point["tpf"] for point in points] == [0.5, 1.0, 2.0, 2.5, 5.0, 10.0]
    assert points[3]["value"] == 4
    assert points[3]["correct"] == "1000"
    assert results["eight_tokens_a_step_against_one"][0] == -75.0
    assert results["sweeps"][sweep.name]["aup"] == pytest.approx(100.0)  # 0.5 x 100 + 0.5 x 100: 75 loses too much
