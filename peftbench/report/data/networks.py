"""McNemar's tests of a table: where a row and another have one trained network each, on a metric of right and wrong.

The tests against the reference are adjusted by Holm's method, and those against the best by Bonferroni's, over the
table, as are the differences of `verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftbench.report.stats import intervals, mcnemar
from peftbench.report.stats.intervals import Scores
from peftbench.report.stats.mcnemar import McNemar


@dataclass(frozen=True)
class NetworkTest:
    """McNemar's test of a row's one trained network against that of another row.

    Attributes:
        counts: the test examples that one of the two has right and the other wrong.
        p: exact mid-p-value.
        p_adjusted: the same, adjusted over the table.
    """

    counts: McNemar
    p: float
    p_adjusted: float


def against_reference(known: Mapping[str, Scores], reference: str, metric: str) -> dict[str, NetworkTest]:
    """Test each row against the reference.

    Args:
        known: label -> scores over the seeds.
        reference: label of the reference; it may be missing.
        metric: name of the metric.

    Returns:
        label -> test, for the rows where it applies.
    """
    found = _against(known, reference, metric)
    adjusted = intervals.holm([counts.p for counts in found.values()])
    return {
        label: NetworkTest(counts, counts.p, p)
        for (label, counts), p in zip(found.items(), adjusted, strict=True)
        if p is not None
    }


def against_best(known: Mapping[str, Scores], best: str, metric: str) -> dict[str, NetworkTest]:
    """Test each row against the best, like `against_reference`."""
    pairs = len(known) - 1
    found = _against(known, best, metric)
    return {label: NetworkTest(counts, counts.p, min(1.0, pairs * counts.p)) for label, counts in found.items()}


def _against(known: Mapping[str, Scores], other: str, metric: str) -> dict[str, McNemar]:
    if metric not in mcnemar.METRICS or other not in known:
        return {}
    tests = {label: mcnemar.between(s, known[other]) for label, s in known.items() if label != other}
    return {label: test for label, test in tests.items() if test}
