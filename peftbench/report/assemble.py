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
from peftbench.report.data import beside, latencies, tunings
from peftbench.report.data.average import Average, averages
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.tables import budgets, latency_page, trials
from peftbench.report.tables.export import listed
from peftbench.report.write import files, fresh

FOLDER = "report"  # under the results directory


@dataclass(frozen=True)
class Loaded:
    """The records of a results directory, read and compared once for all that is made of them."""

    comparisons: list[Comparison]
    passes: list[Latencies]  # profile passes
    tunings: list[Tuning]
    sources: str  # digest of what a report of them is made from


def load(results_dir: Path | str) -> Loaded:
    """Read and compare the records under `results_dir`; none is no error here."""
    sources = fresh.sources(results_dir)
    records = record.read_all(results_dir)
    compared = budgets.noted(compare(records))
    tuned = tunings.of(records, compared)
    return Loaded(trials.noted(compared, tuned), latencies.of(records), tuned, sources)


def load_against(results_dir: Path | str, baselines_dir: Path | str) -> Loaded:
    """The records under `results_dir` in one table a task with those under `baselines_dir`, which stay as they are."""
    sources = fresh.sources(results_dir) + fresh.sources(baselines_dir)
    records, others = record.read_all(results_dir), record.read_all(baselines_dir)
    compared = budgets.noted(beside.together(records, others, baselines_dir))
    shown = {(c.experiment, c.task) for c in compared}
    tried = [r for r in others if isinstance(r, TrialRecord) and (r.experiment, r.spec.task.name) in shown]
    tuned = tunings.of([*records, *tried], compared)
    return Loaded(trials.noted(compared, tuned), latencies.of(records), tuned, sources)


def write(
    results_dir: Path | str,
    out_dir: Path | str | None = None,
    loaded: Loaded | None = None,
) -> list[Path]:
    """Write every table and figure and `report.md`, which shows them all; returns the paths, `report.md` first.

    Under `results_dir`/report, or in `out_dir`. Each file appears whole or not at all; what an earlier report left and
    this one lacks is removed, and nothing else. Raises UserError without any run or for a directory it cannot write to.
    """
    loaded = _some(loaded or load(results_dir), results_dir)
    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    written = files.write(folder, _contents(loaded))
    fresh.seal(folder, loaded.sources)
    return written


def check(results_dir: Path | str, out_dir: Path | str | None, loaded: Loaded) -> list[str]:
    """Make the report again in memory: one line for each file that is not, byte for byte, the one that is there."""
    from peftbench.report.write import redrawn

    folder = Path(out_dir) if out_dir is not None else Path(results_dir) / FOLDER
    return redrawn.differences(folder, _contents(_some(loaded, results_dir)))


def _contents(loaded: Loaded) -> Iterator[tuple[str, bytes]]:
    from peftbench.report.write import page

    return page.build(loaded.comparisons, _averages(loaded), loaded.passes, loaded.tunings)


def refresh(results_dir: Path | str, loaded: Loaded) -> Path:
    """`write` under `results_dir`/report unless it would change nothing; returns the path of `report.md`."""
    folder = Path(results_dir) / FOLDER
    if not fresh.is_current(folder, loaded.sources):
        write(results_dir, loaded=loaded)
    return folder / "report.md"


def rows(results_dir: Path | str, loaded: Loaded | None = None) -> list[dict[str, Any]]:
    """One JSON-ready row for each configuration of each task, failed ones too; `export.row` has the fields.

    Where nothing but profile passes ran: one row for each configuration at each shape, from `latency.rows`.
    """
    loaded = _some(loaded or load(results_dir), results_dir)
    found = listed(loaded.comparisons)
    entries = [(c, e) for c in loaded.comparisons for e in c.entries]
    for row, (c, e) in zip(found, entries, strict=True):
        row["tuning"] = trials.json_row(c, e, loaded.tunings)
    return found or latency_page.rows(loaded.passes) or [r for t in loaded.tunings for r in trials.trial_rows(t)]


def text_table(results_dir: Path | str, loaded: Loaded | None = None) -> str:
    """The comparison for a terminal of 120 columns: a table for each task, one over the tasks, and their notes."""
    from peftbench.report.tables import terminal

    loaded = _some(loaded or load(results_dir), results_dir)
    trained = {c.experiment for c in loaded.comparisons}
    alone = [p for p in loaded.passes if p.experiment not in trained]
    return terminal.text(loaded.comparisons, _averages(loaded), alone, loaded.tunings)


def average_table(results_dir: Path | str) -> str:
    """Of `text_table` the tables over the tasks alone."""
    from peftbench.report.tables import terminal

    return terminal.text([], _averages(_some(load(results_dir), results_dir)))


def _averages(loaded: Loaded) -> list[Average]:
    return budgets.noted_averages(averages(loaded.comparisons), loaded.comparisons)


def _some(loaded: Loaded, results_dir: Path | str) -> Loaded:
    if not loaded.comparisons and not loaded.passes and not loaded.tunings:
        folder = Path(results_dir) / record.FOLDER
        raise UserError(f"{folder}: no records of runs here. Run an experiment first, or name its results directory.")
    return loaded
