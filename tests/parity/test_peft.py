"""Adapters that are written here, loaded by the peft package itself: its logits are those of the adapted params."""

import functools
import re

import jax
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff.models.lora import LoraRecipe, adapt, join, merged, split
from tests.convert import published as hf
from tests.convert.test_adapter import program
from tests.parity.networks import network
from tests.parity.test_networks import LONG

peft = pytest.importorskip("peft", reason="peft is not installed")


class Renamed(torch.nn.Module):
    """A network under the names that its family publishes, each before the layers that have it in transformers."""

    def __init__(self, module, names):
        super().__init__()
        for name, path in names.items():
            *before, last = name.split(".")
            at = self
            for part in before:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(last, module.get_submodule(path))


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_peft_loads_what_is_written(family, tmp_path):
    reference = network(family, seed=1)
    folder = hf.write_folder(tmp_path / "hf", reference.config, reference.tensors())
    loaded, generator = jaxdiff.load(folder), np.random.default_rng(0)
    recipe = LoraRecipe(rank=3, alpha=12.0, targets=("q_proj", "attn_out", "ff_out"))
    own, frozen = split(jax.jit(functools.partial(adapt, recipe=recipe))(loaded.params, jax.random.key(0)))
    whole = join(jax.tree.map(lambda x: generator.normal(0, 0.3, x.shape).astype(np.float32), own), frozen)
    jaxdiff.save_adapter(tmp_path / "lora", loaded.model, whole, base="org/name")
    names = {}
    for path, module in reference.module.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = f"{path}.weight"
            for pattern, replacement in reference.rename:
                name = re.sub(pattern, replacement, name)
            names[name.removesuffix(".weight")] = path
    before = reference.run(LONG)[1]
    published = Renamed(reference.module, names)
    adapted = peft.PeftModel.from_pretrained(published, tmp_path / "lora")
    layers = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert len(layers) == 6
    for name, path in names.items():  # where peft has put its layers, the network now has them too
        parent, _, last = path.rpartition(".")
        setattr(reference.module.get_submodule(parent), last, published.get_submodule(name))
    expected = reference.run(LONG)[1]
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(program(loaded.model)(merged(whole)), expected, atol=1e-4)
