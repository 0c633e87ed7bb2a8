"""A user's own data: CSV, TSV or JSONL files, their columns named in the experiment.

    task: local
    options: {name: reviews, train: reviews.csv, text: body, label: stars, kind: classification, metric: accuracy}

Missing validation and test files are carved from train by content (about a tenth each, at most a thousand rows), so
that copies of one text never stand on two sides; rows of train that have a copy in a given test file are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, unknown
from peftbench.tasks import metrics, splits, table_files
from peftbench.tasks.dataset import (
    KINDS,
    ROW_LIMITS,
    SPLITS,
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskOption,
    check_options,
    dataset,
    example,
)

CARVED = "carved from train by content, about a tenth"
OWN = (
    TaskOption("name", "what tables call the task: local/NAME", "the name of the train file"),
    TaskOption("train", "CSV, TSV or JSONL file; paths are relative to the experiment's file", required="yes"),
    TaskOption("validation", "such a file, to choose checkpoints and rates on", CARVED),
    TaskOption("test", "such a file, read once at the end", CARVED),
    TaskOption("text", "column with the text; for generation, the whole prompt", required="yes"),
    TaskOption("pair", "column with a second text; not for generation", "none"),
    TaskOption("label", "column with the class or the number", required="for classification and regression"),
    TaskOption("answer", "column with the text to write", required="for generation"),
    TaskOption("kind", ", ".join(KINDS), "classification, or generation where answer is given"),
    TaskOption("metric", "the one that decides, of those of the kind", "the first of the kind"),
    TaskOption("labels", "list of the classes' names; classification only", "those in train, numbers by size"),
)
OPTIONS = tuple(o.name for o in OWN)
MOST_LABELS = 500  # more classes than this in a file without `labels` are taken for a mistake
CARD = TaskCard(
    "local",
    "classification",
    ("accuracy",),
    "the user's own",
    "local CSV, TSV or JSONL files",
    "your own data, e.g. {task: local, train: tickets.csv, text: body, label: queue}",
    options=(*OWN, *ROW_LIMITS),
    metrics_by_kind={kind: metrics.for_kind(kind) for kind in KINDS},
)


def open_local(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """The dataset that the options describe. Raises UserError naming option, or file and line, for whatever is wrong.

    Paths are taken from the current directory, else from `data_dir`.
    """
    check_options("local", options, OPTIONS)
    name = f"local/{options.get('name') or Path(_text(options, 'train')).stem}"
    kind = _kind(options)
    rows: dict[str, list[_Row]] = {}
    for split in SPLITS:
        if options.get(split) is not None:
            rows[split] = _rows(_path(_text(options, split), data_dir), options, kind)
    labels = _labels(options, kind, rows["train"])
    examples = {split: [_example(r, kind, labels) for r in found] for split, found in rows.items()}
    parts, notes = _three(examples, name)
    fitting = metrics.for_kind(kind)
    if kind == "classification" and len(labels) > 2:
        fitting.remove("f1")
    metric = options.get("metric", fitting[0])
    if metric not in fitting:
        raise unknown(f"metric for {kind}", metric, fitting, where=f"task {name}")
    ordered = (metric, *(m for m in fitting if m != metric))
    described = TaskCard(card.name, kind, ordered, card.licence, card.source, card.what, labels, card.version)
    return dataset(described, parts, options, name=name, notes=notes)


class _Row:
    """One row, with its place for messages."""

    def __init__(self, where: str, text: str, pair: str | None, target: str) -> None:
        self.where, self.text, self.pair, self.target = where, text, pair, target


def _text(options: Options, key: str) -> str:
    value = options.get(key)
    if not isinstance(value, str) or not value:
        given = "is missing" if value is None else f"must be text, not {value!r}"
        raise UserError(f"task local: option {key} {given}; needed: train, text, and label (or answer); {_all()}")
    return value


def _all() -> str:
    return f"options: {', '.join(OPTIONS)}"


def _kind(options: Options) -> str:
    kind = options.get("kind", "generation" if "answer" in options else "classification")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, where="task local")
    target, stray = ("answer", "label") if kind == "generation" else ("label", "answer")
    if stray in options:
        raise UserError(f"task local: kind {kind} takes the option {target}, not {stray}")
    if kind == "generation" and options.get("pair") is not None:
        raise UserError("task local: kind generation has no pair; put the whole prompt in the text column")
    if kind != "classification" and options.get("labels") is not None:
        raise UserError(f"task local: kind {kind} has no labels; leave the option out")
    _text(options, target)
    _text(options, "text")
    return str(kind)


def _path(given: str, data_dir: Path | None) -> Path:
    path = Path(given).expanduser()
    places = [path] if path.is_absolute() or data_dir is None else [path, data_dir / path]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"task local: there is no file {' nor '.join(str(p.absolute()) for p in places)}; give an "
        "absolute path, one from the working directory, or one under --data-dir"
    )


def _rows(path: Path, options: Options, kind: str) -> list[_Row]:
    table = table_files.read(path)
    if not table:
        raise UserError(f"{path} has a header and no rows; an empty split cannot be used")
    target = "answer" if kind == "generation" else "label"
    columns = {what: _text(options, what) for what in ("text", "pair", target) if options.get(what) is not None}
    for what, column in columns.items():
        table_files.column(table, column, path, what)
    out = []
    for line, row in table:
        where = f"{path}, line {line}"
        values = {what: _cell(row, column, where) for what, column in columns.items()}
        out.append(_Row(where, values["text"], values.get("pair"), values[target].strip()))
    return out


def _cell(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None or isinstance(value, (dict, list)):
        found = "no value" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: {found} in column {column!r}, where a text or a number is needed")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.strip():
        raise UserError(f"{where}: column {column!r} is empty")
    return text


def _labels(options: Options, kind: str, train: Sequence[_Row]) -> tuple[str, ...]:
    """The classes' names in index order: as given, else those of train (numbers in order of size)."""
    if kind != "classification":
        return ()
    given = options.get("labels")
    if given is not None:
        if not isinstance(given, (list, tuple)) or len({str(v) for v in given}) != len(given) or len(given) < 2:
            raise UserError(f"task local: labels must be a list of at least two different names, not {given!r}")
        return tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in given)
    found = {r.target for r in train}
    if len(found) < 2:
        raise UserError(f"task local: every row of train has the label {found.pop()!r}; a task needs at least two")
    if len(found) > MOST_LABELS:
        raise UserError(
            f"task local: {len(found)} different labels in train; for numbers to predict use kind: regression, "
            "else list the classes in the option labels"
        )
    return tuple(sorted(found, key=lambda v: (_number(v) is None, _number(v) or 0.0, v)))


def _example(row: _Row, kind: str, labels: tuple[str, ...]) -> Example:
    if kind == "generation":
        return example(row.text, references=[row.target])
    if kind == "classification":
        if row.target not in labels:
            raise unknown("label", row.target, labels, where=row.where)
        return example(row.text, row.pair, labels.index(row.target))
    value = _number(row.target)
    if value is None:
        raise UserError(f"{row.where}: label {row.target!r} is not a finite number, which kind regression needs")
    return example(row.text, row.pair, value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _three(given: dict[str, list[Example]], name: str) -> tuple[dict[str, list[Example]], list[str]]:
    """Train, validation and test: as given, cleaned of copies across them, or carved from train."""
    train, notes = given["train"], []
    if "test" not in given:
        train, given["test"] = splits.carve(train, f"{name} test")
        notes.append(f"test: {len(given['test'])} rows carved from train")
    elif "validation" in given:
        given["validation"] = _clean(given["validation"], given["test"], "validation", "test", notes)
    train = _clean(train, given["test"], "train", "test", notes)
    if "validation" not in given:
        train, given["validation"] = splits.carve(train, f"{name} validation")
        notes.append(f"validation: {len(given['validation'])} rows carved from train")
    else:
        given["validation"] = _clean(given["validation"], given["test"], "validation", "test", notes)
        train = _clean(train, given["validation"], "train", "validation", notes)
    return {"train": train, "validation": given["validation"], "test": given["test"]}, notes


def _clean(rows: list[Example], others: list[Example], split: str, other: str, notes: list[str]) -> list[Example]:
    kept = splits.without(rows, others)
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows of {split} left out: copies of {other} rows")
    return kept
