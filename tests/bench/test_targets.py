"""Compiling for a TPU that is not here: real compilations by libtpu, nothing is run."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.bench.measure import Work
from jaxdiff.bench.shapes import abstract_params, shaped
from jaxdiff.bench.targets import tpu
from jaxdiff.decode.cache import parse_cache
from jaxdiff.policies import Threshold
from tests import small

SHAPE = {"vocab_size": 1024, "mask_token_id": 0, "eos_token_id": 1, "d_model": 256, "n_heads": 2, "n_kv_heads": 2}


@pytest.fixture(scope="module")
def chip():
    pytest.importorskip("libtpu", reason="libtpu is not installed: there is nothing to compile for a TPU with")
    return tpu("v5e:1x1")


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_decode_compiles_for_a_tpu_and_holds_its_memory_once(chip, cache):
    model = shaped("llada-8b", n_layers=8, mlp_hidden_size=256, **SHAPE)
    prompts, origin = np.full((8, 64), 7, np.int32), np.zeros(8, np.int32)
    work = Work(model, abstract_params(model), prompts, origin, Threshold(), 960, 32, rounds=1, target=chip)
    program = work.program(cache=parse_cache(cache))
    leaves = jax.tree.leaves(jax.eval_shape(lambda: model.memory(8, 1024)))
    memory = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) if cache != "none" else 0
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(work.params))
    assert weights < program.argument_bytes < weights + 1e6
    assert memory < program.temp_bytes < memory + 30e6  # some arrays of all positions; a second memory were 67 MB
    assert program.result is None


def test_what_is_traced_for_a_tpu_is_not_what_a_cpu_runs(chip):
    """The same decode for this device, then for the chip, then for this one again: no trace is taken for another's."""
    work = Work(
        small.MODEL, small.params(), np.full((1, 4), 7, np.int32), np.zeros(1, np.int32), *(Threshold(), 8, 4), rounds=1
    )
    here = work.program(cache=parse_cache("dual"))
    there = dataclasses.replace(work, target=chip).program(cache=parse_cache("dual"))
    again = work.program(cache=parse_cache("dual"))
    assert there.result is None
    np.testing.assert_array_equal(here.result.tokens, again.result.tokens)
    assert here.temp_bytes == again.temp_bytes != there.temp_bytes


def test_a_chip_that_is_not_known_is_refused(chip):
    with pytest.raises(InputError, match=r"found 'v9:1x1', expected a TPU that libtpu knows, such as v5e:1x1"):
        tpu("v9:1x1")


def test_a_program_that_is_too_large_is_refused(chip):
    model = shaped("llada-8b", n_layers=8, mlp_hidden_size=2**17, **SHAPE | {"d_model": 2**13, "n_heads": 64})
    prompts, origin = np.full((1, 4), 7, np.int32), np.zeros(1, np.int32)
    work = Work(model, abstract_params(model), prompts, origin, Threshold(), 32, 32, rounds=1, target=chip)
    with pytest.raises(InputError, match="found a program too large for TPU v5 lite"):
        work.program()
