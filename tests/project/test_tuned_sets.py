"""The tuned values of the committed sets lie inside what was tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.records import record
from peftbench.records.record import TrialRecord
from peftbench.report.data import tunings

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
TUNED = sorted(  # a set without a report is still being made: its trials are not all there
    p.name for p in REFERENCE.iterdir() if (p / "report").is_dir() and any(p.glob("runs/*--t[0-9]*--*.json"))
)


def test_some_committed_set_is_tuned() -> None:
    assert "embedded_small" in TUNED


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_at_most_one_chosen_value_in_ten_lies_at_an_edge(name: str) -> None:
    trials = [r for r in record.readable(REFERENCE / name) if isinstance(r, TrialRecord)]
    at_edge, chosen = tunings.edge_counts(tunings.of(trials))
    assert chosen > 0
    assert at_edge <= 0.1 * chosen
