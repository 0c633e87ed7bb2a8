"""A view that presses Ctrl-C."""

from __future__ import annotations

import signal

from peftbench.run.view import Quiet


class InterruptOnce(Quiet):
    """Presses Ctrl-C when the first run has begun, and again if `twice`."""

    def __init__(self, twice: bool = False) -> None:
        self.presses = 2 if twice else 1

    def started(self, worker: int, spec: object) -> None:
        while self.presses:
            self.presses -= 1
            signal.raise_signal(signal.SIGINT)
