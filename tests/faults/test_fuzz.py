"""Odd folders and odd files: 40 of each here; `python -m experiments.fuzz` draws 500."""

import pytest
from hypothesis import given, settings

from tests.faults import fuzz


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return fuzz.Folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return fuzz.Files(tmp_path_factory.mktemp("files"))


@settings(max_examples=24)
@given(change=fuzz.changes())
def test_an_odd_folder_is_decoded_or_refused_in_one_line(folders, change):
    ran, faults = folders.judge(change)
    assert not faults, (change, ran)


@settings(max_examples=24)
@given(content=fuzz.files())
def test_an_odd_file_is_decoded_row_by_row_or_refused_in_one_line(files, content):
    ran, faults = files.judge(content)
    assert not faults, (content, ran)
