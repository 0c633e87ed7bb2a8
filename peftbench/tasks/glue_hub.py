"""GLUE from the Hugging Face hub, at one pinned revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftbench.backbones.hub import Repository
from peftbench.tasks.dataset import Example, example

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


def glue(
    name: str, columns: tuple[str, str | None], dev: str = "validation", *, regression: bool
) -> tuple[list[Example], list[Example]]:
    """Load a GLUE task from the hub.

    Args:
        name: the task's name on the hub, such as "rte".
        columns: the names of the two texts on the hub; None if there is one text.
        dev: the name of the dev split on the hub.
        regression: whether the labels are numbers.

    Returns:
        The examples of the train and of the dev split.

    Raises:
        HubError: the hub refuses or does not deliver the files, and its local cache does not have them.
    """
    paths = _files([f"{name}/{split}-00000-of-00001.parquet" for split in ("train", dev)])
    train, test = (_examples(path, columns, regression) for path in paths)
    return train, test


def _files(names: list[str]) -> list[Path]:
    """Return the paths of files of the dataset in the hub's local cache; download them first if they are missing."""
    repository = Repository(REPOSITORY, "dataset")
    known = [repository.cached(name, REVISION) for name in names]
    if None in known:
        repository.listing(REVISION)  # one question with a deadline, because a download repeats its own for long
    return [path or repository.download(name, REVISION) for name, path in zip(names, known, strict=True)]


def _examples(path: Path, columns: tuple[str, str | None], regression: bool) -> list[Example]:
    import datasets

    table: Any = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
    first, second = columns
    rows = table.to_dict()
    pairs = rows[second] if second else [None] * len(rows[first])
    return [
        example(text.strip(), pair.strip() if pair is not None else None, float(label) if regression else int(label))
        for text, pair, label in zip(rows[first], pairs, rows["label"], strict=True)
    ]
