"""Compiling for a TPU that is not here: real compilations by libtpu, nothing is run."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import InputError, lower
from jaxdiff.bench.cost import step_cost
from jaxdiff.bench.hlo import Hlo, flops
from jaxdiff.bench.measure import Work
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.caches import Dual
from jaxdiff.decode import Decoder
from jaxdiff.drafters import unfitted
from jaxdiff.fills import Recap
from jaxdiff.models.attention import attend
from jaxdiff.parallel.mesh import compiling_for, over_data, platform
from jaxdiff.parallel.rules import shardings
from jaxdiff.policies import Threshold
from tests import small

SHAPE = {"vocab_size": 1024, "mask_token_id": 0, "eos_token_id": 1, "d_model": 256, "n_heads": 2, "n_kv_heads": 2}


@pytest.fixture(scope="module")
def chip():
    pytest.importorskip("libtpu", reason="libtpu is not installed: there is nothing to compile for a TPU with")
    return tpu("v5e:1x1")


def work_of(model, prompts, gen_length, chip):
    return Work(
        model=model,
        params=abstract_params(model),
        prompts=prompts,
        origin=np.zeros(len(prompts), np.int32),
        decoder=Decoder(policy=Threshold(), block_length=32),
        gen_length=gen_length,
        block_length=32,
        rounds=1,
        target=chip,
    )


def test_a_decode_compiles_for_a_tpu_and_holds_its_memory_once(chip):
    model = shaped("llada-8b", n_layers=32, mlp_hidden_size=256, **SHAPE)
    work = work_of(model, np.full((8, 64), 7, np.int32), 960, chip)
    timing = work.program(cache=Dual())
    program = timing.program
    leaves = jax.tree.leaves(jax.eval_shape(lambda: model.empty_kv(8, 1024)))
    memory = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(work.params))
    assert weights < program.argument_bytes < weights + 1e6
    assert memory < program.temp_bytes < 1.4 * memory  # a second copy of the keys alone were half of it
    assert timing.result is None


def test_what_is_traced_for_a_chip_is_not_what_this_device_runs():
    """Heads that go one after the other on a CPU go together on a TPU; neither takes the other's trace from a cache."""
    q = jax.ShapeDtypeStruct((1, 640, 4, 8), jnp.float32)
    k, seen = jax.ShapeDtypeStruct((1, 4, 640, 8), jnp.float32), jax.ShapeDtypeStruct((1, 1, 640), bool)
    traced = jax.jit(attend)
    here = str(traced.trace(q, k, k, seen).jaxpr)
    with compiling_for("tpu"):
        assert platform() == "tpu"
        there = str(traced.trace(q, k, k, seen).jaxpr)
    assert platform() == "cpu"
    logits = "f32[1,4,1,640,640]"  # of all four heads
    assert logits in there
    assert logits not in here
    assert str(traced.trace(q, k, k, seen).jaxpr) == here


def test_what_a_step_costs_is_read_from_the_program(chip):
    """Loops of a known length count all rounds, though a TPU's do not say theirs; of a conditional one branch."""
    layers, rows, heads, width = 6, 256, 4, 128

    def decode(x, weights):
        def layer(x, w):
            scores = jnp.einsum("rhe,she->hrs", x, x)  # a TPU makes a convolution of it
            return jnp.einsum("hrs,she->rhe", scores, x) @ w, None

        def step(x):
            return jax.lax.cond(
                x[0, 0, 0] > 1, lambda x: jax.lax.scan(layer, x, weights)[0], lambda x: x @ weights[0], x
            )

        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, step, x)

    there = NamedSharding(chip, PartitionSpec())
    x = jax.ShapeDtypeStruct((rows, heads, width), jnp.bfloat16, sharding=there)
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.bfloat16, sharding=there)
    found = step_cost(jax.jit(decode).lower(x, weights).compile().as_text())
    assert found["always"]["flops"] == 0
    (found,) = found["passes"]
    size = 2 * rows * heads * width
    assert found["flops"] == layers * (2 * 2 * heads * rows * rows * width + 2 * rows * heads * width * width)
    assert layers * 2 * width**2 < found["bytes_accessed"] < layers * (2 * width**2 + 12 * size)
    assert found["collectives"] == {}


def test_attention_in_a_kernel_is_counted(chip):
    """Two products, and no logits in main memory; keys and values are read for each tile of queries."""
    rows, heads, groups, length, size = 32, 32, 16, 1280, 128  # too large for the chip's own memory
    there = NamedSharding(chip, PartitionSpec())
    q = jax.ShapeDtypeStruct((rows, length, heads, size), jnp.bfloat16, sharding=there)
    k = jax.ShapeDtypeStruct((rows, groups, length, size), jnp.bfloat16, sharding=there)
    seen = jax.ShapeDtypeStruct((rows, 1, length), jnp.bool_, sharding=there)

    def decode(q, k, v, seen):
        return jax.lax.while_loop(lambda q: jnp.sum(q) > 0, lambda q: attend(q, k, v, seen), q)

    with compiling_for("tpu"):
        text = jax.jit(decode).lower(q, k, k, seen).compile().as_text()
    (run,) = [run for run in Hlo(text).runs() if run.step and run.instruction.kind == "custom-call"]
    assert flops(run) == 4 * rows * heads * size * length**2
    of_queries, of_keys = (2 * rows * count * length * size for count in (heads, groups))
    assert Hlo(text).traffic(run) == 2 * of_queries + 2 * 2 * of_keys
    assert step_cost(text)["always"]["bytes_accessed"] < 12 * of_queries < 4 * rows * heads * length**2


def test_attention_in_a_kernel_compiles_where_each_device_has_rows_of_its_own(chip):
    """The partitioner divides no kernel, not even over an axis of one device that is left to it."""
    mesh = tpu("v5e:2x4", "8x1")
    there = NamedSharding(mesh, PartitionSpec())
    q = jax.ShapeDtypeStruct((8, 128, 2, 128), jnp.bfloat16, sharding=there)
    k = jax.ShapeDtypeStruct((8, 2, 128, 128), jnp.bfloat16, sharding=there)
    seen = jax.ShapeDtypeStruct((8, 1, 128), jnp.bool_, sharding=there)
    with compiling_for("tpu"):
        rows = over_data(attend, mesh, PartitionSpec("data"), PartitionSpec("data"))
        text = jax.jit(rows).lower(q, k, k, seen).compile().as_text()
    assert any(run.instruction.kind == "custom-call" for run in Hlo(text).runs())


def test_what_a_fusion_copies_and_slices_counts_as_much_as_the_slice():
    """The copy of all layers of an int8 weight is not made: a fusion makes of it what is sliced."""
    text = """
%copied (whole: s8[32,64,64]) -> s8[32,64,64] {
  %whole = s8[32,64,64]{2,1,0} parameter(0)
  ROOT %copy.1 = s8[32,64,64]{2,1,0:T(8,128)} copy(%whole)
}
%product (weight: s8[32,64,64], layer: s32[], x: bf16[8,64]) -> bf16[8,64] {
  %weight = s8[32,64,64]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %all = s8[32,64,64]{2,1,0} fusion(%weight), kind=kLoop, calls=%copied
  %wide = bf16[32,64,64]{2,1,0} convert(%all)
  %one = bf16[1,64,64]{2,1,0} dynamic-slice(%wide, %layer, %zero, %zero), dynamic_slice_sizes={1,64,64}
  %flat = bf16[64,64]{1,0} bitcast(%one)
  ROOT %dot.1 = bf16[8,64]{1,0} dot(%x, %flat), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
ENTRY %main (weight: s8[32,64,64], layer: s32[], x: bf16[8,64]) -> bf16[8,64] {
  %weight = s8[32,64,64]{2,1,0} parameter(0)
  %layer = s32[] parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  ROOT %out = bf16[8,64]{1,0} fusion(%weight, %layer, %x), kind=kOutput, calls=%product
}
"""
    (run,) = [run for run in Hlo(text).runs() if run.instruction.name == "out"]
    assert Hlo(text).traffic(run) == 64 * 64 + 4 + 2 * (2 * 8 * 64)


@pytest.fixture(scope="module")
def spread(chip):
    """A decode over a slice of eight chips, two shards of rows and four of weights."""
    model = shaped("llada-8b", n_layers=4, mlp_hidden_size=256, **SHAPE | {"n_heads": 4, "n_kv_heads": 4})
    work = work_of(model, np.full((8, 64), 7, np.int32), 64, tpu("v5e:2x4", "2x4"))
    return work, work.program().program


def test_a_decode_over_a_slice_lies_there_as_on_devices_that_are_here(spread):
    work, program = spread
    laid = shardings(work.model.config, work.params, work.target)
    each = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(laid))
    assert each < program.argument_bytes < each + 1e5
    assert program.temp_bytes > 0
    with pytest.raises(InputError, match="found shapes, expected arrays"):
        program()


def test_what_chips_tell_each_other_is_what_devices_here_do(spread):
    """On each chip, for its rows: two sums a layer, the last one's of the block; one for the embedding."""
    work, program = spread
    config, rows, fed = work.model.config, 4, 128
    cost = step_cost(program.compiled.as_text())
    (stack,) = cost["passes"]
    assert set(stack["collectives"]) == {"all-reduce"}
    assert set(cost["always"]["collectives"]) == {"all-gather"}  # the score's summaries
    summed = (2 * (config.n_layers - 1) + 1) * rows * fed + 2 * rows * work.block_length
    assert stack["collectives"]["all-reduce"]["bytes"] == pytest.approx(2 * summed * config.d_model, rel=0.01)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ("4x4", "mesh: found 4x4 = 16 devices, expected 1 to 8"),
        ("8", "mesh: found '8', expected DxM"),
        ("1x3", "mesh: found 1x3, which the first 3 of 8 chips do not form"),
    ],
)
def test_a_mesh_that_the_slice_does_not_hold_is_refused(chip, mesh, message):
    with pytest.raises(InputError, match=message):
        tpu("v5e:2x4", mesh)


def test_a_model_that_does_not_spread_over_the_mesh_is_refused(chip):
    work = work_of(shaped("llada-8b", n_layers=2, **SHAPE), np.full((1, 4), 7, np.int32), 32, tpu("v5e:2x4", "1x8"))
    with pytest.raises(InputError, match="found 2 attention heads for a model axis of 8, expected a multiple of it"):
        work.program()


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu is not installed; pip install 'jax\[tpu\]"):
        tpu("v5e:1x1")


def test_a_chip_that_is_not_known_is_refused(chip):
    with pytest.raises(InputError, match=r"found 'v9:1x1', expected a TPU that libtpu knows, such as v5e:1x1, v5e:2x4"):
        tpu("v9:1x1")


def test_a_program_that_is_too_large_is_refused(chip):
    model = shaped("llada-8b", n_layers=8, mlp_hidden_size=2**17, **SHAPE | {"d_model": 2**13, "n_heads": 64})
    work = work_of(model, np.full((1, 4), 7, np.int32), 32, chip)
    with pytest.raises(InputError, match="found a program too large for TPU v5 lite"):
        work.program()


@pytest.mark.parametrize("name", ["recap", "adjust", "head"])
def test_the_passes_of_a_fill_are_told_apart(name):
    """One row's products are made into others by XLA, without their scope."""
    fill = Recap() if name == "recap" else unfitted(name, small.MODEL, abstract_params)
    decoder = Decoder(policy=Threshold(0.5), fill=fill, block_length=4)
    program = lower(small.MODEL, abstract_params(small.MODEL), np.full((1, 5), 7, np.int32), decoder, gen_length=8)
    cost = step_cost(program.compiled.as_text())
    full, cheap = ([one["flops"] for one in cost["passes"] if one["fill"] == kind] for kind in (False, True))
    assert len(cheap) == 1
    assert 0 < cheap[0] < sum(full) + cost["always"]["flops"]
