"""From records to a report: tables, figures and the page that shows them, and rows for other programs.

Reads records and nothing else. The same records give the same bytes, in whatever order they were made. pandas, seaborn
and matplotlib are imported only when something is drawn or written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import record
from ..errors import UserError
from . import files, latency
from .average import averages
from .export import listed
from .latency import Latencies
from .statistics import Comparison, compare

FOLDER = "report"  # under the results directory


def write(results_dir: Path | str, out_dir: Path | str | None = None) -> list[Path]:
    """Write every table and figure and `report.md`, which shows them all; returns the paths, `report.md` first.

    Under `results_dir`/report, or in `out_dir`. Each file appears whole or not at all; what an earlier report left and
    this one lacks is removed, and nothing else. Raises UserError without any run or for a directory it cannot write to.
    """
    from . import page

    comparisons, passes = _load(results_dir)
    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    return files.write(folder, page.build(comparisons, averages(comparisons), passes))


def rows(results_dir: Path | str) -> list[dict[str, Any]]:
    """One JSON-ready row for each configuration of each task, failed ones too; `export.row` has the fields.

    Where nothing but profile passes ran: one row for each configuration at each shape, from `latency.rows`.
    """
    comparisons, passes = _load(results_dir)
    return listed(comparisons) or latency.rows(passes)


def text_table(results_dir: Path | str) -> str:
    """The comparison for a terminal of 120 columns: a table for each task, one over the tasks, and their notes."""
    from . import terminal

    comparisons, passes = _load(results_dir)
    trained = {c.experiment for c in comparisons}
    alone = [p for p in passes if p.experiment not in trained]
    return terminal.text(comparisons, averages(comparisons), alone)


def _load(results_dir: Path | str) -> tuple[list[Comparison], list[Latencies]]:
    records = record.read_all(results_dir)
    comparisons, passes = compare(records), latency.of(records)
    if not comparisons and not passes:
        folder = Path(results_dir) / record.FOLDER
        raise UserError(f"{folder}: no records of runs here. Run an experiment first, or name its results directory.")
    return comparisons, passes
