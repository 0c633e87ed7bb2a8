"""Seed variances that inform each other: those of a table's rows are drawn from one prior, which all rows estimate.

    s_i^2 | sigma_i^2  ~  sigma_i^2 chi^2(f_i) / f_i,     1 / sigma_i^2  ~  chi^2(f_0) / (f_0 s_0^2)
    moderated variance  =  (f_0 s_0^2 + f_i s_i^2) / (f_0 + f_i),     with f_0 + f_i degrees of freedom

The model is Smyth's (Stat. Appl. Genet. Mol. Biol. 3, 2004, section 3), with two changes that keep the level where rows
differ more than the model says, have heavy tails or collapse now and then (measured: docs/statistics.md):

- f_0 is at most `MOST`, and at most a quarter of the rows less one. A prior with more degrees of freedom calls the
  least stable row of a table better or worse for no reason.
- s_0^2 is the geometric mean of the rows' unbiased variances. Smyth's own estimate multiplies it by a factor below 1.

A row whose own variance is improbably large gets less from the others, as in the robust form of Phipson, Lee, Majewski,
Alexander and Smyth (Ann. Appl. Stat. 10, 2016): f_0 times min(1, rows x p / 2), p = P(chi^2(f_i) > f_i s_i^2 / s_0^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbench.report.stats.intervals import Estimate

MOST = 2.0  # degrees of freedom of the prior


@dataclass(frozen=True)
class Prior:
    """What a table's rows say about the seed variance of each.

    Attributes:
        variance: s_0^2, between seeds, in the metric's unit squared.
        df: f_0, its degrees of freedom; 0 says nothing.
        rows: number of variances that it was estimated from.
    """

    variance: float
    df: float
    rows: int = 0

    def df_for(self, variance: float, df: float) -> float:
        """Degrees of freedom that a row of this sample variance takes over: fewer where it is improbably large."""
        from scipy.special import chdtrc

        if not self.df:
            return 0.0
        return self.df * min(1.0, self.rows * float(chdtrc(df, df * variance / self.variance)) / 2)


def moderate(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Return estimates of one table with moderated seed variances.

    Args:
        estimates: means, or differences to one other; with one seed an estimate stays as it is.
    """
    paired = [e for e in estimates if len(e.parts) < 2]
    sides = [e for e in estimates if len(e.parts) > 1]  # two rows without a seed in common: each has its own variance
    of_pairs, of_sides = (prior([(v * (df + 1), df) for e in some for v, df in e.parts]) for some in (paired, sides))
    return [_moderated(e, of_pairs if len(e.parts) < 2 else of_sides) for e in estimates]


def prior(variances: Sequence[tuple[float, float]]) -> Prior:
    """Estimate the prior from the rows' sample variances by the moments of their logarithms.

    Args:
        variances: (sample variance between seeds, its degrees of freedom). A variance of 0 is a coincidence of rounded
            scores, and says nothing of the size of others.
    """
    from scipy.special import digamma

    told = [(v, df) for v, df in variances if v > 0]
    if len(told) < 2:
        return Prior(0.0, 0.0)
    logs = [math.log(v) - float(digamma(df / 2)) + math.log(df / 2) for v, df in told]
    centre = math.fsum(logs) / len(logs)
    spread = math.fsum((e - centre) ** 2 for e in logs) / (len(logs) - 1)
    by_chance = math.fsum(_trigamma(df / 2) for _, df in told) / len(told)
    most = min(MOST, (len(told) - 1) / 4)
    df = min(most, 2 * _trigamma_inverse(spread - by_chance)) if spread > by_chance else most
    return Prior(math.exp(centre), df, len(told))


def _moderated(e: Estimate, known: Prior) -> Estimate:
    return replace(e, parts=tuple(_part(v, df, known) for v, df in e.parts))


def _part(of_mean: float, df: float, known: Prior) -> tuple[float, float]:
    """A moderated part of an estimate: a variance of the mean over df + 1 seeds, and its degrees of freedom."""
    f0 = known.df_for(of_mean * (df + 1), df)
    return ((f0 * known.variance / (df + 1) + df * of_mean) / (f0 + df), f0 + df) if f0 else (of_mean, df)


def _trigamma_inverse(value: float) -> float:
    """Solve trigamma(x) = value for x > 0 by Newton's method (Smyth 2004, appendix)."""
    from scipy.special import zeta

    x = 0.5 + 1 / value
    for _ in range(50):
        of_x = _trigamma(x)
        step = of_x * (1 - of_x / value) / (-2 * float(zeta(3, x)))
        x += step
        if -step / x < 1e-8:
            break
    return x


def _trigamma(x: float) -> float:
    from scipy.special import zeta

    return float(zeta(2, x))
