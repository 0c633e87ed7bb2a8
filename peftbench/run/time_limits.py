"""Time limits of an attempt. They are noticed twice: by the run itself between two steps, and by whoever can end it.

A run that passes its limit stops at its next sign of life, keeps its process, and writes its own record. One that gives no
sign (a step that hangs, a call that holds the interpreter) is killed by the executor `local` a moment later. An
executor that cannot end a job only has the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbench.records.retries import TimeLimits
from peftbench.run.jobs import Progress, Stop

GRACE_SECONDS = 2.0  # for a run to notice by itself, before it is killed


class TimedOut(Exception):
    """The attempt passed a time limit.

    Attributes:
        limit: the limit, as a record has it.
    """

    def __init__(self, of: str, seconds: float) -> None:
        super().__init__(reason(of, seconds))
        self.limit = {"of": of, "seconds": seconds}


def reason(of: str, seconds: float) -> str:
    """Why an attempt was ended, in a sentence."""
    if of == "run":
        return f"not done after the {seconds:g} s that a run may take"
    return f"no step ended within the {seconds:g} s that a step may take"


@dataclass
class Deadline:
    """Watches one attempt: `passed` says which limit it has passed.

    Attributes:
        limits: the limits.
        ask: whether the attempt is to be abandoned.
        started: when the attempt started, in seconds of `time.monotonic`.
        alive: the last sign of life since training began; None before.
    """

    limits: TimeLimits
    ask: Stop = lambda: False
    started: float = field(default_factory=time.monotonic)
    alive: float | None = None

    def stop(self) -> bool:
        """What a session calls between two steps.

        Raises:
            TimedOut: a limit is passed.
        """
        self.check()
        self.alive = time.monotonic()
        return self.ask()

    def reporter(self, on_progress: Progress) -> Progress:
        """A function that reports progress, and checks the limits."""

        def report(facts: Mapping[str, Any]) -> None:
            on_progress(facts)
            self.check()
            if self.alive is not None:
                self.alive = time.monotonic()

        return report

    def check(self) -> None:
        """Raise TimedOut if a limit is passed."""
        if passed := self.passed():
            raise TimedOut(*passed)

    def passed(self, grace_seconds: float = 0.0) -> tuple[str, float] | None:
        """The limit that is passed by more than so many seconds: "run" or "step", and its seconds; None for none."""
        now, limits = time.monotonic() - grace_seconds, self.limits
        if limits.run is not None and now - self.started > limits.run:
            return "run", limits.run
        if limits.step is not None and self.alive is not None and now - self.alive > limits.step:
            return "step", limits.step
        return None
