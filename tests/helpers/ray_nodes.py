"""A ray cluster of several nodes on this machine, to whose processes the helpers of tests are known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

HELPERS = str(Path(__file__).parent)
MEMORY = 4 * 10**9  # of each node; accounts only
SETTINGS = {  # environment of all processes of a cluster
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",  # so that the death of a node is noticed within seconds
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_worker_niceness": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # how full the machine of the tests is decides nothing
}


class Nodes:
    """A cluster that begins with its head."""

    def __init__(self, cpus: int = 1, **head: Any) -> None:
        self._added = 0
        node = {"num_cpus": cpus, "memory": MEMORY, "object_store_memory": 10**8, "include_dashboard": False, **head}
        self.cluster = Cluster(initialize_head=True, head_node_args=node)

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return str(self.cluster.address)

    def add(self, cpus: int = 1, **more: Any) -> Any:
        """Start one more node."""
        self._added += 1
        address = f"127.0.0.{1 + self._added}"  # the loopback has many; so each node is a machine of its own to ray
        return self.cluster.add_node(
            num_cpus=cpus, memory=MEMORY, object_store_memory=10**8, node_ip_address=address, **more
        )

    def kill(self, node: Any) -> None:
        """End all processes of a node at once, as a machine that loses its power does."""
        below = self._processes(node)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.worker_nodes.discard(node)

    def stop(self) -> None:
        """Ask all processes of the cluster to end, all at once, as `ray stop` does."""
        for process in [p for node in self.cluster.list_all_nodes() for p in self._processes(node)]:
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def close(self) -> None:
        """End all that is left."""
        self.cluster.shutdown()

    def _processes(self, node: Any) -> list[psutil.Process]:
        """Those that ray started for a node, and theirs that ray knows; what a worker has started is its own affair."""
        pids = [p.process.pid for group in node.all_processes.values() for p in group]
        own = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        return [*own, *(child for process in own for child in process.children())]


@contextmanager
def nodes(cpus: int = 1, **head: Any) -> Iterator[Nodes]:
    """A cluster, ended afterwards."""
    before = dict(os.environ)
    path = os.pathsep.join([HELPERS, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ.update(SETTINGS, PYTHONPATH=path)
    made = None
    try:
        made = Nodes(cpus, **head)
        yield made
    finally:
        if made is not None:
            made.close()
        os.environ.clear()
        os.environ.update(before)
