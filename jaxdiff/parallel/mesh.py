"""The mesh, and the two ways that a decode is spread over it.

`over_rows` is manual over `data` alone: each shard of rows runs a loop of its own and leaves it on its own, and `model`
is left to the partitioner, which follows the sharding of the params. `over_vocabulary`, inside it, is manual over
`model`: each shard scans its part of the head, and the summaries alone are gathered.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.parallel.rules import DATA, MODEL, RULES, specs
from jaxdiff.pytree import number_names, numbers_of, with_numbers
from jaxdiff.types import InputError

ROWS = PartitionSpec(RULES["batch"])
KV_ROWS = PartitionSpec(None, RULES["batch"])  # keys and values [N B K M E]
WHOLE = PartitionSpec()
# `with compiling_for("tpu"):` what is traced is meant for devices that are not here; part of what jit's caches go by.
compiling_for = jax.make_user_context(None)


def make_mesh(data: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the first data x model devices, default of this host. Raises InputError where there are fewer."""
    devices = jax.local_devices() if devices is None else devices
    if data < 1 or model < 1 or data * model > len(devices):
        raise InputError(
            f"mesh: found {data}x{model} = {data * model} devices, expected 1 to {len(devices)}, as many as there are"
        )
    axes = (AxisType.Auto, AxisType.Auto)
    try:
        return jax.make_mesh((data, model), (DATA, MODEL), axis_types=axes, devices=devices[: data * model])
    except AssertionError as error:  # of a TPU, whose chips must lie in a rectangle
        raise InputError(
            f"mesh: found {data}x{model}, which the first {data * model} of {len(devices)} chips do not form; "
            f"try one of {len(devices)} chips, such as 1x{len(devices)}"
        ) from error


def parse_mesh(text: str) -> Mesh | None:
    """What `--mesh DxM` means; None for 1x1, which needs no mesh. Raises InputError for any other text."""
    data, model = mesh_shape(text)
    return None if data == model == 1 else make_mesh(data, model)


def mesh_shape(text: str) -> tuple[int, int]:
    """The data and the model devices of `DxM`. Raises InputError for any other text."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text, re.ASCII)
    if found is None:
        raise InputError(f"mesh: found {text!r}, expected DxM, the data and the model devices, such as 4x2")
    return int(found[1]), int(found[2])


def abstract_mesh(text: str) -> AbstractMesh:
    """The mesh `DxM` of devices that need not be here: for shapes alone. Raises InputError for any other text."""
    data, model = mesh_shape(text)
    if data < 1 or model < 1:
        raise InputError(f"mesh: found {text!r}, expected 1 or more devices on each axis")
    return AbstractMesh((data, model), (DATA, MODEL))


def check_axes(mesh: Mesh) -> None:
    """Raises InputError for a mesh of other axes than `make_mesh` gives."""
    if mesh.axis_names != (DATA, MODEL):
        raise InputError(f"mesh: found axes {mesh.axis_names}, expected {(DATA, MODEL)}; make it with make_mesh")


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """`tree`, with the arrays that lie on other devices than the mesh's laid whole over it: a filter read from disk, a
    canvas that an earlier decode gave.
    """
    devices, whole = set(mesh.devices.flat), NamedSharding(mesh, WHOLE)

    def lay(leaf: Any) -> Any:
        concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        return jax.device_put(leaf, whole) if concrete and leaf.sharding.device_set != devices else leaf

    return jax.tree.map(lay, tree)


def over_rows(program: Callable[..., Any], mesh: Mesh, setup: Any, rows: Any, *, dead: int) -> Any:
    """`program(setup, rows)` on each data shard's rows; every leaf of `rows` and of its result leads with B.

    Where the rows do not divide, rows whose canvas holds the id `dead` alone, with nothing to generate, fill up the
    last shard; they are not in the result.
    """
    count = rows.canvas.shape[0]
    if missing := -count % mesh.shape[DATA]:
        at = np.minimum(np.arange(count + missing), count - 1)
        rows = jax.tree.map(lambda leaf: leaf[at], rows)
        real = (np.arange(count + missing) < count)[:, None]
        rows = dataclasses.replace(rows, canvas=jnp.where(real, rows.canvas, jnp.int32(dead)))
        numbers = [leaf[at] if leaf.ndim else leaf for leaf in numbers_of(setup.decoder)]
        setup = dataclasses.replace(setup, decoder=with_numbers(setup.decoder, numbers))
    result = over_data(program, mesh, (specs_of(setup), ROWS), ROWS)(setup, rows)
    return jax.tree.map(lambda leaf: leaf[:count], result) if missing else result


def platform() -> str:
    """What the code that is traced will run on: `cpu`, `gpu`, `tpu`."""
    return compiling_for.value or jax.default_backend()


def weights_are_spread() -> bool:
    """Whether the code that is traced runs inside `over_rows` of a mesh with several devices for each row."""
    return spread_over() > 1


def spread_over() -> int:
    """Over how many devices each row's weights lie, for the code that is traced: 1 outside `over_rows`."""
    return jax.sharding.get_abstract_mesh().shape.get(MODEL, 1)


def over_heads(program: Callable[..., Any], q: Any, k: Any, v: Any, *whole: Any) -> Any:
    """`program(q, k, v, *whole)` on each shard's heads (axis 1 of the first three, and of the result).

    For what the partitioner cannot divide, and refuses even over the one device of an axis that is left to it. For code
    inside `over_rows`; elsewhere it is `program` itself.
    """
    if MODEL not in jax.sharding.get_abstract_mesh().shape:
        return program(q, k, v, *whole)
    heads = PartitionSpec(None, MODEL)
    in_specs = (heads, heads, heads, *[WHOLE] * len(whole))
    spread = jax.shard_map(program, axis_names={MODEL}, in_specs=in_specs, out_specs=heads, check_vma=False)
    return spread(q, k, v, *whole)


def over_experts(program: Callable[..., Any], kernels: Mapping[str, Any], *whole: Any) -> Any:
    """`program(kernels, *whole)` on each shard's slice of the kernels (leaves of `experts/`); the results are added up.

    Without it the partitioner would add up every expert's output before they are weighted and joined: k times as much.
    For code inside `over_rows`; elsewhere it is `program` itself.
    """
    if not weights_are_spread():
        return program(kernels, *whole)

    def on_shard(kernels: Mapping[str, Any], *whole: Any) -> Any:
        return jax.lax.psum(program(kernels, *whole), MODEL)

    in_specs = ({name: specs(f"experts/{name}", each) for name, each in kernels.items()}, *[WHOLE] * len(whole))
    spread = jax.shard_map(on_shard, axis_names={MODEL}, in_specs=in_specs, out_specs=WHOLE, check_vma=False)
    return spread(kernels, *whole)


def over_data(program: Callable[..., Any], mesh: Mesh, specs: Any, out: Any) -> Callable[..., Any]:
    """`program` on each data shard; `specs` say which axes of its arguments are rows, `out` which of its result."""
    # The loop's constant carries would have to be marked one by one, were they checked.
    return jax.shard_map(program, mesh=mesh, axis_names={DATA}, in_specs=specs, out_specs=out, check_vma=False)


def specs_of(setup: Any) -> Any:
    """Of what a decode is given beside its rows: the decoder's numbers for each row lead with rows, all other arrays
    are whole on each data shard.
    """
    leaves, structure = jax.tree.flatten(setup.decoder)
    pairs = zip(number_names(setup.decoder), leaves, strict=True)
    decoder = jax.tree.unflatten(structure, [ROWS if name and leaf.ndim else WHOLE for name, leaf in pairs])
    guide = None if setup.guide is None else dataclasses.replace(setup.guide, params=WHOLE)
    return dataclasses.replace(setup, params=WHOLE, decoder=decoder, guide=guide)


def over_vocabulary(mesh: Mesh | None, program: Callable[..., Any], head: Any, *whole: Any) -> list[Any]:
    """`program(part of the head [D v], its first id, *whole)` on each shard of the vocabulary; the results, in order.

    For code inside `over_rows`; without a mesh there is one part, the whole.
    """
    if mesh is None:
        return [program(head, jnp.int32(0), *whole)]

    def on_shard(part: Any, *whole: Any) -> Any:
        first = jax.lax.axis_index(MODEL).astype(jnp.int32) * part.shape[1]
        return jax.lax.all_gather(program(part, first, *whole), MODEL)

    in_specs = (specs("head", head), *[WHOLE] * len(whole))
    spread = jax.shard_map(on_shard, axis_names={MODEL}, in_specs=in_specs, out_specs=WHOLE, check_vma=False)
    gathered = spread(head, *whole)
    leaves, structure = jax.tree.flatten(gathered)
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(mesh.shape[MODEL])]
