"""E2E NLG (Novikova et al. 2017, 1706.09254): describe a restaurant from its facts, from the challenge's CSV files.

The columns are `mr` (the meaning) and `ref` (a reference); one meaning has several references. Test and validation have
one example for each meaning, with all its references. Train has one example for each reference. Without a train file,
the dev file is split by meaning into train and validation.
"""

from __future__ import annotations

from pathlib import Path

from peftbench.errors import UserError
from peftbench.tasks import splits, table_files
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

FILES = {  # short names, and the names in the challenge's archive
    "train": ("train.csv", "trainset.csv"),
    "dev": ("dev.csv", "devset.csv"),
    "test": ("test.csv", "testset_w_refs.csv"),
}
CARD = TaskCard(
    "e2e_nlg",
    "generation",
    ("bleu", "rougeL", "perplexity"),
    "CC BY-SA 4.0",
    "local directory with the challenge's CSV files",
    "describe a restaurant from its facts",
)


def open_e2e(card: TaskCard, options: Options, data_dir: Path | None) -> Dataset:
    """Open the task from `data_dir`, or from the folder e2e_nlg in it or next to it.

    Raises:
        TaskUnavailable: there are no E2E files.
        UserError: the dev or the test file is missing, or a file is not valid.
    """
    check_options(card.name, options)
    folder = _folder(card, data_dir)
    paths = {split: _file(folder, split) for split in FILES}
    notes: list[str] = []
    dev_path, test_path = paths["dev"], paths["test"]
    if dev_path is None or test_path is None:
        missing = "dev" if dev_path is None else "test"
        raise UserError(f"{folder} has no {' or '.join(FILES[missing])}; e2e_nlg needs the dev and the test file")
    dev, test = _read(dev_path), _read(test_path)
    if paths["train"] is not None:
        train, validation = _read(paths["train"]), dev
    else:
        train, validation = splits.carve(dev, card.name, splits.by_text)
        notes.append("no train file: the dev file is split by meaning into train and validation")
    train = splits.without(train, [*validation, *test], splits.by_text)
    parts = {
        "train": train,
        "validation": splits.one_a_prompt(splits.without(validation, test, splits.by_text)),
        "test": splits.one_a_prompt(test),
    }
    return make_dataset(card, parts, options, notes=notes)


def files_of(card: TaskCard, options: Options, data_dir: Path | None) -> list[Path]:
    """Return the files of the challenge in `data_dir`.

    Raises:
        TaskUnavailable: there are no E2E files.
    """
    folder = _folder(card, data_dir)
    return [path for split in FILES if (path := _file(folder, split)) is not None]


def _folder(card: TaskCard, data_dir: Path | None) -> Path:
    reason = "no data directory was given"
    if data_dir is not None:
        # the last folder: `data_dir` is the GLUE folder, and e2e_nlg is next to it
        for folder in (data_dir, data_dir / "e2e_nlg", data_dir.parent / "e2e_nlg"):
            if _file(folder, "dev") or _file(folder, "test"):
                return folder
        reason = f"the data directory {data_dir} {'has no E2E files' if data_dir.is_dir() else 'does not exist'}"
    raise TaskUnavailable(
        f"task {card.name}: {reason}. Either give the directory with the E2E challenge's CSV files, so that "
        "DIR/e2e_nlg/dev.csv and test.csv exist (--data-dir DIR), or name a stand-in in the experiment, such as "
        "stand_in: embedded/dialog_reply."
    )


def _file(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in FILES[split] if (folder / name).is_file()), None)


def _read(path: Path) -> list[Example]:
    rows = table_files.read(path)
    for name in ("mr", "ref"):
        table_files.column(rows, name, path, "E2E")
    examples = []
    for line, row in rows:
        if not row["mr"].strip() or not row["ref"].strip():
            raise UserError(f"{path}, line {line}: empty {'ref' if row['mr'].strip() else 'mr'}")
        examples.append(example(f"{row['mr'].strip()}\nDescription:", references=[" ".join(row["ref"].split())]))
    return examples
