"""Model folders whose weights are odd in several ways at once: what each must come to is known when it is drawn.

A folder either loads, and then its params are those of the plain folder to the bit, or is refused in one line, and then
`inspect` shows it all the same. Its code is never run.
"""

import dataclasses
import functools
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError
from jaxdiff.cli.main import main
from tests.convert import published as hf
from tests.faults import fuzz

DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
WRAPS = {  # what stands before or within every name; whether it is taken off
    "": True,
    "module.": True,
    "model.": True,
    "base_model.model.": True,
    "_orig_mod.": True,
    "module._orig_mod.": True,
    "_fsdp_wrapped_module.": True,
    "student.": False,
    "layers.": False,
}
INDEXES = {  # what is wrong with the index; whether the folder still loads
    "": True,
    "lists what no shard holds": True,
    "leaves tensors out": True,
    "names the other shard": True,
    "a stale file": True,
    "a missing file": False,
}
TENSORS = {"": True, "buffers": True, "tied head": True, "dropped": False, "extra": False, "transposed": False}
QUANTISED = {  # quantization_config; whether plain tensors load beside it
    "": True,
    "{}": True,
    '{"quant_method": "fp8", "weight_block_size": [128, 128]}': True,
    '{"quant_method": "gptq", "bits": 4}': False,
    '{"quant_method": ["x"]}': False,
    '"awq"': False,
    "7": False,
}
STORED_AS = ("", "bfloat16", "float16", "torch.float32", "float8_e4m3fn", "auto", "x" * 300, 3, [1])


@dataclasses.dataclass(frozen=True)
class Odd:
    family: str
    seed: int  # of the dtypes that tensors are stored in
    float8: bool
    wrap: str
    index: str
    tensors: str
    quantised: str
    stored_as: object
    template: str | None

    @property
    def loads(self) -> bool:
        return WRAPS[self.wrap] and INDEXES[self.index] and TENSORS[self.tensors] and QUANTISED[self.quantised]


def odd_folders():
    mostly = functools.partial(lambda names: st.one_of(st.just(""), st.sampled_from(list(names))))
    return st.builds(
        Odd,
        family=st.sampled_from(list(hf.CONFIGS)),
        seed=st.integers(0, 3),
        float8=st.booleans(),
        wrap=mostly(WRAPS),
        index=mostly(INDEXES),
        tensors=mostly(TENSORS),
        quantised=mostly(QUANTISED),
        stored_as=st.sampled_from(STORED_AS),
        template=st.none() | st.sampled_from(fuzz.TEMPLATES),
    )


@functools.cache
def arrays_of(family):
    """Eighths from -1 to 1, which every dtype holds exactly, float8 with a power of two as its scale too."""
    generator = np.random.default_rng(7)
    return {key: (generator.integers(-8, 9, shape) / 8).astype(np.float32) for key, shape in hf.shapes(family).items()}


def stored(odd):
    """The tensors as they go into files."""
    generator, found = np.random.default_rng(odd.seed), {}
    for key, array in arrays_of(odd.family).items():
        if odd.float8 and array.ndim == 2 and ".0." in key:
            scale = 2.0 ** generator.integers(-3, 4, (len(array), 1))
            found[key] = (array / scale).astype(ml_dtypes.float8_e4m3fn)
            found[f"{key}_scale"] = scale.astype(np.float32)
        else:
            found[key] = array.astype(DTYPES[generator.integers(0, 3)])
    last = [key for key in found if key.endswith("norm.weight")][-1]
    match odd.tensors:
        case "buffers":
            wanted = 10000.0 if odd.family != "llada_moe" else 50000.0
            rotated = hf.SIZE // 2 if odd.family == "llada2" else hf.SIZE
            frequencies = (wanted ** (-np.arange(0, rotated, 2) / rotated)).astype(np.float32)
            found["model.layers.0.self_attn.rotary_emb.inv_freq"] = frequencies
        case "tied head" if hf.CONFIGS[odd.family].get("tie_word_embeddings"):
            found["lm_head.weight"] = arrays_of(odd.family)["model.embed_tokens.weight"].astype(np.float32)
        case "dropped":
            del found[last]
        case "extra":
            found["model.visual.weight"] = np.zeros((2, 2), np.float32)
        case "transposed":
            found[last] = found[last][None]
    return {odd.wrap + key: array for key, array in found.items()}


def write(odd, folder):
    shutil.rmtree(folder, ignore_errors=True)
    config = hf.CONFIGS[odd.family] | {"auto_map": {"AutoModel": "modeling.Model"}}
    if odd.stored_as != "":
        config["torch_dtype"] = odd.stored_as
    if odd.quantised:
        config["quantization_config"] = json.loads(odd.quantised)
    arrays = stored(odd)
    hf.write_folder(folder, config, arrays, shards=2)
    fuzz.tokenizer_files(folder)
    (folder / "modeling.py").write_text("raise SystemExit('code of a checkpoint was run')")
    if odd.template is not None:
        (folder / "chat_template.jinja").write_text(odd.template, encoding="utf-8")
    index = folder / "model.safetensors.index.json"
    where, (first, second) = json.loads(index.read_text())["weight_map"], sorted(folder.glob("model-*"))
    match odd.index:
        case "lists what no shard holds":
            where |= {"lm_head.bias": first.name}
        case "leaves tensors out":
            where = dict(list(where.items())[:2])
        case "names the other shard":
            where |= {next(iter(where)): second.name}
        case "a stale file":
            shutil.copy(first, folder / "model-00007-of-00009.safetensors")
        case "a missing file":
            second.unlink()
    hf.write_index(folder, where)
    return folder


@functools.cache
def expected(family):
    return jaxdiff.convert.from_tensors(hf.CONFIGS[family], arrays_of(family))[1]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=odd_folders())
def test_odd_weights_load_as_they_are_or_are_refused_in_one_line(odd, tmp_path_factory):
    folder = write(odd, tmp_path_factory.getbasetemp() / "odd_weights")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["inspect", str(folder), "--json"])
    assert (code, err.getvalue()) == (0 if odd.loads else 1, "")
    faults = json.loads(out.getvalue())["faults"]
    if odd.loads:
        assert not faults
        loaded = jaxdiff.load(folder, dtype="float32")
        jax.tree.map(np.testing.assert_array_equal, loaded.params, expected(odd.family))
        return
    with pytest.raises(InputError) as caught:
        jaxdiff.load(folder, dtype="float32")
    assert faults == [str(caught.value)]
    assert "\n" not in faults[0]
    assert len(faults[0]) < 2500
