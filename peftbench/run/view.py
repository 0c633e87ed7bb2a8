"""Progress of a grid for the person who watches: the interface of a view, and the two views that need no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from peftbench.records.spec import Spec, outcome, title
from peftbench.report.media.terminal import lines


class View(Protocol):
    """Where the runner shows progress; it calls every method from one thread."""

    def planned(self, total: int, done: int) -> None:
        """The grid, as known now, has `total` specs, of which `done` need no run."""

    def started(self, worker: int, spec: Spec) -> None:
        """A worker (a number from 1) began a spec."""

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        """The worker's run is at the phase, step and loss in `facts`."""

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        """The worker's run is over; `facts` has status, reason, seconds and metrics."""

    def note(self, text: str) -> None:
        """Something to know that belongs to no run."""

    def close(self) -> None:
        """Nothing more will come."""


class Quiet:
    """Only failures, on standard error."""

    def planned(self, total: int, done: int) -> None:
        return

    def started(self, worker: int, spec: Spec) -> None:
        return

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        return

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        if facts["status"] != "finished":
            self.note(f"{facts['status']}: {title(spec)}: {facts['reason']}")

    def note(self, text: str) -> None:
        _print(text, sys.stderr)

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
        _print(text, self.out)

    def close(self) -> None:
        return


@dataclass
class Count:
    """How far the grid is and when it will be done; a run in progress counts by the share of its steps.

    Attributes:
        total: specs of the grid.
        done: those that are over.
        before: those that were done when this invocation began.
        began: when it began, in seconds of `time.monotonic`.
        shares: by worker, how much of its current run is done, from 0 to 1.
    """

    total: int = 0
    done: int = 0
    before: int = 0
    began: float = field(default_factory=time.monotonic)
    shares: dict[int, float] = field(default_factory=dict)

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
        """Specs that are over, with the shares of those in progress."""
        return self.done + sum(self.shares.values())

    @property
    def seconds_left(self) -> float | None:
        """At the speed of this invocation so far; None before it has done anything."""
        advanced = self.reached - self.before
        if advanced <= 0:
            return None
        return (time.monotonic() - self.began) / advanced * max(0.0, self.total - self.reached)

    def __str__(self) -> str:
        return f"[{self.done}/{self.total}]"


def duration(seconds: float) -> str:
    """Seconds as text, as precise as a person needs: "0.4 s", "42 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _print(text: str, out: IO[str] | None) -> None:
    """Print lines; the grid goes on where they cannot be written, as nobody reads them or the disk is full."""
    shown = lines(text)
    with suppress(OSError, ValueError):  # the second: the stream is closed
        try:
            print(shown, file=out, flush=True)
        except UnicodeEncodeError:
            print(shown.encode("ascii", "backslashreplace").decode(), file=out, flush=True)
