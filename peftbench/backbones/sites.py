"""Where a method may act on a network: the places by role, as plain data (no torch), so that sizes are arithmetic.

Linear sites ``q k v o gate up down`` are dense layers; block sites ``attn`` and ``ffn`` are whole sublayers with their
residual; ``prefix`` is one slot per attention layer, ``prompt`` one slot in the token embedding. ``embed`` and ``norm``
can be thawed but not swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from peftbench.errors import UserError, unknown

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
BLOCKS = ("attn", "ffn")
SWAPPABLE = (*LINEAR, *BLOCKS, "prefix", "prompt")
ROLES = (*SWAPPABLE, "embed", "norm")


@dataclass(frozen=True)
class Site:
    """One place: its role, its module's path in the network, and the sizes that a method's formula needs.

    ``size`` is (in_features, out_features) for a linear site, (width,) for a block, (key-value heads, head width) for a
    prefix slot, (embedding width,) for a prompt slot, and empty for ``embed`` and ``norm``. ``parameters`` and
    ``biases`` count the base's own numbers there.
    """

    role: str
    path: str
    size: tuple[int, ...]
    parameters: int = 0
    biases: int = 0


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """All sites of a network in the order of its layers, with the number of base and head parameters."""

    kind: str  # the architecture, e.g. "bert"
    all: tuple[Site, ...]
    base: int  # parameters outside the head
    head: int
    width: int  # of the residual stream
    absent: Mapping[str, str] = field(default_factory=dict)  # role -> why this architecture cannot offer it
    biases: int = 0  # of the parameters outside the head, at sites or not

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, i: Any) -> Any:
        return self.all[i]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.all)

    @property
    def roles(self) -> list[str]:
        """The roles this network has."""
        return list(dict.fromkeys(s.role for s in self.all))

    def of(self, roles: str) -> list[Site]:
        """The sites with one of the space-separated ``roles``; one without sites, or named twice, is a `UserError`."""
        wanted = roles.split()
        if not wanted:
            raise UserError(f"no role is named; this {self.kind} network has: {', '.join(self.roles)}")
        for role in wanted:
            if wanted.count(role) > 1:
                raise UserError(f"role {role!r} stands twice in {roles!r}; name each role once")
            if role in self.absent:
                raise UserError(f"this {self.kind} network has no {role!r} site: {self.absent[role]}")
            if role not in self.roles:
                raise unknown("role", role, self.roles, where=f"this {self.kind} network")
        return [s for s in self.all if s.role in wanted]

    def linear(self, roles: str | None = None) -> list[Site]:
        """The linear sites with one of the space-separated `roles`, or every one; another kind is a `UserError`."""
        there = [role for role in self.roles if role in LINEAR]
        wanted = there if roles is None else roles.split()
        if not wanted:
            raise UserError(f"no role is named. Valid here: {', '.join(there)}")
        for role in wanted:
            if role in self.roles and role not in there:
                raise UserError(f"role {role!r} is no linear layer. Valid here: {', '.join(there)}")
            if role not in self.roles and role not in self.absent:
                raise unknown("linear role", role, there, where=f"this {self.kind} network")
        return self.of(" ".join(there) if roles is None else roles)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Sites:
        sites = tuple(Site(**{**s, "size": tuple(s["size"])}) for s in d["all"])
        return cls(d["kind"], sites, d["base"], d["head"], d["width"], d["absent"], d["biases"])
