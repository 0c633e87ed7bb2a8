"""What a person sees while a grid runs: a live view on a terminal, plain lines in a pipe, only errors when quiet.

The runner tells one of three views the same five things. rich is imported by the live view alone, so that a pipe, a
scheduler's log and `--help` do not wait for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Protocol

from peftbench.spec import ProfileSpec, RunSpec

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Spec = RunSpec | ProfileSpec
# Names and widths; with the spaces between them they fit into 80 columns.
COLUMNS = (("status", 9), ("method", 16), ("task", 24), ("seed", 4), ("on test", 14), ("seconds", 7))


class View(Protocol):
    """What the runner tells. `facts` of an end: status, reason, seconds, metrics, as `workers.Event` has them."""

    def planned(self, total: int, done: int) -> None:
        """The grid as known now: how many specs it has, and how many of them need no run."""

    def started(self, worker: int, spec: Spec) -> None: ...

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None: ...

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def view(quiet: bool, out: IO[str] | None = None) -> View:
    """The view that fits: `out` is standard output unless given."""
    out = out or sys.stdout
    if quiet:
        return Quiet()
    return Terminal(out) if out.isatty() else Lines(out)


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

    def __init__(self, out: IO[str]) -> None:
        self.out = out
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


class Terminal:
    """Finished runs scroll by as rows of a table; below them stay each worker's run and the whole grid's progress."""

    def __init__(self, out: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self.count = Count()
        self.now: dict[int, tuple[Spec, dict[str, Any]]] = {}
        self.console: Console = Console(file=out, highlight=False)
        self.live: Live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True)
        self.heading_is_shown = False
        self.live.start()

    def planned(self, total: int, done: int) -> None:
        self.count.plan(total, done)

    def started(self, worker: int, spec: Spec) -> None:
        self.now[worker] = (spec, {})

    def stepped(self, worker: int, facts: Mapping[str, Any]) -> None:
        self.count.step(worker, facts)
        if worker in self.now:
            self.now[worker][1].update(facts)

    def ended(self, worker: int, spec: Spec, facts: Mapping[str, Any]) -> None:
        self.now.pop(worker, None)
        self.count.end(worker)
        if not self.heading_is_shown:
            self._print(_columns(*(name for name, _ in COLUMNS)), style="bold")
            self.heading_is_shown = True
        if isinstance(spec, RunSpec):
            method, number = spec.method.label, spec.number
        else:
            method, number = "profile", str(spec.process)
        score = outcome(facts) if facts["status"] == "finished" else ""
        row = _columns(facts["status"], method, spec.task.name, number, score, f"{facts['seconds']:.1f}")
        self._print(row, style="" if facts["status"] == "finished" else "red")
        if facts["reason"]:
            self._print(f"{'':9} {facts['reason']}", style="red")

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        self.live.stop()

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        runs = Table.grid(padding=(0, 1))
        for ratio in (None, 1, None):
            runs.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        for worker, (spec, facts) in sorted(self.now.items()):
            runs.add_row(f"{worker}:", Text(title(spec)), Text(_position(facts)))
        left = self.count.seconds_left
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(str(self.count)),
            ProgressBar(total=max(1, self.count.total), completed=self.count.reached, width=30),
            f"{duration(time.monotonic() - self.count.began)} gone",
            f"about {duration(left)} left" if left is not None else "",
        )
        return Group(runs, bar)


def title(spec: Spec) -> str:
    """A run in words; a stand-in goes by its own name, with the task that it stands in for behind it."""
    task = spec.task.name + (f" (in place of {spec.task.stand_in_for})" if spec.task.stand_in_for else "")
    if not isinstance(spec, RunSpec):
        return f"profile on {task}, process {spec.process}"
    return f"{spec.method.label} on {task}, {f'seed {spec.seed}' if spec.trial is None else f'trial {spec.trial}'}"


def outcome(facts: Mapping[str, Any]) -> str:
    """The primary metric on the test split of a finished run, the reason of any other."""
    if facts["status"] != "finished":
        return str(facts["reason"])
    metrics = facts.get("metrics")
    if not metrics:
        return "measured"
    split = "test" if "test" in metrics else "validation"  # a trial is not tested
    score = metrics[split][metrics["primary"]]
    return f"{metrics['primary']} " + ("undefined" if score is None else f"{score:.3f}")


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


def _position(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "loading"
    parts = [str(facts.get("phase") or "")]
    if facts.get("steps"):
        parts.append(f"{facts.get('step', 0)}/{facts['steps']}")
    if facts.get("loss") is not None:
        parts.append(f"loss {facts['loss']:.4f}")
    return " ".join(p for p in parts if p)


def _columns(*cells: str) -> str:
    return " ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip()
