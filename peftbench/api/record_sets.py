"""The records of a results directory, read at their first use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from peftbench.api.paths import PathLike

if TYPE_CHECKING:
    import pandas as pd

    from peftbench.records.record import Record, TrainingRecord
    from peftbench.run.runner import Outcome


class Records(Sequence["Record"]):
    """The records of one results directory, in the order of their file names.

    Attributes:
        folder: the results directory.
        baselines: the directory of the records that a report compares these with; None for none.
        outcome: how the `run` that made the records ended; None if they were read.
    """

    def __init__(self, folder: PathLike, baselines: PathLike | None = None, outcome: Outcome | None = None) -> None:
        self.folder = Path(folder)
        self.baselines = None if baselines is None else Path(baselines)
        self.outcome = outcome

    def __repr__(self) -> str:
        return f"Records({str(self.folder)!r}, {len(self)} records)"

    @cached_property
    def _records(self) -> list[Record]:
        from peftbench.records import record

        return record.readable(self.folder)

    @overload
    def __getitem__(self, i: int) -> Record: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[Record]: ...

    def __getitem__(self, i: int | slice) -> Record | Sequence[Record]:
        return self._records[i]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def frame(self) -> pd.DataFrame:
        """Return a data frame with one row for each training run, failed attempts included, without profile passes.

        Returns:
            Columns: `experiment`, `task`, `method` (the label), `method_name`, `seed`, `trial`, `status`, `lr`,
            `trainable`, `peak_bytes`, `seconds` (of the whole run), `spec_id`, `path`, and `test_METRIC` and
            `validation_METRIC` for each metric. A value that was not measured is missing.
        """
        import pandas as pd

        from peftbench.records.record import TrainingRecord

        rows = [_row(r) for r in self if isinstance(r, TrainingRecord)]
        return pd.DataFrame(rows, columns=None if rows else COLUMNS)


COLUMNS = (  # of every row of `Records.frame`; scores follow them
    *("experiment", "task", "method", "method_name", "seed", "trial", "status", "lr"),
    *("trainable", "peak_bytes", "seconds", "spec_id", "path"),
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a signal that ends a program, has stopped `run` before its last run.

    Attributes:
        records: all records of the directory so far.
    """

    def __init__(self, records: Records) -> None:
        super().__init__(f"stopped before all runs of {records.folder} had ended; the same call resumes")
        self.records = records


def _row(r: TrainingRecord) -> dict[str, Any]:
    sizes, memory, scores = r.body.parameters, r.body.memory, r.body.metrics
    splits = {s: getattr(scores, s, {}) for s in ("test", "validation")}
    asked = (r.experiment, r.spec.task.name, r.spec.method.label, r.spec.method.name, r.spec.seed, r.spec.trial)
    costs = (sizes.trainable if sizes else None, memory.peak_bytes if memory else None, r.body.seconds.total)
    values = (*asked, r.status, r.spec.train.lr, *costs, r.spec_id, str(r.path))
    measured = {f"{split}_{name}": value for split, of in splits.items() for name, value in of.items()}
    return {**dict(zip(COLUMNS, values, strict=True)), **measured}


def records(folder: PathLike) -> Records:
    """Return the records under a results directory. They are read at their first use; a missing directory has none.

    A file that is damaged, edited or foreign, or that contradicts itself, is set aside: a warning of the class
    `peftbench.errors.SetAside` names it.
    """
    return Records(folder)
