"""GLUE (Wang et al. 2018, 1804.07461) from the official TSV files, else from the hub.

GLUE's test labels are not public: its dev split is the test split here, and validation is carved from train. Rows of
train whose texts are a copy of a test row are left out (CoLA 16, STS-B 6); the notes say how many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peftbench.errors import UserError
from peftbench.tasks import glue_hub, splits, table_files
from peftbench.tasks.dataset import (
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskUnavailable,
    check_options,
    dataset,
    example,
)


@dataclass(frozen=True)
class Layout:
    """Where a task's columns are in its TSV files (names, or positions where there is no header) and on the hub."""

    folder: str
    text: str | int
    pair: str | int | None
    label: str | int
    hub: tuple[str, str | None]  # the hub's names of the two texts
    classes: tuple[str, ...] = ()  # what the files write, in index order; () for regression
    dev: str = "dev.tsv"
    damaged_rows: bool = False  # the official file has a few broken rows, which everybody leaves out


_BINARY = ("0", "1")
_NLI = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")
LAYOUTS = {
    "glue/cola": Layout("CoLA", 3, None, 1, ("sentence", None), _BINARY),
    "glue/sst2": Layout("SST-2", "sentence", None, "label", ("sentence", None), _BINARY),
    "glue/mrpc": Layout("MRPC", "#1 String", "#2 String", "Quality", _PAIR, _BINARY),
    "glue/stsb": Layout("STS-B", "sentence1", "sentence2", "score", _PAIR),
    "glue/qqp": Layout(
        "QQP", "question1", "question2", "is_duplicate", ("question1", "question2"), _BINARY, damaged_rows=True
    ),
    "glue/mnli": Layout(
        "MNLI",
        "sentence1",
        "sentence2",
        "gold_label",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        dev="dev_matched.tsv",
    ),
    "glue/qnli": Layout("QNLI", "question", "sentence", "label", ("question", "sentence"), _NLI),
    "glue/rte": Layout("RTE", "sentence1", "sentence2", "label", _PAIR, _NLI),
    "glue/wnli": Layout("WNLI", "sentence1", "sentence2", "label", _PAIR, _BINARY),
}


def _card(name: str, metrics: tuple[str, ...], what: str, labels: tuple[str, ...] = ()) -> TaskCard:
    kind = "classification" if labels else "regression"
    terms = "see gluebenchmark.com: each data set under its own terms"
    return TaskCard(name, kind, metrics, terms, "local GLUE directory, or nyu-mll/glue on the hub", what, labels)


CARDS = [
    _card("glue/cola", ("mcc", "accuracy"), "is the sentence acceptable English?", ("unacceptable", "acceptable")),
    _card("glue/sst2", ("accuracy",), "sentiment of movie-review phrases", ("negative", "positive")),
    _card("glue/mrpc", ("accuracy", "f1"), "do the sentences mean the same?", ("not_equivalent", "equivalent")),
    _card("glue/stsb", ("spearman", "pearson"), "similarity of two sentences, 0 to 5"),
    _card("glue/qqp", ("accuracy", "f1"), "do the questions ask the same?", ("not_duplicate", "duplicate")),
    _card("glue/mnli", ("accuracy",), "inference, matched genres", ("entailment", "neutral", "contradiction")),
    _card("glue/qnli", ("accuracy",), "does the sentence answer the question?", _NLI),
    _card("glue/rte", ("accuracy",), "does the first text entail the second?", _NLI),
    _card("glue/wnli", ("accuracy",), "Winograd inference; adversarial", ("not_entailment", "entailment")),
]


def open_glue(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """The task from `data_dir` (the GLUE folder or its parent), else from the hub; TaskUnavailable without both."""
    check_options(card.name, options)
    layout = LAYOUTS[card.name]
    folder = _find(data_dir, layout.folder)
    notes = []
    if folder is not None:
        train, damaged = _read(folder / "train.tsv", layout)
        test, damaged_test = _read(folder / layout.dev, layout)
        if damaged + damaged_test:
            notes.append(f"{damaged + damaged_test} damaged rows of the official files left out")
    else:
        train, test = _from_hub(card, layout, data_dir)
    clean = splits.without(train, test)
    if len(clean) < len(train):
        notes.append(f"{len(train) - len(clean)} rows of train left out: copies of test rows")
    rest, validation = splits.carve(clean, card.name)
    notes.append(f"validation: {len(validation)} rows carved from train; test: the official dev split")
    return dataset(card, {"train": rest, "validation": validation, "test": test}, options, notes=notes)


def _find(data_dir: Path | None, folder: str) -> Path | None:
    """The task's folder in the GLUE directory or in its parent's `glue` or `GLUE`."""
    if data_dir is None:
        return None
    places = [data_dir / folder, data_dir / "glue" / folder, data_dir / "GLUE" / folder]
    return next((p for p in places if p.is_dir()), None)


def _from_hub(card: TaskCard, layout: Layout, data_dir: Path | None) -> tuple[list[Example], list[Example]]:
    try:
        return glue_hub.glue(card.name.split("/")[1], layout.hub, regression=not layout.classes)
    except glue_hub.Unreachable as error:
        looked = "no data directory was given"
        if data_dir is not None:
            missing = f"has no {layout.folder} in it" if data_dir.is_dir() else "does not exist"
            looked = f"the data directory {data_dir} {missing}"
        raise TaskUnavailable(
            f"task {card.name}: {looked}, and the model hub cannot be reached ({error}). Either give the directory "
            f"with GLUE's official files, so that DIR/{layout.folder}/train.tsv exists (--data-dir DIR), or run where "
            "the hub can be reached."
        ) from error


def _read(path: Path, layout: Layout) -> tuple[list[Example], int]:
    """The file's examples and the number of damaged rows left out (only where the official file has some)."""
    width, pick, records = _table(path, layout)
    out: list[Example] = []
    damaged = 0
    for line, fields in records:
        if len(fields) != width:
            if layout.damaged_rows:
                damaged += 1
                continue
            raise UserError(f"{path}, line {line}: {len(fields)} fields where {width} are needed; is the file cut off?")
        label = _label(pick(fields, layout.label), layout.classes, f"{path}, line {line}")
        pair = None if layout.pair is None else pick(fields, layout.pair).strip()
        out.append(example(pick(fields, layout.text).strip(), pair, label))
    return out, damaged


Pick = Callable[[list[str], "str | int"], str]


def _table(path: Path, layout: Layout) -> tuple[int, Pick, list[tuple[int, list[str]]]]:
    """(number of columns, how to pick one, records) of a file with a header, or of CoLA's, which has none."""
    records = list(table_files.tsv_records(path))
    if not records:
        raise UserError(f"{path} is empty; fetch GLUE's official files again")
    if isinstance(layout.text, int):
        return 4, lambda fields, column: fields[int(column)], records
    header = records[0][1]
    for name in (layout.text, layout.pair, layout.label):
        if isinstance(name, str):
            table_files.column([(1, dict.fromkeys(header))], name, path, "GLUE")
    return len(header), lambda fields, column: fields[header.index(str(column))], records[1:]


def _label(given: str, classes: tuple[str, ...], where: str) -> int | float:
    if classes:
        if given not in classes:
            raise UserError(f"{where}: label {given!r} is outside its set: {', '.join(classes)}")
        return classes.index(given)
    try:
        value = float(given)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 5:
        raise UserError(f"{where}: score {given!r} is not a number from 0 to 5")
    return value
