"""Where a method acts, seen by attaching it to a tiny encoder, so that no figure shows what the code does not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from peftbench.backbones.load import Backbone
from peftbench.method import Adapter, Edit, Method, NotMergeable


@dataclass
class Touched:
    """The roles on which a method acts at its defaults.

    Attributes:
        adapters: Roles whose modules get an adapter.
        quantised: Roles whose modules are replaced by frozen ones of fewer bits.
        thawed: Roles of the base that train; "*" is the whole base.
        biases: Roles of the base whose biases alone train.
        merges: Whether the adapters fold into the weights; None if nothing is added.
    """

    adapters: set[str] = field(default_factory=set)
    quantised: set[str] = field(default_factory=set)
    thawed: set[str] = field(default_factory=set)
    biases: set[str] = field(default_factory=set)
    merges: bool | None = None


class _Watched(Edit):
    """An edit that takes note of the roles."""

    def __init__(self, backbone: Backbone, touched: Touched) -> None:
        super().__init__(backbone)
        self.touched = touched

    def swap(self, roles: str, make: Callable[[Any], nn.Module]) -> None:
        made: list[nn.Module] = []

        def noted(old: Any) -> nn.Module:
            made.append(make(old))
            return made[-1]

        super().swap(roles, noted)
        adds = all(isinstance(module, Adapter) for module in made)
        (self.touched.adapters if adds else self.touched.quantised).update(roles.split())

    def thaw(self, roles: str, part: str = "all") -> None:
        super().thaw(roles, part)
        (self.touched.biases if part == "bias" else self.touched.thawed).update(roles.split())


def touched(cls: type[Method], backbone: Backbone) -> Touched:
    """Attach a method at its defaults, take note, and undo.

    Args:
        cls: The method.
        backbone: A tiny network with biases and a task head.
    """
    found = Touched()
    edit = _Watched(backbone, found)
    try:
        cls().attach(edit)
        if edit.adapters():
            try:
                with edit.merged():
                    found.merges = True
            except NotMergeable:
                found.merges = False
    finally:
        edit.undo()
    return found
