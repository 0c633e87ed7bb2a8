"""The weights of a network's linear layers before and after training, for any method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftbench.backbones.experts import ExpertLinear, owner_of, weight_at
from peftbench.backbones.sites import LINEAR
from peftbench.errors import UserError
from peftbench.method.edit import Adapter, Edit, NotMergeable


class WeightChange(NamedTuple):
    """A linear site with its pretrained and its trained weight, both (out, in) in float64 on the CPU.

    Attributes:
        role: Role of the site.
        layer: Index of the site within its role, from 0.
        path: Path of the site.
        before: Pretrained weight.
        after: Trained weight.
        adapter: The adapter at the site; None if the layer's own weight trained.
    """

    role: str
    layer: int
    path: str
    before: Tensor
    after: Tensor
    adapter: Any

    @property
    def place(self) -> dict[str, Any]:
        """The site's role, layer and path."""
        return {"role": self.role, "layer": self.layer, "path": self.path}


@torch.no_grad()
def weight_changes(edit: Edit) -> Iterator[WeightChange]:
    """Yield every linear site that has an adapter or a trained weight, in the network's order.

    The adapter is folded in float64, so that rounding does not lose the update.

    Raises:
        UserError: An adapter is not a linear map.
    """
    adapters = {site.path: module for site, module in edit.placed()}
    trained = {id(p) for p in edit.trained()}
    seen: dict[str, int] = {}
    for site in edit.backbone.sites:
        if site.role not in LINEAR:
            continue
        layer = seen[site.role] = seen.get(site.role, -1) + 1
        adapter, (name, part) = adapters.get(site.path), _weight(edit, site.path)
        if adapter is not None:
            after = _folded(adapter, site.path)
        elif id(edit.backbone.parameters[name]) in trained:
            after = part(edit.backbone.parameters[name])
        else:
            continue
        before = part(edit.backbone.pristine(name))
        yield WeightChange(site.role, layer, site.path, _exact(before), _exact(after), adapter)


def _weight(edit: Edit, path: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the name of the parameter that holds a site's weight, and what the weight is of it."""
    return weight_at(edit.net, path) if owner_of(path) else (f"{path}.weight", lambda weight: weight)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _folded(adapter: Adapter, path: str) -> Tensor:
    try:
        plain: Any = _with_own_weight(copy.deepcopy(adapter)).double().folded()
    except NotMergeable as error:
        raise UserError(
            f"a probe of weights cannot look at {path}: {error}; leave the probe or the method out"
        ) from error
    weight: Tensor = plain.dense_weight()
    return weight


def _with_own_weight(adapter: Any) -> Any:
    """Give an adapter of an expert a layer of its own below it, which a cast reaches."""
    holder = adapter
    while isinstance(holder.base, Adapter):
        holder = holder.base
    if isinstance(holder.base, ExpertLinear):
        holder.base = holder.base.as_linear()
    return adapter
