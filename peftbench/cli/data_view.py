"""What was done to the data of each task, as `plan` and `run` print it before training."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from peftbench.records.data_summary import DataSummary
from peftbench.report.data import data_text

if TYPE_CHECKING:
    from peftbench import api

WIDTH = 110


def text(plan: api.Plan) -> str:
    """Return a block for each task of a plan: rows, classes and lengths, then what a user should mend."""
    return "\n".join("\n".join(_block(name, *summary)) for name, summary in plan.data_summaries().items())


def _block(task: str, data: DataSummary, max_length: int) -> Iterator[str]:
    yield f"data of {task}"
    for fact in data_text.facts(data, max_length):
        yield textwrap.fill(fact, WIDTH, initial_indent="  ", subsequent_indent="    ")
    for warning in data_text.warnings(data, max_length):
        yield textwrap.fill(warning, WIDTH, initial_indent="  ! ", subsequent_indent="    ")
