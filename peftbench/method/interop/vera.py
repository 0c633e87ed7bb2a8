"""VeRA in peft's form: one frozen pair A, B for all layers, vectors d (r,) and b (out,) for each.

A fused layer's q and v have a d of their own here, and each reads the first rows of B; in peft the whole layer has one
d, and each of its rows a row of B. The same map comes of a pair with a block of r for each fused role and one for all
other layers, d being zero outside a layer's own blocks: A' = [A; A; ...], and in a role's columns of B' stand the first
rows of B, where the fused layer has that role's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.backbones.modules import FusedQKV
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.interop.names import IN, Exported, Read, layout, whole_roles
from peftbench.method.interop.trained import Trained
from peftbench.method.registry import find, make

PAIR = ("base_model.vera_A", "base_model.vera_B")


def write(trained: Trained) -> Exported:
    """The vectors, and the pair beside them, so that who loads it draws nothing."""
    net = trained.edit.net
    layers: dict[str, dict[str, Any]] = {}  # peft's layers, each with its adapters by block
    for site, module in trained.edit.placed():
        parent, _, role = site.path.rpartition(".")
        fused = isinstance(net.get_submodule(parent), FusedQKV)
        layers.setdefault(parent if fused else site.path, {})[role if fused else ""] = module
    blocks = [block for block in ("q", "k", "v", "") if any(block in parts for parts in layers.values())]
    A, B = _pair(trained.edit, blocks)
    tensors = dict(zip(PAIR, (A, B), strict=True))
    for path, parts in layers.items():
        first = next(iter(parts.values()))
        none = torch.zeros_like(first.d), torch.zeros_like(first.b)
        d = torch.cat([parts[block].d if block in parts else none[0] for block in blocks])
        rows = [parts[role].b if role in parts else none[1] for role in "qkv"]
        b = first.b if "" in parts else net.get_submodule(path).join(rows)
        tensors |= {f"{IN}{path}.vera_lambda_d": d, f"{IN}{path}.vera_lambda_b": b}
    config = {
        "peft_type": "VERA",
        "r": len(A),
        "target_modules": sorted(layers),
        "projection_prng_key": trained.hyper["projection_seed"],
        "save_projection": True,
        "vera_dropout": trained.hyper["dropout"],
        "d_initial": trained.hyper["d_initial"],
        "bias": "none",
    }
    return {**config, **layout(net, layers)}, tensors


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    """Raises `UserError` for a pair that is not the one which peftbench draws from the adapter's seed."""
    if config.get("bias", "none") != "none":
        raise UserError(f"the adapter trains biases (bias = {config['bias']!r}) beside VeRA; no method here does both")
    layers = _layers(tensors)
    modules = dict(backbone.net.named_modules())
    fused = {path: module for path in layers if isinstance(module := modules.get(path), FusedQKV)}
    blocks = [role for i, role in enumerate("qkv") if any(m.split(layers[p][1])[i].any() for p, m in fused.items())]
    if fused and not blocks:
        raise UserError("the adapter changes nothing in its fused layers (b = 0): which of q, k, v it is for is lost")
    blocks += [""] if len(fused) < len(layers) else []
    rank, left = divmod(config["r"], len(blocks))
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for path, (d, b) in layers.items():
        mine = dict(zip(blocks, d.split(rank), strict=False))
        if path in fused:
            rows = dict(zip("qkv", fused[path].split(b), strict=True))
            parts |= {f"{path}.{role}": (mine[role], rows[role]) for role in blocks if role}
        else:
            parts[path] = mine[""], b
    hyper = {
        "rank": rank,
        "d_initial": float(config.get("d_initial", 0.1)),
        "projection_seed": config.get("projection_prng_key", 0),
        "dropout": float(config.get("vera_dropout") or 0.0),
        "roles": whole_roles(parts, backbone),
    }
    if left or not _same_pair(hyper, blocks, tensors, backbone):
        raise UserError(
            f"the adapter's frozen pair A, B is not the one that peftbench draws from its seed "
            f"{hyper['projection_seed']}" + (f" for the fused layers ({next(iter(fused))})" if fused else "") + "; "
            "peftbench stores the seed only and cannot represent it exactly"
        )
    return "vera", hyper, {f"{path}.{n}": t.clone() for path, u in parts.items() for n, t in zip("db", u, strict=True)}


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """(d, b) of each of peft's layers."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        path, _, end = name.removeprefix(IN).rpartition(".vera_lambda_")
        if name.startswith(IN) and end in ("d", "b"):
            found.setdefault(path, {})[end] = t.float()
        elif name not in PAIR:
            raise UserError(f"the adapter has a tensor {name} that is no part of VeRA or the task head")
    for path, parts in found.items():
        if len(parts) < 2:
            raise UserError(f"{path} has only {', '.join(parts)} of what its adapter consists of")
    if not found:
        raise UserError("the adapter has no vera_lambda_d and vera_lambda_b")
    return {path: (parts["d"], parts["b"]) for path, parts in found.items()}


def _same_pair(
    hyper: Mapping[str, Any], blocks: Sequence[str], tensors: Mapping[str, Tensor], backbone: Backbone
) -> bool:
    """Whether peft computes with the pair that our method draws. What it did not save, it draws as we do."""
    if PAIR[0] not in tensors:
        return list(blocks) == [""]
    edit = Edit(backbone)
    make(find("vera"), hyper).attach(edit)
    ours = _pair(edit, blocks)
    edit.undo()
    return all(torch.equal(tensors[name], t.cpu()) for name, t in zip(PAIR, ours, strict=True))


def _pair(edit: Edit, blocks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """A' (r * blocks, in) and B' (out, r * blocks) of peft's layers, from the pair of the method in place."""
    pair: Any = edit.adapters()[0].projection
    rank, outside = len(pair.A), len(pair.B)
    parts: list[Tensor] = []
    layer = next((m for m in edit.net.modules() if isinstance(m, FusedQKV)), None)
    for block in blocks:
        if layer is None or not block:
            parts.append(pair.B)
            continue
        first = pair.B[: edit.backbone.sites.of("q")[0].size[1]]
        parts.append(layer.join([first if role == block else torch.zeros_like(first) for role in "qkv"]))
    B = pair.B.new_zeros(max(outside, *map(len, parts)), rank * len(blocks))
    for i, part in enumerate(parts):
        B[: len(part), i * rank : (i + 1) * rank] = part
    return pair.A.repeat(len(blocks), 1), B
