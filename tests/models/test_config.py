"""A config.json is understood in full or refused: every key is used, required, harmless, or an error by name."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdiff import InputError, build
from jaxdiff.checkpoint import shipped_folder
from jaxdiff.models import FAMILIES, model_of
from tests.models.published_configs import LLADA22_FLASH, PUBLISHED

ONE_OF_EACH = dict(PUBLISHED.values())  # the last of each family
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
VALUES = st.one_of(st.booleans(), st.integers(), st.text(max_size=200), st.lists(st.integers()), st.just({"a": 1}))


def refusal(config, **options):
    with pytest.raises(InputError) as caught:
        build(config, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("repository", PUBLISHED)
def test_every_published_key_is_known(repository):
    family, config = PUBLISHED[repository]
    kind, parse = FAMILIES[family]
    assert type(build(config)) is kind
    assert {key: parse.kind_of(key) for key in config if parse.kind_of(key) is None} == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_harmless_key_changes_nothing(family):
    config, parse = ONE_OF_EACH[family], FAMILIES[family][1]
    bare = {key: value for key, value in config.items() if parse.kind_of(key) != "harmless"}
    assert bare.keys() != config.keys()
    assert build(bare) == build(config)


# What transformers and trainers write into any config.json.
WRITTEN = {
    "_attn_implementation": "sdpa",
    "add_cross_attention": False,
    "attn_implementation": "eager",
    "chunk_size_feed_forward": 0,
    "cls_token_id": 5,
    "do_sample": True,
    "id2label": {"0": "LABEL_0"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0},
    "max_new_tokens": 64,
    "num_logits_to_keep": 0,
    "pretraining_tp": 1,
    "pruned_heads": {},
    "return_dict": True,
    "temperature": 0.7,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "top_k": 20,
    "top_p": 0.8,
    "torchscript": False,
    "unk_token_id": 6,
    "unsloth_version": "2025.9.1",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_beside_a_model_changes_nothing(family):
    config = ONE_OF_EACH[family]
    assert build(config | WRITTEN) == build(config)
    for key, value in (("is_decoder", True), ("pretraining_tp", 2), ("pruned_heads", {"0": [1]})):
        assert f"{key}: found {value!r}, expected {WRITTEN[key]!r}" in refusal(config | {key: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_ours_is_known(family):
    config = build(ONE_OF_EACH[family]).config
    ours = dataclasses.asdict(config) | {"family": family}
    assert all(type(config).kind_of(key) == "used" for key in ours)
    assert build(ours).config == config


def test_the_shipped_configs_are_known():
    for file in shipped_folder().glob("*/config.json"):
        build(json.loads(file.read_text()))


def test_block_routing_is_refused_by_name():
    """LLaDA2.2-flash shares LLaDA2's architecture and tensors, and routes in another way."""
    assert build({k: v for k, v in LLADA22_FLASH.items() if not re.match("expert_cap|delete_|split_", k)})
    words = refusal(LLADA22_FLASH)
    assert "this is LLaDA2.2, which routes whole blocks to experts" in words
    assert words.count("LLaDA2.2") == 1
    assert "expert_capacity: found 48" in words
    assert "delete_token_id: found 156930" in words
    assert "--ignore-config expert_capacity" in words
    assert "expert_capacity" in refusal(LLADA22_FLASH, ignore=("delete_token_id", "split_token_id"))
    assert build(LLADA22_FLASH, ignore=("expert_capacity", "delete_token_id", "split_token_id"))


@given(family=st.sampled_from(sorted(FAMILIES)), key=KEYS, value=VALUES)
@settings(max_examples=200, deadline=None)
def test_an_unknown_key_is_refused_by_name_or_ignored(family, key, value):
    config, parse = ONE_OF_EACH[family], FAMILIES[family][1]
    if parse.kind_of(key) is not None:
        return
    words = refusal(config | {key: value})
    assert (key if key.isprintable() else ascii(key)) in words
    assert parse.__name__ in words
    assert build(config | {key: value}, ignore=(key,)) == build(config)
    assert build(config | {key: None}) == build(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_required_value_cannot_be_ignored(family):
    config, parse = ONE_OF_EACH[family], FAMILIES[family][1]
    required = [key for key in parse.required if parse.kind_of(key) == "required"]
    assert required
    for key in required:
        assert f"{key}: found 'another', expected" in refusal(config | {key: "another"})
        assert f"ignore: found '{key}'" in refusal(config | {key: "another"}, ignore=(key,))
    assert "ignore: found 'vocab_size'" in refusal(config, ignore="vocab_size")


def test_ignored_keys_may_be_absent_or_harmless():
    assert build(ONE_OF_EACH["sdar"], ignore=("nowhere", "use_cache")) == build(ONE_OF_EACH["sdar"])


def test_a_file_is_named():
    with pytest.raises(InputError, match=r"^hub/config.json: colour: found 'red', expected keys that SdarConfig knows"):
        model_of(ONE_OF_EACH["sdar"] | {"colour": "red"}, Path("hub/config.json"))


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("dream", {"d_model": 64}, "d_model: found 64 beside hidden_size 3584, expected the same"),
        ("sdar", {"block_size": 8, "attention_block": 4}, "attention_block: found 4 beside block_size 8"),
        ("llada", {"embedding_size": 126463}, "embedding_size: found 126463, expected at least vocab_size 126464"),
        ("llada", {"tie_word_embeddings": True}, "tie_word_embeddings: found True, expected False as weight_tying"),
        ("llada2", {"using_split_qkv_in_self_attention": True}, "using_split_qkv_in_self_attention: found True"),
        ("llada2", {"rotary_dim": 128}, "rotary_dim: found 128, expected 64 as rotary_dim"),
        ("llada", {"rope": None}, "rope: found None, expected True"),
        ("llada_moe", {"qk_layernorm": None}, "qk_layernorm: found None, expected True"),
        ("llada_moe", {"moe_layer_freq": [1, 0]}, "moe_layer_freq: found [1, 0], expected 1 in every layer"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window: found True, expected False"),
        ("sdar", {"layer_types": ["full_attention", "sliding_attention"]}, "expected 'full_attention' in every layer"),
        ("sdar", {"quantization_config": {"bits": 4}}, "quantization_config: found {'bits': 4}"),
    ],
)
def test_a_contradiction_is_refused(family, changes, words):
    assert words in refusal(ONE_OF_EACH[family] | changes)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("dream", {"d_model": 3584}),
        ("llada", {"tie_word_embeddings": False}),
        ("sdar", {"layer_types": ["full_attention"] * 36}),
        ("llada", {"embedding_size": None, "bias_for_layer_norm": None}),
        ("llada_moe", {"moe_layer_freq": None, "shared_expert_intermediate_size": 0}),
    ],
)
def test_the_same_said_twice_or_not_at_all(family, changes):
    assert build(ONE_OF_EACH[family] | changes) == build(ONE_OF_EACH[family])


THETA = 5e5
ROPES = {
    "plain": {"rope_theta": THETA, "rope_scaling": None, "rope_parameters": {}},
    "empty": {"rope_theta": THETA, "rope_scaling": {}},
    "default": {"rope_theta": THETA, "rope_scaling": {"rope_type": "default", "type": "default", "factor": 1.0}},
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}},
    "twice": {"rope_theta": 500000, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}},
    "nested": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": THETA}}},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ROPES)
def test_every_layout_of_rotary_positions_is_read(layout, family):
    config = {key: value for key, value in ONE_OF_EACH[family].items() if not key.startswith("rope_theta")}
    assert build(config | ROPES[layout]).config.rope_theta == THETA


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling.type: found 'yarn', expected 'default'"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2}}, "rope_scaling.factor: found 2, expected 1.0"),
        ({"rope_scaling": "yarn"}, "rope_scaling: found 'yarn', expected an object"),
        ({"rope_scaling": {"mrope_section": [1, 2]}}, "rope_scaling.mrope_section: found [1, 2]"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta: found 5.0 beside rope_theta 1000000"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear"}}},
            "rope_parameters.full_attention.rope_type: found 'linear', expected 'default'",
        ),
        (
            {"rope_theta": None, "rope_parameters": {"a": {"rope_theta": 1.0}, "b": {"rope_theta": 2.0}}},
            "rope_parameters.b.rope_theta: found 2.0 beside rope_parameters.a.rope_theta 1.0",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: found 0.5, expected 1.0"),
    ],
)
def test_other_rotary_positions_are_refused(changes, words):
    assert words in refusal(ONE_OF_EACH["sdar"] | changes)


def test_a_key_of_the_rotary_positions_may_be_ignored():
    config = ONE_OF_EACH["sdar"] | {"rope_scaling": {"rope_type": "default", "note": "x"}}
    assert build(config, ignore=("rope_scaling.note",)) == build(ONE_OF_EACH["sdar"])


def test_the_rotary_share_is_read_where_the_family_has_one():
    config = {k: v for k, v in ONE_OF_EACH["llada2"].items() if k not in ("partial_rotary_factor", "rotary_dim")}
    assert build(config | {"rope_parameters": {"partial_rotary_factor": 0.25}}).config.rotary_dim == 32
