"""The connection to a ray cluster: how it is made, which nodes there are, and whether it still lives."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from peftbench.errors import UserError
from peftbench.run.executors import cores, ray_places
from peftbench.run.executors.ray_places import Node

NODES_SECONDS = 1.0  # between two looks at which nodes there are
CONNECTS_SECONDS = 10.0  # for something to answer at an address
SHUNNED_SECONDS = (
    30.0  # for which a node that does not answer gets no worker; by then the cluster knows that it is gone
)
OWN_CLUSTER = {  # environment of a cluster that is started here, as ray names it
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else training would yield to every other program of the machine
}
CLIENT = "ray://"


class ClusterLost(Exception):
    """The cluster is gone; the message says what was seen of it."""


class Cluster:
    """A cluster that this process is connected to.

    Args:
        address: as in `ray_options.OPTIONS`; None starts a cluster of this machine alone.

    Attributes:
        is_own: whether it was started here; no node joins it.

    Raises:
        UserError: there is no cluster at the address.
    """

    def __init__(self, address: str | None) -> None:
        self.is_own = address is None
        _connect(address)
        through_client = address is not None and address.startswith(CLIENT)
        context = ray.get_runtime_context()
        self.own_id = None if through_client else str(context.get_node_id())
        self._head = None if through_client else _host_and_port(str(context.gcs_address))
        self._nodes: list[Node] = []
        self._looked = -NODES_SECONDS
        self._refused: set[str] = set()
        self._shunned: dict[str, float] = {}

    def nodes(self) -> list[Node]:
        """The living nodes, but those that are refused or did not answer lately.

        Raises:
            ClusterLost: the cluster is gone.
        """
        now = time.monotonic()
        if now - self._looked >= NODES_SECONDS:
            self.check()  # ray itself would wait a minute for a head that is gone, and then end this process
            self._nodes = [Node.of(entry) for entry in ray.nodes() if entry["Alive"]]
            self._looked = time.monotonic()
        return [node for node in self._nodes if node.id not in self._refused and not self._is_shunned(node)]

    def _is_shunned(self, node: Node) -> bool:
        """Whether the node did not answer lately; after a while it is asked again."""
        if node.id in self._shunned and time.monotonic() - self._shunned[node.id] >= SHUNNED_SECONDS:
            if node.answers:
                del self._shunned[node.id]
            else:
                self.shun(node)
        return node.id in self._shunned

    def check(self) -> None:
        """Raise ClusterLost if the cluster's head, or this machine's part of it, takes no connections."""
        if self._head is not None and not ray_places.can_connect(*self._head):
            raise ClusterLost("the ray cluster was stopped, or its head is gone")
        own = next((n for n in self._nodes if n.id == self.own_id), None)
        if own is not None and not own.answers:
            raise ClusterLost("ray was stopped on this machine")

    def refuse(self, node: Node) -> None:
        """Use the node no more."""
        self._refused.add(node.id)

    def shun(self, node: Node) -> None:
        """Use the node no more for a while."""
        self._shunned[node.id] = time.monotonic()

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            _set_defaults(OWN_CLUSTER)
            ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
            return
        _check_listens(address)
        ray.init(address=address, **quiet)
    except (RayError, OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        reason = " ".join(str(error).split())
        if address is None:
            raise UserError(f"ray cannot start a cluster on this machine: {reason}") from error
        fix = "start one with `ray start --head`, or leave --address out" if address == "auto" else "check the address"
        raise UserError(f"--address {address}: no ray cluster can be reached ({reason}); {fix}") from error


def _check_listens(address: str) -> None:
    """Raise UserError if nothing takes connections at HOST:PORT, which ray would wait a minute for."""
    found = _host_and_port(address.removeprefix(CLIENT))
    if found is not None and not ray_places.can_connect(*found, CONNECTS_SECONDS):
        raise UserError(f"--address {address}: nothing answers there; check the address, and that the cluster runs")


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _set_defaults(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        os.environ.setdefault(name, value)
