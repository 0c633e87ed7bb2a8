"""The fake session, which also notes on which cards each run begins and ends: a line "PID CARDS WHAT SPEC_ID"."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_session
from fake_session import Abandoned, Diverged

from peftbench.records.spec import ProfileSpec, RunSpec

__all__ = ["Abandoned", "Diverged", "Session"]


class Session(fake_session.Session):
    def execute(self, spec: RunSpec, on_progress: Callable, stop: Callable[[], bool]) -> dict[str, Any]:
        self.note_cards("begins", spec)
        try:
            return super().execute(spec, on_progress, stop)
        finally:
            self.note_cards("ends", spec)

    def profile(self, spec: ProfileSpec, on_progress: Callable, stop: Callable[[], bool]) -> dict[str, Any]:
        self.note_cards("profiles", spec)
        return super().profile(spec, on_progress, stop)

    def note_cards(self, what: str, spec: RunSpec | ProfileSpec) -> None:
        with Path(f"{self.journal}.cards").open("a") as f:
            f.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')} {what} {spec.id}\n")


def journal(folder: Path) -> list[list[str]]:
    """The lines so far, where the session's `journal` is folder/journal."""
    path = folder / "journal.cards"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
