"""Model folders as people hold them: read as one, or refused in one line that names the fault and the mend."""

import codecs
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff import InputError, Tokenizer, build
from jaxdiff.cli.main import main
from jaxdiff.convert import convert, export, from_tensors, writer
from jaxdiff.stoppers import STOPPERS
from tests.convert import published as hf
from tests.convert.test_folder import same
from tests.faults.folders import CONFIG, VOCAB, edit, refusal, tensors

# --- slices past a tensor's end


@pytest.mark.parametrize("rows", [4096 * 2, 4096 + 7])
def test_a_stored_tied_head_is_compared_in_a_real_file(rows, tmp_path):
    """The numbers of rows that published vocabularies have are no multiples of 4,096."""
    config = hf.CONFIGS["sdar"] | {"vocab_size": rows}
    arrays = hf.tensors({k: (rows, hf.WIDTH) if "embed" in k else s for k, s in hf.shapes("sdar").items()})
    head = arrays["model.embed_tokens.weight"].copy()
    folder = hf.write_folder(tmp_path / "hf", config, arrays | {"lm_head.weight": head})
    described = jaxdiff.inspect(folder)
    assert described.facts()["tied_head"]
    head[-1, -1] += 1
    save_file(arrays | {"lm_head.weight": head}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head.weight: found other numbers, expected those of model.embed_tokens"):
        jaxdiff.load(folder)


# --- what ends an answer

ENDS = {
    "config": ({"eos_token_id": [1, 2, 202]}, {}, (1, 2, 202)),
    "generation": ({}, {"eos_token_id": [1, 2, 202, 203]}, (1, 2, 202, 203)),
    "both": ({"eos_token_id": [1, 5]}, {"eos_token_id": [202, 5]}, (1, 5, 202)),
    "a turn's end too": ({"eot_token_id": 7}, {"eos_token_id": [1, 202]}, (1, 7, 202)),
    "generation's turn": ({}, {"eos_token_id": [1, 202], "eot_token_id": 7}, (1, 7, 202)),
    "lists of turns": ({"eot_token_id": [7, 8]}, {}, (1, 7, 8)),
    "one in a list": ({"eos_token_id": [4]}, {}, (4, 1)),  # and the tokenizer's
    "twice": ({"eos_token_id": [1, 1, 1]}, {}, (1,)),
}


@pytest.mark.parametrize("case", ENDS)
def test_every_listed_id_ends_an_answer(case, source, tmp_path):
    config, generation, expected = ENDS[case]
    edit(source / "config.json", **config)
    edit(source / "generation_config.json", **generation)
    described = jaxdiff.inspect(source)
    assert set(described.config.eos_ids) == set(expected) == set(described.tokenizer.eos_ids)
    assert described.config.eos_ids[0] == expected[0]
    if case in ("both", "a turn's end too"):
        ours, back = tmp_path / "ours", tmp_path / "back"
        convert(source, ours)
        shutil.rmtree(ours / "published")  # as if it was trained here: its config is spelt anew
        export(ours, back)
        assert jaxdiff.inspect(ours).config == jaxdiff.inspect(back).config == described.config
    hello = described.tokenizer.encode("hello")
    for end in expected:
        assert described.tokenizer.decode([*hello, end, *hello]) == "hello"


def test_build_takes_a_list_of_ends():
    config = build(hf.LLADA_CONFIG | {"eos_token_id": [1, 2, 20]}).config
    assert (config.eos_token_id, config.eot_token_id, config.eos_ids) == (1, 2, (1, 2, 20))
    assert hash(config) == hash(build(dataclasses.asdict(config) | {"family": "llada"}).config)


@pytest.mark.parametrize("stop", ["eos", "eotp:way=official"])
def test_every_stopper_heeds_the_third_id(stop):
    """A model all of whose logits are 0 predicts id 0 everywhere, the third of its list: no stopper lets it run on."""
    config = hf.LLADA_CONFIG | {"eos_token_id": [1, 2, 0], "n_layers": 1, "dtype": "float32"}
    model, params = from_tensors(config, hf.tensors(hf.llada_shapes(1), dtype=np.float32))
    params = params | {"head": jax.numpy.zeros_like(params["head"])}
    decoder = jaxdiff.Decoder(stop=STOPPERS.parse(stop), block_length=8)
    prompts, origin = jaxdiff.pad_prompts([[5, 6]], fill=1)
    result = jaxdiff.decode(model, params, prompts, decoder, gen_length=16, origin=origin)
    assert (result.tokens[0, 2].item(), result.lengths.tolist()) == (0, [1])
    assert result.nfe.item() <= 2


# --- a folder that shadows the shipped model


def test_a_folder_of_a_shipped_name_without_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm-1m").mkdir()
    assert jaxdiff.inspect("gsm-1m").path == jaxdiff.checkpoint.shipped_folder() / "gsm-1m"
    with pytest.raises(InputError, match=r"no config.json in 'gsm-1m', which holds nothing"):
        jaxdiff.inspect("./gsm-1m/")


# --- what else a folder may be


def test_rows_past_the_vocabulary_are_kept_and_never_predicted(tmp_path):
    config = CONFIG | {"embedding_size": VOCAB + 40, "n_layers": hf.LAYERS}
    arrays = tensors(rows=VOCAB + 40)
    arrays["model.transformer.ff_out.weight"][VOCAB:] *= 100
    source = hf.write_folder(tmp_path / "hf", config, arrays)
    convert(source, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    same(hf.read_folder(tmp_path / "back"), arrays)
    loaded = jaxdiff.load(tmp_path / "ours")
    assert loaded.params["wte"].shape[0] == VOCAB + 40
    prompts, origin = jaxdiff.pad_prompts([[5, 6]], fill=1)
    result = jaxdiff.decode(loaded.model, loaded.params, prompts, gen_length=32, origin=origin)
    assert int(result.tokens.max()) < VOCAB
    with pytest.raises(InputError, match="embedding_size: found 279, expected at least vocab_size 280"):
        build(CONFIG | {"embedding_size": 279})


def _move_weights(folder, name, config=None):
    (folder / "model.safetensors").rename(folder / name)
    if config is not None:
        (folder / name).with_name("x").touch()


def _rename(folder, old, new):
    arrays = hf.read_folder(folder)
    save_file({key.replace(old, new): array for key, array in arrays.items()}, folder / "model.safetensors")


def _pointer(path):
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 16000000000\n")


OTHERS = {
    "adapter": (
        lambda f: edit(f / "adapter_config.json", base_model_name_or_path="GSAI-ML/LLaDA-8B-Base"),
        "holds a LoRA adapter of GSAI-ML/LLaDA-8B-Base (adapter_config.json), expected a whole model; name the model",
    ),
    "adapter by its tensors": (lambda f: _rename(f, "q_proj.weight", "q_proj.lora_A.weight"), "holds a LoRA adapter"),
    "gptq": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config: found weights quantised by gptq, expected plain",
    ),
    "old gptq": (lambda f: edit(f / "quantize_config.json", bits=4), "quantize_config.json: found weights that are"),
    "awq by its tensors": (lambda f: _rename(f, "q_proj.weight", "q_proj.qweight"), "quantised by GPTQ or AWQ (tensor"),
    "fp8 by its tensors": (
        lambda f: _rename(f, "attn_out.weight", "attn_out.weight_scale_inv"),
        "attn_out.weight_scale_inv: is a scale, but model.transformer.blocks.0.attn_out.weight is nothing",
    ),
    "gguf": (lambda f: _move_weights(f, "model-q4.gguf"), "holds GGUF weights alone (model-q4.gguf)"),
    "lfs": (lambda f: _pointer(f / "model.safetensors"), "model.safetensors: found a Git LFS pointer"),
    "lfs tokenizer": (lambda f: _pointer(f / "tokenizer.json"), "tokenizer.json: found a Git LFS pointer"),
    "other name": (
        lambda f: _move_weights(f, "adapter_model.safetensors"),
        "no weights; expected model.safetensors or pytorch_model.bin, or the index of one in shards, found adapter_m",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_of_another_kind_is_named(case, source):
    change, words = OTHERS[case]
    change(source)
    line = refusal(source)
    assert words in line
    assert "misfits" not in line


def test_folders_without_a_config(tmp_path, source):
    (tmp_path / "pipeline").mkdir()
    edit(tmp_path / "pipeline" / "model_index.json", _class_name="X")
    for path, words in (
        (tmp_path / "pipeline", "holds a diffusers pipeline"),
        (tmp_path, "name one of its folders that hold one: hf"),
        (source / "model.safetensors", "name the folder that holds model.safetensors"),
        (tmp_path / "q4.gguf", "is a GGUF file"),
    ):
        with pytest.raises(InputError) as caught:
            jaxdiff.load(path)
        assert words in str(caught.value)


# --- numbers that are none


def test_weights_are_checked_when_asked(source, tmp_path, capsys):
    arrays = hf.read_folder(source)
    name = "model.transformer.blocks.1.ff_out.weight"
    arrays[name][3, :2] = np.nan
    arrays["model.transformer.wte.weight"][-1, -1] = -np.inf
    save_file(arrays, source / "model.safetensors")
    jaxdiff.load(source)
    convert(source, tmp_path / "ours")
    for path, words in (
        (source, f"{name}: found 2 NaN among 1,536 numbers"),
        (tmp_path / "ours", "layers/ff_out/kernel"),
    ):
        with pytest.raises(InputError, match="found 1 inf among 8,960 numbers") as caught:
            jaxdiff.load(path, check=True)
        assert words in str(caught.value)
        assert main(["inspect", str(path), "--weights", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)["unsound"]
        assert len(found) == 2
        assert any(words in line for line in found)
    assert main(["convert", str(source), str(tmp_path / "new"), "--check"]) == 2
    assert not (tmp_path / "new").exists()
    assert main(["inspect", "gsm-1m", "--weights"]) == 0
    assert "all are finite" in capsys.readouterr().out


# --- a disk that fills up


@pytest.mark.parametrize(("step", "errno_"), [("copy", errno.ENOSPC), ("weights", errno.EDQUOT)])
def test_a_full_disk_blames_what_is_written(step, errno_, source, tmp_path, monkeypatch):
    convert(source, tmp_path / "ours")

    def full(path, _):
        raise OSError(errno_, os.strerror(errno_), str(path))

    def full_weights(*_, **__):
        raise OSError(errno_, os.strerror(errno_))

    if step == "copy":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(jaxdiff.convert.folder, "save_file", full_weights)
        monkeypatch.setattr(writer, "write", full_weights)
    for call, start in ((convert, source), (export, tmp_path / "ours")):
        with pytest.raises(InputError) as caught:
            call(start, tmp_path / "new")
        assert str(caught.value).startswith(f"{tmp_path / 'new'}: cannot be written ({os.strerror(errno_)}); free")
        assert not (tmp_path / "new").exists()


def test_a_real_limit_on_files_is_one_line(source, tmp_path, capfd):
    """What orbax and safetensors say, which write by themselves: past the limit the system refuses them."""
    import resource

    convert(source, tmp_path / "ours")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for call, start in ((convert, source), (export, tmp_path / "ours")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
        try:
            with pytest.raises(InputError, match=r"new: cannot be written \(File too large: a limit, .*free space"):
                call(start, tmp_path / "new")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ours"]
    assert capfd.readouterr() == ("", "")


# --- encodings


def test_byte_order_marks_are_accepted(source, tmp_path):
    edit(source / "generation_config.json", eos_token_id=[1, 2])
    (source / "chat_template.jinja").write_text("<|im_start|>ü{{ messages[0].content }}", encoding="utf-8")
    names = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
    before = jaxdiff.load(source)
    for name in names:
        (source / name).write_bytes(codecs.BOM_UTF8 + (source / name).read_bytes())
    convert(source, tmp_path / "ours")
    for path in (source, tmp_path / "ours"):
        loaded = jaxdiff.load(path)
        assert loaded.model == before.model
        assert loaded.tokenizer.prompt("é") == before.tokenizer.prompt("é")
    export(tmp_path / "ours", tmp_path / "back")
    for name in names:  # other programs do not take them
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes().removeprefix(codecs.BOM_UTF8)


def test_a_template_in_another_encoding_is_named(source):
    (source / "chat_template.jinja").write_bytes("ü{{ messages[0].content }}".encode("latin-1"))
    assert "chat_template.jinja: damaged" in refusal(source)


def test_the_damaged_file_is_named(source):
    edit(source / "tokenizer_config.json", eos_token=[3])
    assert f"{source / 'tokenizer_config.json'}: damaged" in refusal(source)
    (source / "tokenizer.json").write_text("{}")
    assert f"{source / 'tokenizer.json'}: damaged" in refusal(source)


def test_a_block_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match="attention_block: found 2147483647, expected at most the context"):
        build(hf.CONFIGS["sdar"] | {"block_size": 2**31 - 1})


# --- the description itself


def test_inspect_shows_what_load_uses(source, capsys):
    edit(source / "generation_config.json", eos_token_id=[1, 202], mask_token_id=9)
    edit(source / "config.json", torch_dtype="float16", colour="red")
    assert main(["inspect", str(source), "--ignore-config", "colour"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "llada, published layout",
        "ends of an answer 1 <|endoftext|>, 202",
        "names the mask 9 too",
        "float16",
    ):
        assert words in shown
    assert main(["inspect", str(source), "--ignore-config", "colour", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    loaded = jaxdiff.load(source, ignore=("colour",))
    assert facts["ids"] == {"mask": 0, "ends": [1, 202], "turn_ends": []}
    assert facts["parameters"] == sum(x.size for x in jax.tree.leaves(loaded.params))
    assert facts["stored"] == {"bfloat16": facts["parameters"]}
    assert (facts["bytes"], facts["dtype"]) == (2 * facts["parameters"], "bfloat16")
    assert any("colour" in line for line in facts["warnings"])
    assert main(["inspect", str(source)]) == 1
    assert "colour: found 'red'" in " ".join(capsys.readouterr().out.split())


def test_a_tokenizer_without_a_backend_still_decodes():
    class Letters:
        chat_template = None

        def decode(self, ids, skip_special_tokens):
            return "".join(map(chr, ids))

    assert Tokenizer(Letters(), 1, 2, (3,)).decode([97, 3, 98]) == "a"
