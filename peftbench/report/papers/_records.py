"""What a paper's figure may read: committed records under one results directory, and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.record import Record


class NotRun(Exception):
    """Records that a figure needs are not there; the text names which."""


@dataclass
class Results:
    """The results directory; each folder of it is read once."""

    root: Path
    _read: dict[str, list[Record]] = field(default_factory=dict, repr=False)

    def runs(self, folder: str, wanted: Callable[[Record], bool] | None = None) -> list[Record]:
        """The finished runs that count under `folder`, tuning trials left out, by label, task and seed.

        Raises NotRun where there is none (or none that is `wanted`).
        """
        counting = [r for r in self.counting(folder) if r.kind == "run" and r.is_finished]
        found = [r for r in counting if r.spec.get("trial") is None and (wanted is None or wanted(r))]
        if not found:
            raise NotRun(f"{folder} has no finished run" + (" of the kind that is needed" if counting else ""))
        return sorted(found, key=lambda r: (label(r), task(r), r.spec["seed"], r.spec_id))

    def failed(self, folder: str) -> list[Record]:
        """The runs under `folder` that count and did not finish: a figure says so."""
        return [r for r in self.counting(folder) if r.kind == "run" and not r.is_finished]

    def profiles(self, folder: str) -> list[Record]:
        """The finished profile passes that count under `folder`; raises NotRun where there is none."""
        found = [r for r in self.counting(folder) if r.kind == "profile" and r.is_finished]
        if not found:
            raise NotRun(f"{folder} has no finished profile pass")
        return found

    def counting(self, folder: str) -> list[Record]:
        """Of every spec under `folder`, the attempt that counts, failed ones too."""
        if folder not in self._read:
            self._read[folder] = list(record.latest(record.read_all(self.root / folder)).values())
        return self._read[folder]

    def json(self, path: str) -> dict[str, Any]:
        """A file of figures that are no runs, such as `paper/NAME/NAME.json`; raises NotRun where it is not there."""
        file = self.root / path
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotRun(f"{path} is not there") from None
        except ValueError as e:
            raise UserError(f"{file}: not valid JSON ({e}). Restore it from a copy, or make it again.") from e
        if not isinstance(found, dict):
            raise UserError(f"{file}: holds no JSON object. Restore it from a copy, or make it again.")
        return found


def label(r: Record) -> str:
    return r.spec["method"]["label"]


def task(r: Record) -> str:
    """The data that ran, and what it stands in for."""
    spec = r.spec["task"]
    return f"{spec['name']} (stand-in for {spec['stand_in_for']})" if spec.get("stand_in_for") else spec["name"]


def score(r: Record) -> float:
    """The task's primary metric on test; a prediction that has none (all one class, for a correlation) counts 0."""
    value = r.body["metrics"]["test"].get(r.body["metrics"]["primary"])
    return 0.0 if value is None else float(value)


def validation(r: Record) -> float:
    """The task's primary metric on validation, larger is better; choices are made by it. NaN where it has none."""
    metrics = r.body["metrics"]
    value = metrics["validation"].get(metrics["primary"])
    return math.nan if value is None else float(value) * (-1 if metrics.get("direction") == "min" else 1)


def group(runs: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    """The runs by `key`, in order of the keys."""
    found: dict[Any, list[Record]] = {}
    for r in runs:
        found.setdefault(key(r), []).append(r)
    return dict(sorted(found.items()))


def need(have: Iterable[Any], wanted: Iterable[Any], what: str) -> None:
    """Raises NotRun naming what of `wanted` is not among `have`."""
    known = set(have)
    if missing := [w for w in wanted if w not in known]:
        raise NotRun(f"no finished run of {what} {', '.join(map(str, missing))}")


def scale(runs: Sequence[Record]) -> str:
    """Model, data, steps, seeds, examples and machine of these runs, as they have them."""
    specs = [r.spec for r in runs]
    total = {r.body["parameters"]["total"] - r.body["parameters"]["added"] for r in runs}
    size = f" ({min(total) / 1e6:.0f} million parameters)" if total else ""
    seeds = {len({r.spec["seed"] for r in same}) for same in group(runs, lambda r: (task(r), label(r))).values()}
    steps, batch = (_range(s["train"][key] for s in specs) for key in ("steps", "batch_size"))
    parts = [
        _several(s["backbone"]["model"] for s in specs) + size,
        _several(map(task, runs)),
        f"{steps} steps of {batch} texts",
        f"{_range(seeds)} seed" + ("s" if max(seeds) > 1 else ""),
        f"{_range(len((r.predictions or {'ids': []})['ids']) for r in runs)} test examples",
        _several(machine(r) for r in runs),
    ]
    return ", ".join(parts)


def machine(r: Record) -> str:
    """The processor or GPU that a record was made on."""
    env = r.body["env"]
    found = (env.get("gpu") or {}).get("name") or (env.get("cpu") or {}).get("model") or env.get("device")
    return str(found)


def _several(values: Iterable[str]) -> str:
    return " and ".join(sorted(set(values)))


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
