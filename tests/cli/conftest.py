"""A tiny random model on disk, with a tokenizer and without; the command line called in this process."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff.checkpoint import load_tokenizer
from jaxdiff.cli.main import main
from jaxdiff.models import Llada, LladaConfig
from jaxdiff.tasks import TASKS
from jaxdiff.tasks.base import Problem
from jaxdiff.train.tokenizer import train_tokenizer
from tests import programs

CONTEXT = 96


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture(scope="package", autouse=True)
def shared_programs():
    """What one command line compiled, the next ones of the same shapes need not trace again."""
    with programs.shared():
        yield


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A model folder with a tokenizer: 2 layers, random, context 96."""
    home = tmp_path_factory.mktemp("models")
    (home / "tokenizer").mkdir()
    train_tokenizer("drills", 50, 270, 0, home / "tokenizer")
    config = LladaConfig(
        vocab_size=280,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        mlp_hidden_size=48,
        mask_token_id=0,
        eos_token_id=load_tokenizer(home / "tokenizer").eos_id,
        max_sequence_length=CONTEXT,
        dtype="float32",
    )
    model = Llada(config)
    params = model.init(jax.random.key(0))
    params["head"] = params["head"] * 4
    jaxdiff.save(home / "tiny", model, params, tokenizer_from=home / "tokenizer")
    jaxdiff.save(home / "ids", model, params)
    return home / "tiny"


@pytest.fixture(scope="package")
def ids_folder(folder):
    """The same model without a tokenizer."""
    return folder.parent / "ids"


@pytest.fixture(scope="package")
def adapter(tmp_path_factory):
    """Of the tiny model, large enough to change its answers."""
    folder, generator, tensors = tmp_path_factory.mktemp("adapters") / "lora", np.random.default_rng(0), {}
    for n in range(2):
        name = f"base_model.model.model.transformer.blocks.{n}.ff_out.lora_"
        tensors[f"{name}A.weight"] = generator.normal(size=(4, 48)).astype(np.float32)
        tensors[f"{name}B.weight"] = generator.normal(size=(32, 4)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": r".*blocks\.\d\.ff_out", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(capsys):
    """Calls the command line with these arguments."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(run, tmp_path):
    """Calls a command line that must fail: exit code 2, one line on stderr, nothing else; returns the line."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        ran = run(*arguments)
        assert (ran.code, ran.out, sorted(tmp_path.rglob("*"))) == (2, "", before)
        assert ran.err.startswith("jaxdiff: ")
        (line,) = ran.err.splitlines()
        return line

    return call


@pytest.fixture(scope="package")
def checkpoint(folder):
    """The tiny model, loaded."""
    return jaxdiff.load(folder)


@pytest.fixture
def parity(monkeypatch):
    """A task whose verifier accepts every second problem, whatever the text."""
    module = types.ModuleType("parity")
    vars(module).update(
        NAME="parity",
        LENGTH=256,
        problems=lambda split, seed: (Problem(f"{split} {seed} {i}", "", str(i)) for i in range(1000)),
        verify=lambda answer, problem: int(problem.answer) % 2 == 0,
    )
    monkeypatch.setitem(TASKS, "parity", module)
