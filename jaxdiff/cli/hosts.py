"""Processes of one job that meet over JAX's distributed runtime, agree, and part: each then decodes on its own."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt32

from jaxdiff.files import first_line
from jaxdiff.types import InputError

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Where the processes meet; nothing where the cluster says it (Cloud TPU, Slurm, Open MPI, Kubernetes)."""

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None

    def meet(self) -> tuple[int, int]:
        """Join the others: (this process, how many there are). Before anything else asks JAX for a device.

        Raises InputError where it is not said where to meet, or where nobody is.
        """
        said = [value is not None for value in (self.coordinator, self.processes, self.process_id)]
        if any(said) and not all(said):
            raise InputError("--coordinator, --processes and --process-id go together; give all three or none")
        if self.process_id is not None and self.process_id >= (self.processes or 0):
            raise InputError(f"process-id: found {self.process_id}, expected 0 to {(self.processes or 0) - 1}")
        try:
            jax.distributed.initialize(self.coordinator, self.processes, self.process_id)
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"distributed: the processes cannot meet ({first_line(error)}); where the cluster does not say where, "
                "give --coordinator, --processes and --process-id"
            ) from error
        # JAX has put a handler of its own there, to tell all of a pre-emption, under which the program goes on.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        return jax.process_index(), jax.process_count()


def together(work: Callable[[], _T]) -> _T:
    """`work()` on every process; all wait for all, and where one fails, all are refused: nobody waits for the dead."""
    failure: InputError | OSError | None = None
    try:
        result = work()
    except (InputError, OSError) as error:
        failure = error
    failed = _gather(np.asarray([failure is not None], np.uint32))[:, 0]
    if failure is not None:
        raise failure
    if failed.any():
        raise InputError(f"distributed: process {int(np.argmax(failed))} refused the job; its own line says why")
    return result  # type: ignore[possibly-undefined]


def agree(prints: Mapping[str, str]) -> None:
    """Raises InputError, on all processes, where one has another fingerprint (16 hex digits each) than process 0."""
    words = np.asarray([[int(text[:8], 16), int(text[8:16], 16)] for text in prints.values()], np.uint32)
    all_ = _gather(words.reshape(-1)).reshape(-1, *words.shape)
    differs = (all_ != all_[:1]).any(2)
    for process, names in enumerate(differs):
        if names.any():
            which = ", ".join(name for name, other in zip(prints, names, strict=True) if other)
            raise InputError(
                f"distributed: process {process} has another {which} than process 0; give all hosts the same"
            )


def _gather(words: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, "processes n"]:
    return np.asarray(multihost_utils.process_allgather(words)).reshape(-1, words.size)
