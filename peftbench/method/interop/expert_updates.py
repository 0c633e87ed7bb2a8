"""Low-rank updates of experts, as Hugging Face peft 0.21 stores them: one for each tensor of all experts of a layer.

peft's `target_parameters` wraps the experts' module once for each adapted tensor, the first tensor innermost. The
updates of the experts lie beside each other in one pair of matrices,

    lora_A (experts * r, in),  with the rows of one expert after those of another;
    lora_B (out, r * experts), with the columns of all experts beside each other for each of the r.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.experts import CHILD, ExpertSites, owner_of
from peftbench.errors import UserError
from peftbench.method.interop.lowrank_updates import LowRank


def stacked(net: Any, layers: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the updates of experts by the path of their tensor: A (experts, r, in) and B (experts, out, r).

    Args:
        net: The network.
        layers: Updates of all layers; those of other layers are left out.

    Raises:
        UserError: An update has magnitudes (DoRA), which peft does not have for experts.
    """
    found: dict[str, list[LowRank]] = {}
    for path, update in layers.items():
        owner = owner_of(path)
        if not owner:
            continue
        if update.m is not None:
            raise UserError("peft's DoRA does not adapt experts; write a plain model: --to merged")
        tensor = "down_proj" if path.endswith(".down") else _inner(net.get_submodule(owner))
        found.setdefault(f"{owner}.{tensor}", []).append(update)
    return {
        path: LowRank(torch.stack([u.A for u in parts]), torch.stack([u.B for u in parts]), parts[0].scale)
        for path, parts in found.items()
    }


def tensors(update: LowRank) -> tuple[Tensor, Tensor]:
    """Return peft's lora_A (experts * r, in) and lora_B (out, r * experts) of a stacked update."""
    return update.A.flatten(0, 1), update.B.permute(1, 2, 0).flatten(1)


def separate(A: Tensor, B: Tensor, experts: int) -> list[tuple[Tensor, Tensor]]:
    """Return A (r, in) and B (out, r) of each expert: the inverse of `tensors`."""
    own = B.unflatten(1, (-1, experts)).permute(2, 0, 1)
    return list(zip(A.unflatten(0, (experts, -1)), own, strict=True))


def wrappers(net: nn.Module, targets: Iterable[str]) -> dict[str, str]:
    """Return the path of the adapted tensor by the path of its wrapper in peft's network.

    Args:
        net: A normalised network.
        targets: Ends of the paths of adapted tensors, as in `target_parameters`.
    """
    ends, found = tuple(f".{target}" for target in targets), {}
    for path, module in net.named_modules():
        if isinstance(module, ExpertSites):
            owner = path.removesuffix(f".{CHILD}")
            held = [name for name, _ in net.get_submodule(owner).named_parameters(recurse=False)]
            adapted = [name for name in held if f".{owner}.{name}".endswith(ends)]
            for depth, name in enumerate(reversed(adapted)):
                found[owner + ".base_layer" * depth] = f"{owner}.{name}"
    return found


def site_paths(net: nn.Module, tensor: str) -> list[str]:
    """Return for each expert the path of what a part of this tensor belongs to: its layer, or the expert with both."""
    owner, _, name = tensor.rpartition(".")
    each = net.get_submodule(f"{owner}.{CHILD}")
    inside = {"down_proj": ".down", "up_proj": ".up"}.get(name, "")
    return [f"{owner}.{CHILD}.{i}{inside}" for i in range(len(each))]  # type: ignore[arg-type]


def refuse(paths: Iterable[str], what: str) -> None:
    """Raise `UserError` if one of the sites is an expert's, for a method that peft has for modules only."""
    for path in paths:
        if owner_of(path):
            raise UserError(f"peft's {what} does not adapt experts, as {path} is; write a plain model: --to merged")


def _inner(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"
