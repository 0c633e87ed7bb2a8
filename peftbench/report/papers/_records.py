"""What a paper's figure may read: committed records under one results directory, and nothing else."""

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
    """Records that a figure needs are not there; the text names which."""


@dataclass
class Results:
    """The results directory; each folder of it is read once."""

    root: Path
    _read: dict[str, list[Record]] = field(default_factory=dict, repr=False)

    def runs(self, folder: str, wanted: Callable[[RunRecord], bool] | None = None) -> list[RunRecord]:
        """The finished runs that count under `folder`, tuning trials left out, by label, task and seed.

        Raises NotRun where there is none (or none that is `wanted`).
        """
        counting = [r for r in self.counting(folder) if isinstance(r, TrainingRecord) and r.is_finished]
        runs = [r for r in counting if isinstance(r, RunRecord) and (wanted is None or wanted(r))]
        if not runs:
            raise NotRun(f"{folder} has no finished run" + (" of the kind that is needed" if counting else ""))
        return sorted(runs, key=lambda r: (label(r), task(r), r.spec.seed, r.spec_id))

    def failed(self, folder: str) -> list[TrainingRecord]:
        """The runs and trials under `folder` that count and did not finish: a figure says so."""
        return [r for r in self.counting(folder) if isinstance(r, TrainingRecord) and not r.is_finished]

    def profiles(self, folder: str) -> list[ProfileRecord]:
        """The finished profile passes that count under `folder`; raises NotRun where there is none."""
        passes = [r for r in self.counting(folder) if isinstance(r, ProfileRecord) and r.is_finished]
        if not passes:
            raise NotRun(f"{folder} has no finished profile pass")
        return passes

    def counting(self, folder: str) -> list[Record]:
        """Of every spec under `folder`, the attempt that counts, failed ones too."""
        if folder not in self._read:
            self._read[folder] = list(record.latest(record.read_all(self.root / folder)).values())
        return self._read[folder]

    def json(self, path: str) -> dict[str, Any]:
        """A file of figures that are no runs, such as `paper/NAME/NAME.json`; raises NotRun where it is not there."""
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
    """The data that ran, and what it stands in for."""
    spec = r.spec.task
    return f"{spec.name} (stand-in for {spec.stand_in_for})" if spec.stand_in_for else spec.name


def score(r: RunRecord) -> float:
    """The task's primary metric on test; a prediction that has none (all one class, for a correlation) counts 0."""
    value = r.metrics.test.get(r.metrics.primary)
    return 0.0 if value is None else value


def validation(r: RunRecord) -> float:
    """The task's primary metric on validation, larger is better; choices are made by it. NaN where it has none."""
    value = r.metrics.validation.get(r.metrics.primary)
    return math.nan if value is None else value * (-1 if r.metrics.direction == "min" else 1)


def group(runs: Iterable[R], key: Callable[[R], Any]) -> dict[Any, list[R]]:
    """The runs by `key`, in order of the keys."""
    groups: dict[Any, list[R]] = {}
    for r in runs:
        groups.setdefault(key(r), []).append(r)
    return dict(sorted(groups.items()))


def need(have: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    """Raises NotRun naming what of `wanted` is not among `have`."""
    known = set(have)
    if missing := [w for w in wanted if w not in known]:
        raise NotRun(f"no finished run of {what} {', '.join(map(str, missing))}")


def scale(runs: Sequence[RunRecord]) -> str:
    """Model, data, steps, seeds, examples and machine of these runs, as they have them."""
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
