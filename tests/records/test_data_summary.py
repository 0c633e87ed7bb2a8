"""A record's summary of its data: what cannot be is refused with its place, and older records have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench.errors import UserError
from peftbench.records import check, files, record
from peftbench.records.bodies import RunBody

SPLIT = {"rows": 4, "per_class": [2, 2], "copies": 0, "contradictory": 0, "tokens": 40, "longest": 12}
GOOD: dict[str, Any] = {
    "classes": ["a", "b"],
    "splits": {"train": {**SPLIT, "cut_texts": 0, "cut_tokens": 0}},
    "cut_from": "end",
    "doubled": {},
}


def body(data: Any) -> dict[str, Any]:
    return {**factories.run(), "attempt": 1, "env_id": "", "data": data}


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    read = record.read(record.write(tmp_path, {**factories.run(), "data": GOOD}))
    assert isinstance(read.body, RunBody)
    assert read.body.data is not None
    assert read.body.data.splits["train"].per_class == [2, 2]
    assert (read.body.data.notes, read.body.data.splits["train"].cut_answers) == ([], 0)


def test_a_record_without_a_summary_is_read(tmp_path: Path) -> None:
    read = record.read(record.write(tmp_path, factories.run()))
    assert isinstance(read.body, RunBody)
    assert read.body.data is None


@pytest.mark.parametrize(
    "changed",
    [
        {"splits": {}},
        {"splits": {"test": GOOD["splits"]["train"]}},
        {"splits": {"train": GOOD["splits"]["train"], "other": GOOD["splits"]["train"]}},
        {"splits": {"train": {**GOOD["splits"]["train"], "rows": 0}}},
        {"splits": {"train": {**GOOD["splits"]["train"], "per_class": [4]}}},
        {"classes": ["a"]},
        {"cut_from": "middle"},
        {"doubled": {"<s>": "many"}},
    ],
)
def test_a_summary_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="data"):
        check.typed(body({**GOOD, **changed}))
    foreign = tmp_path / "foreign.json"
    files.link(files.encode({**body({**GOOD, **changed}), "schema": 2}), foreign)
    with pytest.raises(UserError, match="data"):
        record.read(foreign)
