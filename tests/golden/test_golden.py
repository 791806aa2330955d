"""What the library decodes is what was recorded of it (`python -m tests.golden.record`)."""

import functools
import json

import numpy as np
import pytest

from tests.golden import record
from tests.golden.cases import CASES


@functools.cache
def recording():
    """(arrays by `case/field`, whether this machine rounds as the one of the recording)."""
    said = json.loads((record.FOLDER / "golden.json").read_text())
    with np.load(record.FOLDER / "golden.npz") as file:
        return dict(file), record.environment().items() <= said.items()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decodes_are_those_of_the_recording(case):
    """Rows with near-ties are compared only in the environment that they were recorded in."""
    arrays, same = recording()
    found, rows = record.run(case), slice(None) if same else arrays[f"{case.name}/near_ties"] == 0
    for field in record.FIELDS:
        np.testing.assert_array_equal(found[field][rows], arrays[f"{case.name}/{field}"][rows], err_msg=field)


def test_every_case_is_recorded_and_most_rows_hang_on_no_rounding():
    arrays, _ = recording()
    assert arrays.keys() == {f"{case.name}/{field}" for case in CASES for field in record.FIELDS}
    near = np.concatenate([arrays[f"{case.name}/near_ties"] for case in CASES])
    assert np.mean(near == 0) > 0.5
