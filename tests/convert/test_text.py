"""Tokenizers of published folders: their own files, Qwen's vocab and merges, a chat template where there is none."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import jaxdiff
from jaxdiff.convert import convert
from jaxdiff.convert.text import copy_tokenizer, open_tokenizer, template_file
from tests.convert import published as hf

ROLES = ["<|role_end|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL = ["<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>", *ROLES]
PROMPTS = {
    "llada": "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "dream": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    "<|im_start|>assistant\n",
    "fast_dllm_v2": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "sdar": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "qwen_diffusion": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "sdar_moe": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "llada_moe": "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|>"
    "<role>ASSISTANT</role>",
    "llada2": "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|>"
    "<role>ASSISTANT</role>",
}


def trained(folder, special):
    """A byte-level BPE tokenizer of nothing but bytes and special tokens, without a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("tokenizers") / "bare", SPECIAL)


@pytest.mark.parametrize("family", PROMPTS)
def test_fallback_chat_templates(family, bare):
    fast = open_tokenizer(bare, family)
    message = [{"role": "user", "content": "hi"}]
    assert fast.apply_chat_template(message, add_generation_prompt=True, tokenize=False) == PROMPTS[family]


def test_a_base_model_has_no_chat_template(tmp_path):
    assert open_tokenizer(trained(tmp_path / "base", SPECIAL[:3]), "llada").chat_template is None


def test_the_folders_own_template_comes_first(tmp_path):
    folder = trained(tmp_path / "own", SPECIAL)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "own"}))
    assert open_tokenizer(folder, "llada").chat_template == "own"


@pytest.mark.parametrize("template", [None, []])
def test_a_template_that_is_none_and_a_length_that_is_a_text(template, tmp_path):
    folder = trained(tmp_path / "own", SPECIAL)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template, "model_max_length": "4"}))
    fast = open_tokenizer(folder)
    assert fast.chat_template is None
    assert template_file(folder) == f"{folder} (the family's chat template)"
    assert len(fast.encode("26 + 48 = 74")) == 12
    assert open_tokenizer(folder, "sdar").apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_vocab_and_merges_of_a_class_that_is_code(tmp_path):
    """Dream's layout: no tokenizer.json, a tokenizer class that only the folder's own code knows."""
    whole = json.loads((trained(tmp_path / "whole", SPECIAL) / "tokenizer.json").read_text())
    folder, target = tmp_path / "dream", tmp_path / "ours"
    folder.mkdir()
    target.mkdir()
    vocab = [token for token in whole["model"]["vocab"] if token not in SPECIAL]
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenization_dream.py").write_text("raise SystemExit('code of a checkpoint was run')")
    vocab = {token: i for i, token in enumerate(vocab)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    added = {str(256 + i): {"content": token, "special": True} for i, token in enumerate(SPECIAL)}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    copy_tokenizer(open_tokenizer(folder, "dream"), folder, target)
    for place in (folder, target):
        fast = open_tokenizer(place, "dream")
        assert fast.encode("<|im_start|>", add_special_tokens=False) == [256 + SPECIAL.index("<|im_start|>")]
        assert fast.decode(fast.encode("26 + 48 ü", add_special_tokens=False)) == "26 + 48 ü"
        assert "You are a helpful assistant" in fast.chat_template
    assert (target / "tokenizer.json").is_file()

    config["added_tokens_decoder"] = {str(int(i) + 1): token for i, token in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(jaxdiff.InputError, match=r"found id 256 after .*vocab.json, expected 257"):
        open_tokenizer(folder)

    del config["added_tokens_decoder"]  # added_tokens.json says them alone
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = {token: 256 + i for i, token in enumerate(SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    assert open_tokenizer(folder).get_vocab().items() >= ids.items()
    (folder / "added_tokens.json").write_text(json.dumps(ids | {"<|im_end|>": 300}))
    with pytest.raises(jaxdiff.InputError, match=r"added_tokens.json <.im_end.>: found id .*vocab.json, expected 300"):
        open_tokenizer(folder)


def test_conversion_writes_the_fallback_template(tmp_path):
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()))
    trained(source, SPECIAL)
    convert(source, tmp_path / "ours")
    prompts = [jaxdiff.load(path).tokenizer.prompt("hi") for path in (source, tmp_path / "ours")]
    assert prompts[0] == prompts[1]
    assert (tmp_path / "ours" / "chat_template.jinja").is_file()


def test_a_damaged_tokenizer_stops_the_conversion(tmp_path):
    source = hf.write_folder(tmp_path / "hf", hf.LLADA_CONFIG, hf.tensors(hf.llada_shapes()))
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(jaxdiff.InputError, match=r"tokenizer.json: damaged"):
        convert(source, tmp_path / "deep" / "ours")
    assert list(tmp_path.iterdir()) == [source]
