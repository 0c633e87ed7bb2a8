"""What training made of a network's linear layers: the weight before and after, whatever the method."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftbench.backbones.sites import LINEAR
from peftbench.errors import UserError
from peftbench.method.edit import Adapter, Edit, NotMergeable


class Change(NamedTuple):
    """A linear site, its pretrained weight W and its trained one, both (out, in) in float64 on the CPU."""

    role: str
    layer: int  # from 0, counted within the role
    path: str
    before: Tensor
    after: Tensor
    adapter: Any  # the module in the layer's place; None where the layer's own weight was trained

    @property
    def place(self) -> dict[str, Any]:
        return {"role": self.role, "layer": self.layer, "path": self.path}


@torch.no_grad()
def changes(edit: Edit) -> Iterator[Change]:
    """Every linear site that an adapter stands at or whose weight trains, one at a time, in the network's order.

    The adapter is folded in float64, so that the update is not lost in the rounding of the weight. Raises `UserError`
    for an adapter that is no linear map.
    """
    adapters = {site.path: module for site, module in edit.placed()}
    trained = {id(p) for p in edit.trained()}
    seen: dict[str, int] = {}
    for site in edit.backbone.sites:
        if site.role not in LINEAR:
            continue
        layer = seen[site.role] = seen.get(site.role, -1) + 1
        adapter, name = adapters.get(site.path), f"{site.path}.weight"
        if adapter is not None:
            after = _folded(adapter, site.path)
        elif id(edit.backbone.parameters[name]) in trained:
            after = edit.backbone.parameters[name]
        else:
            continue
        before = edit.backbone.pristine(name)
        yield Change(site.role, layer, site.path, _exact(before), _exact(after), adapter)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _folded(adapter: Adapter, path: str) -> Tensor:
    try:
        plain: Any = copy.deepcopy(adapter).double().folded()
    except NotMergeable as error:
        raise UserError(
            f"a probe of weights cannot look at {path}: {error}; leave the probe or the method out"
        ) from error
    weight: Tensor = plain.dense_weight()
    return weight
