"""Write a trained adapter in the format of Hugging Face peft 0.21: adapter_config.json and adapter_model.safetensors.

`METHODS` has one function for each method. It converts an adapter in place to peft's configuration and tensors, or
refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from peftbench.backbones.experts import owner_of
from peftbench.backbones.modules import FusedLinear
from peftbench.errors import UserError
from peftbench.method.interop import expert_updates, prefix_and_prompt, vera
from peftbench.method.interop.lowrank_updates import LowRank, alpha_of, updates
from peftbench.method.interop.peft_names import IN, Exported, layout
from peftbench.method.interop.trained_adapter import TrainedAdapter
from peftbench.method.registry import find, make

MERGED = "write a plain model: --to merged"
QUANTISED = ("qlora", "qdora")
REASONS = {  # why a method has no counterpart in peft, and the alternative
    "bitfit": f"peft has no adapter that trains biases alone; {MERGED}",
    "full": f"it trains all weights of the base; {MERGED}",
    "galore": f"it trains weights of the base; {MERGED}",
    "linear_probe": f"it trains the task head only; {MERGED}",
    "adapter": "peft has no bottleneck adapters, and what is no linear map cannot be merged; keep the adapter file",
}


def write(trained: TrainedAdapter, folder: Path) -> list[str]:
    """Write the adapter into `folder`.

    Returns:
        Remarks for the user.

    Raises:
        UserError: peft has no equal adapter.
    """
    if trained.method not in METHODS:
        why = REASONS.get(trained.method, f"none is known here; {MERGED}, if it merges")
        raise UserError(
            f"{trained.method!r} has no counterpart in peft: {why} (these have: {', '.join(sorted(METHODS))})"
        )
    backbone = trained.backbone
    if trained.method in QUANTISED and any(owner_of(site.path) for site in backbone.sites):
        raise UserError(
            f"{trained.method!r} was trained over experts in 4-bit NormalFloat, and BitsAndBytesConfig leaves experts "
            f"as they are, so that peft's base would be another; {MERGED}"
        )
    config, tensors = METHODS[trained.method](trained)
    if backbone.head:
        tensors |= _head(trained, config)
    config |= {
        "task_type": _task(trained),
        "base_model_name_or_path": trained.model,
        "revision": trained.revision,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    kept = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return _remarks(trained)


def _task(trained: TrainedAdapter) -> str:
    if trained.backbone.kind != "generation":
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if trained.backbone.net.config.is_encoder_decoder else "CAUSAL_LM"


def _head(trained: TrainedAdapter, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the head's tensors. peft saves whole modules, which it finds by the ends of their paths."""
    net, head = trained.backbone.net, trained.backbone.head
    if config["peft_type"] == "PREFIX_TUNING":
        return {f"base_model.{path}.{n}": t for path in head for n, t in net.get_submodule(path).state_dict().items()}
    config["modules_to_save"] = [path.rpartition(".")[2] for path in head]
    return {f"{IN}{path}.{n}": t for path in head for n, t in net.get_submodule(path).state_dict().items()}


def _remarks(trained: TrainedAdapter) -> list[str]:
    if trained.method not in QUANTISED:
        return []
    return [
        "the adapter was trained over a base in 4-bit NormalFloat: load the base model so "
        "(BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')), or use --to merged"
    ]


def _low_rank(as_low_rank: Callable[[Any], LowRank], **more: Any) -> Callable[[TrainedAdapter], Exported]:
    """Return the export function of a method with low-rank updates, as peft's LoRA with the settings `more`."""

    def export(trained: TrainedAdapter) -> Exported:
        net, found = trained.backbone.net, updates(trained.edit, as_low_rank)
        stacked = expert_updates.stacked(net, found)
        layers = {path: u for path, u in found.items() if not owner_of(path)}
        tensors: dict[str, Tensor] = {}
        for wrapper, path in expert_updates.wrappers(net, stacked).items():
            A, B = expert_updates.tensors(stacked[path])
            tensors |= {f"{IN}{wrapper}.lora_A.weight": A, f"{IN}{wrapper}.lora_B.weight": B}
        for path, u in layers.items():
            tensors |= {f"{IN}{path}.lora_A.weight": u.A, f"{IN}{path}.lora_B.weight": u.B}
            if u.m is not None:
                tensors[f"{IN}{path}.lora_magnitude_vector"] = u.m
        return {
            **_config(layers, stacked, bool(more.get("use_rslora"))),
            **more,
            **layout(net, layers),
        }, tensors

    return export


def _config(layers: dict[str, LowRank], stacked: dict[str, LowRank], rslora: bool) -> dict[str, Any]:
    """Return rank, alpha and targets; patterns name fused layers with a higher rank than others."""
    every = {**layers, **stacked}
    ranks = {path: u.A.shape[-2] for path, u in every.items()}
    rank = min(ranks.values())
    alpha = {path: alpha_of(u, rslora) for path, u in every.items()}
    wider = {path: r for path, r in ranks.items() if r != rank}
    common = next(alpha[path] for path in every if path not in wider)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": common,
        "rank_pattern": {rf"^{path}".replace(".", r"\."): r for path, r in wider.items()},
        "alpha_pattern": {rf"^{path}".replace(".", r"\."): alpha[path] for path in wider},
        "target_modules": sorted(layers),
        **({"target_parameters": sorted(stacked)} if stacked else {}),
        "bias": "none",
    }


def _lora(module: Any) -> LowRank:
    return LowRank(module.A, module.B, module.scale)


def _dora(module: Any) -> LowRank:
    return LowRank(module.A, module.B, module.scale, module.m)


def _adalora(module: Any) -> LowRank:  # P Lambda Q
    return LowRank(module.Q, module.P * module.Lambda, module.scale)


def _pissa(trained: TrainedAdapter) -> Exported:
    """Export W - s B0 A0 + s B A. peft has the whole W, so an update of twice the rank subtracts s B0 A0."""
    edit = trained.edit
    state = {name: t.clone() for name, t in edit.state().items()}
    edit.undo()
    make(find(trained.method), trained.hyper).attach(edit)
    first = {id(m): (m.A.detach().clone(), m.B.detach().clone()) for _, m in edit.placed()}
    edit.load(state)

    def from_whole_weight(module: Any) -> LowRank:
        A0, B0 = first[id(module)]
        return LowRank(torch.cat([module.A, A0]), torch.cat([module.B, -B0], dim=1), module.scale)

    return _low_rank(from_whole_weight)(trained)


def _ia3(trained: TrainedAdapter) -> Exported:
    net = trained.backbone.net
    expert_updates.refuse([site.path for site, _ in trained.edit.placed()], "(IA)^3")
    vectors: dict[str, Tensor] = {}
    inner: list[str] = []
    fused: dict[str, dict[str, Tensor]] = {}
    for site, module in trained.edit.placed():
        parent, _, role = site.path.rpartition(".")
        if isinstance(net.get_submodule(parent), FusedLinear):
            fused.setdefault(parent, {})[role] = module.l
        elif site.role == "down":
            inner.append(site.path)
            vectors[site.path] = module.l.unsqueeze(0)
        else:
            vectors[site.path] = module.l.unsqueeze(1)
    for path, parts in fused.items():
        vectors[path] = net.get_submodule(path).filled(parts, 1.0).unsqueeze(1)
    config = {"peft_type": "IA3", "target_modules": sorted(vectors), "feedforward_modules": sorted(inner)}
    return {**config, **layout(trained.backbone.net, vectors)}, {
        f"{IN}{path}.ia3_l": vector for path, vector in vectors.items()
    }


def _norms(trained: TrainedAdapter) -> Exported:
    """Export every norm's gain and bias, because peft stores copies of them."""
    state = trained.edit.state()
    paths = sorted({name.rpartition(".")[0] for name in state})
    tensors = {
        f"{IN}{path}.ln_tuning_layers.{end}": t for name, t in state.items() for path, _, end in [name.rpartition(".")]
    }
    return {"peft_type": "LN_TUNING", "target_modules": paths}, tensors


METHODS: dict[str, Callable[[TrainedAdapter], Exported]] = {
    "lora": _low_rank(_lora),
    "lora_plus": _low_rank(_lora),
    "qlora": _low_rank(_lora),
    "rslora": _low_rank(_lora, use_rslora=True),
    "dora": _low_rank(_dora, use_dora=True),
    "qdora": _low_rank(_dora, use_dora=True),
    "pissa": _pissa,
    "adalora": _low_rank(_adalora),
    "ia3": _ia3,
    "vera": vera.write,
    "layernorm": _norms,
    "prefix": prefix_and_prompt.write_prefix,
    "prompt": prefix_and_prompt.write_prompt,
}
