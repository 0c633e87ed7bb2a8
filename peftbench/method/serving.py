"""Several trained adapters on one base network: one at a time, or a different one for each row of a batch.

All adapters have one method and the same hyperparameters. `AdapterSet.batch` runs the network once. Each adapter
module, and the head, gets the tensors of each row's own adapter and is vectorised over the rows (torch.func.vmap); the
base's layers see the whole batch. This works for every method whose adapters stand at sites and map x row by row.
"""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from peftbench.backbones.devices import synchronise
from peftbench.backbones.load import Backbone
from peftbench.backbones.modules import PrefixSlot
from peftbench.errors import UserError, unknown
from peftbench.method import adapter_file
from peftbench.method.edit import Adapter, Edit


class AdapterSet:
    """Adapters by name, kept on the device of `backbone`; the first one is in place.

    >>> adapters = AdapterSet(backbone, {"a": Path("a.safetensors"), "b": Path("b.safetensors")})
    >>> adapters.switch("b")                                # seconds
    >>> adapters.batch(["a", "b"], inputs).logits           # row 0 with a, row 1 with b

    Attributes:
        backbone: The backbone.
        edit: The edit that holds the adapter in place.
    """

    def __init__(self, backbone: Backbone, files: Mapping[str, Path], plugins: Iterable[Path | str] = ()) -> None:
        """Load the adapters and put the first one in place.

        Args:
            backbone: The backbone that the adapters were trained on, as loaded.
            files: Adapter files by name; a head file next to an adapter is loaded with it.
            plugins: Python files that register further methods.

        Raises:
            UserError: No file is given, or the adapters differ in backbone, method, hyperparameters or shapes.
        """
        if not files:
            raise UserError("an adapter set needs at least one adapter file")
        backbone.net.eval()
        self.backbone = backbone
        self._states: dict[str, dict[str, Tensor]] = {}
        first = next(iter(files.values()))
        expected = adapter_file.load(first)[1]
        for name, path in files.items():
            state, header = adapter_file.load(path)
            for key in ("method", "hyper", "backbone"):
                if header[key] != expected[key]:
                    raise UserError(
                        f"{path} has the {key} {header[key]!r} and {first} has {expected[key]!r}; "
                        "the adapters of a set differ in their numbers only"
                    )
            head = adapter_file.head_path(path)
            state |= adapter_file.load(head)[0] if head.exists() else {}
            self._states[name] = {n: t.to(backbone.device) for n, t in state.items()}
        self.edit: Edit = adapter_file.apply(first, backbone, plugins)
        self._targets = targets(self.edit)
        for name, state in self._states.items():
            if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in self._targets.items()}:
                self.edit.undo()
                raise UserError(f"{files[name]} has other tensors than its method and head need; save it again")

    @property
    def names(self) -> list[str]:
        """Names of the adapters."""
        return list(self._states)

    def switch(self, name: str) -> float:
        """Put an adapter in place, with its head.

        Args:
            name: Name of the adapter.

        Returns:
            Seconds that the switch took, with the device synchronised.

        Raises:
            UserError: There is no adapter of this name.
        """
        state = self._state(name)
        synchronise(self.backbone.device)
        started = time.perf_counter()
        place(self._targets, state)
        synchronise(self.backbone.device)
        return time.perf_counter() - started

    @torch.no_grad()
    def batch(self, names: Sequence[str], inputs: Mapping[str, Tensor]) -> Any:
        """Run the network once, with the adapter ``names[i]`` for row i.

        Args:
            names: Name of an adapter for each row.
            inputs: The network's inputs, each (rows, ...).

        Returns:
            The network's output.

        Raises:
            UserError: The names do not match the rows, an adapter is a prefix (which is the same for every row), or the
                method trains the base itself.
        """
        rows = len(next(iter(inputs.values())))
        if len(names) != rows:
            raise UserError(f"{len(names)} adapters are named for {rows} rows; name one for each row")
        stacked = {key: torch.stack([self._state(name)[key] for name in names]) for key in self._targets}
        with self._by_row(stacked):
            return self.backbone.net(**inputs)

    @contextmanager
    def _by_row(self, stacked: Mapping[str, Tensor]) -> Iterator[None]:
        """Make the adapters and the head compute each row with that row's tensors."""
        modules = self._modules()
        left = [key for key in stacked if not any(key.startswith(f"{path}.") for path in modules)]
        if left:
            raise UserError(f"{left[0]} belongs to the base network; a batch by row needs adapters beside it")
        try:
            for path, module in modules.items():
                mine = {k.removeprefix(f"{path}."): t for k, t in stacked.items() if k.startswith(f"{path}.")}
                module.forward = _row_by_row(module, mine)
            yield
        finally:
            for module in modules.values():
                module.__dict__.pop("forward", None)

    def _modules(self) -> dict[str, Any]:
        placed: dict[str, Any] = {site.path: module for site, module in self.edit.placed()}
        thawed = self._targets
        for path, module in placed.items():
            if isinstance(module.base, PrefixSlot):
                raise UserError(f"{path} is a prefix, the same for every row; use switch and run rows by adapter")
        norms = [site.path for site in self.backbone.sites if site.role == "norm" and f"{site.path}.weight" in thawed]
        return placed | {path: self.backbone.net.get_submodule(path) for path in [*norms, *self.backbone.head]}

    def _state(self, name: str) -> dict[str, Tensor]:
        if name not in self._states:
            raise unknown("adapter", name, self._states)
        return self._states[name]


@torch.no_grad()
def place(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy the tensors of `state` into `targets`, by name."""
    for name, t in targets.items():
        t.copy_(state[name])


def targets(edit: Edit) -> dict[str, Tensor]:
    """Return the tensors in place that an adapter and its head fill, by their names in adapter files."""
    head = {id(p) for p in edit.backbone.head_parameters()}
    return edit.state() | {n: p for n, p in edit.backbone.parameters.items() if id(p) in head}


def _row_by_row(module: nn.Module, stacked: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Return a forward of `module` that uses the tensors ``stacked[name][i]`` for row i of its arguments."""
    plain = copy.copy(module)  # shares its tensors, and keeps the class's own forward
    if isinstance(module, Adapter) and not isinstance(module.base, Adapter):
        plain._modules = {**module._modules, "base": _UnbatchedBase(module.base)}
    plain._forward_hooks, plain._forward_pre_hooks = OrderedDict(), OrderedDict()  # run once, by the outer module
    rows = len(next(iter(stacked.values())))

    def forward(*args: Tensor) -> Any:
        if any(len(x) != rows for x in args) or (args[0].ndim < 3 and not isinstance(module, nn.Linear)):
            raise UserError(f"a {type(module).__name__} is not called with one row for each input; use switch instead")

        def one(state: dict[str, Tensor], *row: Tensor) -> Any:
            return functional_call(plain, state, tuple(x.unsqueeze(0) for x in row)).squeeze(0)

        return vmap(one, in_dims=(0,) * (1 + len(args)), randomness="error")(dict(stacked), *args)

    return forward


class _UnbatchedBase(nn.Module):
    """A base layer that sees the whole batch inside vmap; its own kernels need not support vmap."""

    is_dense = False  # so that adapters call it, and do not read its weight

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.__dict__["_base"] = base

    def forward(self, x: Tensor) -> Any:
        return _CallOnWholeBatch.apply(x, self._base)

    def __getattr__(self, name: str) -> Any:  # its weight, bias, sizes
        return getattr(self.__dict__["_base"], name)


class _CallOnWholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, base: nn.Module) -> Any:
        return base(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save nothing: serving has no gradient."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, base: nn.Module) -> tuple[Any, int]:
        rows = x.movedim(in_dims[0], 0)  # (rows, 1, ...)
        return base(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]), 0
