"""Convert GGUF to a plain transformers directory: dequantised safetensors and a matching tokenizer.

By llama.cpp's definition and SmolLM2's own tokenizer.json, ``tokenizer.ggml.pre = smollm`` splits digits one by one
before the byte-level rule. transformers' conversion leaves that out, so `_tokenizer` adds it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from peftbench.backbones import pretrained

VERSION = 1  # raise when what `convert` writes changes: it is part of the cached directory's name


def convert(source: Path, target: Path) -> None:
    """Write config.json, model.safetensors (float32) and the tokenizer of GGUF file `source` into `target`.

    float32 keeps every value: a 4-bit code times a 16-bit scale plus a 16-bit offset needs more digits than bfloat16 or
    float16 have.
    """
    with redirect_stderr(io.StringIO()):  # the library's progress bars; errors are raised, not printed
        _convert(source, target)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = pretrained.from_pretrained(
        AutoModelForCausalLM, source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = _tokenizer(source, model.config.max_position_embeddings)
    model.config.pad_token_id = tokenizer.pad_token_id
    for place in (model, model.config):  # dequantised: reading it back must not ask for a quantiser
        for leftover in ("quantization_config", "hf_quantizer", "is_quantized", "quantization_method"):
            place.__dict__.pop(leftover, None)
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tokenizer(source: Path, max_length: int) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = pretrained.from_pretrained(AutoTokenizer, source.parent, gguf_file=source.name, local_files_only=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = max_length
    return tokenizer
