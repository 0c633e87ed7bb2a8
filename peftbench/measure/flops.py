"""Count floating-point operations from the shapes of every matrix product.

A multiplication and an addition are two operations. Matrix and vector products, attention and convolutions count, in
forward, backward and optimizer alike, also inside custom autograd functions. Elementwise operations (norms,
activations, AdamW), sorting and factorisations (SVD) count nothing.

The formulas are those of torch.utils.flop_counter, plus what it lacks: in-place products, products with a vector,
linear layers that a backend keeps whole, attention on CPU and MPS. A fused attention counts the full square whatever
its mask skips. Its backward recomputes the scores: five products, where the forward has two. What gradient
checkpointing recomputes counts again. A compiled module runs eagerly inside the mode.

    with FlopCounter() as flops:
        loss = net(batch)
        flops.phase("backward")
        loss.backward()
    flops.total, flops.by_phase  # int, {"forward": int, "backward": int, "optimizer": int}

It may be nested inside or around LiveTensors, and inside FakeTensorMode. It must not be around FakeTensorMode: fake
tensors may decompose an operation, and its parts would count again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from peftbench.measure.memory import PHASES

aten = torch.ops.aten
Shape = Sequence[int]
Formula = Callable[..., int]


class FlopCounter(TorchDispatchMode):
    """Dispatch mode that counts floating-point operations without changing any result.

    Attributes:
        by_phase: Operations of each phase.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_phase: dict[str, int] = dict.fromkeys(PHASES, 0)
        self._phase = PHASES[0]
        self._times = 1

    @property
    def total(self) -> int:
        """Operations of all phases."""
        return sum(self.by_phase.values())

    def phase(self, name: str) -> None:
        """Start a phase: "forward" (also the first one), "backward" or "optimizer". Phases may alternate.

        Raises:
            ValueError: There is no such phase.
        """
        if name not in PHASES:
            raise ValueError(f"FlopCounter: unknown phase {name!r}; the phases are {', '.join(PHASES)}")
        self._phase = name

    @contextmanager
    def times(self, number: int) -> Iterator[None]:
        """Count each operation inside so many times: it stands for others like it."""
        before, self._times = self._times, self._times * number
        try:
            yield
        finally:
            self._times = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most that fake tensors dispatch; it computes nothing
            return func(*args)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and func.namespace == "aten":
            with self:  # in inference mode, composite operations arrive undecomposed
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        operations = None if formula is None else formula(*args, **kwargs, out_val=out)
        self.by_phase[self._phase] += (operations or 0) * self._times
        self.saw(func, args, kwargs, out, operations)
        return out

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, operations: int | None) -> None:
        """Called after each operation, with its floating-point operations if it is a product. For subclasses."""


def _of_shapes(formula: Callable[..., int], start: int, count: int) -> Formula:
    """Apply a formula to the shapes of `count` tensor arguments, beginning with argument number `start`."""
    return lambda *args, **_: formula(*(tuple(t.shape) for t in args[start : start + count]))


def _product(a: Shape, b: Shape) -> int:  # (m, k) @ (k, n) or (k,); batched; grouped: either of the two may be batched
    return 2 * prod(a if len(b) > 2 else a[-2:]) * (b[-1] if len(b) > 1 else 1)


def _linear(x: Shape, weight: Shape) -> int:  # (..., in), (out, in) or (in,)
    return 2 * prod(x) * (weight[0] if len(weight) > 1 else 1)


def _linear_backward(x: Any, _: Any, weight: Any, wanted: Sequence[bool], **__: Any) -> int:
    """Count one product for the input's gradient and one for the weight's, as far as they are needed."""
    return sum(map(bool, wanted[:2])) * _linear(x.shape, weight.shape)


_FORMULAS: dict[Any, Formula] = {
    **flop_registry,
    **dict.fromkeys((aten.mm, aten.bmm, aten._int_mm, aten._grouped_mm, aten.mv), _of_shapes(_product, 0, 2)),
    **dict.fromkeys((aten.addmm, aten.addmm_, aten._addmm_activation), _of_shapes(_product, 1, 2)),
    **dict.fromkeys((aten.baddbmm, aten.baddbmm_, aten.addbmm, aten.addbmm_), _of_shapes(_product, 1, 2)),
    **dict.fromkeys((aten.addmv, aten.addmv_), _of_shapes(_product, 1, 2)),
    **dict.fromkeys((aten.dot, aten.vdot), _of_shapes(_product, 0, 2)),
    **dict.fromkeys((aten.linear, aten.mkldnn_linear), _of_shapes(_linear, 0, 2)),
    aten.linear_backward: _linear_backward,
    **dict.fromkeys(
        (
            aten._scaled_dot_product_flash_attention_for_cpu,
            aten._scaled_dot_product_attention_math_for_mps,
            aten._scaled_dot_product_fused_attention_overrideable,
        ),
        _of_shapes(sdpa_flop_count, 0, 3),
    ),
    **dict.fromkeys(
        (
            aten._scaled_dot_product_flash_attention_for_cpu_backward,
            aten._scaled_dot_product_fused_attention_overrideable_backward,
        ),
        _of_shapes(sdpa_backward_flop_count, 0, 4),
    ),
}
