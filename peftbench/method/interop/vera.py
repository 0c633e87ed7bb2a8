"""VeRA in peft's format: one frozen pair A, B for all layers, and vectors d (r,) and b (out,) for each.

Here a fused layer's q and v have separate d, and each uses the first rows of B. In peft the whole layer has one d, and
each of its rows uses one row of B. Both are the same map with a larger pair: a block of r for each fused role, and one
for all other layers. A' = [A; A; ...]; d is zero outside a layer's own blocks. In a role's columns, B' has the first
rows of B at that role's rows of the fused layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.backbones.modules import FusedLinear
from peftbench.backbones.sites import LINEAR
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.interop import expert_updates
from peftbench.method.interop.peft_names import IN, Exported, Read, layout, whole_roles
from peftbench.method.interop.trained_adapter import TrainedAdapter
from peftbench.method.registry import find, make

PAIR = ("base_model.vera_A", "base_model.vera_B")


def write(trained: TrainedAdapter) -> Exported:
    """Export the vectors, and the pair with them, so that the importer need not draw it."""
    net = trained.edit.net
    expert_updates.refuse([site.path for site, _ in trained.edit.placed()], "VeRA")
    layers: dict[str, dict[str, Any]] = {}  # peft's layers, each with its adapters by block
    for site, module in trained.edit.placed():
        parent, _, role = site.path.rpartition(".")
        fused = isinstance(net.get_submodule(parent), FusedLinear)
        layers.setdefault(parent if fused else site.path, {})[role if fused else ""] = module
    blocks = [block for block in (*LINEAR, "") if any(block in parts for parts in layers.values())]
    A, B = _pair(trained.edit, blocks)
    tensors = dict(zip(PAIR, (A, B), strict=True))
    for path, parts in layers.items():
        first = next(iter(parts.values()))
        none = torch.zeros_like(first.d)
        d = torch.cat([parts[block].d if block in parts else none for block in blocks])
        rows = {role: module.b for role, module in parts.items()}
        b = first.b if "" in parts else net.get_submodule(path).filled(rows, 0.0)
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
    """Import the vectors.

    Args:
        config: peft's adapter configuration.
        tensors: peft's tensors by name, without the head.
        backbone: The backbone.

    Returns:
        Method, hyperparameters and state.

    Raises:
        UserError: The pair is not the one that peftbench draws from the adapter's seed, or the adapter has other parts.
    """
    if config.get("bias", "none") != "none":
        raise UserError(f"the adapter trains biases (bias = {config['bias']!r}) beside VeRA; no method here does both")
    layers = _layers(tensors)
    modules = dict(backbone.net.named_modules())
    fused = {path: module for path in layers if isinstance(module := modules.get(path), FusedLinear)}
    rows = {path: dict(zip(m.roles, m.split(layers[path][1]), strict=True)) for path, m in fused.items()}
    blocks = [role for role in LINEAR if any(role in parts and parts[role].any() for parts in rows.values())]
    if fused and not blocks:
        raise UserError("the adapter changes nothing in its fused layers (b = 0): for which role it is, is lost")
    blocks += [""] if len(fused) < len(layers) else []
    rank, left = divmod(config["r"], len(blocks))
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for path, (d, b) in layers.items():
        mine = dict(zip(blocks, d.split(rank), strict=False))
        if path in fused:
            parts |= {f"{path}.{role}": (mine[role], b) for role, b in rows[path].items() if role in mine}
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
    """Return (d, b) of each of peft's layers."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        path, _, end = name.removeprefix(IN).rpartition(".vera_lambda_")
        if name.startswith(IN) and end in ("d", "b"):
            by_layer.setdefault(path, {})[end] = t.float()
        elif name not in PAIR:
            raise UserError(f"the adapter has a tensor {name} that is no part of VeRA or the task head")
    for path, parts in by_layer.items():
        if len(parts) < 2:
            raise UserError(f"{path} has only {', '.join(parts)} of what its adapter consists of")
    if not by_layer:
        raise UserError("the adapter has no vera_lambda_d and vera_lambda_b")
    return {path: (parts["d"], parts["b"]) for path, parts in by_layer.items()}


def _same_pair(
    hyper: Mapping[str, Any], blocks: Sequence[str], tensors: Mapping[str, Tensor], backbone: Backbone
) -> bool:
    """Whether peft's pair is the one that our method draws. If the adapter has none, peft draws it as we do."""
    if PAIR[0] not in tensors:
        return list(blocks) == [""]
    edit = Edit(backbone)
    make(find("vera"), hyper).attach(edit)
    ours = _pair(edit, blocks)
    edit.undo()
    return all(torch.equal(tensors[name], t.cpu()) for name, t in zip(PAIR, ours, strict=True))


def _pair(edit: Edit, blocks: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return A' (r * blocks, in) and B' (out, r * blocks) of peft's layers, from the pair of the method in place."""
    pair: Any = edit.adapters()[0].projection
    rank, outside = len(pair.A), len(pair.B)
    parts: list[Tensor] = []
    fused = [m for m in edit.net.modules() if isinstance(m, FusedLinear)]
    for block in blocks:
        layer = next((m for m in fused if block in m.roles), None)
        if layer is None:
            parts.append(pair.B)
            continue
        rows = layer.sizes[layer.roles.index(block)] * layer.groups
        parts.append(layer.filled({block: pair.B[:rows]}, 0.0))
    B = pair.B.new_zeros(max(outside, *map(len, parts)), rank * len(blocks))
    for i, part in enumerate(parts):
        B[: len(part), i * rank : (i + 1) * rank] = part
    return pair.A.repeat(len(blocks), 1), B
