"""GLUE from the Hugging Face hub, at one pinned revision. It reports within seconds that the hub cannot be reached."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from peftbench.tasks.dataset import Example, example

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
PROBE_SECONDS = 10.0  # for a first answer of the hub; the download has no deadline


class Unreachable(Exception):
    """The hub did not answer or did not deliver the file. The message gives the reason."""


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
        Unreachable: the hub cannot be reached, and its local cache does not have the files.
    """
    paths = _files([f"{name}/{split}-00000-of-00001.parquet" for split in ("train", dev)])
    train, test = (_examples(path, columns, regression) for path in paths)
    return train, test


def _files(names: list[str]) -> list[Path]:
    """Return the paths of files of the dataset in the hub's local cache; download them first if they are missing."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(name: str, local: bool) -> Path:
        return Path(hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=REVISION, local_files_only=local))

    try:
        return [get(name, True) for name in names]
    except LocalEntryNotFoundError:
        _probe()
    try:
        return [get(name, False) for name in names]
    except Exception as error:  # the fix is the same for every error of the hub's client
        raise Unreachable(_reason(error)) from error


def _probe() -> None:
    """Send one small request with a deadline, because the client itself would retry for half a minute."""
    outcome: list[Exception | None] = []

    def request() -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(REPOSITORY, revision=REVISION, timeout=PROBE_SECONDS)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=request, daemon=True)  # a name lookup can hang longer than the client's timeout
    thread.start()
    thread.join(PROBE_SECONDS)
    if not outcome:
        raise Unreachable(f"no answer within {PROBE_SECONDS:.0f} s")
    if outcome[0] is not None:
        raise Unreachable(_reason(outcome[0])) from outcome[0]


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


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
