"""Where each of our numbers lies in another library's tensors, which may be fused, transposed or stacked.

A `Pair` holds positions instead of two conversions, so that reading, writing and the mask of what ours does not have
come from the same indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Pair:
    """Our tensor of shape ``where.shape`` is their tensor's numbers at the flat positions `where`."""

    theirs: nn.Parameter | Tensor
    where: Tensor

    def read(self, t: Tensor | None = None) -> Tensor:
        """The numbers of `t`, a tensor laid out as theirs (default: theirs itself), in our shape."""
        return (self.theirs if t is None else t).detach().reshape(-1)[self.where]

    @torch.no_grad()
    def write(self, ours: Tensor) -> None:
        flat = self.theirs.detach().clone().reshape(-1)
        flat[self.where] = ours.to(flat.dtype)
        self.theirs.copy_(flat.reshape(self.theirs.shape))


def positions(t: Tensor) -> Tensor:
    """The flat position of every number of `t`, in the shape of `t`: index it as you would index `t`."""
    return torch.arange(t.numel()).reshape(t.shape)


def whole(t: nn.Parameter, shape: torch.Size | None = None) -> Pair:
    """All of their tensor, in our `shape`."""
    return Pair(t, positions(t).reshape(t.shape if shape is None else shape))


def unmapped(pairs: Mapping[str, Pair]) -> list[tuple[nn.Parameter | Tensor, Tensor]]:
    """Their tensors with a mask of the numbers that no tensor of ours stands for. Positions must not overlap."""
    tensors = {id(pair.theirs): pair.theirs for pair in pairs.values()}
    rest = []
    for key, t in tensors.items():
        used = torch.cat([pair.where.reshape(-1) for pair in pairs.values() if id(pair.theirs) == key])
        assert len(used.unique()) == len(used), "two tensors of ours are paired with the same numbers"
        free = torch.ones(t.numel(), dtype=torch.bool)
        free[used] = False
        rest.append((t, free.reshape(t.shape)))
    return rest


# The layers of the untouched network


@dataclass(frozen=True)
class Layer:
    """A linear layer of ours in the untouched network: all of a layer there, or a third of a fused one's rows."""

    path: str
    module: nn.Module
    part: int | None  # 0, 1, 2 for q, k, v of a fused layer
    rows: Tensor  # our output features among the layer's own

    def pair(self, name: str) -> Pair:
        """Our weight (out, in) or bias (out,) in theirs."""
        theirs = getattr(self.module, name)
        where = positions(theirs)
        if isinstance(self.module, Conv1D) and name == "weight":  # (in, out)
            where = where.T
        return Pair(theirs, where[self.rows])


def layer(net: nn.Module, path: str) -> Layer:
    """The layer at `path` of our normalised network, where ``fused.q`` is a part of ``fused``."""
    outer, _, role = path.rpartition(".")
    fused = role in ("q", "k", "v")
    module = net.get_submodule(outer if fused else path)
    if not fused:
        count = module.nf if isinstance(module, Conv1D) else module.weight.shape[0]
        return Layer(path, module, None, torch.arange(count))
    part = "qkv".index(role)
    if isinstance(module, Conv1D):  # GPT-2: thirds
        return Layer(outer, module, part, torch.arange(module.nf).chunk(3)[part])
    heads = net.config.num_attention_heads  # GPT-NeoX: q, k and v of each head together
    rows = torch.arange(module.out_features).reshape(heads, 3, -1)[:, part].reshape(-1)
    return Layer(outer, module, part, rows)
