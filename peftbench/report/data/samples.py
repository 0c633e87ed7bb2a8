"""The texts that a configuration generated, as its runs record them."""

from __future__ import annotations

from peftbench.records.bodies import Sample
from peftbench.report.data.comparison import Entry


def first_sample(e: Entry) -> Sample | None:
    """The first recorded sample of the first finished seed; None unless the task generates text."""
    return next((s[0] for r in e.runs if r.is_finished and (s := r.body.samples)), None)
