"""Where decoders have their roles: one table for each architecture, in the format that `roles.py` describes."""

from __future__ import annotations

from typing import Any

LAYER = "model.layers.*"


def pre_norm(sublayer: str, norm: str, output: str | None = None) -> dict[str, str]:
    """Return the block of a sublayer whose input is normalised, and to whose output the residual is added."""
    return {"output": output or sublayer, "input": f"{sublayer}:0", "residual": f"{norm}:0"}


def _llama(config: Any) -> dict[str, Any]:
    """Llama and its descendants: pre-norm, gated FFN."""
    return _attention() | {
        **{r: f"{LAYER}.mlp.{r}_proj" for r in ("gate", "up", "down")},
        "attn": pre_norm(f"{LAYER}.self_attn", f"{LAYER}.input_layernorm"),
        "ffn": pre_norm(f"{LAYER}.mlp", f"{LAYER}.post_attention_layernorm"),
        "norm": [f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm", "model.norm"],
    }


def _attention() -> dict[str, Any]:
    """Llama's attention and embedding."""
    attention = {r: f"{LAYER}.self_attn.{r}_proj" for r in "qkvo"}
    return {**attention, "prefix": f"{LAYER}.self_attn", "embed": "model.embed_tokens"}


def _qwen3(config: Any) -> dict[str, Any]:
    """Llama with a norm over each query and key head."""
    return _with_head_norms(_llama(config))


def _with_head_norms(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "norm": [*table["norm"], f"{LAYER}.self_attn.q_norm", f"{LAYER}.self_attn.k_norm"]}


def _gemma2(config: Any) -> dict[str, Any]:
    """Llama with a norm before and after each sublayer: what is added to the residual is the second norm's output."""
    table = _llama(config)
    attn = pre_norm(f"{LAYER}.self_attn", f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm")
    ffn = pre_norm(f"{LAYER}.mlp", f"{LAYER}.pre_feedforward_layernorm", f"{LAYER}.post_feedforward_layernorm")
    norms = [f"{LAYER}.pre_feedforward_layernorm", f"{LAYER}.post_feedforward_layernorm"]
    return {**table, "attn": attn, "ffn": ffn, "norm": [*table["norm"], *norms]}


def _gemma3(config: Any) -> dict[str, Any]:
    """Gemma 2 with a norm over each query and key head."""
    return _with_head_norms(_gemma2(config))


def _stablelm(config: Any) -> dict[str, Any]:
    """StableLM: Llama with layer norms, and in some models with both sublayers beside each other."""
    table = _llama(config)
    if config.use_parallel_residual:
        table["ffn"] = pre_norm(f"{LAYER}.mlp", f"{LAYER}.input_layernorm")
        table["norm"].remove(f"{LAYER}.post_attention_layernorm")
    if config.qk_layernorm:
        table["norm"] += [f"{LAYER}.self_attn.{r}_layernorm.norms.*" for r in "qk"]
    return table


def _phi(config: Any) -> dict[str, Any]:
    """Phi-1.5 and Phi-2: both sublayers beside each other, behind one norm."""
    norm = f"{LAYER}.input_layernorm"
    return _attention() | {
        "o": f"{LAYER}.self_attn.dense",
        "up": f"{LAYER}.mlp.fc1",
        "down": f"{LAYER}.mlp.fc2",
        "attn": pre_norm(f"{LAYER}.self_attn", norm),
        "ffn": pre_norm(f"{LAYER}.mlp", norm),
        "norm": [norm, "model.final_layernorm"]
        + ([f"{LAYER}.self_attn.{r}_layernorm" for r in "qk"] if config.qk_layernorm else []),
    }


def _phi3(config: Any) -> dict[str, Any]:
    """Phi-3 and Phi-4: Llama with one layer for q, k and v, and one for gate and up."""
    return {
        **_llama(config),
        **dict.fromkeys("qkv", f"{LAYER}.self_attn.qkv_proj"),
        "fused": "stacked",
        **dict.fromkeys(("gate", "up"), f"{LAYER}.mlp.gate_up_proj"),
    }


def _experts(config: Any) -> dict[str, Any]:
    """Networks of experts: attention as in Llama; gate, up and down of each expert."""
    return {**_llama(config), **dict.fromkeys(("gate", "up", "down"), f"{LAYER}.mlp.experts")}


def _qwen3_moe(config: Any) -> dict[str, Any]:
    """Qwen3 with experts in some of the layers, or in all."""
    table, dense, layers = _experts(config), _llama(config), range(config.num_hidden_layers)
    sparse = [
        i not in config.mlp_only_layers and config.num_experts > 0 and (i + 1) % config.decoder_sparse_step == 0
        for i in layers
    ]
    for role in ("gate", "up", "down"):
        places = [table[role]] * any(sparse) + [dense[role]] * (not all(sparse))
        table[role] = places if len(places) > 1 else places[0]
    return _with_head_norms(table)


def _falcon(config: Any) -> dict[str, Any]:
    """Falcon: q, k and v in one layer; in 7B one key-value head behind all queries, in 40B one behind each group."""
    layer = "transformer.h.*"
    attn_norm = ffn_norm = f"{layer}.input_layernorm"
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        attn_norm, ffn_norm = f"{layer}.ln_attn", f"{layer}.ln_mlp"
    elif not config.parallel_attn:
        ffn_norm = f"{layer}.post_attention_layernorm"
    by_head = "stacked" if config.multi_query else "by_head"
    return {
        **dict.fromkeys("qkv", f"{layer}.self_attention.query_key_value"),
        "fused": "by_group" if config.new_decoder_architecture else by_head,
        "o": f"{layer}.self_attention.dense",
        "up": f"{layer}.mlp.dense_h_to_4h",
        "down": f"{layer}.mlp.dense_4h_to_h",
        "attn": pre_norm(f"{layer}.self_attention", attn_norm),
        "ffn": pre_norm(f"{layer}.mlp", ffn_norm),
        "prefix": f"{layer}.self_attention",
        "embed": "transformer.word_embeddings",
        "norm": [*dict.fromkeys((attn_norm, ffn_norm)), "transformer.ln_f"],
    }


def _gpt2(config: Any) -> dict[str, Any]:
    layer = "transformer.h.*"
    return {
        **dict.fromkeys("qkv", f"{layer}.attn.c_attn"),
        "fused": "thirds",
        "o": f"{layer}.attn.c_proj",
        "up": f"{layer}.mlp.c_fc",
        "down": f"{layer}.mlp.c_proj",
        "attn": pre_norm(f"{layer}.attn", f"{layer}.ln_1"),
        "ffn": pre_norm(f"{layer}.mlp", f"{layer}.ln_2"),
        "prefix": f"{layer}.attn",
        "embed": ["transformer.wte", "transformer.wpe"],
        "norm": [f"{layer}.ln_1", f"{layer}.ln_2", "transformer.ln_f"],
    }


def _gpt_neox(config: Any) -> dict[str, Any]:
    layer = "gpt_neox.layers.*"
    return {
        **dict.fromkeys("qkv", f"{layer}.attention.query_key_value"),
        "fused": "by_head",
        "o": f"{layer}.attention.dense",
        "up": f"{layer}.mlp.dense_h_to_4h",
        "down": f"{layer}.mlp.dense_4h_to_h",
        "attn": pre_norm(f"{layer}.attention", f"{layer}.input_layernorm", f"{layer}.post_attention_dropout"),
        "ffn": pre_norm(f"{layer}.mlp", f"{layer}.post_attention_layernorm", f"{layer}.post_mlp_dropout"),
        "prefix": f"{layer}.attention",
        "embed": "gpt_neox.embed_in",
        "norm": [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", "gpt_neox.final_layer_norm"],
    }


def _opt(config: Any) -> dict[str, Any]:
    """OPT: the FFN is written into the layer; 350m alone normalises after the addition."""
    layer = "model.decoder.layers.*"
    attn = pre_norm(f"{layer}.self_attn", f"{layer}.self_attn_layer_norm")
    ffn = pre_norm(f"{layer}.fc1", f"{layer}.final_layer_norm", f"{layer}.fc2")
    norm = [f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm"]
    if config.do_layer_norm_before and not config._remove_final_layer_norm:
        norm.append("model.decoder.final_layer_norm")
    if not config.do_layer_norm_before:
        attn |= {"residual": f"{layer}.self_attn:0", "norm": f"{layer}.self_attn_layer_norm"}
        ffn |= {"residual": f"{layer}.fc1:0", "norm": f"{layer}.final_layer_norm"}
    return {
        **{r: f"{layer}.self_attn.{r}_proj" for r in "qkv"},
        "o": f"{layer}.self_attn.out_proj",
        "up": f"{layer}.fc1",
        "down": f"{layer}.fc2",
        "attn": attn,
        "ffn": ffn,
        "prefix": f"{layer}.self_attn",
        "embed": ["model.decoder.embed_tokens", "model.decoder.embed_positions"],
        "norm": norm,
    }


TABLES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "smollm3"), _llama),
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "stablelm": _stablelm,
    "phi": _phi,
    "phi3": _phi3,
    **dict.fromkeys(("mixtral", "gpt_oss"), _experts),
    "qwen3_moe": _qwen3_moe,
    "falcon": _falcon,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}
