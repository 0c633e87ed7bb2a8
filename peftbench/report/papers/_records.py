"""The committed records that a paper's figure may read, under one results directory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.record import ProfileRecord, Record, RunRecord, TrainingRecord

R = TypeVar("R", bound=Record)


class NotRun(Exception):
    """Records that a figure needs are missing; the message names them."""


@dataclass
class Results:
    """A results directory; each of its folders is read once."""

    root: Path
    _read: dict[str, list[Record]] = field(default_factory=dict, repr=False)

    def runs(self, folder: str, wanted: Callable[[RunRecord], bool] | None = None) -> list[RunRecord]:
        """The finished runs of a folder, without tuning trials.

        Args:
            folder: folder under the results directory.
            wanted: selects runs; default: all.

        Returns:
            Runs sorted by label, task and seed.

        Raises:
            NotRun: without such a run.
        """
        counting = [r for r in self.counting(folder) if isinstance(r, TrainingRecord) and r.is_finished]
        runs = [r for r in counting if isinstance(r, RunRecord) and (wanted is None or wanted(r))]
        if not runs:
            raise NotRun(f"{folder} has no finished run" + (" of the kind that is needed" if counting else ""))
        return sorted(runs, key=lambda r: (label(r), task(r), r.spec.seed, r.spec_id))

    def failed(self, folder: str) -> list[TrainingRecord]:
        """The runs and trials of a folder that did not finish, for the notes of a figure."""
        return [r for r in self.counting(folder) if isinstance(r, TrainingRecord) and not r.is_finished]

    def profiles(self, folder: str) -> list[ProfileRecord]:
        """The finished profile passes of a folder. Raises NotRun without one."""
        passes = [r for r in self.counting(folder) if isinstance(r, ProfileRecord) and r.is_finished]
        if not passes:
            raise NotRun(f"{folder} has no finished profile pass")
        return passes

    def counting(self, folder: str) -> list[Record]:
        """The attempt that counts at every spec of a folder, failed ones included."""
        if folder not in self._read:
            self._read[folder] = list(record.latest(record.read_all(self.root / folder)).values())
        return self._read[folder]

    def json(self, path: str) -> dict[str, Any]:
        """A JSON file of measurements that are not runs, such as `paper/NAME/NAME.json`. Raises NotRun without it."""
        file = self.root / path
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotRun(f"{path} is not there") from None
        except ValueError as e:
            raise UserError(f"{file}: not valid JSON ({e}). Restore it from a copy, or make it again.") from e
        if not isinstance(content, dict):
            raise UserError(f"{file}: holds no JSON object. Restore it from a copy, or make it again.")
        return content


def label(r: RunRecord) -> str:
    return r.spec.method.label


def task(r: RunRecord) -> str:
    """The task's name; a stand-in is always marked as one."""
    spec = r.spec.task
    return f"{spec.name} (stand-in for {spec.stand_in_for})" if spec.stand_in_for else spec.name


def score(r: RunRecord) -> float:
    """The primary metric on the test split; 0 if undefined, as for a correlation with a constant prediction."""
    value = r.metrics.test.get(r.metrics.primary)
    return 0.0 if value is None else value


def validation(r: RunRecord) -> float:
    """The primary metric on the validation split, higher is better; NaN if undefined."""
    value = r.metrics.validation.get(r.metrics.primary)
    return math.nan if value is None else value * (-1 if r.metrics.direction == "min" else 1)


def group(runs: Iterable[R], key: Callable[[R], Any]) -> dict[Any, list[R]]:
    """Group runs by `key`, in the order of the keys."""
    groups: dict[Any, list[R]] = {}
    for r in runs:
        groups.setdefault(key(r), []).append(r)
    return dict(sorted(groups.items()))


def need(have: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    """Raise NotRun naming the items of `wanted` that are not among `have`."""
    known = set(have)
    if missing := [w for w in wanted if w not in known]:
        raise NotRun(f"no finished run of {what} {', '.join(map(str, missing))}")


def scale(runs: Sequence[RunRecord]) -> str:
    """The scale of the runs in words: model, data, steps, seeds, examples and machine."""
    total = {r.parameters.total - r.parameters.added for r in runs}
    size = f" ({min(total) / 1e6:.0f} million parameters)" if total else ""
    seeds = {len({r.spec.seed for r in same}) for same in group(runs, lambda r: (task(r), label(r))).values()}
    steps, batch = _range(r.spec.train.steps for r in runs), _range(r.spec.train.batch_size for r in runs)
    parts = [
        _several(r.spec.backbone.model for r in runs) + size,
        _several(map(task, runs)),
        f"{steps} steps of {batch} texts",
        f"{_range(seeds)} seed" + ("s" if max(seeds) > 1 else ""),
        f"{_range(len(p.ids) if (p := r.predictions) else 0 for r in runs)} test examples",
        _several(r.env.machine for r in runs),
    ]
    return ", ".join(parts)


def _several(values: Iterable[str]) -> str:
    return " and ".join(sorted(set(values)))


def _range(values: Iterable[int]) -> str:
    distinct = sorted(set(values))
    return f"{distinct[0]:,}" if len(distinct) == 1 else f"{distinct[0]:,} to {distinct[-1]:,}"
