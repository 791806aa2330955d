"""What config.json and its siblings say: obeyed, or refused by name."""

import dataclasses
import shutil

import pytest

import jaxdiff
from jaxdiff import InputError, build
from jaxdiff.models import FAMILIES
from tests.convert import published as hf
from tests.faults.folders import edit, refusal

# --- settings, their types and their ranges

SHORT = {name: hf.CONFIGS[name] for name in FAMILIES}
ODD = [True, -1, 0, 2.5, 10**400, "8", [8], {"a": 1}, float("nan"), float("inf")]


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_values_are_refused_by_name(family):
    """Whatever stands in a key that is used: a model as it was, or one line that names the key."""
    config, parse = SHORT[family], FAMILIES[family][1]
    fields = {f.name: str(f.type) for f in dataclasses.fields(parse)}
    names = {**parse.renamed, **{name: name for name in fields}}
    for key, name in names.items():
        others = {k: v for k, v in config.items() if names.get(k) != name}
        for odd in ODD:
            try:
                made = build(others | {key: odd}).config
            except InputError as error:
                assert key in str(error) or name in str(error) or "rotary_dim" in str(error), (key, odd, str(error))  # noqa: PT017
                assert "\n" not in str(error)  # noqa: PT017
                assert len(str(error)) < 400  # noqa: PT017
                continue
            kept = getattr(made, name)
            kept = kept[0] if name == "further_eos_token_ids" else kept
            assert kept == (odd[0] if odd == [8] else odd) or (odd == 0 and key in ("head_dim", "embedding_size")), (
                key,
                odd,
            )
            assert type(kept) is not bool or fields[name] == "bool"
            assert fields[name] != "int" or type(kept) is int


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_scaling": {}}, 5e5),
        ({"rope_parameters": None, "rope_scaling": {}, "rope_theta": 7}, 7.0),
        ({"rope_parameters": {"partial_rotary_factor": None, "rope_theta": 7}}, 7.0),
        ({"rope_scaling": {"rope_theta": 9, "rope_type": None, "factor": 1}}, 9.0),
        ({"rope_theta": 9, "rope_parameters": {"a": {"rope_theta": 9.0}, "b": {}}}, 9.0),
        (
            {"rope_theta": 9, "rope_parameters": {"rope_theta": 8}},
            "rope_parameters.rope_theta: found 8 beside rope_theta 9",
        ),
        (
            {"rope_scaling": {"rope_theta": 1}, "rope_parameters": {"rope_theta": 2}},
            "rope_parameters.rope_theta: found 2",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor: found 2.0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters.rope_type: found 'llama3'"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta: found '1e4', expected a number"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta: found nan"),
        ({"rope_parameters": {"partial_rotary_factor": 2.0}}, "partial_rotary_factor: found 2.0"),
        ({"rope_parameters": [1]}, "rope_parameters: found [1], expected an object"),
        ({"rope_parameters": {"a": {"b": {"rope_theta": 1}}}}, "rope_parameters.a.b: found"),
    ],
)
def test_rotary_positions_are_obeyed_or_refused(layout, expected, family):
    config = {k: v for k, v in SHORT[family].items() if k != "rope_theta"}
    if isinstance(expected, float):
        assert build(config | layout).config.rope_theta == expected
        return
    with pytest.raises(InputError) as caught:
        build(config | layout)
    assert expected in str(caught.value)


# --- ids that cannot all be true


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eos_token_id": 3}, "eos_token_id: found 3, which is mask_token_id too"),
        ({"eot_token_id": 3}, "eot_token_id: found 3, which is mask_token_id too"),
        ({"eos_token_id": [1, 2, 3]}, "found 3, which is mask_token_id too"),
        ({"eos_token_id": [1, 2, 61]}, "found 61, expected an id under vocab_size 61"),
        ({"eot_token_id": 61}, "eot_token_id: found 61, expected an id under vocab_size 61"),
        ({"mask_token_id": 62}, "mask_token_id: found 62, expected an id under vocab_size 61"),
        ({"mask_token_id": [3, 4]}, "mask_token_id: found [3, 4], expected one id"),
        ({"eos_token_id": True}, "eos_token_id: found True, expected a whole number"),
        ({"eos_token_id": -1}, "eos_token_id: found -1, expected a whole number"),
    ],
)
def test_ids_that_cannot_all_be_true(changes, words, family):
    with pytest.raises(InputError) as caught:
        build(SHORT[family] | {"mask_token_id": 3} | changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"eos_token_id": 0}, "config.json eos_token_id: found 0, which"),
        ("generation_config.json", {"eos_token_id": [1, 0]}, "generation_config.json eos_token_id: found 0, which"),
        ("generation_config.json", {"eos_token_id": [1, 280]}, "found 280, expected an id under vocab_size 280"),
        ("tokenizer_config.json", {"eos_token": "<|mdm_mask|>"}, "tokenizer_config.json eos_token: found 0, which"),
        ("generation_config.json", {"eos_token_id": "1"}, "generation_config.json eos_token_id: found '1'"),
    ],
)
def test_the_file_of_a_wrong_id_is_named(file, changes, words, source):
    edit(source / file, **changes)
    assert words in refusal(source)


def test_ids_of_our_own_folders_are_checked(tmp_path):
    folder = shutil.copytree(jaxdiff.checkpoint.shipped_folder() / "gsm-1m", tmp_path / "ours")
    for changes in ({"eot_token_id": 0}, {"further_eos_token_ids": [5, 0]}):
        edit(folder / "config.json", eot_token_id=None, further_eos_token_ids=[])
        edit(folder / "config.json", **changes)
        with pytest.raises(InputError, match="found 0, which is mask_token_id too"):
            jaxdiff.load(folder)


def test_ids_that_nobody_reads_may_be_anything(source):
    edit(source / "config.json", pad_token_id=-1, bos_token_id="x", quantization_config={}, rope_scaling={})
    edit(source / "generation_config.json", pad_token_id=-1)
    assert jaxdiff.inspect(source).config.eos_ids == (1,)
