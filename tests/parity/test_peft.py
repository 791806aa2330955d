"""The peft package itself beside ours: it loads the adapters written here, and those that it writes are read here."""

import copy
import functools
import re

import jax
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff.convert import convert, export
from jaxdiff.models.lora import LoraRecipe, adapt, join, merged, split
from tests.convert import published as hf
from tests.convert.test_adapter import program
from tests.parity.networks import network
from tests.parity.test_networks import LONG

peft = pytest.importorskip("peft", reason="peft is not installed")


class Renamed(torch.nn.Module):
    """The Linears of a network under the names that its family publishes."""

    def __init__(self, reference):
        super().__init__()
        self.paths = {}
        for path, module in reference.module.named_modules():
            if isinstance(module, torch.nn.Linear):
                name = f"{path}.weight"
                for pattern, replacement in reference.rename:
                    name = re.sub(pattern, replacement, name)
                self.paths[name.removesuffix(".weight")] = path
                *before, last = name.removesuffix(".weight").split(".")
                at = self
                for part in before:
                    if not hasattr(at, part):
                        at.add_module(part, torch.nn.Module())
                    at = getattr(at, part)
                at.add_module(last, module)

    def logits(self, reference):
        """The network's, with what peft has put in the place of its Linears."""
        for name, path in self.paths.items():
            parent, _, last = path.rpartition(".")
            setattr(reference.module.get_submodule(parent), last, self.get_submodule(name))
        return reference.run(LONG)[1]


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_both_read_what_the_other_writes(family, tmp_path):
    ours, theirs = (copy.deepcopy(network(family, seed=1)) for _ in range(2))
    folder = hf.write_folder(tmp_path / "hf", ours.config, ours.tensors())
    loaded, generator = jaxdiff.load(folder), np.random.default_rng(0)
    before = ours.run(LONG)[1]

    # written here, loaded by peft
    recipe = LoraRecipe(rank=3, alpha=12.0, targets=("q_proj", "attn_out", "ff_out"))
    own, frozen = split(jax.jit(functools.partial(adapt, recipe=recipe))(loaded.params, jax.random.key(0)))
    whole = join(jax.tree.map(lambda x: generator.normal(0, 0.3, x.shape).astype(np.float32), own), frozen)
    jaxdiff.save_adapter(tmp_path / "lora", loaded.model, whole, base="org/name")
    published = Renamed(ours)
    adapted = peft.PeftModel.from_pretrained(published, tmp_path / "lora")
    assert sum(hasattr(module, "lora_A") for module in adapted.modules()) == 6
    expected = published.logits(ours)
    assert np.abs(expected - before).max() > 0.1
    np.testing.assert_allclose(program(loaded.model)(merged(whole)), expected, atol=1e-4)

    # written by peft, loaded here, and merged by both
    targets = {"llada": ["k_proj", "ff_proj"], "dream": ["k_proj", "gate_proj"], "sdar": ["k_proj", "gate_proj"]}
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=targets[family],
        use_rslora=True,
        rank_pattern={"k_proj": 4},
        alpha_pattern={r".*\.1\..*k_proj": 3},
        init_lora_weights=False,  # B is random
    )
    torch.manual_seed(0)
    published = Renamed(theirs)
    adapted = peft.get_peft_model(published, config)
    adapted.save_pretrained(tmp_path / "theirs")
    expected = published.logits(theirs)
    assert np.abs(expected - before).max() > 0.1
    read = jaxdiff.load(folder, adapter=tmp_path / "theirs")
    np.testing.assert_allclose(program(loaded.model)(read.params), expected, atol=1e-4)
    adapted.merge_and_unload()
    published.logits(theirs)
    convert(folder, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "out", adapter=tmp_path / "theirs")
    found, expected = hf.read_folder(tmp_path / "out"), theirs.tensors()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)
