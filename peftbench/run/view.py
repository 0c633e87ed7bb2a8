"""What the runner tells whoever watches a grid: the interface, and the two views that need no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from peftbench.records.spec import Spec, outcome, title


class View(Protocol):
    """What the runner tells. `facts` of an end: status, reason, seconds, metrics, as `workers.Event` has them."""

    def planned(self, total: int, done: int) -> None:
        """The grid as known now: how many specs it has, and how many of them need no run."""

    def started(self, worker: int, spec: Spec) -> None: ...

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None: ...

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Nothing but what went wrong, on standard error."""

    def planned(self, total: int, done: int) -> None:
        return

    def started(self, worker: int, spec: Spec) -> None:
        return

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        return

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        if facts["status"] != "finished":
            print(f"{facts['status']}: {title(spec)}: {facts['reason']}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        return


class Lines:
    """One line for each run that starts, finishes or fails."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self.out = out or sys.stdout
        self.count = Count()

    def planned(self, total: int, done: int) -> None:
        if (total, done) != (self.count.total, self.count.done):
            self.count.plan(total, done)
            self.note(f"{self.count} {total - done} to run")

    def started(self, worker: int, spec: Spec) -> None:
        self.note(f"{self.count} started {title(spec)} (worker {worker})")

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        self.count.step(worker, facts)

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        self.count.end(worker)
        left = self.count.seconds_left
        rest = f", about {duration(left)} left" if left else ""
        self.note(f"{self.count} {facts['status']} {title(spec)}: {outcome(facts)}, {duration(facts['seconds'])}{rest}")

    def note(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def close(self) -> None:
        return


@dataclass
class Count:
    """How far the grid is, runs under way counted by their steps, and from that when it will be done."""

    total: int = 0
    done: int = 0
    before: int = 0  # done when this invocation began
    began: float = field(default_factory=time.monotonic)
    shares: dict[int, float] = field(default_factory=dict)  # by worker: how much of its run is done

    def plan(self, total: int, done: int) -> None:
        if self.total == 0:
            self.before = done
        self.total, self.done = total, done

    def step(self, worker: int, facts: Mapping[str, Any]) -> None:
        if facts.get("steps"):
            self.shares[worker] = min(1.0, facts.get("step", 0) / facts["steps"])

    def end(self, worker: int) -> None:
        self.shares.pop(worker, None)
        self.done += 1

    @property
    def reached(self) -> float:
        return self.done + sum(self.shares.values())

    @property
    def seconds_left(self) -> float | None:
        here = self.reached - self.before
        if here <= 0:
            return None
        return (time.monotonic() - self.began) / here * max(0.0, self.total - self.reached)

    def __str__(self) -> str:
        return f"[{self.done}/{self.total}]"


def duration(seconds: float) -> str:
    """As precise as a person needs: "0.4 s", "42 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
