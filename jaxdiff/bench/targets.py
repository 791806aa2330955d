"""Chips that are not here, to compile for: what would a decode need there?"""

from __future__ import annotations

import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jaxdiff.parallel.mesh import make_mesh, mesh_shape
from jaxdiff.types import InputError


def tpu(topology: str, mesh: str = "1x1") -> Mesh:
    """Chips of a TPU slice, as libtpu describes it, as a mesh: to compile for, never to run on.

    Args:
        topology: kind and chips, such as `v5e:1x1`, `v5e:2x4` or `v5p:2x2x1`.
        mesh: `DxM`, of the slice's first chips.

    Raises InputError where libtpu is not installed, or does not know the topology, and for a mesh that the slice does
    not hold.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("target: libtpu is not installed; pip install 'jax[tpu]'")
    data, model = mesh_shape(mesh)
    jax.devices()  # of this machine, which may have a TPU of its own: found before libtpu is told not to look for one
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):  # nor to let one process at a time load it
        os.environ.setdefault(name, "1")
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith((":1x1", ":1x1x1")) else {}
    try:
        chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone).devices
    except (jax.errors.JaxRuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"target: found {topology!r}, expected a TPU that libtpu knows, such as v5e:1x1, v5e:2x4 or v5p:2x2x1"
        ) from error
    return make_mesh(data, model, chips)
