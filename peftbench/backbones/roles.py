"""Where each architecture has its roles: one table each, in the format of `roles:` in an experiment.

    q k v o gate up down   path of a linear layer, with * for the layer index; q, k and v may share one fused layer
    fused                  row layout of a fused query-key-value layer: "thirds" (GPT-2) or "by_head" (GPT-NeoX)
    attn, ffn              a sublayer: `output` names the module whose output is the sublayer's result before the
                           residual is added, `input` and `residual` name module inputs as "path:argument",
                           `norm` the layer norm after the addition (post-norm networks only)
    prefix                 the attention module that calls transformers' attention interface
    prompt                 the token embedding; if not given, the network's own input embedding
    embed, norm            modules that can be thawed

A role with several paths in a layer, or in several stacks, has a list of these. The tables follow the model
definitions of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peftbench.backbones.sites import BLOCKS, LINEAR, ROLES
from peftbench.errors import UserError, unknown

FUSED = ("thirds", "by_head")
BLOCK = ("output", "input", "residual", "norm")
KEYS = (*ROLES, "fused")


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


def _llama(config: Any) -> dict[str, Any]:
    """Llama and its descendants: pre-norm, gated FFN."""
    layer = "model.layers.*"
    table: dict[str, Any] = {r: f"{layer}.self_attn.{r}_proj" for r in "qkvo"}
    table |= {r: f"{layer}.mlp.{r}_proj" for r in ("gate", "up", "down")}
    return table | {
        "attn": _pre_norm(f"{layer}.self_attn", f"{layer}.input_layernorm"),
        "ffn": _pre_norm(f"{layer}.mlp", f"{layer}.post_attention_layernorm"),
        "prefix": f"{layer}.self_attn",
        "embed": "model.embed_tokens",
        "norm": [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", "model.norm"],
    }


def _qwen3(config: Any) -> dict[str, Any]:
    """Llama with a norm over each query and key head."""
    table = _llama(config)
    table["norm"] += ["model.layers.*.self_attn.q_norm", "model.layers.*.self_attn.k_norm"]
    return table


def _pre_norm(sublayer: str, norm: str, output: str | None = None) -> dict[str, str]:
    return {"output": output or sublayer, "input": f"{sublayer}:0", "residual": f"{norm}:0"}


def _gpt2(config: Any) -> dict[str, Any]:
    layer = "transformer.h.*"
    return {
        **dict.fromkeys("qkv", f"{layer}.attn.c_attn"),
        "fused": "thirds",
        "o": f"{layer}.attn.c_proj",
        "up": f"{layer}.mlp.c_fc",
        "down": f"{layer}.mlp.c_proj",
        "attn": _pre_norm(f"{layer}.attn", f"{layer}.ln_1"),
        "ffn": _pre_norm(f"{layer}.mlp", f"{layer}.ln_2"),
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
        "attn": _pre_norm(f"{layer}.attention", f"{layer}.input_layernorm", f"{layer}.post_attention_dropout"),
        "ffn": _pre_norm(f"{layer}.mlp", f"{layer}.post_attention_layernorm", f"{layer}.post_mlp_dropout"),
        "prefix": f"{layer}.attention",
        "embed": "gpt_neox.embed_in",
        "norm": [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", "gpt_neox.final_layer_norm"],
    }


def _opt(config: Any) -> dict[str, Any]:
    """OPT: the FFN is written into the layer; 350m alone normalises after the addition."""
    layer = "model.decoder.layers.*"
    attn = _pre_norm(f"{layer}.self_attn", f"{layer}.self_attn_layer_norm")
    ffn = _pre_norm(f"{layer}.fc1", f"{layer}.final_layer_norm", f"{layer}.fc2")
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
        return [_pre_norm(path, f"{layer}.layer_norm", f"{layer}.dropout") for layer, path in sublayers.items()]

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
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    **dict.fromkeys(("llama", "mistral", "qwen2"), _llama),
    "qwen3": _qwen3,
    "t5": _t5,
}

ABSENT = {
    "deberta-v2": {
        "prefix": "DeBERTa computes its disentangled attention by itself, past the attention interface that a prefix "
        "needs; use another method or another backbone"
    }
}


def table(kind: str, config: Any, roles: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the role table of an architecture, or `roles` from the experiment in its place.

    Args:
        kind: Architecture: the configuration's `model_type`.
        config: The network's configuration.
        roles: Role table from the experiment; None for the architecture's own.

    Raises:
        UserError: No table is known and no `roles` are given, or `roles` are malformed.
    """
    if roles is not None:
        check(roles)
        return dict(roles)
    if kind not in TABLES:
        raise UserError(
            f"no roles are known for the architecture {kind!r} (known: {', '.join(sorted(TABLES))}); say where they "
            "are: backbone: {model: ..., roles: {q: 'model.layers.*.attention.q_proj', ...}}"
        )
    return TABLES[kind](config)


def check(roles: Any) -> None:
    """Raise `UserError` for the first mistake in a role table that can be detected without the network."""
    if not isinstance(roles, Mapping):
        raise UserError(f"backbone.roles = {roles!r} must be a mapping of roles to paths")
    for key, value in roles.items():
        if key not in KEYS:
            raise unknown("role", key, KEYS, where="backbone.roles")
        if key in BLOCKS:
            for block in listed(value) or [value]:
                _check_block(key, block)
        elif key == "fused":
            if value not in FUSED:
                raise unknown("layout", value, FUSED, where="backbone.roles.fused")
        else:
            if not value or not all(isinstance(path, str) for path in listed(value)):
                raise UserError(
                    f"roles: {key} = {value!r} must be a path or a list of them, like 'model.layers.*.attn'"
                )
    _check_sharing({r: listed(roles[r]) for r in LINEAR if r in roles}, "fused" in roles)


def listed(value: Any) -> list[Any]:
    """Return a role's entry as a list."""
    return value if isinstance(value, list) else [value]


def _check_block(role: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"roles: {role} = {value!r} must be a mapping with {', '.join(BLOCK)} (norm only if post-norm)")
    for key in value:
        if key not in BLOCK:
            raise unknown("key", key, BLOCK, where=f"backbone.roles.{role}")
    for key in BLOCK[:3]:
        if key not in value:
            raise UserError(f"roles: {role} lacks {key}; it needs {', '.join(BLOCK[:3])}")
    for key, path in value.items():
        pattern = r"[^:]+(:\d+)?" if key in ("input", "residual") else r"[^:]+"
        if not isinstance(path, str) or not re.fullmatch(pattern, path):
            raise UserError(
                f"roles: {role}.{key} = {path!r} must be a path"
                + (", a colon and the number of the argument" if key in ("input", "residual") else "")
            )


def _check_sharing(linear: Mapping[str, list[str]], laid_out: bool) -> None:
    if not linear:
        raise UserError("backbone.roles names no linear layer; it needs some of q k v o gate up down")
    for path in (path for paths in linear.values() for path in paths):
        same = [role for role, others in linear.items() for other in others if other == path]
        if same == ["q", "k", "v"]:
            if not laid_out:
                raise UserError(
                    f"roles: q, k and v share one layer, {path!r}; say how its rows lie: fused: thirds or by_head"
                )
        elif len(same) > 1:
            raise UserError(
                f"roles: {' and '.join(same)} name the same layer, {path!r}; only q, k and v together may share one"
            )
