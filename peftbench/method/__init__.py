"""The plugin contract: everything that a method file imports, and the code that reads or writes adapters.

    from peftbench.method import Adapter, Edit, Method, SiteLinear, Sites, register

is the only peftbench import that a method file needs. Names are loaded on first use, because some of them import torch
and `peftbench --help` must not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftbench.backbones.modules import Block, PrefixSlot, SiteLinear
    from peftbench.backbones.prompt import PromptSlot
    from peftbench.backbones.sites import Sites
    from peftbench.errors import UserError
    from peftbench.method.adapter import move
    from peftbench.method.base import Method, adamw
    from peftbench.method.edit import Adapter, Edit, NotMergeable
    from peftbench.method.registry import register

__all__ = [
    "Adapter",
    "Block",
    "Edit",
    "Method",
    "NotMergeable",
    "PrefixSlot",
    "PromptSlot",
    "SiteLinear",
    "Sites",
    "UserError",
    "adamw",
    "move",
    "register",
]

_OF_RELEASE_0_1 = ("defaults", "discover", "find", "make", "schema", "source")  # imported from here; go with 0.3
_HOMES = {
    "peftbench.backbones.modules": ("Block", "PrefixSlot", "SiteLinear"),
    "peftbench.backbones.prompt": ("PromptSlot",),
    "peftbench.backbones.sites": ("Sites",),
    "peftbench.errors": ("UserError",),
    "peftbench.method.adapter": ("move",),
    "peftbench.method.base": ("Method", "adamw"),
    "peftbench.method.edit": ("Adapter", "Edit", "NotMergeable"),
    "peftbench.method.registry": ("register", *_OF_RELEASE_0_1),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
