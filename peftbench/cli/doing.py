"""What a command does while it works, in one line on standard error. On a terminal the line counts the seconds."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from typing import IO

from peftbench.cli.options import say
from peftbench.report.media.terminal import lines

CLEAR = "\r\033[K"
EVERY_SECONDS = 1.0


class Doing:
    """Says what goes on; used with `with`, after which nothing of it is left on a terminal.

    In a pipe each text is one line of its own, but for the first: a mistake that is found at once stays one message.
    """

    def __init__(self, text: str, out: IO[str] | None = None) -> None:
        self.out = out or sys.stderr
        self.text = text
        self.began = time.monotonic()
        self.is_live = self.out.isatty()
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.ticking = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Doing:
        if self.is_live:
            self._show()
            self.ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.is_live:
            self.ticking.join()
            self._write(CLEAR)

    def now(self, text: str) -> None:
        """Something else is done from here on."""
        self.text, self.began = text, time.monotonic()
        if self.is_live:
            self._show()
        else:
            say(text, self.out)

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.is_live:
            self._write(CLEAR)
        say(text, self.out)

    def _tick(self) -> None:
        while not self.ended.wait(EVERY_SECONDS):
            self._show()

    def _show(self) -> None:
        seconds = f" {time.monotonic() - self.began:.0f} s"
        room = shutil.get_terminal_size().columns - len(seconds) - 1
        self._write(f"{CLEAR}{lines(self.text).splitlines()[0][:room]}{seconds}")

    def _write(self, text: str) -> None:
        with self.lock:
            self.out.write(text)
            self.out.flush()
