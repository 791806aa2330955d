"""A byte-level BPE tokenizer of one's own: digits single, four special tokens, a two-turn chat template."""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxdiff.tasks import task

MASK, END, USER, ASSISTANT = "<|mask|>", "<|endoftext|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(task_name: str, size: int, vocab_size: int, seed: int, folder: Path) -> None:
    """Fit on `size` training problems of a task and write tokenizer.json and tokenizer_config.json to `folder`."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[MASK, END, USER, ASSISTANT],
        show_progress=False,
    )
    stream = itertools.islice(task(task_name).problems("train", seed), size)
    tokenizer.train_from_iterator((text for p in stream for text in (p.question, p.worked)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token=MASK, eos_token=END, pad_token=END, chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
