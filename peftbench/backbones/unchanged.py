"""Whether a network is what it was: a snapshot of its structure, and a cheap checksum of its frozen tensors.

An edit restores what it changed. A method may also change what no edit knows of: write into a frozen weight, leave a
hook, put another forward in place of a module's. The next run must not train on such a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.load import Backbone

HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
PARTS = 8  # of a tensor, summed one by one: what moves from one to another shows


class Snapshot:
    """What a network is between two runs, without the values of its task head, which each run makes anew."""

    def __init__(self, backbone: Backbone) -> None:
        self._structure = dict(_structure(backbone))
        self._sums = _checksums(backbone)

    def difference(self, backbone: Backbone) -> str | None:
        """Return where the network differs from the snapshot now; None if it does not."""
        now = dict(_structure(backbone))
        if now != self._structure:
            places = sorted(k for k in now.keys() | self._structure.keys() if now.get(k) != self._structure.get(k))
            return places[0]
        sums = _checksums(backbone)
        return next((name for name, value in sums.items() if value != self._sums[name]), None)


def _structure(backbone: Backbone) -> Iterator[tuple[str, Any]]:
    """The modules by path, with their classes, forwards and hooks; the tensors with their identity and form."""
    net, head = backbone.net, {id(p) for p in backbone.head_parameters()}
    yield "the configuration", net.config.to_dict()
    yield "the number of prompt vectors", backbone.virtual_tokens
    for path, module in net.named_modules():
        own = module.__dict__.get("forward")
        hooks = [[id(hook) for hook in getattr(module, kind, {}).values()] for kind in HOOKS]
        yield f"module {path or '(all)'}", (id(module), type(module), id(type(module).forward), id(own), hooks)
    for name, t in _tensors(backbone):
        form = () if id(t) in head else (t.dtype, t.device, tuple(t.shape))
        yield f"tensor {name}", (id(t) if isinstance(t, torch.nn.Parameter) else None, form)


def _tensors(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    yield from backbone.net.named_parameters()
    yield from backbone.net.named_buffers()


def _checksums(backbone: Backbone) -> dict[str, list[int]]:
    """Sums of the bits of every tensor outside the head, by name; read from the device at once."""
    head = {id(p) for p in backbone.head_parameters()}
    return bit_sums({name: t for name, t in _tensors(backbone) if id(t) not in head})


def bit_sums(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return sums of the bits of every tensor that has any, by name; read from the device at once."""
    found = {name: _sums(t) for name, t in tensors.items() if t.numel()}
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}


def _sums(tensor: Tensor) -> Tensor:
    """Sums of the bits of a tensor, (PARTS + 1,) int64, which overflow as they may."""
    flat = tensor.detach().reshape(-1).contiguous()
    if (flat.storage_offset() * flat.element_size()) % 8:
        flat = flat.clone()
    raw = flat.view(torch.uint8)
    whole = raw[: raw.numel() // 8 * 8].view(torch.int64)
    sums = [part.sum() for part in whole.tensor_split(PARTS)]
    return torch.stack([*sums, raw[raw.numel() // 8 * 8 :].sum(dtype=torch.int64)])
