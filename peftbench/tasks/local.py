"""A user's own data: local files whose columns the experiment names.

    tasks: [{task: local, name: reviews, train: reviews.csv, text: body, label: stars, metric: accuracy}]

Missing validation and test splits are carved from train by content: about a tenth each, at most a thousand rows. Copies
of one text are never in two splits. Rows of train that copy a row of a test file are left out. Only the content decides
the splits: they are the same under another name or path, in another format, and with other names of columns.

A generation task may have several references for a prompt: a list in the answer's cell, or rows that repeat the prompt.
Train has one example for each reference. Validation and test have one for each prompt, with all its references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from peftbench.errors import WHERE_PATHS_START, UserError, shown, unknown
from peftbench.records import user_file
from peftbench.tasks import local_labels, local_rows, metrics, progress, splits, table_files
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
from peftbench.tasks.local_rows import POLICIES, Columns, TextRow
from peftbench.tasks.separated import QUOTES, Dialect

CARVED = "carved from train by content, about a tenth"
FILES = "CSV, TSV, JSONL, JSON or Parquet file, also .gz"
OWN = (
    TaskOption("name", "what tables call the task: local/NAME", "the name of the train file"),
    TaskOption("train", f"{FILES}; paths are relative to the experiment's file", required="yes"),
    TaskOption("validation", "such a file, to choose checkpoints and rates on", CARVED),
    TaskOption("test", "such a file, read once at the end", CARVED),
    TaskOption("text", "column with the text; for generation, the prompt", required="yes"),
    TaskOption("pair", "column with a second text; for generation, more of the prompt, or nothing", "none"),
    TaskOption("label", "column with the class or the number", required="for classification and regression"),
    TaskOption("answer", "column with the text to write, or with a list of references", required="for generation"),
    TaskOption("kind", ", ".join(KINDS), "classification, or generation where answer is given"),
    TaskOption("metric", "the one that decides, of those of the kind", "the first of the kind"),
    TaskOption("labels", "list of the classes' names; classification only", "those in train, numbers by size"),
    TaskOption("missing", "rows without a value: refuse, drop; keep takes null, None and NaN for text", "refuse"),
    TaskOption("separator", "character between the fields of CSV and TSV", "comma; tab for .tsv"),
    TaskOption("quotes", f"of CSV and TSV: {', '.join(QUOTES)}; none takes quotes for text", "double"),
    TaskOption("encoding", "of text files, such as cp1252", "utf-8"),
)
OPTIONS = tuple(o.name for o in OWN)
CARD = TaskCard(
    "local",
    "classification",
    ("accuracy",),
    "the user's own",
    f"local files: {', '.join(table_files.FORMATS)}",
    "your own data, e.g. {task: local, train: tickets.csv, text: body, label: queue}",
    version=2,  # 1: the task's name decided its splits and was part of its identity
    options=(*OWN, *ROW_LIMITS),
    metrics_by_kind={kind: metrics.for_kind(kind) for kind in KINDS},
)


def open_local(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """Open the dataset that the options describe. Paths are relative to the working directory, or else to `data_dir`.

    Raises:
        UserError: an option or a file is not valid; the message names the option, or file and line.
    """
    check_options("local", options, OPTIONS)
    name, kind = name_of(options), _kind(options)
    dialect = Dialect(options.get("separator"), options.get("encoding"), options.get("quotes"))
    dialect.check("task local")
    columns, paths = _columns(options, kind), files(options, data_dir)
    rows, notes = dict[str, list[TextRow]](), list[str]()
    for split, path in paths.items():
        rows[split], remarks = local_rows.read(path, columns, dialect)
        notes += remarks
    labels = () if kind != "classification" else local_labels.listed(options) or local_labels.in_train(rows["train"])
    given = options.get("labels")
    examples = {split: _examples(of_split, kind, labels, given, name) for split, of_split in rows.items()}
    parts, remarks = _three(examples, paths, "prompts" if kind == "generation" else "rows")
    valid = metrics.for_kind(kind)
    if kind == "classification" and len(labels) > 2:
        valid.remove("f1")
    metric = options.get("metric", valid[0])
    if metric not in valid:
        raise unknown(f"metric for {kind}", metric, valid, where=f"task {name}")
    ordered = (metric, *(m for m in valid if m != metric))
    own_card = TaskCard(card.name, kind, ordered, card.licence, card.source, card.what, labels, card.version)
    return make_dataset(own_card, parts, options, name=name, notes=[*notes, *remarks])


def name_of(options: Options) -> str:
    """Return the name of the dataset that the options describe: "local/NAME"."""
    train = Path(_text(options, "train"))
    return f"local/{options.get('name') or train.name.removesuffix(''.join(train.suffixes[-_endings(train) :]))}"


def files(options: Options, data_dir: Path | None) -> dict[str, Path]:
    """Return the files by split, those that the options name.

    Raises:
        UserError: there is no such file.
    """
    named = [split for split in SPLITS if options.get(split) is not None or split == "train"]
    return {split: _path(_text(options, split), data_dir) for split in named}


def files_of(card: TaskCard, options: Options, data_dir: Path | None) -> list[Path]:
    """Return the files that the options name.

    Raises:
        UserError: there is no such option or file.
    """
    check_options(card.name, options, OPTIONS)
    return list(files(options, data_dir).values())


def _endings(path: Path) -> int:
    """Return the number of suffixes that say the format: two of "a.csv.gz"."""
    return table_files.suffix_of(path).count(".") or 1


def _text(options: Options, key: str) -> str:
    value = options.get(key)
    if not isinstance(value, str) or not value:
        fault = "is missing" if value is None else f"must be text, not {shown(value)}"
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
    if kind != "classification" and options.get("labels") is not None:
        raise UserError(f"task local: kind {kind} has no labels; leave the option out")
    _text(options, target)
    _text(options, "text")
    return str(kind)


def _path(text: str, data_dir: Path | None) -> Path:
    path = user_file.here(text)
    candidates = [path] if path.is_absolute() or data_dir is None else [path, data_dir / path]
    for candidate in candidates:
        if user_file.exists(candidate):
            table_files.check(candidate)
            return candidate
    raise UserError(
        f"task local: there is no file {' nor '.join(str(p.absolute()) for p in candidates)}. {WHERE_PATHS_START}. "
        "Or give a path under --data-dir"
    )


def _columns(options: Options, kind: str) -> Columns:
    missing = options.get("missing", POLICIES[0])
    if missing not in POLICIES:
        raise unknown("value of missing", missing, POLICIES, where="task local")
    target = "answer" if kind == "generation" else "label"
    return Columns(
        text=_text(options, "text"),
        target=_text(options, target),
        pair=None if options.get("pair") is None else _text(options, "pair"),
        target_name=target,
        may_lack_pair=kind == "generation",
        missing=missing,
        classes=frozenset(local_labels.listed(options) or ()),
    )


def _examples(rows: Sequence[TextRow], kind: str, labels: tuple[str, ...], given: Any, name: str) -> list[Example]:
    """Return the examples of a file; of a generation task one for each reference."""
    index = {label: i for i, label in enumerate(labels)}
    examples = []
    for row in progress.shown(rows, f"preparing {name}"):
        if kind == "generation":
            prompt = row.text if row.pair is None else f"{row.text}\n{row.pair}"
            examples += [example(prompt, references=[answer]) for answer in row.targets]
        elif kind == "classification":
            if row.targets[0] not in index:
                raise local_labels.no_class(row, labels, given)
            examples.append(example(row.text, row.pair, index[row.targets[0]]))
        else:
            examples.append(example(row.text, row.pair, local_labels.number(row)))
    return examples


def _three(
    parts: dict[str, list[Example]], paths: dict[str, Path], unit: str
) -> tuple[dict[str, list[Example]], list[str]]:
    """Return train, validation and test without copies across them, and notes. A missing split is carved from train.

    Args:
        parts: the examples of each file by split.
        paths: the files by split.
        unit: what the notes count: rows, or prompts with all their references.
    """
    train, notes = parts["train"], list[str]()

    def count(rows: list[Example]) -> int:
        return len(splits.one_a_prompt(rows))

    def without_copies(split: str, rows: list[Example], other: str) -> list[Example]:
        """Return the rows that have no copy among those of another split, and note the number of those left out."""
        kept = splits.without(rows, parts[other])
        if not kept and split in paths:
            raise _same_data(paths, split, other, rows, parts[other])
        if len(kept) < len(rows):
            notes.append(f"{count(rows) - count(kept)} {unit} of {split} left out: copies of {other} {unit}")
        return kept

    if "test" in parts:
        if "validation" in parts:
            parts["validation"] = without_copies("validation", parts["validation"], "test")
        train = without_copies("train", train, "test")
    else:
        _check_enough(train, paths, [s for s in ("validation", "test") if s not in parts])
        train, parts["test"] = splits.carve(train, "local test")
        notes.append(f"test: {count(parts['test'])} {unit} carved from train")
        if "validation" in parts:
            parts["validation"] = without_copies("validation", parts["validation"], "test")
    if "validation" in parts:
        train = without_copies("train", train, "validation")
    else:
        _check_enough(train, paths, ["validation"])
        train, parts["validation"] = splits.carve(train, "local validation")
        notes.append(f"validation: {count(parts['validation'])} {unit} carved from train")
    measured = {split: splits.one_a_prompt(parts[split]) for split in ("validation", "test")}
    if count(train) < len(train):
        notes.append(f"train: an example for each of the {len(train)} references of {count(train)} prompts")
    return {"train": train, **measured}, notes


def _check_enough(train: Sequence[Example], paths: dict[str, Path], carved: Sequence[str]) -> None:
    """Check that the rows are enough to carve splits: rows of one text stay on one side."""
    needed = 1 + len(carved)
    texts = len(list(islice(_new_texts(train), needed)))  # reads no further than it must
    if texts < needed:
        what = "text" if all(e.pair is None for e in train) else "first text"
        raise UserError(
            f"task local: {' and '.join(carved)} {'are' if len(carved) > 1 else 'is'} carved from train "
            f"({paths['train']}), whose rows have {texts} different {what}{'s' if texts != 1 else ''}. Rows with one "
            f"{what} stay in one split: train needs at least {needed} rows with different {what}s. Add rows, or name a "
            f"file for {' and for '.join(carved)}"
        )


def _new_texts(rows: Sequence[Example]) -> Iterator[str]:
    """Yield each text once, at its first row."""
    seen = set[str]()
    for e in rows:
        if (text := splits.by_text(e)) not in seen:
            seen.add(text)
            yield text


def _same_data(
    paths: dict[str, Path], split: str, other: str, rows: Sequence[Example], others: Sequence[Example]
) -> UserError:
    """Return the error for a split that has no row of its own."""
    fix = f"leave out the option {other if other in paths else split}, and the split is carved from train"
    if other not in paths:
        return UserError(f"task local: every row of {paths[split]} ({split}) is in the {other} split, too; {fix}")
    same = sorted(e.id for e in rows) == sorted(e.id for e in others)
    what = "are the same data" if same else "overlap: every text of the first is in the second"
    return UserError(
        f"task local: {split} ({paths[split]}) and {other} ({paths[other]}) {what}; a score on rows that were "
        f"trained or chosen on means nothing. Give other rows, or {fix}"
    )
