"""A tokenizer without transformers does what transformers' does, or leaves the folder to it."""

import json
import shutil

import pytest
from transformers import PreTrainedTokenizerFast

from jaxdiff.checkpoint import SHIPPED, shipped_folder
from jaxdiff.convert.plain import PlainTokenizer
from jaxdiff.convert.text import FILES, open_tokenizer
from jaxdiff.train.tokenizer import train_tokenizer

TEXTS = [
    *(
        "",
        " ",
        "a",
        "26 + 48 = 74.",
        "  two  spaces\n\n\ttab ",
        "naïve Ünïcödé ß",
        "漢字 かな 🦊‍🔥",
        "\x00\x7f\u200b\ufeff",
    ),
    *("<|user|>", "<|mask|> <|endoftext|><|assistant|>", "<|user|", "don't , can't . It's ?", "e\u0301 \u00e9"),
]
TEMPLATES = {
    "own": None,
    "named tokens": "{{ eos_token }}{% for m in messages %}\n  {{ m.content | trim }}\n{% endfor %}{{ pad_token }}",
    "controls": "{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}{{ m['content'] }}{% endfor %}",
}


@pytest.fixture(scope="module")
def shipped():
    return shipped_folder() / SHIPPED


@pytest.fixture
def copy(shipped, tmp_path):
    for name in FILES:
        if (shipped / name).is_file():
            shutil.copy(shipped / name, tmp_path)
    return tmp_path


def assert_same(folder):
    plain, whole = open_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert isinstance(plain, PlainTokenizer)
    assert (plain.eos_token_id, plain.mask_token_id) == (whole.eos_token_id, whole.mask_token_id)
    assert plain.get_vocab() == whole.get_vocab()
    assert plain.chat_template == whole.chat_template
    assert plain.backend_tokenizer.to_str() == whole.backend_tokenizer.to_str()
    for text in TEXTS:
        for special in (True, False):
            ids = plain.encode(text, add_special_tokens=special)
            assert ids == whole.encode(text, add_special_tokens=special)
            assert plain.decode(ids, skip_special_tokens=special) == whole.decode(ids, skip_special_tokens=special)
        for options in ({"tokenize": False}, {"return_dict": False, "add_generation_prompt": True}):
            message = [{"role": "user", "content": text}]
            assert plain.apply_chat_template(message, **options) == whole.apply_chat_template(message, **options)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_same_as_transformers(template, copy):
    if TEMPLATES[template] is not None:
        (copy / "chat_template.jinja").write_text(TEMPLATES[template])
    assert_same(copy)


def test_the_same_as_transformers_for_what_is_trained_here(tmp_path):
    train_tokenizer("drills", 50, 270, 0, tmp_path)
    assert_same(tmp_path)


def changed(name, **changes):
    def change(folder):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | changes))

    return change


def told(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    "change",
    [
        changed("tokenizer_config.json", add_bos_token=True),
        changed("tokenizer_config.json", eos_token="<|new|>"),
        changed("tokenizer_config.json", eos_token={"__type": "AddedToken", "content": "<|endoftext|>"}),
        changed("tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
        changed("tokenizer_config.json", clean_up_tokenization_spaces=True),
        changed("tokenizer.json", post_processor=None),
        changed("tokenizer.json", padding=json.loads('{"strategy": {"Fixed": 4}, "direction": "Right", "pad_id": 1, '
                '"pad_to_multiple_of": null, "pad_type_id": 0, "pad_token": "<|endoftext|>"}')),
        told("{% set ns = namespace(a=1) %}{{ ns.a }}{{ messages[0].content }}"),
        told("{{ messages | tojson }}"),
        told("{{ raise_exception('no') }}"),
        told("{% generation %}{{ messages[0].content }}{% endgeneration %}"),
        told("{{ messages[0].content "),
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}"),
        lambda folder: (folder / "special_tokens_map.json").write_text('{"bos_token": "<|user|>"}'),
        lambda folder: (folder / "chat_template.jinja").unlink(),
    ],
)  # fmt: skip
def test_what_transformers_may_take_otherwise_is_left_to_it(change, copy):
    change(copy)
    assert isinstance(open_tokenizer(copy), PreTrainedTokenizerFast)
