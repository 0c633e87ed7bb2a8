"""Where encoders, and the encoder-decoder T5, have their roles: one table for each architecture, as `roles.py` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench.backbones.decoder_roles import pre_norm


def _bert(base: str) -> dict[str, Any]:
    """BERT and its descendants: post-norm; the residual is the second argument of both output modules."""
    layer = f"{base}.encoder.layer.*"
    return {
        "q": f"{layer}.attention.self.query",
        "k": f"{layer}.attention.self.key",
        "v": f"{layer}.attention.self.value",
        "o": f"{layer}.attention.output.dense",
        "up": f"{layer}.intermediate.dense",
        "down": f"{layer}.output.dense",
        "attn": _post_norm(f"{layer}.attention.output.dropout", f"{layer}.attention.output"),
        "ffn": _post_norm(f"{layer}.output.dropout", f"{layer}.output"),
        "prefix": f"{layer}.attention.self",
        "embed": f"{base}.embeddings",
        "norm": [f"{base}.embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"],
    }


def _post_norm(output: str, add: str) -> dict[str, str]:
    return {"output": output, "input": f"{add}:1", "residual": f"{add}:1", "norm": f"{add}.LayerNorm"}


def _deberta(config: Any) -> dict[str, Any]:
    table = _bert("deberta")
    for role in "qkv":
        table[role] = table[role] + "_proj"
    del table["prefix"]
    if getattr(config, "conv_kernel_size", 0) > 0:
        table["norm"] += ["deberta.encoder.conv.LayerNorm"]
    if "layer_norm" in getattr(config, "norm_rel_ebd", "none"):
        table["norm"] += ["deberta.encoder.LayerNorm"]
    return table


def _distilbert(config: Any) -> dict[str, Any]:
    layer = "distilbert.transformer.layer.*"
    attn, ffn = f"{layer}.attention", f"{layer}.ffn"
    return {
        **{r: f"{attn}.{r}_lin" for r in "qkv"},
        "o": f"{attn}.out_lin",
        "up": f"{ffn}.lin1",
        "down": f"{ffn}.lin2",
        "attn": {"output": attn, "input": f"{attn}:0", "residual": f"{attn}:0", "norm": f"{layer}.sa_layer_norm"},
        "ffn": {"output": ffn, "input": f"{ffn}:0", "residual": f"{ffn}:0", "norm": f"{layer}.output_layer_norm"},
        "prefix": attn,
        "embed": "distilbert.embeddings",
        "norm": ["distilbert.embeddings.LayerNorm", f"{layer}.sa_layer_norm", f"{layer}.output_layer_norm"],
    }


def _t5(config: Any) -> dict[str, Any]:
    """T5: encoder and decoder, pre-norm; the FFN is gated in 1.1 and Flan-T5.

    A decoder layer has three sublayers, and its cross-attention is treated like any attention. Its layers are q, k, v
    and o sites. It has a prefix slot, because Li and Liang 2021 (section 4) give all three attentions of BART a prefix.
    It is an `attn` block, because Houlsby et al. 2019 (section 2.1) place an adapter after each sublayer. Mahabadi et
    al. 2021 (arXiv:2106.04647) place none after cross-attention; a `roles:` without it does the same.
    """
    encoder, decoder = "transformer.encoder.block.*.layer", "transformer.decoder.block.*.layer"
    attention = {
        f"{encoder}.0": f"{encoder}.0.SelfAttention",
        f"{decoder}.0": f"{decoder}.0.SelfAttention",
        f"{decoder}.1": f"{decoder}.1.EncDecAttention",
    }
    ffn = {layer: f"{layer}.DenseReluDense" for layer in (f"{encoder}.1", f"{decoder}.2")}
    inner = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if config.is_gated_act else {"up": "wi", "down": "wo"}

    def blocks(sublayers: Mapping[str, str]) -> list[dict[str, str]]:
        return [pre_norm(path, f"{layer}.layer_norm", f"{layer}.dropout") for layer, path in sublayers.items()]

    return {
        **{role: [f"{path}.{role}" for path in attention.values()] for role in "qkvo"},
        **{role: [f"{path}.{name}" for path in ffn.values()] for role, name in inner.items()},
        "attn": blocks(attention),
        "ffn": blocks(ffn),
        "prefix": list(attention.values()),
        "embed": ["transformer.shared", *(f"{s}.0.SelfAttention.relative_attention_bias" for s in (encoder, decoder))],
        "norm": [f"{stack}.*.layer_norm" for stack in (encoder, decoder)]
        + [f"transformer.{stack}.final_layer_norm" for stack in ("encoder", "decoder")],
    }


TABLES = {
    "bert": lambda config: _bert("bert"),
    "roberta": lambda config: _bert("roberta"),
    "electra": lambda config: _bert("electra"),
    "distilbert": _distilbert,
    "deberta-v2": _deberta,
    "t5": _t5,
}

ABSENT = {
    "deberta-v2": {
        "prefix": "DeBERTa computes its disentangled attention by itself, past the attention interface that a prefix "
        "needs; use another method or another backbone"
    }
}
