"""What the tests of the command line have, and a disk that fills up."""

import resource
import shutil

import pytest

from tests.cli.conftest import checkpoint, folder, ids_folder, refused, run, shared_programs
from tests.convert import published as hf
from tests.convert.test_text import SPECIAL, trained
from tests.faults.folders import CONFIG, tensors

__all__ = ["checkpoint", "folder", "full", "ids_folder", "refused", "run", "shared_programs"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A published folder of dense LLaDA's, with a tokenizer: ids 0 [MASK], 1 end-of-text, 2 ... the roles."""
    folder = hf.write_folder(tmp_path_factory.mktemp("hf") / "llada", CONFIG, tensors())
    return trained(folder, SPECIAL)


@pytest.fixture
def source(home, tmp_path):
    return shutil.copytree(home, tmp_path / "hf")


@pytest.fixture
def full():
    """Sets the size that no file may grow beyond (`ulimit -f`), until the test ends or it is called without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=before[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()
