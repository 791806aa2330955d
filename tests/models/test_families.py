"""Every family's config, as published and as ours; what block-causal attention sees; what a mixture's tokens share."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import InputError, build, load, save
from jaxdiff.models import FAMILIES, architecture
from jaxdiff.models.layers import visible
from jaxdiff.models.moe import Experts
from jaxdiff.types import Inputs, Span
from jaxdiff.windows import put, take
from tests.models.published_configs import PUBLISHED
from tests.small import MODEL

# repository -> all parameters, mask and end-of-text ids, attention block
READ = {
    "GSAI-ML/LLaDA-8B-Base": (8_015_581_184, 126336, (126081, 126348), None),
    "GSAI-ML/iLLaDA-8B-Base": (7_615_025_152, 5, (2,), None),
    "ByteDance-Seed/Stable-DiffCoder-8B-Instruct": (8_250_462_208, 5, (2,), 4),
    "Efficient-Large-Model/Fast_dLLM_v2_1.5B": (1_543_714_304, 151665, (151645,), 32),
    "Efficient-Large-Model/Fast_dLLM_v2_7B": (7_615_616_512, 151665, (151645,), 32),
    "apple/DiffuCoder-7B-Instruct": (7_615_616_512, 151666, (151643, 151645), None),
    "Dream-org/Dream-v0-Instruct-7B": (7_615_616_512, 151666, (151643, 151645), None),
    "inclusionAI/LLaDA-MoE-7B-A1B-Base": (7_356_880_896, 156895, (156892,), None),
    "inclusionAI/LLaDA2.0-mini": (16_255_643_392, 156895, (156892,), 32),
    "JetAstra/SDAR-1.7B-Chat": (2_031_739_904, 151669, (151643, 151645), 4),
    "JetLM/SDAR-30B-A3B-Chat": (30_532_122_624, 151669, (151643, 151645), 4),
    "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1": (596_049_920, 151669, (151645,), None),
    "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1": (494_032_768, 151665, (151645,), None),
    "fredzzp/open-dcoder-0.5B": (494_032_768, 151665, (151643,), None),
    "JetAstra/SDAR-1.7B-Chat, in blocks of 8": (2_031_739_904, 151669, (151643, 151645), 8),
    # autoregressive ones have no mask: the first id past the vocabulary stands for it
    "HuggingFaceTB/SmolLM2-135M-Instruct": (134_515_008, 49152, (2,), 1),
    "Qwen/Qwen2-7B-Instruct": (7_615_616_512, 152064, (151645,), 1),
    "Qwen/Qwen3-0.6B": (596_049_920, 151936, (151645,), 1),
}
# Small enough to make: each published file with other sizes.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "mask_token_id": 3,
    "eos_token_id": 1,
}
DENSE = SIZES | {"intermediate_size": 48}
CAUSAL = {name: size for name, size in DENSE.items() if name != "mask_token_id"}
SMALL = {
    "illada": PUBLISHED["GSAI-ML/iLLaDA-8B-Base"][1] | DENSE,
    "stable_diffcoder": PUBLISHED["ByteDance-Seed/Stable-DiffCoder-8B-Instruct"][1] | DENSE,
    "dream": PUBLISHED["Dream-org/Dream-v0-Instruct-7B"][1] | DENSE,
    "llada_moe": PUBLISHED["inclusionAI/LLaDA-MoE-7B-A1B-Base"][1]
    | SIZES
    | {"num_experts": 8, "num_experts_per_tok": 3, "expert_intermediate_size": 16, "moe_layer_freq": None},
    "llada2": PUBLISHED["inclusionAI/LLaDA2.0-mini"][1]
    | DENSE
    | {"moe_intermediate_size": 16, "num_experts": 16, "num_experts_per_tok": 3, "rotary_dim": None},
    "sdar": PUBLISHED["JetAstra/SDAR-1.7B-Chat"][1] | DENSE | {"tie_word_embeddings": True},
    "fast_dllm_v2": PUBLISHED["Efficient-Large-Model/Fast_dLLM_v2_1.5B"][1] | DENSE,
    "qwen_diffusion": PUBLISHED["dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1"][1] | DENSE,
    "sdar_moe": PUBLISHED["JetLM/SDAR-30B-A3B-Chat"][1]
    | SIZES
    | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
    "llama": PUBLISHED["HuggingFaceTB/SmolLM2-135M-Instruct"][1] | CAUSAL,
    "qwen2": PUBLISHED["Qwen/Qwen2-7B-Instruct"][1] | CAUSAL,
    "qwen3": PUBLISHED["Qwen/Qwen3-0.6B"][1] | CAUSAL,
}

# The others: sdar's attention over llada_moe's experts; the stacks of sdar, dream and illada, with blocks or without.
SAME = ("sdar_moe", "qwen_diffusion", "stable_diffcoder", "fast_dllm_v2", "llama", "qwen2", "qwen3")
DIFFERENT = [family for family in SMALL if family not in SAME]

# What differs in how a stack feeds, reads and keeps tokens: one group of layers; logits shifted by one; two groups,
# blocks, and experts. Every other family is one of these with another config (`jaxdiff.models.stack.Transformer`).
STACKS = {
    "llada": MODEL,
    "dream": build(SMALL["dream"] | {"dtype": "float32"}),
    "llada2": build(SMALL["llada2"] | {"dtype": "float32", "block_size": 4}),
}


@pytest.mark.parametrize("repository", READ)
def test_the_published_config_is_read(repository):
    parameters, mask, ends, block = READ[repository]
    model = build(PUBLISHED[repository][1])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == parameters
    assert (model.config.mask_token_id, model.config.eos_ids, model.attention_block) == (mask, ends, block)
    assert model.config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("repository", "shifted"),
    [(name, "dllm" not in name) for name, (family, _) in PUBLISHED.items() if family == "qwen_diffusion"],
)
def test_what_an_architecture_means_stays_in_a_folder_of_ours(repository, shifted):
    config = PUBLISHED[repository][1]
    model = build(config)
    assert (model.shifted, model.tempered) == (shifted, shifted)
    assert [architecture(model)] == config["architectures"]
    ours = build(dataclasses.asdict(model.config) | {"family": "qwen_diffusion"})
    assert ours == model
    said = build(config | {"right_shift_logits": not shifted})
    assert said.shifted != shifted
    assert build(config | {"right_shift_logits": False, "block_size": 8}).attention_block == 8


@pytest.mark.parametrize("family", SMALL)
def test_a_folder_of_ours_gives_the_model_back(family, tmp_path):
    model = build(SMALL[family] | {"dtype": "float32"})
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), jax.eval_shape(model.init, jax.random.key(0)))
    save(tmp_path / family, model, params)
    assert load(tmp_path / family).model == model
    assert type(model) is FAMILIES[family][0]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("model", STACKS.values(), ids=STACKS)
def test_the_features_of_some_tokens_are_those_of_all(model):
    """Each row read elsewhere: from its first token, to its last, inside, and from its first token behind padding."""
    tree, inputs = rows_of(model)
    apply = jax.jit(model.apply)
    every, _ = apply(tree, inputs)
    for count in (5, 11):
        start = jnp.minimum(jnp.array([0, 6, 3, 2]), 11 - count)
        some, nothing = apply(tree, inputs, read=Span(start, count))
        np.testing.assert_allclose(some, take(every, start, count), atol=1e-5)
        assert nothing is None


@pytest.mark.usefixtures("strict")
def test_some_tokens_are_read_where_the_prompt_does_not_see_the_answer():
    model = build(SMALL["illada"] | {"dtype": "float32", "prefix_lm": True})
    start, prompt = jnp.array([0, 6, 3, 2]), jnp.array([4, 1, 5, 3])
    tree, inputs = rows_of(model, prompt_length=prompt)
    some, _ = jax.jit(model.apply)(tree, inputs, read=Span(start, 5))
    every, _ = jax.jit(model.apply)(tree, inputs)
    np.testing.assert_allclose(some, take(every, start, 5), atol=1e-5)
    blind, _ = jax.jit(model.apply)(tree, dataclasses.replace(inputs, prompt_length=jnp.zeros_like(prompt)))
    assert not np.allclose(every, blind, atol=1e-3)  # else the prompt was not looked at


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("length", [8, 11])
@pytest.mark.parametrize("model", STACKS.values(), ids=STACKS)
def test_some_tokens_of_a_window_are_read_over_a_kv_cache(model, length):
    """A window is written where it is fresh, all of it, whichever part is read; 11 is a rebuild of the canvas."""
    tree, canvas = rows_of(model)
    rows = jnp.minimum(jnp.array([3, 0, 2, 1]), 11 - length)
    kv = noisy(model.empty_kv(4, 11))
    inputs = window(canvas, rows, jax.random.bernoulli(jax.random.key(3), 0.7, (4, length)))
    arguments = (tree, inputs, kv, None if length == 11 else rows)
    start = jnp.array([1, 3, 0, 2])
    some, after = jax.jit(model.apply)(*arguments, read=Span(start, 5))
    every, whole = jax.jit(model.apply)(*arguments)
    np.testing.assert_allclose(some, take(every, start, 5), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, whole)
    fresh = put(jnp.zeros((4, 11), bool), inputs.fresh, rows)
    for old, new in zip(jax.tree.leaves(kv), jax.tree.leaves(after), strict=True):
        for changed in (old != new).any(axis=(2, 4)):  # in every layer
            np.testing.assert_array_equal(changed, fresh)


@pytest.mark.usefixtures("strict")
def test_a_kv_cache_may_have_more_columns_than_a_shorter_canvas():
    """What lies right of it stays, and is not seen."""
    tree, canvas = rows_of(MODEL)
    wide = noisy(MODEL.empty_kv(4, 16))
    narrow = jax.tree.map(lambda x: x[:, :, :, :11], wide)
    start = jnp.zeros(4, jnp.int32)
    for length, read in itertools.product((8, 11), (None, Span(jnp.array([1, 3, 0, 2]), 5))):
        inputs, at = window(canvas, start, jnp.ones((4, length), bool)), None if length == 11 else start
        found, after = jax.jit(MODEL.apply)(tree, inputs, wide, at, read)
        expected, kept = jax.jit(MODEL.apply)(tree, inputs, narrow, at, read)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        for a, b, old in zip(*map(jax.tree.leaves, (after, kept, wide)), strict=True):
            np.testing.assert_allclose(a[:, :, :, :11], b, atol=1e-6)
            np.testing.assert_array_equal(a[:, :, :, 11:], old[:, :, :, 11:])


@functools.cache
def params_of(model):
    return jax.jit(model.init)(jax.random.key(0))


def rows_of(model, **fields):
    """Params; and four rows of 11, the last two with two columns of padding on the left."""
    tokens = jax.random.randint(jax.random.key(1), (4, 11), 0, model.config.vocab_size)
    return params_of(model), Inputs.whole(tokens, jnp.array([0, 0, 2, 2]), **fields)


def window(canvas, start, fresh, **fields):
    """As many columns of the canvas as `fresh` has, from each row's start on."""
    fed = {name: take(getattr(canvas, name), start, fresh.shape[1]) for name in ("tokens", "positions")}
    return dataclasses.replace(canvas, **fed, fresh=fresh, **fields)


def noisy(kv, seed=2):
    return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(seed), x.shape), kv)


@pytest.mark.parametrize("family", DIFFERENT)
def test_the_program_does_not_grow_with_depth(family):
    def equations(depth):
        model = build(SMALL[family] | {"num_hidden_layers": depth})
        tree = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jnp.zeros((1, 4), jnp.int32)
        program = str(jax.make_jaxpr(model.apply)(tree, Inputs.whole(tokens)))
        assert len(re.findall(r"ragged_dot(?:_general)?\[", program)) == (
            3 if hasattr(model.config, "num_experts") else 0
        )  # for all experts
        return program.count("=")

    assert equations(2) == equations(12)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("dream", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
        ("dream", {"mask_token_id": None}, "missing mask_token_id"),
        ("dream", {"dtype": "float16"}, "dtype: found 'float16'"),
        ("llada_moe", {"norm_topk_prob": True}, "norm_topk_prob: found True"),
        ("llada_moe", {"moe_layer_freq": [0, 1]}, "moe_layer_freq: found"),
        ("llada_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size: found 64"),
        ("qwen_diffusion", {"mask_token_id": None}, "missing mask_token_id; add the key"),
        (
            "qwen_diffusion",
            {"block_size": 4, "right_shift_logits": True},
            "block_size: found 4 with right_shift",
        ),
        ("qwen_diffusion", {"attention_bias": True}, "attention_bias: found True"),
        ("sdar_moe", {"mlp_only_layers": [1]}, "mlp_only_layers: found \\[1\\], expected \\[\\]"),
        ("sdar_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok: found 9, expected at most num_experts = 8"),
        ("llada2", {"norm_head": True}, "norm_head: found True"),
        ("llada2", {"n_group": 16}, "n_group: found 16 for 16 experts"),
        ("llada2", {"first_k_dense_replace": 2}, "first_k_dense_replace: found 2, expected 0 to 1"),
        ("sdar", {"attention_bias": True}, "attention_bias: found True"),
        ("illada", {"layer_norm_eps": 1e-5}, "layer_norm_eps: found 1e-05, expected None"),
        ("sdar", {"architectures": ["MambaForCausalLM"]}, "expected family llada"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved: found True, expected False"),
        ("llama", {"attention_bias": True}, "attention_bias: found True"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type: found 'llama3', expected"),
        ("llama", {"mask_token_id": 62}, "mask_token_id: found 62, expected an id under vocab_size 61"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window: found True"),
        ("qwen3", {"attention_bias": True}, "attention_bias: found True"),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_line(family, change, words):
    with pytest.raises(InputError, match=words) as caught:
        build(SMALL[family] | change)
    assert "\n" not in str(caught.value)


def test_block_causal_attention_counts_from_the_row_s_first_token():
    """Two rows, the second with two columns of padding: blocks of 3 by position, padding seen by nobody."""
    inputs = Inputs.whole(jnp.zeros((2, 7), jnp.int32), jnp.array([0, 2]))
    seen = np.asarray(visible(inputs, 3, False))
    assert seen[0].sum(axis=1).tolist() == [3, 3, 3, 6, 6, 6, 7]
    assert seen[1].sum(axis=1).tolist()[2:] == [3, 3, 3, 5, 5]
    assert not seen[1, :, :2].any()
    assert visible(inputs, None, False).shape == (2, 1, 7)


@pytest.mark.usefixtures("strict")
def test_a_token_s_experts_do_not_know_its_neighbours():
    """The same token among others, alone, and where every other goes to its own experts."""
    experts = Experts(experts=4, width=6, scale=1.0)
    x = jax.random.normal(jax.random.key(0), (5, 8))
    weights, chosen = jnp.full((5, 2), 0.5), jnp.array([[0, 3], [1, 2], [3, 0], [0, 1], [2, 3]])
    params = experts.init(jax.random.key(1), x, weights, chosen)
    together = experts.apply(params, x, weights, chosen)
    crowded = experts.apply(params, x, weights, jnp.broadcast_to(chosen[:1], (5, 2)))
    np.testing.assert_allclose(crowded[0], together[0], atol=1e-6)
    for row in range(5):
        one = [
            (jax.nn.silu(x[row] @ p["ff_proj"][e]) * (x[row] @ p["up_proj"][e])) @ p["ff_out"][e]
            for p in (params["params"],)
            for e in chosen[row].tolist()
        ]
        np.testing.assert_allclose(together[row], (one[0] + one[1]) / 2, atol=1e-5)
