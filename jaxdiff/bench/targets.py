"""Chips that are not here, to compile for: what would a decode need there?"""

from __future__ import annotations

import importlib.util
import os

import jax
from jax.experimental import topologies

from jaxdiff.types import InputError


def tpu(topology: str) -> jax.Device:
    """The first chip of a TPU, as libtpu describes it: one chip to compile for, never to run on.

    Args:
        topology: kind and chips, such as `v5e:1x1`, `v6e:2x2` or `v5p:2x2x1`.

    Raises InputError where libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("target: libtpu is not installed; pip install 'jax[tpu]'")
    jax.devices()  # of this machine, which may have a TPU of its own: found before libtpu is told not to look for one
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):  # nor to let one process at a time load it
        os.environ.setdefault(name, "1")
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone).devices[0]
    except (jax.errors.JaxRuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"target: found {topology!r}, expected a TPU that libtpu knows, such as v5e:1x1, v6e:2x2 or v5p:2x2x1"
        ) from error
