"""Compiling for a TPU that is not here: real compilations by libtpu, nothing is run."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.bench.measure import Work
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.caches import Dual
from jaxdiff.decode import Decoder
from jaxdiff.models.layers import attend
from jaxdiff.parallel.mesh import compiling_for, platform
from jaxdiff.policies import Threshold

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


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"libtpu is not installed; pip install 'jax\[tpu\]"):
        tpu("v5e:1x1")


def test_a_chip_that_is_not_known_is_refused(chip):
    with pytest.raises(InputError, match=r"found 'v9:1x1', expected a TPU that libtpu knows, such as v5e:1x1"):
        tpu("v9:1x1")


def test_a_program_that_is_too_large_is_refused(chip):
    model = shaped("llada-8b", n_layers=8, mlp_hidden_size=2**17, **SHAPE | {"d_model": 2**13, "n_heads": 64})
    work = work_of(model, np.full((1, 4), 7, np.int32), 32, chip)
    with pytest.raises(InputError, match="found a program too large for TPU v5 lite"):
        work.program()
