"""From records to a report: tables, figures and the page that shows them, and rows for other programs.

Reads records and nothing else. The same records give the same bytes, in whatever order they were made. pandas, seaborn
and matplotlib are imported only when something is drawn or written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.record import TrialRecord
from peftbench.report.data import latencies, tunings, with_baselines
from peftbench.report.data.average import Average, averages
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.tables import budgets, export, latency_page, trials
from peftbench.report.write import files, up_to_date

FOLDER = "report"  # under the results directory


@dataclass(frozen=True)
class ReportData:
    """The records of a results directory, read and compared once for all that is made of them."""

    comparisons: list[Comparison]
    passes: list[Latencies]  # profile passes
    tunings: list[Tuning]
    sources: str  # digest of what a report of them is made from


def load(results_dir: Path | str) -> ReportData:
    """Read and compare the records under `results_dir`; none is no error here."""
    sources = up_to_date.sources(results_dir)
    records = record.read_all(results_dir)
    comparisons = budgets.noted(compare(records))
    tuned = tunings.of(records, comparisons)
    return ReportData(trials.noted(comparisons, tuned), latencies.of(records), tuned, sources)


def load_against(results_dir: Path | str, baselines_dir: Path | str) -> ReportData:
    """The records under `results_dir` in one table a task with those under `baselines_dir`, which stay as they are."""
    sources = up_to_date.sources(results_dir) + up_to_date.sources(baselines_dir)
    records, others = record.read_all(results_dir), record.read_all(baselines_dir)
    comparisons = budgets.noted(with_baselines.compare_with(records, others, baselines_dir))
    shown = {(c.experiment, c.task) for c in comparisons}
    tried = [r for r in others if isinstance(r, TrialRecord) and (r.experiment, r.spec.task.name) in shown]
    tuned = tunings.of([*records, *tried], comparisons)
    return ReportData(trials.noted(comparisons, tuned), latencies.of(records), tuned, sources)


def write(
    results_dir: Path | str,
    out_dir: Path | str | None = None,
    loaded: ReportData | None = None,
) -> list[Path]:
    """Write every table and figure and `report.md`, which shows them all; returns the paths, `report.md` first.

    Under `results_dir`/report, or in `out_dir`. Each file appears whole or not at all; what an earlier report left and
    this one lacks is removed, and nothing else. Raises UserError without any run or for a directory it cannot write to.
    """
    loaded = _require_records(loaded or load(results_dir), results_dir)
    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    written = files.write(folder, _contents(loaded))
    up_to_date.seal(folder, loaded.sources)
    return written


def check(results_dir: Path | str, out_dir: Path | str | None, loaded: ReportData) -> list[str]:
    """Make the report again in memory: one line for each file that is not, byte for byte, the one that is there."""
    from peftbench.report.write import compare_files

    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    return compare_files.differences(folder, _contents(_require_records(loaded, results_dir)))


def _contents(loaded: ReportData) -> Iterator[tuple[str, bytes]]:
    from peftbench.report.write import page

    return page.build(loaded.comparisons, _averages(loaded), loaded.passes, loaded.tunings)


def refresh(results_dir: Path | str, loaded: ReportData) -> Path:
    """`write` under `results_dir`/report unless it would change nothing; returns the path of `report.md`."""
    folder = Path(results_dir) / FOLDER
    if not up_to_date.is_current(folder, loaded.sources):
        write(results_dir, loaded=loaded)
    return folder / "report.md"


def rows(results_dir: Path | str, loaded: ReportData | None = None) -> list[dict[str, Any]]:
    """One JSON-ready row for each configuration of each task, failed ones too; `export.row` has the fields.

    Where nothing but profile passes ran: one row for each configuration at each shape, from `latency.rows`.
    """
    loaded = _require_records(loaded or load(results_dir), results_dir)
    output = export.rows(loaded.comparisons)
    entries = [(c, e) for c in loaded.comparisons for e in c.entries]
    for row, (c, e) in zip(output, entries, strict=True):
        row["tuning"] = trials.json_row(c, e, loaded.tunings)
    return output or latency_page.rows(loaded.passes) or [r for t in loaded.tunings for r in trials.trial_rows(t)]


def text_table(results_dir: Path | str, loaded: ReportData | None = None) -> str:
    """The comparison for a terminal of 120 columns: a table for each task, one over the tasks, and their notes."""
    from peftbench.report.tables import terminal

    loaded = _require_records(loaded or load(results_dir), results_dir)
    trained = {c.experiment for c in loaded.comparisons}
    alone = [p for p in loaded.passes if p.experiment not in trained]
    return terminal.text(loaded.comparisons, _averages(loaded), alone, loaded.tunings)


def average_table(results_dir: Path | str) -> str:
    """Of `text_table` the tables over the tasks alone."""
    from peftbench.report.tables import terminal

    return terminal.text([], _averages(_require_records(load(results_dir), results_dir)))


def _averages(loaded: ReportData) -> list[Average]:
    return budgets.noted_averages(averages(loaded.comparisons), loaded.comparisons)


def _require_records(loaded: ReportData, results_dir: Path | str) -> ReportData:
    if not loaded.comparisons and not loaded.passes and not loaded.tunings:
        folder = Path(results_dir) / record.FOLDER
        raise UserError(f"{folder}: no records of runs here. Run an experiment first, or name its results directory.")
    return loaded
