"""A user's own data: local CSV, TSV or JSONL files whose columns the experiment names.

    tasks: [{task: local, name: reviews, train: reviews.csv, text: body, label: stars, metric: accuracy}]

Missing validation and test splits are carved from train by content: about a tenth each, at most a thousand rows. Copies
of one text are never in two splits. Rows of train that copy a row of a test file are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftbench.errors import WHERE_PATHS_START, UserError, unknown
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
    example,
    make_dataset,
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
MAX_LABELS = 500  # more classes than this are probably numbers to predict; `labels` allows more
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
    """Open the dataset that the options describe. Paths are relative to the working directory, or else to `data_dir`.

    Raises:
        UserError: an option or a file is not valid; the message names the option, or file and line.
    """
    check_options("local", options, OPTIONS)
    name = f"local/{options.get('name') or Path(_text(options, 'train')).stem}"
    kind = _kind(options)
    rows: dict[str, list[_Row]] = {}
    for split in SPLITS:
        if options.get(split) is not None:
            rows[split] = _rows(_path(_text(options, split), data_dir), options, kind)
    labels = _labels(options, kind, rows["train"])
    examples = {split: [_example(r, kind, labels) for r in of_split] for split, of_split in rows.items()}
    parts, notes = _three(examples, name)
    valid = metrics.for_kind(kind)
    if kind == "classification" and len(labels) > 2:
        valid.remove("f1")
    metric = options.get("metric", valid[0])
    if metric not in valid:
        raise unknown(f"metric for {kind}", metric, valid, where=f"task {name}")
    ordered = (metric, *(m for m in valid if m != metric))
    own_card = TaskCard(card.name, kind, ordered, card.licence, card.source, card.what, labels, card.version)
    return make_dataset(own_card, parts, options, name=name, notes=notes)


class _Row:
    """A row of a file, with its file and line for messages."""

    def __init__(self, where: str, text: str, pair: str | None, target: str) -> None:
        self.where, self.text, self.pair, self.target = where, text, pair, target


def _text(options: Options, key: str) -> str:
    value = options.get(key)
    if not isinstance(value, str) or not value:
        fault = "is missing" if value is None else f"must be text, not {value!r}"
        valid = f"needed: train, text, and label (or answer); options: {', '.join(OPTIONS)}"
        raise UserError(f"task local: option {key} {fault}; {valid}")
    return value


def _kind(options: Options) -> str:
    kind = options.get("kind", "generation" if "answer" in options else "classification")
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS, where="task local")
    target, other = ("answer", "label") if kind == "generation" else ("label", "answer")
    if other in options:
        raise UserError(f"task local: kind {kind} takes the option {target}, not {other}")
    if kind == "generation" and options.get("pair") is not None:
        raise UserError("task local: kind generation has no pair; put the whole prompt in the text column")
    if kind != "classification" and options.get("labels") is not None:
        raise UserError(f"task local: kind {kind} has no labels; leave the option out")
    _text(options, target)
    _text(options, "text")
    return str(kind)


def _path(text: str, data_dir: Path | None) -> Path:
    path = Path(text).expanduser()
    candidates = [path] if path.is_absolute() or data_dir is None else [path, data_dir / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"task local: there is no file {' nor '.join(str(p.absolute()) for p in candidates)}. {WHERE_PATHS_START}. "
        "Or give a path under --data-dir"
    )


def _rows(path: Path, options: Options, kind: str) -> list[_Row]:
    table = table_files.read(path)
    if not table:
        raise UserError(f"{path} has a header and no rows; an empty split cannot be used")
    target = "answer" if kind == "generation" else "label"
    columns = {what: _text(options, what) for what in ("text", "pair", target) if options.get(what) is not None}
    for what, column in columns.items():
        table_files.column(table, column, path, what)
    rows = []
    for line, row in table:
        where = f"{path}, line {line}"
        values = {what: _cell(row, column, where) for what, column in columns.items()}
        rows.append(_Row(where, values["text"], values.get("pair"), values[target].strip()))
    return rows


def _cell(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None or isinstance(value, (dict, list)):
        content = "no value" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{where}: {content} in column {column!r}, where a text or a number is needed")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.strip():
        raise UserError(f"{where}: column {column!r} is empty")
    return text


def _labels(options: Options, kind: str, train: Sequence[_Row]) -> tuple[str, ...]:
    """Return the names of the classes in index order: the option's, or else those of train with numbers by size."""
    if kind != "classification":
        return ()
    names = options.get("labels")
    if names is not None:
        if not isinstance(names, (list, tuple)) or len({str(v) for v in names}) != len(names) or len(names) < 2:
            raise UserError(f"task local: labels must be a list of at least two different names, not {names!r}")
        return tuple(str(v).lower() if isinstance(v, bool) else str(v) for v in names)
    in_train = {r.target for r in train}
    if len(in_train) < 2:
        raise UserError(f"task local: every row of train has the label {in_train.pop()!r}; a task needs at least two")
    if len(in_train) > MAX_LABELS:
        raise UserError(
            f"task local: {len(in_train)} different labels in train; for numbers to predict use kind: regression, "
            "else list the classes in the option labels"
        )
    return tuple(sorted(in_train, key=lambda v: (_number(v) is None, _number(v) or 0.0, v)))


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


def _three(parts: dict[str, list[Example]], name: str) -> tuple[dict[str, list[Example]], list[str]]:
    """Return train, validation and test without copies across them, and notes. A missing split is carved from train."""
    train, notes = parts["train"], []
    if "test" not in parts:
        train, parts["test"] = splits.carve(train, f"{name} test")
        notes.append(f"test: {len(parts['test'])} rows carved from train")
    elif "validation" in parts:
        parts["validation"] = _without_copies(parts["validation"], parts["test"], "validation", "test", notes)
    train = _without_copies(train, parts["test"], "train", "test", notes)
    if "validation" not in parts:
        train, parts["validation"] = splits.carve(train, f"{name} validation")
        notes.append(f"validation: {len(parts['validation'])} rows carved from train")
    else:
        parts["validation"] = _without_copies(parts["validation"], parts["test"], "validation", "test", notes)
        train = _without_copies(train, parts["validation"], "train", "validation", notes)
    return {"train": train, "validation": parts["validation"], "test": parts["test"]}, notes


def _without_copies(
    rows: list[Example], others: list[Example], split: str, other: str, notes: list[str]
) -> list[Example]:
    """Return the rows that have no copy among the others, and note the number of those left out."""
    kept = splits.without(rows, others)
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} rows of {split} left out: copies of {other} rows")
    return kept
