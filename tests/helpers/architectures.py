"""Tiny random models of every known architecture, saved each in a directory with its tokenizer.

Every parameter gets noise, so that no bias is zero, no norm is one, and a mistake anywhere shows in the logits.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from peftbench.backbones import tiny
from peftbench.backbones.load import Backbone, load

WIDTH, INNER, LAYERS, HEADS, LABELS = 64, 192, 2, 4, 3  # rows are whole blocks of 64, as bitsandbytes wants them
VOCABULARY = 256 + len(tiny.SPECIAL)

_ENCODER = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
}
_DEBERTA = {**_ENCODER, "relative_attention": True, "pos_att_type": "p2c|c2p", "pooler_hidden_size": WIDTH}
_LLAMA = {**_ENCODER, "num_key_value_heads": 2}
_NEOX = {**_ENCODER, "rotary_pct": 0.5}
_T5 = {"d_model": WIDTH, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS, "decoder_start_token_id": 0}
_OPT = {**{k: v for k, v in _ENCODER.items() if k != "intermediate_size"}, "ffn_dim": INNER, "word_embed_proj_dim": 48}
_MIXED = ["sliding_attention", "full_attention"]
_FALCON = {
    **{k: v for k, v in _ENCODER.items() if k != "intermediate_size"},
    "ffn_hidden_size": INNER,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "bias": False,
}

# name -> (model_type, kind, configuration)
ALL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "classification", _ENCODER),
    "roberta": ("roberta", "classification", {**_ENCODER, "type_vocab_size": 1}),
    "electra": ("electra", "classification", {**_ENCODER, "embedding_size": 48}),
    "distilbert": (
        "distilbert",
        "classification",
        {"dim": WIDTH, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": 64},
    ),
    "deberta-v2": ("deberta-v2", "classification", {**_DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "deberta-v3": (
        "deberta-v2",
        "classification",
        {
            **_DEBERTA,
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
    "gpt2-classifier": ("gpt2", "classification", {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}),
    "qwen2-classifier": ("qwen2", "classification", _LLAMA),
    "gpt2": (
        "gpt2",
        "generation",
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 64},
    ),
    "opt": ("opt", "generation", _OPT),
    "opt-350m": ("opt", "generation", {**_OPT, "do_layer_norm_before": False}),
    "gpt-neox": ("gpt_neox", "generation", _NEOX),
    "gpt-neox-serial": ("gpt_neox", "generation", {**_NEOX, "use_parallel_residual": False}),
    "llama": ("llama", "generation", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", "generation", {**_LLAMA, "sliding_window": 6, "head_dim": 32}),
    "qwen2": ("qwen2", "generation", _LLAMA),
    "qwen3": ("qwen3", "generation", {**_LLAMA, "head_dim": 32}),
    "gemma": ("gemma", "generation", {**_LLAMA, "head_dim": 32}),
    "gemma2": ("gemma2", "generation", {**_LLAMA, "head_dim": 32, "sliding_window": 6, "query_pre_attn_scalar": 32}),
    "gemma3": ("gemma3_text", "generation", {**_LLAMA, "head_dim": 32, "sliding_window": 6, "layer_types": _MIXED}),
    "phi": ("phi", "generation", {**_LLAMA, "qk_layernorm": True}),
    "phi3": ("phi3", "generation", _LLAMA),
    "stablelm": ("stablelm", "generation", _LLAMA),
    "stablelm-parallel": ("stablelm", "generation", {**_LLAMA, "use_parallel_residual": True}),
    "smollm3": ("smollm3", "generation", {**_LLAMA, "no_rope_layers": [1, 0]}),
    "falcon": ("falcon", "generation", _FALCON),
    "falcon-40b": ("falcon", "generation", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-serial": ("falcon", "generation", {**_FALCON, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mixtral": ("mixtral", "generation", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3_moe",
        "generation",
        {**_LLAMA, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "gpt-oss": (
        "gpt_oss",
        "generation",
        {
            **_LLAMA,
            "head_dim": 32,
            "sliding_window": 6,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "t5": ("t5", "generation", {**_T5, "d_kv": 16}),
    "t5-gated": (
        "t5",
        "generation",
        {**_T5, "d_kv": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}
ENCODERS = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "deberta-v3"]
DECODERS = [name for name, (model_type, kind, _) in ALL.items() if kind == "generation" and model_type != "t5"]
T5 = [name for name, (model_type, _, _) in ALL.items() if model_type == "t5"]
WITH_PREFIX = [name for name in ALL if not name.startswith(("deberta", "falcon"))]  # which call the interface
EXPERTS = ["mixtral", "qwen3-moe", "gpt-oss"]


class Model:
    """One saved model: the untouched network, and the backbone made of it (each built once)."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind

    def load(self, **options: Any) -> Backbone:
        return load(str(self.folder), self.kind, LABELS, **options)

    @cached_property
    def untouched(self) -> nn.Module:
        config = AutoConfig.from_pretrained(self.folder, num_labels=LABELS)
        return auto(self.kind, config).from_pretrained(self.folder, config=config).eval()

    @cached_property
    def backbone(self) -> Backbone:
        backbone = self.load()
        backbone.save_snapshot()  # before any test trains its head
        return backbone


class Zoo:
    """Models by name, saved under `root` when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[str, Model] = {}

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            model_type, kind, facts = ALL[name]
            self._models[name] = Model(save(self.root / name, model_type, kind, facts), kind)
        return self._models[name]

    def restore(self) -> None:
        """Put back the task heads, modes and flags of all networks: `Edit.undo` restores the rest."""
        for model in self._models.values():
            if "backbone" in vars(model):
                restore(model.backbone)


def restore(backbone: Backbone) -> None:
    """Put back a backbone whose edit has been undone: a head that a test trained must not reach the next test."""
    backbone.net.eval().requires_grad_(False)
    head = {id(p) for p in backbone.head_parameters()}
    for name, p in backbone.parameters.items():
        p.grad = None
        if id(p) in head:
            p.data = backbone.pristine(name)


def auto(kind: str, config: Any = None) -> Any:
    """The class that loads a network of this kind; an encoder-decoder is told by its configuration."""
    if kind != "generation":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config is not None and config.is_encoder_decoder else AutoModelForCausalLM


def save(folder: Path, model_type: str, kind: str, facts: dict[str, Any]) -> Path:
    """A random model of this configuration, with its tokenizer, in `folder`."""
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, num_labels=LABELS, **ids, **facts)
    torch.manual_seed(0)
    net = auto(kind, config).from_config(config)
    if kind == "generation" and facts.get("tie_word_embeddings") is False:
        net.lm_head.weight = nn.Parameter(net.lm_head.weight.detach() / WIDTH**0.5)  # transformers ties every new T5
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(0.15 * torch.randn_like(p))
            if model_type == "t5" and name.endswith(".q.weight"):
                p.div_(facts["d_kv"] ** 0.5)  # its attention does not divide: its queries' weights do
    net.save_pretrained(folder)
    usual = "tiny-decoder" if kind == "generation" else "tiny-encoder"
    tokenizer = tiny.tokenizer("tiny-t5" if model_type == "t5" else usual)
    if model_type in ("roberta", "distilbert") or name_of_decoder(model_type):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def name_of_decoder(model_type: str) -> bool:
    return model_type in {ALL[name][0] for name in DECODERS}


def batch(lengths: tuple[int, ...] = (9, 5), seed: int = 1, left: bool = False) -> dict[str, Tensor]:
    """Random tokens, padded to the longest."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        place = slice(ids.shape[1] - n, None) if left else slice(0, n)
        ids[row, place] = torch.randint(len(tiny.SPECIAL), VOCABULARY, (n,), generator=draw)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def complete(net: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs, and for a network with a decoder of its own what that reads: as many tokens a row, from a start."""
    if not (net.config.is_encoder_decoder and net.can_generate()):
        return inputs
    told = (inputs["input_ids"] + 7) % VOCABULARY
    told[:, 0] = net.config.decoder_start_token_id
    return {**inputs, "decoder_input_ids": told}


def logits(net: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The network's logits where they mean something: padding's own outputs are dropped."""
    with torch.no_grad():
        out = net(**complete(net, inputs)).logits
    return out[inputs["attention_mask"].bool()] if out.ndim == 3 else out


def loss(net: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """A scalar that depends on every logit that means something."""
    out = net(**complete(net, inputs)).logits.float()
    kept = out[inputs["attention_mask"].bool()] if out.ndim == 3 else out
    return kept.logsumexp(-1).mean() - kept[..., 0].mean()
