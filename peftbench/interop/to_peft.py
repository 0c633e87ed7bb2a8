"""Write a trained adapter as Hugging Face peft 0.21 saves one: adapter_config.json and adapter_model.safetensors.

One entry of `METHODS` a method: it turns an adapter in place into peft's configuration and tensors, or refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from peftbench.backbones.denormalise import skeleton
from peftbench.backbones.modules import FusedQKV
from peftbench.errors import UserError
from peftbench.interop import rotary
from peftbench.interop.lowrank import LowRank, updates
from peftbench.interop.trained import Trained
from peftbench.method import find, make

Exported = tuple[dict[str, Any], dict[str, Tensor]]  # configuration, tensors by peft's names
IN = "base_model.model."
TASKS = {"generation": "CAUSAL_LM", "classification": "SEQ_CLS", "regression": "SEQ_CLS"}


def write(trained: Trained, folder: Path) -> list[str]:
    """Write the adapter into `folder`; returns remarks for the user. Raises `UserError` where it cannot be exact."""
    if trained.method not in METHODS:
        raise UserError(
            f"{trained.method!r} has no counterpart in peft that is known here; these have: "
            f"{', '.join(sorted(METHODS))}. Or write a plain model: --to merged"
        )
    config, tensors = METHODS[trained.method](trained)
    backbone = trained.backbone
    if backbone.head:
        tensors |= _head(trained, config)
    config |= {
        "task_type": TASKS[backbone.kind],
        "base_model_name_or_path": trained.model,
        "revision": trained.revision,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    kept = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return _remarks(trained)


def _head(trained: Trained, config: dict[str, Any]) -> dict[str, Tensor]:
    """The head's tensors; peft keeps whole modules, which it finds by the ends of their paths."""
    net, head = trained.backbone.net, trained.backbone.head
    if config["peft_type"] == "PREFIX_TUNING":
        return {f"base_model.{path}.{n}": t for path in head for n, t in net.get_submodule(path).state_dict().items()}
    config["modules_to_save"] = [path.rpartition(".")[2] for path in head]
    return {f"{IN}{path}.{n}": t for path in head for n, t in net.get_submodule(path).state_dict().items()}


def _remarks(trained: Trained) -> list[str]:
    said = []
    if trained.method in ("qlora", "qdora"):
        said.append(
            "the adapter was trained over a base in 4-bit NormalFloat: load the base model so "
            "(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')), or use --to merged"
        )
    return said


def _low_rank(taken: Callable[[Any], LowRank], **more: Any) -> Callable[[Trained], Exported]:
    """A method whose adapters are low-rank updates, as peft's LoRA with the settings `more`."""

    def export(trained: Trained) -> Exported:
        layers = updates(trained.edit, taken)
        tensors: dict[str, Tensor] = {}
        for path, u in layers.items():
            tensors |= {f"{IN}{path}.lora_A.weight": u.A, f"{IN}{path}.lora_B.weight": u.B}
            if u.m is not None:
                tensors[f"{IN}{path}.lora_magnitude_vector"] = u.m
        return {**_config(layers, bool(more.get("use_rslora"))), **more, **_layout(trained, layers)}, tensors

    return export


def _config(layers: dict[str, LowRank], rslora: bool) -> dict[str, Any]:
    """Rank and alpha; where fused layers have a higher rank than others, patterns name them."""
    rank = min(len(u.A) for u in layers.values())
    alpha = {path: _alpha(u, rslora) for path, u in layers.items()}
    wider = {path: len(u.A) for path, u in layers.items() if len(u.A) != rank}
    usual = next(alpha[path] for path in layers if path not in wider)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": usual,
        "rank_pattern": {rf"^{path}".replace(".", r"\."): r for path, r in wider.items()},
        "alpha_pattern": {rf"^{path}".replace(".", r"\."): alpha[path] for path in wider},
        "target_modules": sorted(layers),
        "bias": "none",
    }


def _alpha(u: LowRank, rslora: bool) -> float:
    """What peft divides by r (or its root) to have our scale: a multiple of ours where the rank is."""
    rank = len(u.A)
    alpha = u.scale * (math.sqrt(rank) if rslora else rank)
    near = round(alpha, 9)
    return near if near / (math.sqrt(rank) if rslora else rank) == u.scale else alpha


def _layout(trained: Trained, paths: Any) -> dict[str, Any]:
    plain = skeleton(trained.backbone.net)
    return {"fan_in_fan_out": any(isinstance(plain.get_submodule(path), Conv1D) for path in paths)}


def _lora(module: Any) -> LowRank:
    return LowRank(module.A, module.B, module.scale)


def _dora(module: Any) -> LowRank:
    return LowRank(module.A, module.B, module.scale, module.m)


def _adalora(module: Any) -> LowRank:  # P Lambda Q
    return LowRank(module.Q, module.P * module.Lambda, module.scale)


def _pissa(trained: Trained) -> Exported:
    """W - s B0 A0 + s B A: peft knows the whole W, so B0 A0 is taken off by an update of twice the rank."""
    edit = trained.edit
    state = {name: t.clone() for name, t in edit.state().items()}
    edit.undo()
    make(find(trained.method), trained.hyper).attach(edit)
    first = {id(m): (m.A.detach().clone(), m.B.detach().clone()) for _, m in edit.placed()}
    edit.load(state)

    def taken(module: Any) -> LowRank:
        A0, B0 = first[id(module)]
        return LowRank(torch.cat([module.A, A0]), torch.cat([module.B, -B0], dim=1), module.scale)

    return _low_rank(taken)(trained)


def _ia3(trained: Trained) -> Exported:
    net = trained.backbone.net
    vectors: dict[str, Tensor] = {}
    inner: list[str] = []
    fused: dict[str, dict[str, Tensor]] = {}
    for site, module in trained.edit.placed():
        parent, _, role = site.path.rpartition(".")
        if isinstance(net.get_submodule(parent), FusedQKV):
            fused.setdefault(parent, {})[role] = module.l
        elif site.role == "down":
            inner.append(site.path)
            vectors[site.path] = module.l.unsqueeze(0)
        else:
            vectors[site.path] = module.l.unsqueeze(1)
    for path, parts in fused.items():
        one = torch.ones_like(next(iter(parts.values())))
        vectors[path] = net.get_submodule(path).join([parts.get(r, one) for r in "qkv"]).unsqueeze(1)
    config = {"peft_type": "IA3", "target_modules": sorted(vectors), "feedforward_modules": sorted(inner)}
    return {**config, **_layout(trained, vectors)}, {f"{IN}{path}.ia3_l": vector for path, vector in vectors.items()}


def _prefix(trained: Trained) -> Exported:
    net = trained.backbone.net
    rotary.check(net.config, "exporting")
    parts = [t for _, m in trained.edit.placed() for t in (rotary.turned(net, m.K, m.K.shape[1]), m.V)]
    rows = [t.transpose(0, 1).flatten(1) for t in parts]  # (length, key-value heads * head width)
    prompt = torch.cat(rows, dim=1)  # (length, layers * 2 * key-value heads * head width)
    _, module = trained.edit.placed()[0]
    heads, length, width = module.K.shape
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * width,
        "num_attention_heads": heads,
        "num_layers": len(rows) // 2,
        "encoder_hidden_size": heads * width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": prompt}


METHODS: dict[str, Callable[[Trained], Exported]] = {
    "lora": _low_rank(_lora),
    "lora_plus": _low_rank(_lora),
    "qlora": _low_rank(_lora),
    "rslora": _low_rank(_lora, use_rslora=True),
    "dora": _low_rank(_dora, use_dora=True),
    "qdora": _low_rank(_dora, use_dora=True),
    "pissa": _pissa,
    "adalora": _low_rank(_adalora),
    "ia3": _ia3,
    "prefix": _prefix,
}
