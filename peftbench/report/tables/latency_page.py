"""The latencies of a profile pass on the page and in files: a table by shape, and what handling adapters takes."""

from __future__ import annotations

from collections.abc import Iterator

from peftbench.report.tables import columns, latencies
from peftbench.report.tables.latencies import Latencies


def tables_of(p: Latencies) -> Iterator[tuple[str, str]]:
    """(file name, text) of the pass's tables."""
    yield f"{p.slug}.md", f"# Latency, {p.title}\n\n{text(p)}"
    yield f"{p.slug}.csv", columns.csv(latencies.rows([p]))
    caption = f"Latency, {p.title}: {' '.join(p.facts)}"
    yield f"{p.slug}.tex", columns.latex(latencies.columns(), p.cells, caption, p.slug)


def text(p: Latencies) -> str:
    """What the page says of the pass."""
    handling = f"\n{columns.markdown(latencies.handling_columns(), p.handling)}" if p.handling else ""
    return f"{' '.join(p.facts)}\n\n{columns.markdown(latencies.columns(), p.cells)}{handling}"
