"""The engine: every tensor used once, every leaf filled once, layouts right, all misfits told at once."""

import ml_dtypes
import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.convert import from_tensors, to_tensors
from jaxdiff.convert.families import TABLES
from jaxdiff.convert.table import Plan, same
from jaxdiff.models import architecture, family_name
from tests.convert import published as hf


@pytest.fixture
def tensors():
    return hf.tensors(hf.llada_shapes())


def test_leaves_are_stacked_and_transposed(tensors):
    model, params = from_tensors(hf.LLADA_CONFIG, tensors)
    assert model.config.mask_token_id == 3
    assert params["wte"].dtype == params["layers"]["ff_out"]["kernel"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(params["head"], tensors["model.transformer.ff_out.weight"].T)
    for n in range(hf.LAYERS):
        name = f"model.transformer.blocks.{n}."
        np.testing.assert_array_equal(params["layers"]["ff_out"]["kernel"][n], tensors[f"{name}ff_out.weight"].T)
        np.testing.assert_array_equal(params["layers"]["k_proj"]["kernel"][n], tensors[f"{name}k_proj.weight"].T)
        np.testing.assert_array_equal(params["layers"]["ff_norm"]["weight"][n], tensors[f"{name}ff_norm.weight"])


def test_there_and_back_is_bit_identical(tensors):
    back = to_tensors(*from_tensors(hf.LLADA_CONFIG, tensors))
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key].view(np.uint16), array.view(np.uint16))


def test_dtype_may_be_asked_for(tensors):
    _, params = from_tensors(hf.LLADA_CONFIG, tensors, dtype="float32")
    assert params["wte"].dtype == np.float32
    np.testing.assert_array_equal(params["wte"], tensors["model.transformer.wte.weight"].astype(np.float32))


def test_all_misfits_are_told_together(tensors):
    for n in range(hf.LAYERS):
        del tensors[f"model.transformer.blocks.{n}.up_proj.weight"]
    tensors["lm_head.weight"] = np.zeros((2, 2), np.float32)
    tensors["model.transformer.ln_f.weight"] = np.zeros(33, np.float32)
    tensors["model.transformer.wte.weight"] = np.zeros((hf.VOCAB, hf.WIDTH), np.int8)
    with pytest.raises(InputError) as caught:
        from_tensors(hf.LLADA_CONFIG, tensors)
    for line in (
        "5 misfits",
        "tensors model.transformer.blocks.{0,1}.up_proj.weight: found nothing, expected shape [48, 32]",
        "lm_head.weight: found shape [2, 2], expected no such tensor",
        "ln_f.weight: found shape [33], expected [32]",
        "wte.weight: found dtype int8, expected float32, bfloat16",
    ):
        assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", hf.CONFIGS)
def test_every_family_there_and_back(family):
    """The names are written out a second time in `published`; the leaves are those that the model itself makes."""
    tensors = hf.tensors(hf.shapes(family))
    model, params = from_tensors(hf.CONFIGS[family], tensors)
    assert family_name(model) == family
    assert ("head" in params) == (family not in hf.TIED)
    back = to_tensors(model, params)
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(back[key].view(np.uint16), array.view(np.uint16))


def test_qwen_2_as_a_diffusion_model_there_and_back():
    """Qwen's own class, whose projections have biases, and none of Qwen3's norms; not tied as the small sizes are."""
    config = hf.CONFIGS["dream"] | {"architectures": ["Qwen2ForCausalLM"]}
    tensors = hf.tensors(hf.shapes("dream"))
    model, params = from_tensors(config, tensors)
    assert (family_name(model), architecture(model)) == ("qwen_diffusion", "Qwen2ForCausalLM")
    assert model.shifted
    back = to_tensors(model, params)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key].view(np.uint16), array.view(np.uint16)) for key, array in tensors.items())


def test_a_tied_head_may_be_stored_as_well():
    """Qwen3's small sizes are published so; it is the embedding to the bit, or it is refused."""
    tensors = hf.tensors(hf.shapes("sdar"))
    model, params = from_tensors(hf.CONFIGS["sdar"], tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    assert to_tensors(model, params).keys() == tensors.keys()
    other = tensors["model.embed_tokens.weight"].copy()
    other[-1, -1] += 1
    for wrong in (other, other[1:], other.astype(np.float32)):
        with pytest.raises(InputError, match=r"lm_head.weight: found other numbers, expected those of model.embed_tok"):
            from_tensors(hf.CONFIGS["sdar"], tensors | {"lm_head.weight": wrong})


def test_lladas_head_may_be_tied():
    tensors = hf.tensors(hf.llada_shapes())
    head = tensors.pop("model.transformer.ff_out.weight")
    config = hf.LLADA_CONFIG | {"weight_tying": True}
    embedding = tensors["model.transformer.wte.weight"]
    for stored in ({}, {"model.transformer.ff_out.weight": embedding}):
        model, params = from_tensors(config, tensors | stored)
        np.testing.assert_array_equal(model.head(params), embedding.T)
    with pytest.raises(InputError, match=r"transformer.ff_out.weight: found nothing, expected shape \[61, 32\]"):
        from_tensors(hf.LLADA_CONFIG, tensors)
    with pytest.raises(InputError, match=r"transformer.ff_out.weight: found other numbers"):
        from_tensors(config, tensors | {"model.transformer.ff_out.weight": head})


def test_layers_after_the_dense_ones_and_fused_matrices():
    tensors = hf.tensors(hf.shapes("llada2"))
    _, params = from_tensors(hf.CONFIGS["llada2"], tensors)
    q, k = hf.HEADS * hf.SIZE, hf.KV_HEADS * hf.SIZE
    first, second = (tensors[f"model.layers.{n}.attention.query_key_value.weight"] for n in (0, 1))
    np.testing.assert_array_equal(params["dense"]["q_proj"]["kernel"][0], first[:q].T)
    np.testing.assert_array_equal(params["layers"]["k_proj"]["kernel"][0], second[q : q + k].T)
    np.testing.assert_array_equal(params["layers"]["v_proj"]["kernel"][0], second[q + k :].T)
    expert = tensors["model.layers.2.mlp.experts.1.down_proj.weight"]
    np.testing.assert_array_equal(params["layers"]["experts"]["ff_out"][1, 1], expert.T)


def test_a_leaf_is_filled_once():
    with pytest.raises(InputError, match=r"layers/extra/kernel: found rules for 0 numbers, expected 4"):
        Plan.make(TABLES["sdar"], {"layers/extra/kernel": (2, 2)})
    with pytest.raises(InputError, match=r"wte: found rules for 8 numbers, expected 4"):
        Plan.make((*TABLES["sdar"], same("model.again.weight", "wte")), {"wte": (2, 2)})
