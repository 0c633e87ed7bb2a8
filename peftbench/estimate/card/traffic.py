"""Count the kernels of a step and the bytes that they move: what its time comes from.

Every operation that is not a view counts as one kernel. It reads its inputs and writes its outputs once, whatever a
cache keeps. A broadcast tensor counts once. A lookup reads as much as it returns. What a kernel is, is what eager
PyTorch calls one: a fused optimiser is one for each group of parameters, fused attention is one.

Products (what flops.py counts) keep the operations, bytes and dtype of each. The others are grouped by size, since a
cache serves small ones. Transfers between devices are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from peftbench.measure.flops import FlopCounter
from peftbench.measure.timing import Phased

aten = torch.ops.aten

COMMUNICATION = ("c10d", "_c10d_functional", "c10d_functional")

NO_KERNEL = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted, aten.new_empty, aten.new_empty_strided),
    *(aten.lift_fresh, aten.lift, aten._unsafe_view, aten._reshape_alias, aten.set_, aten.resize_),
    aten._local_scalar_dense,
}
LOOKUPS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.take, aten.nll_loss_forward}
OVERWRITES = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.bernoulli_, aten.random_}
SHAPES = {
    *(aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like, aten.new_zeros, aten.new_ones)
}
SCATTERS = {aten.index_put_, aten._index_put_impl_, aten.index_add_, aten.scatter_, aten.scatter_add_}
READ_ONLY = {aten._fused_adamw_: 1, aten._fused_adam_: 1}  # argument that the schema calls written, and is not


@dataclass(frozen=True)
class Product:
    """Matrix products, or fused attentions, of one shape.

    Attributes:
        phase: "forward", "backward" or "optimizer".
        dtype: Of the operands, e.g. "bfloat16".
        flops: Floating-point operations of one; of causal attention, those that a fused kernel computes: half.
        bytes: Bytes of its operands and its result.
        count: How many there are.
    """

    phase: str
    dtype: str
    flops: int
    bytes: int
    count: int


@dataclass(frozen=True)
class Moves:
    """The other kernels of about one size: their bytes have the same number of binary digits.

    Attributes:
        phase: "forward", "backward" or "optimizer".
        bytes: Bytes that all of them move.
        count: How many there are.
    """

    phase: str
    bytes: int
    count: int


@dataclass(frozen=True)
class Traffic:
    """The kernels of one step.

    Attributes:
        products: The products.
        others: The other kernels.
        transfers: Number of transfers between devices by phase.
        sent: Bytes of these, by phase.
    """

    products: tuple[Product, ...]
    others: tuple[Moves, ...]
    transfers: Mapping[str, int]
    sent: Mapping[str, int]

    @property
    def kernels(self) -> int:
        """Number of kernels."""
        return sum(p.count for p in self.products) + sum(k.count for k in self.others)

    @property
    def flops(self) -> int:
        """Floating-point operations of the products."""
        return sum(p.flops * p.count for p in self.products)

    @property
    def bytes(self) -> int:
        """Bytes that all kernels move."""
        return sum(p.bytes * p.count for p in self.products) + self.moved()

    def moved(self, phase: str | None = None) -> int:
        """Return the bytes that kernels other than products move; None for all phases."""
        return sum(k.bytes for k in self.others if phase in (None, k.phase))


Shape = tuple[str, str, int, int]  # phase, dtype, flops, bytes
Size = tuple[str, int]  # phase, binary digits of the bytes
Values = tuple[int, ...]  # the number of kernels and their sums


class KernelCounter(FlopCounter):
    """The counter of operations, which also counts kernels and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._products: Counter[Shape] = Counter()
        self._counts: Counter[Size] = Counter()
        self._moved: Counter[Size] = Counter()
        self._transfers: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()

    @property
    def traffic(self) -> Traffic:
        """The kernels so far."""
        products = tuple(Product(*shape, count) for shape, count in self._products.items())
        others = tuple(Moves(size[0], self._moved[size], count) for size, count in self._counts.items())
        return Traffic(products, others, dict(self._transfers), dict(self._sent))

    def add(self, phase: str, kernels: int, moved: int) -> None:
        """Count kernels that do not run on fake tensors.

        Args:
            phase: Their phase.
            kernels: Their number.
            moved: Bytes that they move together.
        """
        if kernels:
            size = (phase, (moved // kernels).bit_length())
            self._counts[size] += kernels
            self._moved[size] += moved

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, operations: int | None) -> None:
        """Count one operation."""
        packet, phase = func._overloadpacket, self._phase
        if func.namespace in COMMUNICATION:
            self.one_transfer(phase, _tensors(out))
            return
        tensors = _tensors((args, kwargs))
        if func.is_view or packet in NO_KERNEL or func.namespace == "prim" or not (tensors or _tensors(out)):
            return
        size = self.moved(func, args, kwargs, out)
        if operations is None:
            self.one_kernel(phase, size)
        else:
            computed = operations // 2 if _is_causal(func, args, kwargs) else operations  # the kernel skips the rest
            self.one_product((phase, str(tensors[0].dtype).removeprefix("torch."), computed, size))

    def moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        """Return the bytes that one operation reads and writes."""
        return moved_bytes(func, args, kwargs, out)

    def one_kernel(self, phase: str, size: int) -> None:
        """Count a kernel that is no product."""
        self.add(phase, self._times, self._times * size)

    def one_product(self, shape: Shape) -> None:
        """Count a product."""
        self._products[shape] += self._times

    def one_transfer(self, phase: str, received: Sequence[Tensor]) -> None:
        """Count a transfer between devices by what comes of it."""
        if size := sum(map(touched_bytes, received)):
            self._transfers[phase] += self._times
            self._sent[phase] += size * self._times


class Together:
    """Several instruments that learn of the same phases."""

    def __init__(self, *instruments: Phased) -> None:
        self._instruments = instruments

    def phase(self, name: str) -> None:
        """Start a phase of all of them."""
        for one in self._instruments:
            one.phase(name)


def moved_bytes(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, touched: Callable[[Tensor], int] | None = None
) -> int:
    """Return the bytes that one operation reads and writes.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its named arguments.
        out: What it returned.
        touched: Returns the bytes of a tensor; None for `touched_bytes`.
    """
    touched = touched or touched_bytes
    packet = func._overloadpacket
    named = {a.name: a for a in func._schema.arguments}
    given = [(a, value) for a, value in zip(func._schema.arguments, args, strict=False)]
    given += [(named[name], value) for name, value in kwargs.items()]
    read, written = 0, 0
    for place, (argument, value) in enumerate(given):
        size = sum(map(touched, _tensors(value)))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and READ_ONLY.get(packet) != place:
            written += size
        if not (is_written and (packet in OVERWRITES or argument.is_out)):
            read += size
    if packet in SCATTERS:  # what is added, and the places that it goes to
        return 3 * max((touched(t) for t in _tensors(args[1:]) if t.is_floating_point()), default=0)
    if written == 0:
        written = sum(map(touched, _tensors(out)))
    if packet in SHAPES:
        return written
    if packet in LOOKUPS:
        read += written - touched(_tensors(args)[0])
    return read + written


def _is_causal(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation is attention of each token to those before it, without a mask."""
    place = next((i for i, a in enumerate(func._schema.arguments) if a.name == "is_causal"), None)
    return place is not None and bool(kwargs.get("is_causal", args[place] if place < len(args) else False))


def touched_bytes(t: Tensor) -> int:
    """Return the bytes of a tensor; a dimension along which it repeats itself counts once."""
    t = getattr(t, "_local_tensor", t)
    if t.layout != torch.strided:
        return t.numel() * t.element_size()
    return t.element_size() * prod(n if stride or not n else 1 for n, stride in zip(t.shape, t.stride(), strict=True))


def at_full_depth(traffics: Sequence[Traffic], more: int) -> Traffic | None:
    """Return the kernels of the whole network, from those of three shallow ones.

    Kernels that only occur at some depths, because one of their sizes is the depth, are taken together.

    Args:
        traffics: Of networks with n, n + 1 and n + 2 layers; or of the whole network alone.
        more: Number of layers in addition to n.

    Returns:
        The kernels; None if they are not affine in the depth.
    """
    if len(traffics) == 1:
        return traffics[0]
    products = _extrapolated([_by_shape(t.products) for t in traffics], more)
    others = _extrapolated([_by_size(t.others) for t in traffics], more)
    transfers = _extrapolated([{(p,): (n,) for p, n in t.transfers.items()} for t in traffics], more)
    sent = _extrapolated([{(p,): (n,) for p, n in t.sent.items()} for t in traffics], more)
    if products is None or others is None or transfers is None or sent is None:
        return None
    return Traffic(
        tuple(Product(phase, dtype, flops // n, size // n, n) for (phase, dtype, *_), (n, flops, size) in products),
        tuple(Moves(phase, size, n) for (phase, *_), (n, size) in others),
        {key[0]: n for key, (n,) in transfers},
        {key[0]: n for key, (n,) in sent},
    )


def _by_shape(products: Sequence[Product]) -> dict[tuple[Any, ...], Values]:
    return {(p.phase, p.dtype, p.flops, p.bytes): (p.count, p.count * p.flops, p.count * p.bytes) for p in products}


def _by_size(others: Sequence[Moves]) -> dict[tuple[Any, ...], Values]:
    return {(k.phase, "", (k.bytes // k.count).bit_length()): (k.count, k.bytes) for k in others}


def _extrapolated(
    depths: Sequence[Mapping[tuple[Any, ...], Values]], more: int
) -> list[tuple[tuple[Any, ...], Values]] | None:
    """Extrapolate the values of each key; None if they are not affine.

    Keys that are not affine alone differ from depth to depth. Those that begin with the same two parts are matched in
    their order, the smallest with the smallest; or added up, where that is not affine either.
    """
    found: list[tuple[tuple[Any, ...], Values]] = []
    odd: dict[tuple[Any, ...], None] = {}
    for key in dict.fromkeys(key for depth in depths for key in depth):
        width = len(next(depth[key] for depth in depths if key in depth))
        whole = _affine_values([depth.get(key, (0,) * width) for depth in depths], more)
        if whole is None:
            odd[key] = None
        elif whole[0]:
            found.append((key, whole))
    for start in dict.fromkeys(key[:2] for key in odd):
        alike = [[depth[key] for key in sorted(depth) if key in odd and key[:2] == start] for depth in depths]
        matched = [_affine_values(one, more) for one in zip(*alike, strict=False)]
        if len({len(some) for some in alike}) > 1 or None in matched:
            matched = [_affine_values([tuple(map(sum, zip(*some, strict=True))) for some in alike], more)]
        for whole in matched:
            if whole is None:
                return None
            found.append((start, whole))
    return found


def _affine_values(values: Sequence[Values], more: int) -> Values | None:
    whole = [_affine(one, more) for one in zip(*values, strict=True)]
    return None if None in whole else tuple(v for v in whole if v is not None)


def _affine(values: Sequence[int], more: int) -> int | None:
    a, b, c = values
    value = a + more * (b - a)
    return value if c - b == b - a and value >= 0 else None


def _tensors(values: Any) -> list[Tensor]:
    found: Iterable[Any] = tree_leaves(values)
    return [t for t in found if isinstance(t, Tensor)]
