"""Peak memory of a training step, counted exactly: every live storage, by its purpose.

A dispatch mode sees each operation's tensors, in forward, backward and optimizer alike. A storage counts once, however
many views it has, from the operation that creates it until its last reference is gone. The count is therefore
deterministic to the byte, and exact for the algorithms that ran: another attention kernel or optimizer variant has
another count.

The mode does not see what a kernel allocates and frees internally (on some processors oneDNN packs bfloat16 weights
so). A compiled module runs eagerly inside the mode, so the figure is the eager step's. Under FakeTensorMode the same
tracker predicts a step that does not fit in memory.

    with LiveTensors({"weights": base, "adapter": added, "head": head}, optimizer) as live:
        loss = net(batch)
        live.phase("backward")
        loss.backward()
        live.phase("optimizer")
        optimizer.step()
    live.record()["at_peak"]  # {"weights": ..., "activations": ..., ...}, bytes at the moment of the peak

With ``roles=module_roles.of(backbone)`` the record also splits these bytes by place in the network:

    live.record()["by_role"]  # {"q": {"weights": ..., "activations": ..., ...}, "ffn": ..., ...}
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftbench.measure.module_roles import OTHER, RoleTracker
from peftbench.measure.system_memory import DevicePeak

PHASES = ("forward", "backward", "optimizer")


@dataclass
class _Lifetime:
    """One storage: its bytes, its purpose, and the events between which it lives."""

    bytes: int
    kind: str  # a group's name, "gradients", "optimizer", "activations", "temporaries"
    born: int  # index of the event; 0 for storages that exist at entry
    role: str  # "other" if no roles are given
    died: int | None = None


class LiveTensors(TorchDispatchMode):
    """Dispatch mode that counts live tensor bytes without changing any result.

    Gradients and optimizer state are found through the optimizer. Other tensors that exist at entry, such as the batch,
    count as activations from the beginning, once they are used. Storages that a forward creates and that live when the
    next backward starts are activations; all others are temporaries. What gradient checkpointing recomputes in backward
    is temporary.

    With `roles` the record splits every part by module. Weights, gradients and optimizer state belong to the module of
    their parameter. A computed tensor belongs to the innermost module with a role whose forward runs; in backward, to
    the module whose forward created the running graph node.
    """

    def __init__(
        self,
        groups: Mapping[str, Iterable[Tensor]],
        optimizer: Optimizer,
        device: torch.device | None = None,
        roles: Mapping[nn.Module, str] | None = None,
    ) -> None:
        """Prepare the tracker; counting begins on entry.

        Args:
            groups: Tensors that exist at entry, by group: at least "weights", "adapter" and "head" for a record. A
                storage in two groups counts in the first.
            optimizer: The optimizer of the step.
            device: Only dense tensors on this device count; None for the device of the first tensor.
            roles: Role of each module, from `module_roles.of`; None for no split by role.

        Raises:
            ValueError: The groups are empty. On entry: the optimizer updates a parameter that is in no group.
        """
        super().__init__()
        self._groups = {name: list(tensors) for name, tensors in groups.items()}
        self._optimizer = optimizer
        first = next((t for tensors in self._groups.values() for t in tensors), None)
        if device is None and first is None:
            raise ValueError("LiveTensors: the groups hold no tensor; pass the network's parameters and buffers")
        self._device = device or first.device  # type: ignore[union-attr]
        self._lives: dict[int, _Lifetime] = {}  # live storages by address
        self._dead: list[_Lifetime] = []
        self._changes: list[int] = [0]  # change of bytes by event; the first is the sum at entry
        self._phases: list[tuple[int, str]] = []
        self._watches: list[weakref.finalize] = []
        self._hooks: list[Any] = []
        self._watch = None if roles is None else RoleTracker(roles)
        self._peak = DevicePeak(self._device)
        self._resizes = _watched_resizes(self._resized)
        self._record: dict[str, Any] | None = None

    def __enter__(self) -> LiveTensors:
        for name, tensors in self._groups.items():
            for tensor in tensors:
                self._see(tensor, name, before=True, owner=tensor)
        self._check_optimizer()
        for parameter in self._parameters():
            if not parameter.is_leaf or not parameter.requires_grad:
                continue
            if parameter.grad is not None:
                self._see(parameter.grad, "gradients", before=True, owner=parameter)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(self._mark_gradient))
        self._mark_optimizer(before=True)
        self.phase("forward")
        if self._watch is not None:
            self._watch.start()
        self._peak.start()
        self._resizes.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._resizes.__exit__(kind, error, trace)
        self._mark_optimizer(before=False)
        for hook in self._hooks:
            hook.remove()
        if self._watch is not None:
            self._watch.stop()
        for watch in self._watches:
            watch.detach()
        self._record = self._summary() | self._peak.read()
        self._lives, self._dead, self._groups = {}, [], {}

    def phase(self, name: str) -> None:
        """Start a phase: "forward" (also the first one), "backward" or "optimizer". Other names raise ValueError."""
        if name not in PHASES:
            raise ValueError(f"LiveTensors: unknown phase {name!r}; the phases are {', '.join(PHASES)}")
        if name == "backward":
            for life in self._lives.values():
                if life.kind == "temporaries":
                    life.kind = "activations"
        if self._phases and self._phases[-1][1] == "optimizer":
            self._mark_optimizer(before=False)
        self._phases.append((len(self._changes), name))

    def record(self) -> dict[str, Any]:
        """Return the measurement after the mode has ended.

        Returns:
            In bytes: "peak_bytes", the largest sum of live tensors. "at_peak", its parts at that moment (the first if
            the peak is reached twice): every group, gradients, optimizer, activations, temporaries. "peak_phase", the
            phase of the peak. "resident_bytes", "allocated_bytes" and "reserved_bytes", the process's resident set and
            the CUDA allocator's figures, None if not measured. "by_role", only if roles were given: "at_peak" of every
            role with any bytes; their sum is "at_peak".

        Raises:
            RuntimeError: The mode has not ended.
        """
        if self._record is None:
            raise RuntimeError("LiveTensors.record() is there after the `with` block has ended")
        return self._record

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most that fake tensors dispatch; it computes nothing
            return func(*args)
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a tensor in shards: what its operations do to this process's shard comes back here
        if func is not torch.ops.aten.lift_fresh.default:  # the argument of torch.tensor(...) is new, not from before
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self._see(leaf, "activations", before=True)
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf, "temporaries", before=False)
        return out

    def _see(self, tensor: Tensor, kind: str, before: bool, owner: Any = None) -> None:
        """Count the tensor's storage if it is new, and follow a resize. `owner` is its parameter or module, if any."""
        tensor = getattr(tensor, "_local_tensor", tensor)  # of a tensor in shards, this process's shard
        if not self._counts(tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        life = self._lives.get(key)
        if life is not None and life.bytes == size:
            return
        if life is not None:
            kind, before, role = life.kind, False, life.role
            self._end(life)
        else:
            role = self._role(owner, before)
            self._watches.append(weakref.finalize(storage, self._forget, key))
        self._lives[key] = _Lifetime(size, kind, 0 if before else len(self._changes), role)
        if before:
            self._changes[0] += size
        else:
            self._changes.append(size)

    def _resized(self, storage: torch.UntypedStorage, before: int) -> None:
        """Follow a storage's new size, which no operation shows. One that is not known yet had its size at entry."""
        of_fake = storage.device.type == "meta"  # a fake tensor's storage does not know the device
        if not (of_fake or self._is_here(storage.device)) or storage.nbytes() == before:
            return
        key, size = storage._cdata, storage.nbytes()
        life = self._lives.get(key)
        if life is None:
            life = _Lifetime(before, "temporaries", 0, self._role(None))
            self._changes[0] += before
            self._watches.append(weakref.finalize(storage, self._forget, key))
        self._end(life)
        self._lives[key] = _Lifetime(size, life.kind, len(self._changes), life.role)
        self._changes.append(size)

    def _role(self, owner: Any, before: bool = False) -> str:
        if self._watch is None:
            return OTHER
        if owner is not None:
            return self._watch.place(owner)
        return OTHER if before else self._watch.now()

    def _counts(self, tensor: Tensor) -> bool:
        return self._is_here(tensor.device) and tensor.layout == torch.strided

    def _is_here(self, there: torch.device) -> bool:
        here = self._device
        return here.type == there.type and here.index in (None, there.index)

    def _forget(self, key: int) -> None:
        self._end(self._lives.pop(key))

    def _end(self, life: _Lifetime) -> None:
        life.died = len(self._changes)
        self._changes.append(-life.bytes)
        self._dead.append(life)

    def _parameters(self) -> Iterator[Tensor]:
        seen: set[int] = set()
        grouped = [t for tensors in self._groups.values() for t in tensors]
        for tensor in [*grouped, *(p for group in self._optimizer.param_groups for p in group["params"])]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def _check_optimizer(self) -> None:
        grouped = {id(t) for tensors in self._groups.values() for t in tensors}
        missing = [p for group in self._optimizer.param_groups for p in group["params"] if id(p) not in grouped]
        if missing:
            shapes = ", ".join(str(tuple(p.shape)) for p in missing[:3])
            raise ValueError(
                f"LiveTensors: {len(missing)} parameters of the optimizer are in no group (shapes {shapes}); "
                "pass every parameter and buffer of the network in a group"
            )

    def _mark_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._mark(parameter.grad, "gradients", parameter)

    def _mark_optimizer(self, before: bool) -> None:
        for owner, state in self._optimizer.state.items():
            for tensor in tree_leaves(state):
                if isinstance(tensor, Tensor):
                    if before:
                        self._see(tensor, "optimizer", before=True, owner=owner)
                    else:
                        self._mark(tensor, "optimizer", owner)

    def _mark(self, tensor: Tensor, kind: str, owner: Any) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)
        if not self._counts(tensor):
            return
        life = self._lives.get(tensor.untyped_storage()._cdata)
        if life is not None and life.kind in ("temporaries", "activations"):
            life.kind, life.role = kind, self._role(owner)

    def _summary(self) -> dict[str, Any]:
        levels = list(accumulate(self._changes))
        moment = max(range(len(levels)), key=levels.__getitem__)  # the first of equals
        names = [*self._groups, "gradients", "optimizer", "activations", "temporaries"]
        parts, by_role = dict.fromkeys(names, 0), dict[str, dict[str, int]]()
        for life in [*self._dead, *self._lives.values()]:
            if life.bytes and life.born <= moment and (life.died is None or life.died > moment):
                parts[life.kind] += life.bytes
                by_role.setdefault(life.role, dict.fromkeys(names, 0))[life.kind] += life.bytes
        phase = next(name for start, name in reversed(self._phases) if start <= max(moment, 1))
        summary = {"peak_bytes": levels[moment], "at_peak": parts, "peak_phase": phase}
        return summary if self._watch is None else {**summary, "by_role": dict(sorted(by_role.items()))}


@contextmanager
def _watched_resizes(note: Callable[[torch.UntypedStorage, int], None]) -> Iterator[None]:
    """Call `note` with a storage and its bytes before each resize: sharded training frees and fills weights so."""
    usual = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        before = storage.nbytes()
        out = usual(storage, size)
        note(storage, before)
        return out

    torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = usual  # type: ignore[method-assign]


def track_step(
    groups: Mapping[str, Iterable[Tensor]],
    optimizer: Optimizer,
    forward: Callable[[], Tensor],
    roles: Mapping[nn.Module, str] | None = None,
) -> dict[str, Any]:
    """Run one step (forward, backward, optimizer, gradients freed) and return its `LiveTensors.record()`.

    Args:
        groups: As in `LiveTensors`.
        optimizer: The optimizer of the step.
        forward: Returns the loss.
        roles: As in `LiveTensors`.
    """
    with LiveTensors(groups, optimizer, roles=roles) as live:
        loss = forward()
        live.phase("backward")
        loss.backward()
        del loss
        live.phase("optimizer")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return live.record()
