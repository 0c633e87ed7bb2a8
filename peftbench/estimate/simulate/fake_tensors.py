"""Run code on fake tensors: CPU tensors that have sizes but no data.

Fake CUDA tensors are not used: autograd on them aborts the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.method.base import Method

VALUES_NEEDED = (  # what fake tensors raise if a size depends on values
    torch._subclasses.fake_tensor.UnsupportedFakeTensorException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.DataDependentOutputException,
)
_SEARCHED = "_peftbench_searched"  # attribute of the result of a search


class FakeScalars(TorchDispatchMode):
    """Dispatch mode that supplies a value where code reads one from a fake tensor.

    A check is true, a search finds nothing, and a factor is one. A search ends in `any`: torch draws again while any
    number is out of bounds. An integer could be a size, and no size is invented: reading one raises, as usual for fake
    tensors.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not args[0].is_complex():
            if args[0].dtype == torch.bool:
                return not hasattr(args[0], _SEARCHED)
            if args[0].is_floating_point():
                return 1.0
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
            return _product_of_groups(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.any.default:
            setattr(out, _SEARCHED, True)
        return out


def _product_of_groups(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the product of a network of experts in a dtype that fake tensors refuse and the CPU's kernel takes."""
    like = torch._grouped_mm(a.bfloat16(), b.bfloat16(), *args, **kwargs)
    return torch.empty_strided(like.shape, like.stride(), dtype=a.dtype, device=a.device)


@contextmanager
def flash_attention() -> Iterator[None]:
    """Use attention that keeps only its output and the log-sum-exp of its scores, with dropout too.

    The function is replaced, not wrapped in a context, because checkpointing calls it again in backward.
    """
    usual = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1:  # attn_mask, dropout_p, ...
            args = (args[0], 0.0, *args[2:])
        else:
            kwargs["dropout_p"] = 0.0  # a fused kernel draws its dropout mask again in backward: it keeps none
        heads = query.size(1) // key.size(1) if query.dim() == key.dim() == 4 else 1
        if heads > 1 and not kwargs.get("enable_gqa"):  # the network leaves it to the math kernel to broadcast
            key, value = key.repeat_interleave(heads, 1), value.repeat_interleave(heads, 1)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return usual(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


@contextmanager
def dropout_of_a_gpu() -> Iterator[None]:
    """Let dropout keep a mask of one byte a number, as CUDA's kernel does; on a CPU it has the input's dtype."""
    usual = functional.dropout

    def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.ops.aten.native_dropout(input, p, True)[0] if training and p else input

    functional.dropout = drop
    try:
        yield
    finally:
        functional.dropout = usual


def attention(name: str | None) -> Any:
    """Return the context in which attention runs as `name`; None for torch's choice on this machine."""
    if name == "math":
        return sdpa_kernel(SDPBackend.MATH)
    return flash_attention() if name == "flash" else nullcontext()


def replace_tensors(backbone: Backbone, make: Callable[[Tensor], Tensor]) -> Backbone:
    """Replace every tensor of a network by ``make(t)``; shared tensors stay shared.

    Args:
        backbone: A backbone on the meta device.
        make: Returns the replacement of a tensor.

    Returns:
        The same backbone.
    """
    made: dict[int, Tensor] = {}
    old: list[Tensor] = []  # kept until the end, so that no id is reused

    def new(t: Tensor) -> Tensor:
        if id(t) not in made:
            old.append(t)
            filled = make(t)
            made[id(t)] = nn.Parameter(filled, requires_grad=False) if isinstance(t, nn.Parameter) else filled
        return made[id(t)]

    for module in backbone.net.modules():
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                if t is not None:
                    table[name] = new(t)
    backbone.parameters = {name: made[id(p)] for name, p in backbone.parameters.items()}  # type: ignore[misc]
    return backbone


@contextmanager
def fake_mode(padded: bool) -> Iterator[None]:
    """Enter fake mode, with transformers behaving as with real data.

    Args:
        padded: Whether the batch has padding. If not, transformers skips the mask, as for texts of one length.
    """
    from transformers.utils import import_utils

    usual = import_utils.is_fake_tensor
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(FakeScalars())
        try:
            if not padded:  # transformers then checks whether the whole mask is set, which `FakeScalars` answers
                import_utils.is_fake_tensor = lambda x: False
            yield
        finally:
            import_utils.is_fake_tensor = usual


def fake_like(t: Tensor) -> Tensor:
    """Return an empty tensor with the shape, stride and dtype of `t`."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)


def not_estimable(method: Method, error: Exception) -> UserError:
    """Return the error for a method whose sizes depend on values."""
    return UserError(
        f"{method.name} cannot be estimated: the size of one of its tensors depends on numbers that only weights and "
        f"data have ({type(error).__name__}: {error})"
    )
