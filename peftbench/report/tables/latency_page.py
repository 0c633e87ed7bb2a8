"""The latencies of a profile pass as tables: by shape, and the time to merge and switch adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peftbench.report.data.latencies import Latencies, Timed
from peftbench.report.data.times import Summary
from peftbench.report.media.markdown import escape
from peftbench.report.tables import columns as tables
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column


def tables_of(p: Latencies) -> Iterator[tuple[str, str]]:
    """(file name, text) of the pass's tables."""
    yield f"{p.slug}.md", f"# Latency, {escape(p.title)}\n\n{text(p)}"
    yield f"{p.slug}.csv", tables.csv(rows([p]))
    yield f"{p.slug}.tex", tables.latex(columns(), p.cells, f"Latency, {p.title}.", p.slug, p.facts)


def text(p: Latencies) -> str:
    """The section of the page on the pass."""
    handling = f"\n{tables.markdown(handling_columns(), p.handling)}" if p.handling else ""
    return f"{escape(' '.join(p.facts))}\n\n{tables.markdown(columns(), p.cells)}{handling}"


def columns() -> list[Column]:
    """Columns of the readable table by shape."""
    return [
        Column("method", lambda c: c.label),
        Column("phase", lambda c: c.phase),
        Column("batch × tokens", lambda c: f"{c.batch} × {c.length}" + (" (median)" if c.typical else "")),
        Column("p50, ms", lambda c: _ms(c.unmerged, "median"), 1),
        Column("p95, ms", lambda c: _ms(c.unmerged, "p95"), 3),
        Column("/ base", lambda c: _ratio(c.unmerged), 0),
        Column("merged: p50, ms", lambda c: _ms(c.merged, "median"), 2),
        Column("merged: p95, ms", lambda c: _ms(c.merged, "p95"), 4),
        Column("merged / base", lambda c: _ratio(c.merged), 0),
        Column("n", lambda c: formatting.count(c.unmerged.n if c.unmerged else None), 5),
    ]


def handling_columns() -> list[Column]:
    """Columns of the readable table on merging and switching."""
    return [
        Column("method", lambda h: h.label),
        Column("put another adapter in place, ms", lambda h: _milliseconds(h.switch)),
        Column("fold into the weights, ms", lambda h: _milliseconds(h.merge)),
        Column("n", lambda h: formatting.count(h.n)),
    ]


def rows(passes: Sequence[Latencies]) -> list[dict[str, Any]]:
    """One flat row per configuration and shape, unrounded, null where not measured.

    Returns:
        experiment, task, backbone, method: the pass and the configuration; the base network is "base".
        phase, batch, length: "forward", "prefill" or "decode", batch size and tokens.
        typical: whether the length is the task's median.
        p50_seconds, p95_seconds, n: median and 95th percentile of n passes.
        ratio, ratio_low, ratio_high: time / the base network's in the same rounds, and its interval.
        merged_*: the same six after merging.
        merge_seconds, switch_seconds: time to merge the adapter, and to put another in its place.
    """
    return [
        {
            "experiment": p.experiment,
            "task": p.profile.spec.task.name,
            "backbone": p.profile.spec.backbone.model,
            "method": c.label,
            "phase": c.phase,
            "batch": c.batch,
            "length": c.length,
            "typical": c.typical,
            **_flat("", c.unmerged),
            **_flat("merged_", c.merged),
            **{f"{name}_seconds": getattr(handling.get(c.label), name, None) for name in ("merge", "switch")},
        }
        for p in passes
        for handling in [{h.label: h for h in p.handling}]
        for c in p.cells
    ]


def _flat(prefix: str, t: Timed | None) -> dict[str, float | None]:
    names = {"p50_seconds": "median", "p95_seconds": "p95", "n": "n", "ratio": "ratio"}
    names |= {"ratio_low": "low", "ratio_high": "high"}
    return {prefix + name: getattr(t, key) if t else None for name, key in names.items()}


def _ms(t: Timed | None, which: str) -> str:
    return _milliseconds(getattr(t, which) if t else None)


def _milliseconds(seconds: float | None) -> str:
    return formatting.milliseconds(Summary(seconds, None) if seconds is not None else None)


def _ratio(t: Timed | None) -> str:
    if t is None or t.ratio is None:
        return formatting.DASH
    interval = f" [{t.low:.2f}, {t.high:.2f}]" if t.low is not None and t.high is not None else ""
    return f"{t.ratio:.2f}×{interval}"
