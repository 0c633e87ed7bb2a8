"""What was done to a task's data: rows, classes, copies, and what truncation took from the texts."""

from __future__ import annotations

from typing import Literal

from peftbench.records.costs import Part
from peftbench.records.ranges import Count


class SplitSummary(Part, frozen=True):
    """One split of a task, as a network reads it. A prompt counts as the text of a generation task."""

    rows: Count  # examples
    per_class: list[Count]  # examples of each class, in the order of `classes`; empty without classes
    copies: Count  # examples with the texts and references of an earlier one of the split, case and blanks aside
    contradictory: Count  # rows whose texts also stand in this split with another class
    tokens: Count  # tokens of all examples before truncation
    longest: Count  # tokens of the longest example before truncation
    cut_texts: Count  # texts that truncation shortened
    cut_tokens: Count  # tokens that they lost
    cut_answers: Count = 0  # reference answers that truncation shortened; they lose their end
    cut_answer_tokens: Count = 0  # tokens that they lost


class DataSummary(Part, frozen=True):
    """What was done to a task's data before training."""

    classes: list[str]  # names of the classes in index order; empty without classes
    splits: dict[str, SplitSummary]  # by name; a tuning trial has no test split
    cut_from: Literal["beginning", "end"]  # where a text that is too long loses tokens
    doubled: dict[str, Count]  # special token -> texts that begin or end with it twice
    notes: list[str] = []  # remarks of the preparation, such as the number of rows left out

    def __post_init__(self) -> None:
        if "train" not in self.splits or not set(self.splits) <= {"train", "validation", "test"}:
            raise ValueError(f"a data summary has train, validation and test, not {', '.join(self.splits)}")
        for name, split in self.splits.items():
            if split.rows < 1 or split.tokens < 1 or len(split.per_class) != len(self.classes):
                raise ValueError(f"the data summary of {name} does not have a row, a token and a number for each class")
