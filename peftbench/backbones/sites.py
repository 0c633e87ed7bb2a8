"""The sites of a network by role, as plain data without torch, so that parameter counts are arithmetic.

Linear sites (q, k, v, o, gate, up, down) are dense layers. Block sites (attn, ffn) are whole sublayers with their
residual. A `prefix` site is one slot per attention layer; `prompt` is one slot in the token embedding. `embed` and
`norm` can be thawed but not swapped.
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
    """One place in a network where a method may act.

    Attributes:
        role: One of `ROLES`.
        path: Path of the module in the network.
        size: The sizes that a method's formula needs. Linear site: (in_features, out_features). Block: (width,).
            Prefix slot: (key-value heads, head width). Prompt slot: (embedding width,). `embed`, `norm`: ().
        parameters: Number of base parameters in the module.
        biases: How many of these are biases.
    """

    role: str
    path: str
    size: tuple[int, ...]
    parameters: int = 0
    biases: int = 0


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """All sites of a network in layer order, with its parameter counts.

    Attributes:
        kind: Architecture, e.g. "bert".
        all: The sites.
        base: Parameters outside the task head.
        head: Parameters of the task head.
        width: Width of the residual stream.
        absent: For each role that this architecture cannot offer, the reason.
        biases: Bias parameters outside the head, at sites and elsewhere.
    """

    kind: str
    all: tuple[Site, ...]
    base: int
    head: int
    width: int
    absent: Mapping[str, str] = field(default_factory=dict)
    biases: int = 0

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, i: Any) -> Any:
        return self.all[i]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.all)

    @property
    def roles(self) -> list[str]:
        """The roles that this network has."""
        return list(dict.fromkeys(s.role for s in self.all))

    def of(self, roles: str) -> list[Site]:
        """Return the sites with the given roles.

        Args:
            roles: Role names, separated by spaces.

        Returns:
            The sites in layer order.

        Raises:
            UserError: No role is named, a role is named twice, or the network has no site with a role.
        """
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
        """Return the linear sites with the given roles.

        Args:
            roles: Linear role names, separated by spaces; None for every linear role of the network.

        Returns:
            The sites in layer order.

        Raises:
            UserError: No role is named, or a role is not a linear layer of this network.
        """
        present = [role for role in self.roles if role in LINEAR]
        wanted = present if roles is None else roles.split()
        if not wanted:
            raise UserError(f"no role is named. Valid here: {', '.join(present)}")
        for role in wanted:
            if role in self.roles and role not in present:
                raise UserError(f"role {role!r} is no linear layer. Valid here: {', '.join(present)}")
            if role not in self.roles and role not in self.absent:
                raise unknown("linear role", role, present, where=f"this {self.kind} network")
        return self.of(" ".join(present) if roles is None else roles)

    def as_dict(self) -> dict[str, Any]:
        """Return the sites as JSON-ready data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Sites:
        """Rebuild the sites from `as_dict`."""
        sites = tuple(Site(**{**s, "size": tuple(s["size"])}) for s in d["all"])
        return cls(d["kind"], sites, d["base"], d["head"], d["width"], d["absent"], d["biases"])
