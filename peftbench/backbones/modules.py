"""The modules that a method meets at a site: linear layers, sublayers and prefix slots.

The backbone normalises, so that methods need not: Conv1D becomes `SiteLinear`, a fused layer becomes one for each
of its roles, and `Block` offers a sublayer's residual and norm under one interface for all architectures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SiteLinear(nn.Linear):
    """A dense layer y = W x + b at a linear site, with W (out, in).

    Attributes:
        is_dense: Whether the output is exactly x W^T + b with `dense_weight` and `bias`. A fused computation may then
            use these and skip the layer's forward.
    """

    is_dense = True

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in)
        """Return W (out, in), cast to `dtype` if given; without a cast it is the parameter itself."""
        return self.weight if dtype is None else self.weight.to(dtype)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> SiteLinear:
        """Make a layer around existing tensors.

        Args:
            weight: W (out, in). A parameter stays the same object; a tensor becomes a frozen parameter.
            bias: b (out,) or None.
        """
        layer = cls(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
        return layer


class FusedLinear(nn.Module):
    """Several layers in place of one that computes all of them; the output has the fused layer's layout.

    The rows of the fused layer lie in equal groups, and each group has rows of the layers one after another.

    Attributes:
        roles: Role of each layer, in the order of their rows. The layers are children of these names.
        sizes: Rows of each layer in a group.
        groups: Number of groups.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, roles: Sequence[str], sizes: Sequence[int], groups: int = 1
    ) -> None:
        """Split a fused layer.

        Args:
            weight: (groups * sum of sizes, in).
            bias: (groups * sum of sizes,) or None.
            roles: Role of each layer.
            sizes: Rows of each layer in a group.
            groups: Number of groups.
        """
        super().__init__()
        self.roles, self.sizes, self.groups = tuple(roles), tuple(sizes), groups
        biases = [None] * len(self.roles) if bias is None else self.split(bias)
        for role, w, b in zip(self.roles, self.split(weight), biases, strict=True):
            setattr(self, role, SiteLinear.of(w.clone(), None if b is None else b.clone()))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the rows of the layers, each (its rows, ...), in the fused layer's layout: (all rows, ...)."""
        return torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], dim=1).flatten(0, 1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """Split rows in the fused layer's layout into those of each layer: the inverse of `join`."""
        parts = rows.unflatten(0, (self.groups, -1)).split(self.sizes, dim=1)
        return [part.reshape(-1, *rows.shape[1:]) for part in parts]

    def filled(self, parts: Mapping[str, Tensor], value: float) -> Tensor:
        """Join the rows of some roles, with `value` in the rows of the others."""
        like = next(iter(parts.values()))
        rows = zip(self.roles, self.sizes, strict=True)
        return self.join(
            [parts[r] if r in parts else like.new_full((n * self.groups, *like.shape[1:]), value) for r, n in rows]
        )

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., all rows)
        """Return the outputs of all layers for x (..., in), in the fused layer's layout."""
        parts = [getattr(self, role)(x) for role in self.roles]
        if self.groups > 1:
            return torch.cat([p.unflatten(-1, (self.groups, -1)) for p in parts], dim=-1).flatten(-2)
        return torch.cat(parts, dim=-1)


class Block(nn.Module):
    """A sublayer f inside its residual: y = norm(f(x) + r), or y = f(x) + r in a pre-norm network.

    A method may swap it for a module with the same call, ``forward(x, f, r) -> Tensor``. The network continues with the
    result in place of f.

    Attributes:
        width: Width of the residual stream.
    """

    _post_norm: nn.Module | None
    _taps: dict[str, tuple[nn.Module, int]]

    def __init__(self, width: int, norm: nn.Module | None, taps: dict[str, tuple[nn.Module, int]]) -> None:
        super().__init__()
        self.width = width
        # References, not submodules: these modules belong to the network.
        self.__dict__["_post_norm"] = norm
        self.__dict__["_taps"] = taps
        self._seen: dict[str, Tensor] = {}

    def norm(self, h: Tensor) -> Tensor:
        """Apply the layer norm after the residual addition; the identity in a pre-norm network."""
        return h if self._post_norm is None else self._post_norm(h)

    def forward(self, x: Tensor, f: Tensor, r: Tensor) -> Tensor:
        """Return the sublayer's new output.

        Args:
            x: Input of the sublayer (..., width).
            f: Output of the sublayer (..., width).
            r: Residual that the network adds to f (..., width).

        Returns:
            The output (..., width) to use in place of f.
        """
        return f

    def connect(self, stand_in: nn.Module) -> list[Any]:
        """Install hooks that call `stand_in` at this place.

        Returns:
            The hooks' handles, which the caller removes.
        """

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
    """The empty prefix slot of an attention layer. A method swaps it for a module that returns keys and values.

    The replacement has ``forward() -> (K, V)``, each (key-value heads, prefix length, head width). Attention then sees
    K and V before its own keys and values.

    Attributes:
        heads: Number of key-value heads.
        head_width: Width of one head.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width

    def forward(self) -> tuple[Tensor, Tensor] | None:
        """Return keys and values, each (key-value heads, prefix length, head width); None for no prefix."""
        return None
