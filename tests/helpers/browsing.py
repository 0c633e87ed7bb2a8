"""What tests of pages in a browser share: sizes of windows, and what a page did that no page may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[2] / "results/reference"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}  # pixels


@dataclass
class Seen:
    """Errors and warnings on the console, addresses that were asked for, and dialogs."""

    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
