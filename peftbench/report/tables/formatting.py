"""Formats numbers for reading: with their uncertainty, or a dash where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from peftbench.report.data.times import Summary

DASH = "—"


def score(value: float | None, sd: float | None = None, n: int | None = None) -> str:
    """`0.742 ± 0.012 (2)`: mean, standard deviation over the seeds, number of seeds.

    >>> score(0.7421, 0.0123, 2), score(31.25, 1.5, 3), score(0.7421, None, 1), score(None)
    ('0.742 ± 0.012 (2)', '31.25 ± 1.50 (3)', '0.742 (1)', '—')
    """
    if value is None:
        return DASH
    digits = _digits(value)
    around = f" ± {sd:.{digits}f}" if sd is not None else ""
    return f"{value:,.{digits}f}{around}" + (f" ({n})" if n is not None else "")


def estimate(value: float | None, around: tuple[float, float] | None, n: int | None = None, mark: str = "") -> str:
    """`0.742 [0.701, 0.783] (2) •`: mean, 95 % interval, number of seeds, and a mark.

    >>> estimate(0.7421, (0.7012, 0.7829), 2, "•"), estimate(31.25, None, 3), estimate(None, None, 0)
    ('0.742 [0.701, 0.783] (2) •', '31.25 (3)', '—')
    >>> estimate(-0.09, (-0.114, -0.066))
    '−0.090 [−0.114, −0.066]'
    """
    if value is None:
        return DASH
    digits = _digits(value)
    interval = f" [{around[0]:,.{digits}f}, {around[1]:,.{digits}f}]" if around else ""
    seeds = f" ({n})" if n is not None else ""
    return f"{value:,.{digits}f}{interval}".replace("-", "−") + seeds + (f" {mark}" if mark else "")


def difference(value: float, around: tuple[float, float] | None) -> str:
    """`−0.021 [−0.064, +0.022]`

    >>> difference(-0.0211, (-0.0642, 0.022)), difference(1.5, None)
    ('−0.021 [−0.064, +0.022]', '+1.500')
    """
    digits = _digits(value)
    interval = f" [{around[0]:+,.{digits}f}, {around[1]:+,.{digits}f}]" if around else ""
    return f"{value:+,.{digits}f}{interval}".replace("-", "−")


def p_value(p: float | None) -> str:
    """Two digits, never 0.

    >>> p_value(0.0312), p_value(1e-7), p_value(None)
    ('0.031', '< 0.001', '—')
    """
    return DASH if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def share(shown: tuple[float, float, float] | None) -> str:
    """`0.67 [0.21, 0.94]`"""
    return DASH if shown is None else f"{shown[0]:.2f} [{shown[1]:.2f}, {shown[2]:.2f}]"


def _digits(value: float) -> int:
    return 3 if abs(value) < 10 else 2 if abs(value) < 1000 else 0


def count(value: float | None) -> str:
    """`22,565,376`"""
    return DASH if value is None else f"{value:,.0f}"


def scaled(value: float | None, unit: float) -> str:
    """`value` in a larger unit, three digits or more.

    >>> scaled(1536, 1024), scaled(5 * 2**30, 2**20), scaled(None, 1024)
    ('1.50', '5,120', '—')
    """
    if value is None:
        return DASH
    size = value / unit
    return f"{size:,.{2 if abs(size) < 10 else 1 if abs(size) < 100 else 0}f}"


def milliseconds(time: Summary | None, spread: bool = False) -> str:
    """The median in milliseconds; with `spread`, ± half of the quartile distance."""
    if time is None:
        return DASH
    ms = time.median * 1e3
    digits = 2 if ms < 10 else 1 if ms < 1000 else 0
    around = f" ± {time.iqr * 500:.{digits}f}" if spread and time.iqr is not None else ""
    return f"{ms:,.{digits}f}{around}"


def ratio(value: float | None, around: float | None = None) -> str:
    """`0.84×`, or `0.84 ± 0.01×`."""
    if value is None:
        return DASH
    return f"{value:.2f}" + (f" ± {around:.2f}" if around is not None else "") + "×"


def interval(summary: Summary | None) -> str:
    """The median ratio with its interval, or in records without one, with half of its quartile distance.

    >>> interval(Summary(0.8431, 0.02, 0.83, 0.861)), interval(Summary(0.8431, 0.02)), interval(None)
    ('0.84× [0.83, 0.86]', '0.84 ± 0.01×', '—')
    """
    if summary is None:
        return DASH
    if summary.low is None or summary.high is None:
        return ratio(summary.median, None if summary.iqr is None else summary.iqr / 2)
    return f"{summary.median:.2f}× [{summary.low:.2f}, {summary.high:.2f}]"


def percent(share: Summary | None) -> str:
    """A share with its interval, in percent: `61 % [58, 63]`."""
    if share is None:
        return DASH
    around = f" [{share.low * 100:.0f}, {share.high * 100:.0f}]" if share.low is not None and share.high else ""
    return f"{share.median * 100:.0f} %{around}"


def size(mark: str, deviation: float | None) -> str:
    """How the size met the budget, with its deviation if there was a budget.

    >>> size("matched", -0.017), size("native", 299.9), size("native", None)
    ('matched (−1.7 %)', 'native (301×)', 'native')
    """
    if deviation is None:
        return mark
    if deviation >= 9:
        return f"{mark} ({deviation + 1:,.0f}×)"
    return f"{mark} ({deviation * 100:+.1f} %)".replace("-", "−")


def failures(failed: Mapping[str, int]) -> str:
    """`0`, or the number of runs by status: `2 diverged, 1 oom`."""
    return ", ".join(f"{n} {status}" for status, n in failed.items()) or "0"


def seconds(value: float) -> str:
    """`134 ms`, or `2.41 s`.

    >>> seconds(0.1337), seconds(2.414)
    ('134 ms', '2.41 s')
    """
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def listed(names: Sequence[str]) -> str:
    """Join names: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def are(names: Sequence[str]) -> str:
    """`is`, or `are` for several names."""
    return "is" if len(names) == 1 else "are"


def two_digits(number: float) -> int:
    """Round up to two digits, as an estimate is no more precise.

    >>> two_digits(7.1), two_digits(1234)
    (8, 1300)
    """
    if number < 10:
        return math.ceil(number)
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
