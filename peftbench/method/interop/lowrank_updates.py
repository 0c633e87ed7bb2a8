"""Low-rank updates of a network's original layers: the common form of LoRA and its variants in other libraries.

The roles of a fused layer (q, k, v) have an update each here; elsewhere the whole layer has one. Both are the same map,
of rank 2 r for two roles:

    [s B_q A_q; 0; s B_v A_v] = s [B_q 0; 0 0; 0 B_v] [A_q; A_v]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.experts import Expert
from peftbench.backbones.modules import FusedLinear
from peftbench.errors import UserError
from peftbench.method.edit import Edit


@dataclass(frozen=True)
class LowRank:
    """The update W + s B A; with m, each row of the result is scaled to the length m (DoRA).

    Attributes:
        A: (r, in).
        B: (out, r).
        scale: s.
        m: (out,) or None.
    """

    A: Tensor
    B: Tensor
    scale: float
    m: Tensor | None = None


AsLowRank = Callable[[Any], LowRank]  # converts an adapter to its low-rank update
Fused = FusedLinear | Expert  # what holds the layers of roles that share a weight in transformers' network


def updates(edit: Edit, as_low_rank: AsLowRank) -> dict[str, LowRank]:
    """Return the update of every adapted layer, by its path in transformers' network; experts keep the paths of sites.

    Args:
        edit: The edit that holds the adapters.
        as_low_rank: Converts an adapter to its update.
    """
    alone = {site.path: as_low_rank(module) for site, module in edit.placed()}
    layers: dict[str, dict[str, LowRank]] = {}
    for path, update in alone.items():
        parent, _, role = path.rpartition(".")
        holder = edit.net.get_submodule(parent)
        fused = isinstance(holder, Fused) and role in holder.roles
        layers.setdefault(parent if fused else path, {})[role if fused else ""] = update
    return {
        path: parts[""] if "" in parts else join(edit.net.get_submodule(path), parts) for path, parts in layers.items()
    }


def join(layer: Fused, parts: Mapping[str, LowRank]) -> LowRank:
    """Combine the updates of some roles of a fused layer into one update of the layer."""
    roles = [r for r in layer.roles if r in parts]
    first = parts[roles[0]]
    rank = sum(len(parts[r].A) for r in roles)
    blocks, at = [], 0
    for role in layer.roles:
        rows = first.B.new_zeros(_dense(layer, role).shape[0], rank)
        if role in parts:
            rows[:, at : at + len(parts[role].A)] = parts[role].B
            at += len(parts[role].A)
        blocks.append(rows)
    m = None
    if first.m is not None:  # an untouched row keeps its own length
        lengths = [parts[r].m if r in parts else torch.linalg.vector_norm(_dense(layer, r), dim=1) for r in layer.roles]
        m = layer.join([t.to(first.m.dtype) for t in lengths if t is not None])
    return LowRank(torch.cat([parts[r].A for r in roles]), layer.join(blocks), first.scale, m)


def alpha_of(update: LowRank, stabilised: bool) -> float:
    """Return the alpha that gives the update's scale when divided by r, or by sqrt(r) if `stabilised` (rsLoRA)."""
    rank = update.A.shape[-2]
    divisor = math.sqrt(rank) if stabilised else rank
    alpha = update.scale * divisor
    near = round(alpha, 9)
    return near if near / divisor == update.scale else alpha


def roles_of(layer: Fused, update: LowRank) -> set[str]:
    """Return the roles that a fused layer's update changes."""
    rows = zip(layer.roles, layer.split(update.B), strict=True)
    changed = {role for role, B in rows if bool(B.any())}
    if update.m is not None:
        for role, m in zip(layer.roles, layer.split(update.m), strict=True):
            own = torch.linalg.vector_norm(_dense(layer, role), dim=1)
            if not torch.allclose(m, own.to(m.dtype), rtol=1e-6, atol=0):
                changed.add(role)
    return changed


def split(layer: Fused, update: LowRank, roles: Sequence[str], path: str) -> dict[str, LowRank]:
    """Split a fused layer's update into those of its roles: the inverse of `join`.

    Args:
        layer: The fused layer.
        update: Its update.
        roles: The roles that it changes, e.g. ("q", "v").
        path: Path of the layer, for messages.

    Raises:
        UserError: The update does not have the structure that `join` makes.
    """
    rank, left = divmod(len(update.A), len(roles))
    parts: dict[str, LowRank] = {}
    for i, role in enumerate(roles):
        mine = slice(i * rank, (i + 1) * rank)
        B = layer.split(update.B)[layer.roles.index(role)]
        rest = B.clone()
        rest[:, mine] = 0
        if left or bool(rest.any()):
            raise UserError(
                f"{path} is a fused layer whose update mixes {' and '.join(roles)}: its rank {len(update.A)} is not "
                f"{len(roles)} blocks, one for each; peftbench adapts them one by one and cannot represent it exactly"
            )
        m = None if update.m is None else layer.split(update.m)[layer.roles.index(role)].clone()
        parts[role] = LowRank(update.A[mine].clone(), B[:, mine].clone(), update.scale, m)
    return parts


def _dense(layer: Fused, role: str) -> Tensor:
    module = getattr(layer, role)
    while hasattr(module, "base"):
        module = module.base
    weight: Tensor = module.dense_weight()
    return weight
