"""McNemar's test of two trained networks on the same test examples (Psychometrika 12, 1947).

Examples that both have right, or both wrong, tell nothing. If the networks are equally good, each of the others is a
fair coin: won ~ Binomial(won + lost, 1/2). The p-value is the exact mid-p,

    p = 2 (P(X < m) + P(X = m) / 2),   m = min(won, lost),

which keeps its level in practice and loses less power than the exact test without it (Fagerland, Lydersen and Laake,
BMC Med. Res. Methodol. 13:91, 2013). It is a test of these two networks: another seed gives others.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftbench.report.stats.intervals import Scores, paired

METRICS = ("accuracy",)  # means of right and wrong answers


@dataclass(frozen=True)
class McNemar:
    """The test examples on which two trained networks disagree.

    Attributes:
        won: number of examples that the first has right and the second wrong.
        lost: number of examples that the first has wrong and the second right.
    """

    won: int
    lost: int

    @property
    def p(self) -> float:
        """Two-sided exact mid-p-value of "both are equally good"; 1 without disagreement."""
        from scipy.special import bdtr

        n, m = self.won + self.lost, min(self.won, self.lost)
        below = float(bdtr(m - 1, n, 0.5)) if m else 0.0
        return min(1.0, below + float(bdtr(m, n, 0.5)))


def between(a: Scores, b: Scores) -> McNemar | None:
    """Compare the networks of two configurations where their difference rests on one of each.

    Args:
        a, b: scores by a metric of `METRICS`, on the same test examples.

    Returns:
        The comparison; None if a side has more seeds, or its predictions are not available.
    """
    if common := paired(a.seeds, b.seeds):
        a, b = a.at(common), b.at(common)
    if len(a.seeds) != 1 or len(b.seeds) != 1 or a.influences is None or b.influences is None:
        return None
    first, second = (s.influences[0] + s.values[0] > 0.5 for s in (a, b) if s.influences is not None)
    return McNemar(int((first & ~second).sum()), int((second & ~first).sum()))
