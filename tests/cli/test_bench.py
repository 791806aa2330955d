"""`jaxdiff bench`: what it prints for scripts. No test looks at a time."""

import jax
import pytest

from jaxdiff.bench.shapes import SHAPES, abstract_params, shaped
from jaxdiff.cli import bench

SMALL = {"d_model": 64, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}


def test_it_prints_what_scripts_read(run, ids_folder, monkeypatch):
    median = {"median": 2.0, "low": 1.0, "high": 3.0}
    way = {"ratio": median, "seconds": median, "same_tokens": 1.0, "forwards": 16, "first_seconds": 3.0}
    peer = {"jaxdiff": way, "eager": way, "compiled": None, "not_compiled": "no g++"}
    monkeypatch.setattr(bench, "against_pytorch", lambda work, names, **_: dict.fromkeys(names, peer))
    blocks = ("--gen-length", 16, "--block-length", 8)
    options = ("--rounds", 2, "--json", "--against", "standard,dual", "--roofline", "--weights", "int8")
    done = run("bench", "--model", ids_folder, *blocks, *options)
    assert "eager alone, without torch.compile: no g++" in done.err
    found = done.json
    assert set(found) == {
        *("step_over_forward", "cache_speedup", "compile_seconds", "argument_bytes", "peak_temp_bytes", "int8"),
        *("pytorch_ratio", "against", "details", "setting"),
    }
    assert found["pytorch_ratio"] == 2.0
    assert found["against"] == {name: {"eager": 2.0, "compiled": None} for name in ("standard", "dual")}
    assert set(found["int8"]) == {"speedup", "logit_error"}
    assert 0 < found["int8"]["logit_error"] < 0.04
    assert found["details"]["int8"]["argument_bytes"] < 0.4 * found["details"]["int8"]["plain_argument_bytes"]
    assert found["details"]["int8"]["steps"] == found["details"]["int8"]["plain_steps"] == 16
    assert set(found["cache_speedup"]) == {"prefix", "dual", "frozen"}
    assert found["details"]["step_over_forward"]["steps"] == 16
    assert found["details"]["roofline"]["share_of_matmul"] > 0


def test_a_shape_compiles_without_its_weights(run, monkeypatch):
    monkeypatch.setitem(SHAPES, "llada-8b", SHAPES["llada-8b"] | SMALL)
    asked = ("bench", "--shape", "llada-8b", "--compile-only", "--gen-length", 32, "--weights", "int8", "--json")
    found = run(*asked, "--block-length", 8, "--fill", "recap").json
    assert found["peak_temp_bytes"] > 0
    whole, cheap = found["step"]["passes"]
    assert (whole["columns"], whole["fill"], cheap["fill"]) == (96, False, True)
    ladder = {each["columns"]: each["flops"] for each in cheap["rungs"]}
    assert list(ladder) == [4, 8]
    # Its group's share of the canvas, and its own part of the head, which the full pass has apart.
    head = found["step"]["always"]["flops"]
    for columns, flops in ladder.items():
        assert flops == pytest.approx(whole["flops"] * columns / 96 + head * columns / 8, rel=0.02)
    assert "step_over_forward" not in found
    assert "int8" not in found
    weights = abstract_params(shaped("llada-8b"), "int8")
    light = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    assert found["argument_bytes"] == pytest.approx(light, rel=0.01)


def test_what_cannot_be_measured_is_refused(refused, folder):
    assert "found it beside --no-pytorch" in refused("bench", "--against", "dual", "--no-pytorch")
    assert "published for one row" in refused("bench", "--against", "eotp", "--batch-size", 8)
    assert "expected llada-8b, dream-7b, llada2-mini" in refused("bench", "--shape", "gpt-2")
    assert "expected less than the model's context 96" in refused("bench", "--model", folder, "--gen-length", 128)
    assert "found 'v5e:1x1' where the decode is run, expected --compile-only" in refused("bench", "--target", "v5e:1x1")
    for option, value in (("--cache", "dual"), ("--mesh", "2x4")):
        words = f"found '{value}' where the decode is run, expected --compile-only beside it"
        assert words in refused("bench", option, value)


def test_a_model_that_does_not_spread_over_the_mesh_is_refused(run):
    ran = run("bench", "--shape", "llada-8b", "--compile-only", "--mesh", "1x3")
    assert (ran.code, ran.out) == (2, "")
    assert "mesh: found 32 attention heads for a model axis of 3, expected a multiple of it" in ran.err


def test_it_compiles_for_a_tpu_that_is_not_here(run, ids_folder):
    asked = ("bench", "--model", ids_folder, "--compile-only", "--gen-length", 16, "--block-length", 8, "--json")
    pytest.importorskip("libtpu", reason="libtpu is not installed: there is nothing to compile for a TPU with")
    here = run(*asked).json
    found = run(*asked, "--target", "v5e:2x4", "--mesh", "2x2", "--cache", "dual").json
    assert (found["setting"]["device"], found["setting"]["cache"]) == ("TPU v5 lite", "dual")
    assert (found["setting"]["target"], found["setting"]["mesh"]) == ("v5e:2x4", "2x2")
    assert (here["setting"]["dtype"], found["setting"]["dtype"]) == ("float32", "bfloat16")
    assert found["peak_bytes"] == found["argument_bytes"] + found["peak_temp_bytes"]
    refresh, window = found["step"]["passes"]
    assert refresh["flops"] > window["flops"] > found["step"]["always"]["flops"] > 0
    assert "all-reduce" in refresh["collectives"]
    (whole,) = here["step"]["passes"]
    assert whole["flops"] > here["step"]["always"]["flops"] > 0


def test_it_compiles_for_a_mesh_that_is_here(run, ids_folder):
    asked = ("bench", "--model", ids_folder, "--compile-only", "--gen-length", 16, "--block-length", 8, "--mesh", "1x2")
    ran = run(*asked)
    assert ran.code == 0
    assert "pass 1, 80 columns of a row: all-reduce" in ran.out
