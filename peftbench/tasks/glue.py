"""GLUE (Wang et al. 2018, 1804.07461) from the official TSV files, or else from the hub.

The labels of GLUE's test split are not public. So its dev split is the test split here, and validation is carved from
train. Rows of train that copy a test row are left out (CoLA 16, STS-B 6); the notes give their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench.backbones.hub import HubError
from peftbench.errors import UserError
from peftbench.tasks import glue_hub, splits, table_files
from peftbench.tasks.dataset import (
    Dataset,
    Example,
    Options,
    TaskCard,
    TaskUnavailable,
    check_options,
    example,
    make_dataset,
)


@dataclass(frozen=True)
class Layout:
    """The columns of a task in its TSV files and on the hub.

    Attributes:
        folder: the task's folder in the GLUE directory.
        text: the column of the text: its name, or its position in a file without a header.
        pair: the column of the second text, if there is one.
        label: the column of the label.
        hub: the names of the two texts on the hub.
        classes: the classes as the files write them, in index order; empty for regression.
        dev: the name of the dev file.
        damaged_rows: whether the official file has a few damaged rows, which it is usual to leave out.
        hub_dev: the dev split's name on the hub.
        train_of: the task whose train and validation splits this one has; None: its own.
    """

    folder: str
    text: str | int
    pair: str | int | None
    label: str | int
    hub: tuple[str, str | None]
    classes: tuple[str, ...] = ()
    dev: str = "dev.tsv"
    damaged_rows: bool = False
    hub_dev: str = "validation"
    train_of: str | None = None


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
        hub_dev="validation_matched",
    ),
    "glue/qnli": Layout("QNLI", "question", "sentence", "label", ("question", "sentence"), _NLI),
    "glue/rte": Layout("RTE", "sentence1", "sentence2", "label", _PAIR, _NLI),
    "glue/wnli": Layout("WNLI", "sentence1", "sentence2", "label", _PAIR, _BINARY),
}
LAYOUTS["glue/mnli_mismatched"] = replace(
    LAYOUTS["glue/mnli"], dev="dev_mismatched.tsv", hub_dev="validation_mismatched", train_of="glue/mnli"
)


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
    _card(
        "glue/mnli_mismatched",
        ("accuracy",),
        "inference, tested on genres that train has not",
        ("entailment", "neutral", "contradiction"),
    ),
    _card("glue/qnli", ("accuracy",), "does the sentence answer the question?", _NLI),
    _card("glue/rte", ("accuracy",), "does the first text entail the second?", _NLI),
    _card("glue/wnli", ("accuracy",), "Winograd inference; adversarial", ("not_entailment", "entailment")),
]


def open_glue(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """Open the task from `data_dir` (the GLUE folder or its parent), or else from the hub.

    Raises:
        TaskUnavailable: there is no local folder, and the hub does not deliver the files.
        UserError: an option or a file is not valid.
    """
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
    rest, validation = splits.carve(clean, layout.train_of or card.name)
    notes.append(f"validation: {len(validation)} rows carved from train; test: the official dev split")
    return make_dataset(card, {"train": rest, "validation": validation, "test": test}, options, notes=notes)


def files_of(card: TaskCard, options: Options, data_dir: Path | None) -> list[Path]:
    """Return the task's files in `data_dir`; none if they would come from the hub."""
    layout = LAYOUTS[card.name]
    folder = _find(data_dir, layout.folder)
    return [] if folder is None else [folder / "train.tsv", folder / layout.dev]


def _find(data_dir: Path | None, folder: str) -> Path | None:
    """Return the task's folder in `data_dir` or in its folder `glue` or `GLUE`; None if there is none."""
    if data_dir is None:
        return None
    folders = [data_dir / folder, data_dir / "glue" / folder, data_dir / "GLUE" / folder]
    return next((p for p in folders if p.is_dir()), None)


def _from_hub(card: TaskCard, layout: Layout, data_dir: Path | None) -> tuple[list[Example], list[Example]]:
    try:
        return glue_hub.glue(
            (layout.train_of or card.name).split("/")[1], layout.hub, layout.hub_dev, regression=not layout.classes
        )
    except HubError as error:
        reason = "no data directory was given"
        if data_dir is not None:
            missing = f"has no {layout.folder} in it" if data_dir.is_dir() else "does not exist"
            reason = f"the data directory {data_dir} {missing}"
        raise TaskUnavailable(
            f"task {card.name}: {reason}, and {glue_hub.REPOSITORY} cannot be loaded from the Hugging Face hub: "
            f"{error.reason}. {error.fix}. Or give the directory with GLUE's official files, so that "
            f"DIR/{layout.folder}/train.tsv exists (--data-dir DIR)."
        ) from error


def _read(path: Path, layout: Layout) -> tuple[list[Example], int]:
    """Return the examples of a file and the number of damaged rows that were left out."""
    width, pick, records = _table(path, layout)
    examples: list[Example] = []
    damaged = 0
    for line, fields in records:
        if len(fields) != width:
            if layout.damaged_rows:
                damaged += 1
                continue
            raise UserError(f"{path}, line {line}: {len(fields)} fields where {width} are needed; is the file cut off?")
        label = _label(pick(fields, layout.label), layout.classes, f"{path}, line {line}")
        pair = None if layout.pair is None else pick(fields, layout.pair).strip()
        examples.append(example(pick(fields, layout.text).strip(), pair, label))
    return examples, damaged


Pick = Callable[[list[str], "str | int"], str]  # (fields of a row, column) -> value


def _table(path: Path, layout: Layout) -> tuple[int, Pick, list[tuple[int, list[str]]]]:
    """Return the number of columns, a function that picks one, and the rows. Only the files of CoLA have no header."""
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


def _label(text: str, classes: tuple[str, ...], where: str) -> int | float:
    if classes:
        if text not in classes:
            raise UserError(f"{where}: label {text!r} is outside its set: {', '.join(classes)}")
        return classes.index(text)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 5:
        raise UserError(f"{where}: score {text!r} is not a number from 0 to 5")
    return value
