"""The config.json that `export` writes of a model that has none: its published class reads the same model from it."""

import dataclasses
import json

import pytest

from jaxdiff import InputError, build
from jaxdiff.checkpoint import shipped_folder
from jaxdiff.convert.folder import MODEL_TYPES, published_config
from jaxdiff.models import ARCHITECTURES, AUTOREGRESSIVE, FAMILIES
from tests.convert import published as hf
from tests.models.class_defaults import DEFAULTS
from tests.models.published_configs import PUBLISHED

MODELS = [*PUBLISHED.values(), *hf.CONFIGS.items()]


def written(config):
    """As it comes back from the file."""
    return json.loads(json.dumps(published_config(build(config))))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_class_reads_the_model_that_was_exported(family):
    """Its defaults, and over them what the file says."""
    for config in (config for name, config in MODELS if name == family):
        model = build(config | {"dtype": "float32"})
        exported = written(config | {"dtype": "float32"})
        assert build(DEFAULTS[family] | exported) == model == build(exported)
        assert not [key for key, value in (DEFAULTS[family] | exported).items() if "drop" in key and value]
        assert exported["pad_token_id"] < exported["vocab_size"]
        assert exported["torch_dtype"] == "float32"
        assert exported["model_type"] == config.get("model_type", exported["model_type"])


def test_every_architecture_has_a_name():
    assert MODEL_TYPES.keys() >= ARCHITECTURES.keys() | AUTOREGRESSIVE.keys()


@pytest.mark.parametrize("family", ["llada", "llada_moe", "llada2"])
def test_the_fields_of_our_config_would_not_do(family):
    """These classes' own defaults are of models that the family's code does not compute."""
    config = build(hf.CONFIGS[family]).config
    theirs = {ours: name for name, ours in config.renamed.items()}
    fields = {theirs.get(name, name): value for name, value in dataclasses.asdict(config).items()}
    with pytest.raises(InputError, match=r"config\.json "):
        build(DEFAULTS[family] | {"architectures": hf.CONFIGS[family]["architectures"]} | fields)


def test_the_shipped_model_says_what_llada_requires():
    config = json.loads((shipped_folder() / "gsm-1m" / "config.json").read_text())
    exported = written(config)
    assert exported["block_type"] == "llama"
    assert exported["embedding_size"] is None  # as many rows as the vocabulary has, in that class too
    assert build(DEFAULTS["llada"] | exported) == build(config)
