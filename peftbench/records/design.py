"""What an experiment asks of its comparison before the runs: the margin, the preference, the seeds and the claims.

Every record of a run keeps it, so that a report can tell a question that was planned from one that was looked for.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from msgspec import Meta

from peftbench.records.costs import Part
from peftbench.records.ranges import LEAST_MARGIN, LOOKS, MOST, SEEDS, Name

Margin = Annotated[float, Meta(ge=LEAST_MARGIN, le=MOST)]
Looks = Annotated[list[Annotated[int, Meta(ge=2, le=SEEDS)]], Meta(max_length=LOOKS)]

Prefer = Literal["memory", "parameters", "time"]
Spending = Literal["obrien_fleming", "pocock"]
Relation = Literal["better", "worse", "equal", "not_worse"]


class Claim(Part, frozen=True):
    """A question that is asked before the runs: how one method compares with another."""

    method: Name  # label of the method that the claim is about
    against: Name  # label of the other method
    relation: Relation | None = None  # what is claimed; null: only asked. "equal", "not_worse": within the margin
    task: Name | None = None  # the task that it is asked on; null: each task

    def __post_init__(self) -> None:
        if self.method == self.against:
            raise ValueError(f"{self.method} is compared with itself")

    def __str__(self) -> str:
        """The claim in words: `lora is not worse than full by more than the margin`."""
        if self.relation is None:
            return f"{self.method} compared with {self.against}"
        words = {
            "better": f"better than {self.against}",
            "worse": f"worse than {self.against}",
            "equal": f"equal to {self.against} within the margin",
            "not_worse": f"not worse than {self.against} by more than the margin",
        }
        return f"{self.method} is {words[self.relation]}"


class Design(Part, frozen=True):
    """The plan of a comparison."""

    margin: Margin | None = None  # largest difference that does not matter, in the metric's unit; null: 2 points
    prefer: Prefer = "memory"  # the cost that decides among methods that are good enough
    looks: Looks = []  # numbers of seeds at which verdicts are computed; empty: a fixed number of seeds
    spending: Spending = "obrien_fleming"  # how the error is spent over the looks
    claims: list[Claim] = []  # the planned questions

    def __post_init__(self) -> None:
        if any(a >= b for a, b in itertools.pairwise(self.looks)):
            raise ValueError(f"looks must ascend, and are {self.looks}")


FIXED = Design()
