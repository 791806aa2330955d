"""Odd files in a model folder: whatever stands in them, a folder is described or refused in one line."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxdiff
from jaxdiff import InputError

FILES = {
    "config.json": [
        "eos_token_id",
        "eot_token_id",
        "mask_token_id",
        "rope_scaling",
        "rope_parameters",
        "dtype",
        "n_heads",
    ],
    "generation_config.json": ["eos_token_id", "eot_token_id", "mask_token_id", "pad_token_id"],
    "tokenizer_config.json": ["eos_token", "mask_token", "added_tokens_decoder", "chat_template"],
}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats()
    | st.sampled_from([2**31, 10**30, "", "<|mdm_mask|>"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_theta", "a", "20", "content", "name", "template"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("file", FILES)
@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_folder_is_described_or_refused_in_one_line(file, data, home, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "odd"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home, folder)
    found = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    changes = data.draw(st.dictionaries(st.sampled_from(FILES[file]), VALUES, min_size=1, max_size=2))
    (folder / file).write_text(json.dumps(found | changes))
    try:
        described = jaxdiff.inspect(folder)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 900  # noqa: PT017
        return
    json.dumps(described.facts(), allow_nan=False)
    config = described.config
    assert config.mask_token_id not in config.eos_ids
    assert all(0 <= token < config.vocab_size for token in (config.mask_token_id, *config.eos_ids))
