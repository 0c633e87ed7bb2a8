"""What a method meets at a site: one kind of linear layer, one kind of sublayer, one kind of prefix slot.

The backbone normalises and the method does not: Conv1D becomes `SiteLinear`, a fused query-key-value layer becomes
three of them, a sublayer's residual and norm are offered by `Block` whatever the architecture calls them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SiteLinear(nn.Linear):
    """A dense layer y = W x + b at a linear site. W: (out, in)."""

    is_dense = True  # the layer's product is that of `dense_weight` and `bias`: whoever has them need not call it

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in), itself unless cast
        return self.weight if dtype is None else self.weight.to(dtype)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> SiteLinear:
        """A layer around these very tensors (parameters stay the same objects)."""
        layer = cls(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
        return layer


class FusedQKV(nn.Module):
    """Three layers where the architecture has one: computes q, k and v and lays them out as the fused layer did."""

    q: SiteLinear
    k: SiteLinear
    v: SiteLinear

    def __init__(self, weight: Tensor, bias: Tensor | None, layout: str, heads: int) -> None:
        """`weight`: (3 * width, width), rows in thirds (GPT-2) or, by head, as q, k, v of one head (GPT-NeoX)."""
        super().__init__()
        self.layout, self.heads = layout, heads
        for i, role in enumerate("qkv"):
            w = self._rows(weight, i).clone()
            b = None if bias is None else self._rows(bias, i).clone()
            setattr(self, role, SiteLinear.of(w, b))

    def _rows(self, t: Tensor, i: int) -> Tensor:
        if self.layout == "thirds":
            return t.chunk(3, dim=0)[i]
        return t.reshape(self.heads, 3, -1, *t.shape[1:])[:, i].reshape(-1, *t.shape[1:])

    def join(self, parts: list[Tensor]) -> Tensor:
        """Rows of q, k and v, each (width, ...), as the fused layer lays them out: (3 * width, ...)."""
        if self.layout == "thirds":
            return torch.cat(parts)
        return torch.stack([p.unflatten(0, (self.heads, -1)) for p in parts], dim=1).flatten(0, 2)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The way back from `join`."""
        return [self._rows(rows, i) for i in range(3)]

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., 3 * width)
        parts = [self.q(x), self.k(x), self.v(x)]
        if self.layout == "by_head":
            parts = [p.unflatten(-1, (self.heads, -1)) for p in parts]  # (..., heads, head width)
            return torch.cat(parts, dim=-1).flatten(-2)
        return torch.cat(parts, dim=-1)


class Block(nn.Module):
    """A sublayer f inside its residual: y = norm(f(x) + r), or y = f(x) + r where the network is pre-norm.

    A method may swap it for a module of the same call: ``forward(x, f, r) -> f'`` with x the sublayer's input, f its
    output and r the residual, all (..., width); the network goes on with f' in place of f.
    """

    _post_norm: nn.Module | None
    _taps: dict[str, tuple[nn.Module, int]]

    def __init__(self, width: int, norm: nn.Module | None, taps: dict[str, tuple[nn.Module, int]]) -> None:
        super().__init__()
        self.width = width
        self.__dict__["_post_norm"] = norm  # references, not children: the modules belong to the network
        self.__dict__["_taps"] = taps
        self._seen: dict[str, Tensor] = {}

    def norm(self, h: Tensor) -> Tensor:
        """The layer norm after the residual's addition; the identity in a pre-norm network."""
        return h if self._post_norm is None else self._post_norm(h)

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:
        return f

    def connect(self, stand_in: nn.Module) -> list[Any]:
        """Let `stand_in` be called at this place; returns the hooks' handles, to be removed by the caller."""

        def seen(name: str, argument: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._seen[name] = args[argument] if len(args) > argument else kwargs["hidden_states"]

            return hook

        def replace(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            f = out[0] if isinstance(out, tuple) else out
            f = stand_in(self._seen.pop("input"), f, self._seen.pop("residual"))
            return (f, *out[1:]) if isinstance(out, tuple) else f

        hooks = [
            self._taps[name][0].register_forward_pre_hook(seen(name, self._taps[name][1]), with_kwargs=True)
            for name in ("input", "residual")
        ]
        return [*hooks, self._taps["output"][0].register_forward_hook(replace)]


class PrefixSlot(nn.Module):
    """One per attention layer, empty: a method swaps it for a module whose call gives keys and values to put in front.

    ``forward() -> (K, V)``, each (key-value heads, prefix length, head width), or None for no prefix.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width

    def forward(self) -> tuple[Tensor, Tensor] | None:
        return None
