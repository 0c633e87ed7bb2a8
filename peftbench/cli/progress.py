"""The progress of a grid: a live view on a terminal, plain lines in a pipe, or only errors.

Only the live view imports rich, so that `--help` and runs without a terminal do not wait for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from peftbench.records.spec import RunSpec, Spec, outcome, title
from peftbench.report.media.plain import visible
from peftbench.report.media.terminal import lines, padded
from peftbench.run.view import Count, Lines, Quiet, View, duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

# Names and widths. With a space between them they fit into 80 characters.
COLUMNS = (("status", 9), ("method", 16), ("task", 24), ("seed", 4), ("on test", 14), ("seconds", 7))


def view(quiet: bool, out: IO[str] | None = None) -> View:
    """Return the view for an output.

    Args:
        quiet: whether to print only errors.
        out: the stream to print to; standard output by default.
    """
    out = out or sys.stdout
    if quiet:
        return Quiet()
    return Terminal(out) if out.isatty() else Lines(out)


class Terminal:
    """A live view for terminals.

    Runs that have ended scroll up as rows of a table. Below them are the current run of each worker and the progress
    of the grid.
    """

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
        self.console.print(lines(text), style=style, markup=False, soft_wrap=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        runs = Table.grid(padding=(0, 1))
        for ratio in (None, 1, None):
            runs.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        for worker, (spec, facts) in sorted(self.now.items()):
            runs.add_row(f"{worker}:", Text(visible(title(spec))), Text(_position(facts)))
        left = self.count.seconds_left
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(str(self.count)),
            ProgressBar(total=max(1, self.count.total), completed=self.count.reached, width=30),
            f"{duration(time.monotonic() - self.count.began)} gone",
            f"about {duration(left)} left" if left is not None else "",
        )
        return Group(runs, bar)


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
    return " ".join(padded(visible(cell), width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)).rstrip()
