"""The options of the executor `ray`: `--set ray.NAME=VALUE`, and `--address`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeVar

from peftbench.errors import UserError, shown
from peftbench.run.executors.ray_places import GIGABYTE

OPTIONS = {
    "address": "the cluster: auto for one that runs on this machine, HOST:PORT, or ray://HOST:PORT; by default a "
    "cluster of this machine alone is started",
    "workers": "how many runs there are at a time at most; by default as many as the nodes have room for",
    "threads": "CPU threads of each run, which are also the cores that it takes; by default OMP_NUM_THREADS, or 1",
    "memory": "GB of memory of each run, in place of its predicted peak and 1 GB",
    "wait": "seconds to wait for a node that has room for a run; 60 by default",
    "profile_node": "the node that measures times: its address or host, or a resource or label that it has",
    "env.*": "an environment variable of the runs: ray.env.HF_HOME=/data/hf",
}
WAIT_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options' values.

    Attributes:
        memory: bytes; None for the predicted peak.
        env: environment variables by name.
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    memory: int | None = None
    wait: float = WAIT_SECONDS
    profile_node: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Options:
        """Read the values.

        Args:
            given: text by option, each of `OPTIONS`.

        Raises:
            UserError: a value is not valid.
        """
        memory = _number(given, "memory")
        wait = _number(given, "wait", zero=True)
        return cls(
            given.get("address") or None,
            _count(given, "workers"),
            _count(given, "threads"),
            None if memory is None else round(memory * GIGABYTE),
            WAIT_SECONDS if wait is None else wait,
            given.get("profile_node") or None,
            {key.removeprefix("env."): value for key, value in given.items() if key.startswith("env.")},
        )


def _count(given: Mapping[str, str], name: str) -> int | None:
    return _read(given, name, int, "a whole number above 0", lambda n: n > 0)


def _number(given: Mapping[str, str], name: str, zero: bool = False) -> float | None:
    valid = "a number that is not negative" if zero else "a number above 0"
    return _read(given, name, float, valid, lambda x: isfinite(x) and (x > 0 or (zero and x == 0)))


def _read(
    given: Mapping[str, str], name: str, read: Callable[[str], T], valid: str, is_valid: Callable[[T], bool]
) -> T | None:
    if name not in given:
        return None
    try:
        value = read(given[name])
        if is_valid(value):
            return value
    except ValueError:
        pass
    raise UserError(f"ray.{name}: given {shown(given[name])}; must be {valid}")
