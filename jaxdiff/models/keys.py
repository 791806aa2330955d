"""Keys of a config.json that mean the same in every family: those that do nothing, those of features that none has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys that cannot change the numbers of a forward, nor the ids that end an answer, in any family.
HARMLESS = frozenset(
    {
        # records of how the file was made and how its own code is found: transformers', unsloth's
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "model_type",
        "tokenizer_class",
        "torchscript",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        # the dtype of a published folder is that of its tensors
        "torch_dtype",
        # special ids that no decode reads
        "bos_token_id",
        "cls_token_id",
        "pad_token_id",
        "sep_token_id",
        "unk_token_id",
        # what a PyTorch forward returns or keeps beside the logits, and in what
        "logits_to_keep",
        "num_logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "use_cache",
        "use_return_dict",
        # of classifiers made of a model
        "id2label",
        "label2id",
        "problem_type",
        # transformers' own sampling, which stood in config.json before generation_config.json
        "do_sample",
        "max_length",
        "max_new_tokens",
        "min_length",
        "num_beams",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        # initial weights, and dropout: training alone
        "initializer_range",
        "attention_dropout",
        "embd_pdrop",
        "embedding_dropout",
        "output_dropout",
        "resid_pdrop",
        "residual_dropout",
    }
)
# Features of transformers that no family here has.
ABSENT: Mapping[str, Any] = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pretraining_tp": 1,
    "pruned_heads": {},
}
