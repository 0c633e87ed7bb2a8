"""Builds a report from records: tables, figures, the page that shows them, and rows for other programs.

Reads records only. The same records give the same bytes, whatever their order. pandas, seaborn and matplotlib are
imported only when something is drawn or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError
from peftbench.records import packs, record
from peftbench.records.record import TrialRecord
from peftbench.report.data import axis_curves, latencies, tunings, with_baselines
from peftbench.report.data.average import Average, averages
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.tables import budgets, export, latency_page, trials
from peftbench.report.tables.columns import require_known
from peftbench.report.write import files, up_to_date

if TYPE_CHECKING:
    from peftbench.report.tables.explained import Cell

FOLDER = "report"  # under the results directory


@dataclass(frozen=True)
class ReportData:
    """The records of a results directory, read and compared once for every output.

    Attributes:
        comparisons: one table per experiment, task and budget, with all notes.
        passes: latencies of the profile passes.
        tunings: tuning trials, one table per experiment, task and training length.
        sources: digest of the records, the code and the libraries that a report depends on.
        packed: whether the records are in a pack, into which no link of a page leads.
    """

    comparisons: list[Comparison]
    passes: list[Latencies]
    tunings: list[Tuning]
    sources: str
    packed: bool = False


def load(results_dir: Path | str) -> ReportData:
    """Read and compare the records under a results directory.

    Args:
        results_dir: the results directory; it may have no records.
    """
    sources = up_to_date.sources(results_dir)
    records = record.readable(results_dir)
    comparisons = budgets.noted(compare(records))
    tuned = tunings.of(records, comparisons)
    return ReportData(
        trials.noted(comparisons, tuned), latencies.of(records), tuned, sources, packs.are_there(results_dir)
    )


def load_against(results_dir: Path | str, baselines_dir: Path | str) -> ReportData:
    """Read new records and compare them with baselines, in one table per task.

    Args:
        results_dir: the new records.
        baselines_dir: the baselines' records, which are only read.
    """
    sources = up_to_date.sources(results_dir) + up_to_date.sources(baselines_dir)
    records, others = record.readable(results_dir), record.readable(baselines_dir)
    comparisons = budgets.noted(with_baselines.compare_with(records, others, baselines_dir))
    shown = {(c.experiment, c.task) for c in comparisons}
    tried = [r for r in others if isinstance(r, TrialRecord) and (r.experiment, r.spec.task.name) in shown]
    tuned = tunings.of([*records, *tried], comparisons)
    return ReportData(
        trials.noted(comparisons, tuned), latencies.of(records), tuned, sources, packs.are_there(results_dir)
    )


def write(
    results_dir: Path | str,
    out_dir: Path | str | None = None,
    loaded: ReportData | None = None,
    columns: Sequence[str] = (),
    pdf: bool = False,
) -> list[Path]:
    """Write every table and figure, and the page `report.md` that shows them.

    Each file is written atomically. Files of an earlier report that this one lacks are removed, and no others.

    Args:
        results_dir: the results directory.
        out_dir: folder of the report; default: `report` in the results directory.
        loaded: the records if already loaded.
        columns: names of the columns that tables of scores show; default: all.
        pdf: whether to write the figures as PDF files, too.

    Returns:
        Paths of the files, `report.md` first.

    Raises:
        UserError: without records, for an unknown column, or if the folder cannot be written or is a symbolic link
            that `out_dir` does not name.
    """
    loaded = require_records(loaded or load(results_dir), results_dir)
    folder, root = _place(results_dir, out_dir)
    written = files.write(folder, _contents(loaded, columns, pdf), root)
    up_to_date.seal(folder, loaded.sources)
    return written


def check(
    results_dir: Path | str,
    out_dir: Path | str | None,
    loaded: ReportData,
    columns: Sequence[str] = (),
    pdf: bool = False,
) -> list[str]:
    """Build the report in memory and compare it with the files on disk, byte for byte.

    Args:
        results_dir: the results directory.
        out_dir: folder of the report; default: `report` in the results directory.
        loaded: the records.
        columns: as the report was written with.
        pdf: as the report was written with.

    Returns:
        One line per file that differs, is missing or does not belong; empty if the report is up to date.

    Raises:
        UserError: without records, or for an unknown column.
    """
    from peftbench.report.write import compare_files

    folder, root = _place(results_dir, out_dir)
    return compare_files.differences(folder, _contents(require_records(loaded, results_dir), columns, pdf), root)


def _place(results_dir: Path | str, out_dir: Path | str | None) -> tuple[Path, Path]:
    """The folder of the report, and the one that the user named for it: only that one may be a symbolic link."""
    root = Path(results_dir if out_dir is None else out_dir)
    return (root / FOLDER if out_dir is None else root), root


def _contents(loaded: ReportData, columns: Sequence[str], pdf: bool) -> Iterator[tuple[str, bytes]]:
    from peftbench.report.write import page

    over_tasks = _averages(loaded)
    require_known(columns, loaded.comparisons, over_tasks)
    choice = page.Choice(tuple(columns), pdf, "" if loaded.packed else page.Choice.runs)
    curves = axis_curves.of(loaded.comparisons)
    return page.build(loaded.comparisons, over_tasks, loaded.passes, loaded.tunings, choice, curves)


def refresh(results_dir: Path | str, loaded: ReportData) -> Path:
    """Write the report under `results_dir` unless it is up to date.

    Args:
        results_dir: the results directory.
        loaded: its records.

    Returns:
        Path of `report.md`.

    Raises:
        UserError: without records, or if the folder cannot be written.
    """
    folder = Path(results_dir) / FOLDER
    if not up_to_date.is_current(folder, loaded.sources):
        write(results_dir, loaded=loaded)
    return folder / "report.md"


def page(results_dir: Path | str, runs: str = "../runs", loaded: ReportData | None = None) -> bytes:
    """Build the page for a browser alone, without the report's figures.

    Args:
        results_dir: the results directory.
        runs: address of the folder with the records, as seen from where the page is to lie; empty for names alone.
        loaded: the records if already loaded.

    Returns:
        The content of the file.

    Raises:
        UserError: without records.
    """
    from peftbench.report.web import page as web

    return web.build(shown(require_records(loaded or load(results_dir), results_dir)), runs)


def shown(loaded: ReportData) -> list[Any]:
    """All tables of a report, each with a file name of its own, as the page takes them."""
    from peftbench.report.write.slugs import apart

    curves = axis_curves.of(loaded.comparisons)
    return list(apart([*loaded.comparisons, *loaded.passes, *loaded.tunings, *_averages(loaded), *curves]))


def rows(results_dir: Path | str, loaded: ReportData | None = None) -> list[dict[str, Any]]:
    """The comparisons as JSON-ready rows, one per configuration and task, failed ones included.

    Args:
        results_dir: the results directory.
        loaded: the records if already loaded.

    Returns:
        Rows with the fields of `export.row` and "tuning" (`trials.json_row`). Without training runs: one row per
        configuration and shape (`latency_page.rows`), or without those one row per trial (`trials.trial_rows`).

    Raises:
        UserError: without records.
    """
    loaded = require_records(loaded or load(results_dir), results_dir)
    output = export.rows(loaded.comparisons)
    entries = [(c, e) for c in loaded.comparisons for e in c.entries]
    for row, (c, e) in zip(output, entries, strict=True):
        row["tuning"] = trials.json_row(c, e, loaded.tunings)
    return output or latency_page.rows(loaded.passes) or [r for t in loaded.tunings for r in trials.trial_rows(t)]


def text_table(results_dir: Path | str, loaded: ReportData | None = None, columns: Sequence[str] = ()) -> str:
    """The comparisons for a terminal of 120 columns: a table per task, one over the tasks, and their notes.

    Args:
        results_dir: the results directory.
        loaded: the records if already loaded.
        columns: names of the columns that tables of scores show; default: all that there is room for.

    Raises:
        UserError: without records, or for an unknown column.
    """
    from peftbench.report.tables import terminal

    loaded = require_records(loaded or load(results_dir), results_dir)
    trained = {c.experiment for c in loaded.comparisons}
    alone = [p for p in loaded.passes if p.experiment not in trained]
    over_tasks = _averages(loaded)
    require_known(columns, loaded.comparisons, over_tasks)
    curves = axis_curves.of(loaded.comparisons)
    return terminal.text(loaded.comparisons, over_tasks, alone, loaded.tunings, columns, curves)


def cells(results_dir: Path | str, loaded: ReportData | None = None) -> list[Cell]:
    """The cells of the tables of scores, each with the origin of its number. Raises UserError without records."""
    from peftbench.report.tables import explained

    loaded = require_records(loaded or load(results_dir), results_dir)
    return explained.cells(loaded.comparisons, _averages(loaded), record.readable(results_dir))


def average_table(results_dir: Path | str) -> str:
    """The tables over the tasks alone, as `text_table` prints them. Raises UserError without records."""
    from peftbench.report.tables import terminal

    return terminal.text([], _averages(require_records(load(results_dir), results_dir)))


def _averages(loaded: ReportData) -> list[Average]:
    return budgets.noted_averages(averages(loaded.comparisons), loaded.comparisons)


def require_records(loaded: ReportData, results_dir: Path | str) -> ReportData:
    """Return what was loaded. Raises UserError if it holds no records."""
    if not loaded.comparisons and not loaded.passes and not loaded.tunings:
        folder = Path(results_dir) / record.FOLDER
        raise UserError(f"{folder}: no records of runs here. Run an experiment first, or name its results directory.")
    return loaded
