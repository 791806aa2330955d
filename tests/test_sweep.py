"""The policy experiment's sweep: rows = prompts x values give what each value gives alone."""

import numpy as np
import pytest

from experiments import policies as experiment
from jaxdiff import Checkpoint, EosStop, decode
from jaxdiff.decode import loop
from jaxdiff.decode.many import request_keys
from jaxdiff.policies import Threshold
from tests import small

TAUS = (0.9, 0.6, 0.3)


@pytest.fixture
def checkpoint(monkeypatch, tmp_path):
    """The tests' tiny model, and the experiment at its lengths.

    3 values x 4 prompts in batches of 5: batches straddle values, and the last one is filled up.
    """
    monkeypatch.setattr(experiment, "ROWS", 5)
    monkeypatch.setattr(experiment, "GEN_LENGTH", small.GEN)
    monkeypatch.setattr(experiment, "BLOCK_LENGTH", small.BLOCK)
    return Checkpoint(small.MODEL, small.params(), None, tmp_path)


def test_a_sweep_over_rows_equals_separate_decodes(checkpoint):
    prompts, origin = small.batch()
    stop = EosStop()
    sweep = experiment.Sweep("threshold", "tau", TAUS, lambda v: Threshold(tau=v), "", "")
    advanced = []
    swept = experiment.decode_sweep(checkpoint, sweep, prompts, origin, 0, stop, loop.run, advanced.append)
    assert advanced == [5, 5, 2]
    nfe = []
    for i, tau in enumerate(TAUS):
        alone = decode(
            small.MODEL,
            checkpoint.params,
            prompts,
            origin=origin,
            key=request_keys(0, np.arange(len(prompts))),
            policy=Threshold(tau=tau),
            stop=stop,
            gen_length=small.GEN,
            block_length=small.BLOCK,
        )
        np.testing.assert_array_equal(swept["answers"][i], np.asarray(alone.tokens)[:, prompts.shape[1] :])
        np.testing.assert_array_equal(swept["lengths"][i], alone.lengths)
        np.testing.assert_array_equal(swept["nfe"][i], alone.nfe)
        nfe.append(int(alone.nfe.sum()))
    assert nfe[0] > nfe[1] > nfe[2], "the values must matter, or the test says nothing"


def test_measure_and_compare_report_what_was_decoded():
    sweep = experiment.SWEEPS[0]
    shape = (len(sweep.values), 4)
    decoded = {
        "lengths": np.full(shape, 10),
        "nfe": np.asarray([[20], [10], [5], [4], [2], [1]]) * np.ones(shape, int),
        "near_ties": np.zeros(shape, int),
    }
    verdicts = np.asarray([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], bool)
    results = {"sweeps": {sweep.name: {"points": experiment.measure(sweep, decoded, verdicts)}}}
    experiment.compare(results)
    points = results["sweeps"][sweep.name]["points"]
    assert [point["accuracy"] for point in points] == [100, 100, 75, 25, 0, 0]
    assert [point["tpf"] for point in points] == [0.5, 1.0, 2.0, 2.5, 5.0, 10.0]
    assert points[3]["value"] == 4
    assert points[3]["correct"] == "1000"
    assert results["eight_tokens_a_step_against_one"][0] == -75.0
    assert results["sweeps"][sweep.name]["aup"] == pytest.approx(100.0)  # 0.5 x 100 + 0.5 x 100: 75 loses too much
