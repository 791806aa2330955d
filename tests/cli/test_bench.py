"""`jaxdiff bench`: what it prints for scripts. No test looks at a time."""

from jaxdiff.bench.shapes import SHAPES

SMALL = {"d_model": 64, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}


def test_it_prints_what_scripts_read(run, ids_folder):
    blocks = ("--gen-length", 16, "--block-length", 8)
    found = run("bench", "--model", ids_folder, *blocks, "--rounds", 2, "--json", "--no-pytorch", "--roofline").json
    assert set(found) == {
        *("step_over_forward", "cache_speedup", "compile_seconds", "peak_temp_bytes", "details", "setting")
    }
    assert set(found["cache_speedup"]) == {"prefix", "dual", "frozen"}
    assert found["details"]["step_over_forward"]["steps"] == 16
    assert found["details"]["roofline"]["share_of_matmul"] > 0


def test_a_shape_compiles_without_its_weights(run, monkeypatch):
    monkeypatch.setitem(SHAPES, "llada-8b", SHAPES["llada-8b"] | SMALL)
    found = run("bench", "--shape", "llada-8b", "--compile-only", "--gen-length", 32, "--json").json
    assert found["peak_temp_bytes"] > 0
    assert "step_over_forward" not in found


def test_what_cannot_be_measured_is_refused(refused, folder):
    assert "expected llada-8b, dream-7b, llada2-mini" in refused("bench", "--shape", "gpt-2")
    assert "expected less than the model's context 96" in refused("bench", "--model", folder, "--gen-length", 128)
