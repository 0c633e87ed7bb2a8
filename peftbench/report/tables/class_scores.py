"""Tables of the scores of each class, and of the confusion matrix, by the classes' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftbench.report.data import classes, data_text
from peftbench.report.data.classes import ClassScore
from peftbench.report.data.comparison import Comparison
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column

MOST = 40  # classes in a readable table; the CSV file has all
Row = tuple[ClassScore, ...]  # one class, with a score of each configuration shown


def known(c: Comparison) -> bool:
    """Whether the records name the classes of the task and have predictions."""
    return bool(classes.shown(c))


def legend(c: Comparison) -> str:
    """How to read the table, in sentences."""
    text = (
        "Counted over all seeds of a configuration. Precision: of the rows that were taken for the class, the share "
        "that is of it. Recall: of the rows of the class, the share that was taken for it."
    )
    hidden = len(c.data.classes) - MOST if c.data else 0
    return f"{text} The {hidden} smallest classes are in the CSV file alone." if hidden > 0 else text


def columns(c: Comparison) -> list[Column]:
    """Columns of the readable table: each class with the scores of the reference and of the best configuration."""
    names = data_text.names(c.data.classes if c.data else [], longest=None)
    made = [Column("class", lambda row: names[row[0].name]), Column("test rows", lambda row: f"{row[0].support:,}")]
    for i, label in enumerate(classes.shown(c)):
        made += [
            Column(f"{label}: precision", _cell(i, "precision")),
            Column("recall", _cell(i, "recall")),
            Column("F1", _cell(i, "f1")),
        ]
    return made


def _cell(i: int, score: str) -> Callable[[Row], str]:
    return lambda row: formatting.score(getattr(row[i], score))


def table(c: Comparison) -> list[Row]:
    """The rows of the readable table: the largest classes of the test split, in the order of the classes."""
    rows = list(zip(*(classes.scores(c, label) for label in classes.shown(c)), strict=True))
    largest = sorted(range(len(rows)), key=lambda i: (-rows[i][0].support, i))[:MOST]
    return [rows[i] for i in sorted(largest)]


def rows(c: Comparison) -> list[dict[str, Any]]:
    """One flat row for each configuration and class, for a CSV file."""
    return [
        {
            "method": label,
            "class": s.name,
            "support": s.support,
            "precision": s.precision,
            "recall": s.recall,
            "f1": s.f1,
        }
        for label in classes.matrices(c)
        for s in classes.scores(c, label)
    ]


def confusion_rows(c: Comparison) -> list[dict[str, Any]]:
    """One flat row for each configuration, class and prediction that occurs, with its number over all seeds."""
    names = c.data.classes if c.data else []
    return [
        {"method": label, "class": names[i], "predicted": names[j], "rows": n}
        for label, matrix in classes.matrices(c).items()
        for i, row in enumerate(matrix)
        for j, n in enumerate(row)
        if n
    ]
