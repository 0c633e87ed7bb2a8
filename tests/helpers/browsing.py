"""What tests of pages in a browser share: sizes of windows, and what a page did that no page may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[2] / "results/reference"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}  # pixels

# The page of embedded_small on one task, what of it is shown, and the rows of its table of scores.
TASK = "#task=embedded_small--embedded_question_type"
NOW = ".result:not([hidden])"
ROWS = f"{NOW} table.scores tbody tr[data-label]:not([hidden])"
LABELS = "rows => rows.map(r => r.dataset.label)"


@dataclass
class Seen:
    """Errors and warnings on the console, addresses that were asked for, and dialogs."""

    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
