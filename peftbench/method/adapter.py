"""What a method puts in place of a module of the network."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from peftbench.errors import UserError

M = TypeVar("M", bound=nn.Module)


def move(module: M, device: torch.device) -> M:
    """Move the parameters of a new module to a device, and return it.

    First values are drawn on the CPU, so that they are the same on every device. `nn.Module.to` cannot do this for the
    simulated tensors that `plan` and `estimate` use.

    Args:
        module: A module whose parameters nothing refers to yet.
        device: The device.
    """
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(p.detach().to(device))
    return module


class NotMergeable(Exception):
    """The adapter cannot be written as a plain layer of the base network."""


class ReadsReplaced(UserError, AttributeError):
    """A network computes with a tensor of a layer that an adapter has replaced. `hasattr` gives False, as it should."""


class Adapter(nn.Module):
    """A module that replaces the module `base` at a site. Parameters and buffers outside ``.base`` are the adapter's
    state.

    At a linear site it is called with x (..., in) and returns (..., out). At a block it has the call of `Block`, in a
    slot that of `PrefixSlot` or `PromptSlot`.

    Attributes:
        base: The module that stood at the site, with the interface of `backbones/modules.py`.
    """

    base: Any

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        """Explain, instead of a bare AttributeError, that the network reads what only the replaced module has."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("_") or not hasattr(base, name):
                raise
            raise ReadsReplaced(
                f"{self.__dict__.get('_site', 'a site')} holds a {type(self).__name__}, and something reads its "
                f"{name!r} instead of calling it, so that the method would be left out. If the network does, name "
                "other roles, or take this layer out of backbone.roles, or use another method"
            ) from error

    def folded(self) -> nn.Module:
        """Return a new plain layer that computes the same as this adapter, without changing `base`.

        Raises:
            NotMergeable: There is no such layer. This is the default.
        """
        raise NotMergeable(f"{type(self).__name__} is not a linear map and has no plain layer")
