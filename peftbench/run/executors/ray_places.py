"""Where a run goes in a ray cluster: what it needs of a node, and which node has room for it. Imports no ray."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OVERHEAD_BYTES = 10**9  # of a worker beside the tensors of its run: the interpreter, torch, other libraries, the data
GIGABYTE = 10**9


@dataclass(frozen=True)
class Needs:
    """What a worker takes of a node as long as it lives, in the cluster's own accounts.

    Attributes:
        cpus: cores.
        gpus: devices.
        memory: bytes of the machine, not of its devices.
    """

    cpus: int
    gpus: int
    memory: int

    def __str__(self) -> str:
        gpus = f", {self.gpus} {'GPU' if self.gpus == 1 else 'GPUs'}" if self.gpus else ""
        return f"{self.cpus} {'CPU' if self.cpus == 1 else 'CPUs'}{gpus} and {self.memory / GIGABYTE:.1f} GB of memory"

    @property
    def resources(self) -> dict[str, int]:
        """The amounts by the names that ray gives them."""
        return {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}


@dataclass(frozen=True)
class Node:
    """A living node of the cluster.

    Attributes:
        id: ray's name of it.
        address: its IP address.
        host: its host name.
        port: where its part of ray answers.
        resources: what it has in all, by name.
        labels: what its administrator calls it, by key.
    """

    id: str
    address: str
    host: str
    port: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Node:
        """The node of an entry of `ray.nodes()`."""
        return cls(
            entry["NodeID"],
            entry["NodeManagerAddress"],
            entry["NodeManagerHostname"],
            entry.get("NodeManagerPort", 0),
            entry.get("Resources", {}),
            entry.get("Labels") or {},
        )

    def __str__(self) -> str:
        return f"{self.host} ({self.address}, {self.id[:8]})"

    def amount(self, resource: str) -> int:
        """How much of a resource the node has in all, in whole units."""
        return int(self.resources.get(resource, 0))

    @property
    def answers(self) -> bool:
        """Whether its part of ray takes connections."""
        return can_connect(self.address, self.port)

    def has_room(self, needs: Needs, taken: Iterable[Needs] = ()) -> bool:
        """Whether the node has what a worker needs beside what other workers have taken."""
        used = list(taken)
        return all(
            amount + sum(u.resources[name] for u in used) <= self.resources.get(name, 0)
            for name, amount in needs.resources.items()
        )

    def is_of_kind(self, kind: str) -> bool:
        """Whether `kind` names the node: its address, host or id, a resource that it has, or a label ("key=value")."""
        labels = {*self.labels.values(), *(f"{key}={value}" for key, value in self.labels.items())}
        resources = {name for name, amount in self.resources.items() if amount > 0}
        names = {
            self.address,
            self.host,
            self.id,
            *resources,
            *(r.removeprefix("accelerator_type:") for r in resources),
        }
        return kind in names | labels


def choose(nodes: Iterable[Node], needs: Needs, taken: Mapping[str, Sequence[Needs]]) -> Node | None:
    """The node for a further worker: the one with the fewest workers of those that have room; None if none has.

    Args:
        nodes: all nodes.
        needs: what the worker needs.
        taken: what the workers of each node have taken, by the node's id.
    """
    free = [n for n in nodes if n.has_room(needs, taken.get(n.id, ()))]
    return min(free, key=lambda n: (len(taken.get(n.id, ())), n.address, n.id), default=None)


def for_profile(nodes: Iterable[Node], kind: str | None, gpus: int, own_id: str | None) -> Node | None:
    """The node for runs that measure time; None if there is none.

    Without a kind, it is this machine's node if that serves, so that times are of the machine where the command runs;
    else the first by its address.

    Args:
        nodes: all nodes.
        kind: what the node is called (`Node.is_of_kind`); None for any.
        gpus: how many devices a run needs.
        own_id: the id of this machine's node.
    """
    serving = [n for n in nodes if n.amount("CPU") >= 1 and n.amount("GPU") >= gpus]
    chosen = [n for n in serving if kind is None or n.is_of_kind(kind)]
    return min(chosen, key=lambda n: (n.id != own_id, n.address, n.id), default=None)


def can_connect(host: str, port: int, seconds: float = 2.0) -> bool:
    """Whether something takes connections at an address; True if there is no port to try."""
    if not port:
        return True
    try:
        with socket.create_connection((host, port), seconds):
            return True
    except OSError:
        return False


def listed(nodes: Iterable[Node]) -> str:
    """The nodes with what they have, for a message."""
    return "; ".join(map(_with_amounts, nodes)) or "there is none"


def _with_amounts(node: Node) -> str:
    gpus = f", {node.amount('GPU')} GPUs" if node.amount("GPU") else ""
    return f"{node} with {node.amount('CPU')} CPUs{gpus} and {node.amount('memory') / GIGABYTE:.1f} GB"
