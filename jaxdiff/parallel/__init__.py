"""Meshes of devices: how they are named, what lies where, and a decode whose rows and weights are spread over one."""

from jaxdiff.parallel.mesh import (
    KV_ROWS,
    ROWS,
    WHOLE,
    check_axes,
    compiling_for,
    everywhere,
    make_mesh,
    over_data,
    over_experts,
    over_rows,
    over_vocabulary,
    parse_mesh,
    platform,
    specs_of,
    weights_are_spread,
)
from jaxdiff.parallel.rules import LANE, check_model, place, shardings

__all__ = [
    "KV_ROWS",
    "LANE",
    "ROWS",
    "WHOLE",
    "check_axes",
    "check_model",
    "compiling_for",
    "everywhere",
    "make_mesh",
    "over_data",
    "over_experts",
    "over_rows",
    "over_vocabulary",
    "parse_mesh",
    "place",
    "platform",
    "shardings",
    "specs_of",
    "weights_are_spread",
]
