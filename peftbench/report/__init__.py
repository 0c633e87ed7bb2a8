"""From records to a report: tables, figures and the page that shows them, and rows for other programs.

Reads records and nothing else. The same records give the same bytes, in whatever order they were made. pandas, seaborn
and matplotlib are imported only when something is drawn or written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import record
from ..errors import UserError
from . import files
from .average import averages
from .export import listed
from .statistics import Comparison, compare

FOLDER = "report"  # under the results directory


def write(results_dir: Path | str, out_dir: Path | str | None = None) -> list[Path]:
    """Write every table and figure and `report.md`, which shows them all; returns the paths, `report.md` first.

    Under `results_dir`/report, or in `out_dir`. Each file appears whole or not at all; what an earlier report left and
    this one lacks is removed, and nothing else. Raises UserError without any run or for a directory it cannot write to.
    """
    from . import page

    comparisons = _load(results_dir)
    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    return files.write(folder, page.build(comparisons, averages(comparisons)))


def rows(results_dir: Path | str) -> list[dict[str, Any]]:
    """One JSON-ready row for each configuration of each task, failed ones too; `export.row` has the fields."""
    return listed(_load(results_dir))


def text_table(results_dir: Path | str) -> str:
    """The comparison for a terminal of 120 columns: a table for each task, one over the tasks, and their notes."""
    from . import terminal

    comparisons = _load(results_dir)
    return terminal.text(comparisons, averages(comparisons))


def _load(results_dir: Path | str) -> list[Comparison]:
    comparisons = compare(record.read_all(results_dir))
    if not comparisons:
        folder = Path(results_dir) / record.FOLDER
        raise UserError(f"{folder}: no records of runs here. Run an experiment first, or name its results directory.")
    return comparisons
