"""The scores of a table's configurations as `stats.intervals.Scores`, with the influence of each test example."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftbench.report.data.comparison import Comparison, Entry
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import influence
from peftbench.report.stats.intervals import Scores


@weak_cache
def of(c: Comparison) -> Mapping[str, Scores]:
    """The scores of every configuration that has one.

    Args:
        c: the table. Predictions are read once per comparison.

    Returns:
        label -> scores over the seeds.
    """
    scored = [e for e in c.entries if e.n]
    return {e.label: known(e, _labels(scored[0])) for e in scored}


def known(e: Entry, labels: list | None = None) -> Scores:
    """The scores of one configuration over its seeds.

    Args:
        e: the row.
        labels: test labels that all predictions must have; default: those of its first run.

    Returns:
        The scores; without influences if a run lacks predictions or has other labels.
    """
    labels = labels or _labels(e)
    runs = {r.spec.seed: r for r in e.runs if r.is_finished}
    seeds, moved = tuple(sorted(e.scores)), list[np.ndarray]()
    for seed in seeds:
        p = runs[seed].predictions
        same = p is not None and p.labels == labels
        effect = influence.influences(e.metric, p.values, labels, e.scores[seed]) if p and same else None
        moved += [] if effect is None else [effect]
    whole = np.array(moved) if len(moved) == len(seeds) else None
    grain = influence.grain(e.metric, whole.shape[1]) if whole is not None else 0.0
    return Scores(seeds, np.array([e.scores[s] for s in seeds]), whole, grain)


def _labels(e: Entry) -> list:
    """The test labels in the first run that has some; empty if none has."""
    predictions = (r.predictions for r in sorted(e.runs, key=lambda r: r.spec.seed) if r.is_finished)
    return next((p.labels for p in predictions if p and p.labels), [])
