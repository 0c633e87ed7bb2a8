"""GLUE from the Hugging Face hub, at one pinned revision; says within seconds when the hub cannot be had."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from peftbench.tasks.dataset import Example, example

REPOSITORY = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
PROBE_SECONDS = 10.0  # for the first sign of life; the download itself may take as long as it takes


class Unreachable(Exception):
    """The hub gave no answer, or not this file; the message is its reason."""


def glue(name: str, columns: tuple[str, str | None], *, regression: bool) -> tuple[list[Example], list[Example]]:
    """(train, dev) of a GLUE task; `columns` are the hub's names of the two texts. Raises Unreachable."""
    dev = "validation_matched" if name == "mnli" else "validation"
    paths = _files([f"{name}/{split}-00000-of-00001.parquet" for split in ("train", dev)])
    train, test = (_examples(path, columns, regression) for path in paths)
    return train, test


def _files(names: list[str]) -> list[Path]:
    """The dataset's files: out of the hub's own cache where they are there, else downloaded into it."""
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
    except Exception as error:  # whatever the hub's client raises, the remedy is the same
        raise Unreachable(_reason(error)) from error


def _probe() -> None:
    """One small question with a deadline, because the client's own retries would take half a minute to give up."""
    outcome: list[Exception | None] = []

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(REPOSITORY, revision=REVISION, timeout=PROBE_SECONDS)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    asker = threading.Thread(target=ask, daemon=True)  # a name lookup can hang beyond any timeout of the client
    asker.start()
    asker.join(PROBE_SECONDS)
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
