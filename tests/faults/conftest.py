"""What the tests of the command line have, and a disk that fills up."""

import resource

import pytest

from tests.cli.conftest import checkpoint, compilation_cache_folder, folder, ids_folder, refused, run

__all__ = ["checkpoint", "compilation_cache_folder", "folder", "full", "ids_folder", "refused", "run"]


@pytest.fixture
def full():
    """Sets the size that no file may grow beyond (`ulimit -f`), until the test ends or it is called without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=before[0]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()
