"""Three small randomly initialised networks and a byte-level tokenizer, for tests and smoke runs without downloads."""

from __future__ import annotations

from typing import Any

TINY: dict[str, dict[str, Any]] = {
    "tiny-encoder": {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
    },
    "tiny-decoder": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "tiny-t5": {  # as T5 1.1: gated, untied, heads together wider than the residual stream
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
}
FRAMES = {  # what the tokenizer puts around one text and around two
    "tiny-encoder": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "tiny-t5": ("$A [EOS]", "$A [EOS] $B [EOS]"),
}
SEED = 20240  # for the weights, which are part of the preset
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[EOS]"]


def config(name: str, **other: Any) -> Any:
    """Return the transformers configuration of preset `name`, with `other` values in place of its own."""
    from transformers import AutoConfig

    facts = {**TINY[name], **other}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
    return AutoConfig.for_model(facts.pop("model_type"), vocab_size=256 + len(SPECIAL), **ids, **facts)


def tokenizer(name: str) -> Any:
    """Make a tokenizer with one token per byte.

    An encoder frames its texts with [CLS] and [SEP]; T5 ends them with [EOS].
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {t: i for i, t in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if name in FRAMES:
        single, pair = FRAMES[name]
        marks = [(mark, vocabulary[mark]) for mark in SPECIAL if mark in pair]
        core.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=marks)
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if name == "tiny-encoder" else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        eos_token="[EOS]",
        model_input_names=inputs,
    )
