"""Report finished runs: tables, figures and conclusions, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.api.paths import PathLike, path
from peftbench.api.record_sets import Records
from peftbench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.report.assemble import ReportData
    from peftbench.report.data.answer import Answer
    from peftbench.report.tables.explained import Cell


class Report:
    """The comparison of the runs in a results directory: a table for each task, and conclusions.

    Attributes:
        folder: the results directory.
        loaded: the comparisons, passes and trials that tables and figures show.
    """

    def __init__(self, folder: PathLike, baselines: PathLike | None = None) -> None:
        from peftbench.report import assemble

        self.folder = Path(folder)
        self.loaded: ReportData = (
            assemble.load(self.folder) if baselines is None else assemble.load_against(self.folder, Path(baselines))
        )

    def __repr__(self) -> str:
        return f"Report({str(self.folder)!r}, {len(self.loaded.comparisons)} tables)"

    @property
    def place(self) -> Path:
        """The folder that `write` uses by default."""
        from peftbench.report import assemble

        return self.folder / assemble.FOLDER

    def _repr_html_(self) -> str:
        import pandas as pd

        from peftbench.report.media import plain

        with pd.option_context("display.html.use_mathjax", False):  # a dollar in a label starts no formula
            lines = str(self.frame().to_html()).split("\n")
        return "\n".join(map(plain.visible, lines))  # a control character of a label turns no text around

    def rows(self) -> list[dict[str, Any]]:
        """Return a JSON-ready mapping for each configuration and task, failed ones included.

        Times are in seconds and sizes in bytes, unrounded.
        """
        from peftbench.report import assemble

        return assemble.rows(self.folder, self.loaded)

    def verdict(self) -> list[Answer]:
        """Return what each table recommends: the cheapest method that is surely within the margin of the best.

        Returns:
            One `peftbench.report.data.answer.Answer` for each table that allows one, in the order of the tables; with
            what is behind, what is open and what would decide it.
        """
        from peftbench.report.data import answer

        return [found for c in self.loaded.comparisons if (found := answer.of(c))]

    def frame(self) -> pd.DataFrame:
        """Return `rows` as a pandas data frame, with one row for each configuration and task.

        Returns:
            Among the columns are `task`, `method` (the label), `mean` and `sd` of the primary `metric` on the test
            split over `n` seeds, `relative` (to the reference's mean), `trainable`, `peak_memory_bytes`,
            `step_seconds` and `step_ratio`; `peftbench.report.tables.export` documents all.
        """
        import pandas as pd

        return pd.DataFrame(self.rows())

    def cells(self) -> list[Cell]:
        """Return the cells of the tables, each with its text and the records and computation behind its number.

        Raises:
            UserError: there are no runs.
        """
        from peftbench.report import assemble

        return assemble.cells(self.folder, self.loaded)

    def table(self, columns: Sequence[str] = ()) -> str:
        """Return the tables and notes that `peftbench run` prints, for a terminal of 120 columns.

        Args:
            columns: as for `write`; by default all that there is room for.
        """
        from peftbench.report import assemble

        return assemble.text_table(self.folder, self.loaded, columns)

    def write(self, out: PathLike | None = None, columns: Sequence[str] = (), pdf: bool = False) -> Path:
        """Write all tables and figures to `out`, by default the folder `report` of the results directory.

        Args:
            out: the folder.
            columns: columns of the tables of scores, by name, such as `["score", "trainable", "memory"]`, for every
                kind of table; `["all"]` for all, in LaTeX as well, which has four without. CSV files always have all.
            pdf: whether to write the figures as PDF files, too.

        Returns:
            The path of `report.md`, which shows all of them.

        Raises:
            UserError: there are no runs, a column is unknown, or the directory cannot be written to.
        """
        from peftbench.report import assemble

        return assemble.write(self.folder, path(out), self.loaded, columns, pdf)[0]

    def refresh(self) -> Path:
        """Write the report under the results directory, unless it is up to date.

        Returns:
            The path of `report.md`.
        """
        from peftbench.report import assemble

        return assemble.refresh(self.folder, self.loaded)

    def check(self, out: PathLike | None = None, columns: Sequence[str] = (), pdf: bool = False) -> list[str]:
        """Compare the written report with what the records give.

        Args:
            out: as for `write`, like the others.
            columns: the columns that it was written with.
            pdf: whether it was written with PDF files.

        Returns:
            One line for each file that differs in any byte; an empty list if the report is up to date.
        """
        from peftbench.report import assemble

        return assemble.check(self.folder, path(out), self.loaded, columns, pdf)


def report(records: Records | PathLike, *, against: PathLike | None = None) -> Report:
    """Compare finished runs: tables, figures and conclusions from records alone.

    Args:
        records: the result of `run` or `records`, or a results directory.
        against: a results directory with baselines for the same tables; by default that of the plan.

    Raises:
        UserError: there is no directory `against`. Files that are no records are set aside, as `records` says.
    """
    if against is not None and not Path(against).is_dir():
        raise UserError(f"against: no directory {against}; give a results directory")
    if isinstance(records, Records):
        return Report(records.folder, against or records.baselines)
    return Report(records, against)
