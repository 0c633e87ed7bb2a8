"""The labels of a user's rows: names of classes, and numbers to predict."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from peftbench.errors import UserError, shown, unknown
from peftbench.records import lookalike
from peftbench.tasks.dataset import Options
from peftbench.tasks.local_rows import TextRow

MAX_LABELS = 500  # more classes than this are probably numbers to predict; `labels` allows more
LARGEST = 1e18  # of a number to predict; the loss, a sum of squared errors in float32, overflows soon above
SMALLEST = 1e-45  # float32 takes what is nearer to 0 for 0
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_TRUTH = (
    "Without quotes, YAML takes true and false for truth values; write names in quotes, as the file has them: "
    'labels: ["true", "false"]'
)
_AS_WRITTEN = "Without quotes, YAML reads numbers; write names in quotes, as the file has them"


def listed(options: Options) -> tuple[str, ...] | None:
    """Return the classes that the option `labels` lists, in the form that rows have; None without the option.

    Raises:
        UserError: it is no list of at least two different names.
    """
    given = options.get("labels")
    if given is None:
        return None
    if not isinstance(given, (list, tuple)):
        raise UserError(f"task local: labels must be a list of at least two different names, not {shown(given)}")
    if None in given:
        raise UserError(
            "task local: an entry of labels is empty. YAML takes null, ~ and nothing for no value; write a class of "
            'such a name in quotes: "null"'
        )
    names = tuple(str(v).lower() if isinstance(v, bool) else str(v).strip() for v in given)
    for value, name in zip(given, names, strict=True):
        if isinstance(value, (list, dict)) or not name:
            raise UserError(f"task local: {shown(value)} in labels names no class; each entry is a text or a number")
    if len(names) < 2 or len(set(names)) < len(names):
        hint = f". {_TRUTH}" if any(isinstance(v, bool) for v in given) else ""
        raise UserError(f"task local: labels must be a list of at least two different names, not {shown(given)}{hint}")
    return names


def in_train(train: Sequence[TextRow]) -> tuple[str, ...]:
    """Return the classes of the rows of train in index order: numbers by size, then words.

    Raises:
        UserError: there is one class, or there are more than a task of classes likely has.
    """
    found = {r.targets[0] for r in train}
    if len(found) < 2:
        raise UserError(f"task local: every row of train has the label {shown(found.pop())}; a task needs at least two")
    if len(found) > MAX_LABELS:
        raise UserError(
            f"task local: {len(found)} different labels in train; for numbers to predict use kind: regression, "
            "else list the classes in the option labels"
        )
    return tuple(sorted(found, key=lambda v: (_size(v) is None, _size(v) or 0.0, v)))


def no_class(row: TextRow, labels: Sequence[str], given: Any) -> UserError:
    """Return the error for a row whose label is none of the classes.

    Args:
        row: the row.
        labels: the names of the classes.
        given: the option `labels` as the user wrote it; None without the option.
    """
    label = row.targets[0]
    if mistake := lookalike.mistaken("label", label, labels):
        return UserError(f"{row.where}: {mistake}")
    error = unknown("label", label, labels, where=row.where)
    values = given or ()
    if any(isinstance(v, bool) for v in values):
        return UserError(f"{error}. {_TRUTH}")
    odd = not label.isdecimal() or label != str(int(label))  # YAML reads 010 as 8, and 1_000 as 1000
    if any(not isinstance(v, (str, int)) or (odd and isinstance(v, int)) for v in values):
        return UserError(f"{error}. {_AS_WRITTEN}")
    return error


def number(row: TextRow) -> float:
    """Return the label of a row of a regression.

    Raises:
        UserError: it is no number, or none that training in float32 can hold.
    """
    label = row.targets[0]
    value = float(label) if _NUMBER.fullmatch(label) else math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{row.where}: label {shown(label)} is not a finite number, which kind regression needs; write it in "
            "digits, such as 1000, -0.5 or 1e3"
        )
    if abs(value) > LARGEST or 0 < abs(value) < SMALLEST:
        reach = f"larger than {LARGEST:g}" if abs(value) > 1 else f"nearer to 0 than {SMALLEST:g}"
        raise UserError(
            f"{row.where}: label {shown(label)} is {reach}, and kind regression trains in float32; write all labels in "
            "another unit, or as logarithms"
        )
    return value


def _size(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
