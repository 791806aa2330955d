"""Command lines of one process that share the programs which they compile, as the streams of one meter do."""

import contextlib
from unittest import mock

from jaxdiff.serve import Meter


@contextlib.contextmanager
def shared():
    """Every meter that is made within keeps its programs in the same place."""
    made, programs = Meter.__init__, {}

    def with_programs(self, **options):
        made(self, **options)
        self._programs = programs

    with mock.patch.object(Meter, "__init__", with_programs):
        yield
