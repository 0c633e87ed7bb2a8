"""Predicted against recorded time: docs/predicted-time.md, from this machine's calibration and committed records.

    python scripts/predicted_time.py --data-dir /path/to/glue

Run it on the machine that the records are of, and while nothing else runs: it calibrates where that was not done yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import peftbench
from peftbench.estimate.run import forecast, run_time
from peftbench.estimate.run.calibrate import Place
from peftbench.estimate.run.run_time import Predicted
from peftbench.plan.grid import Planned
from peftbench.records import record
from peftbench.records.record import Record
from peftbench.run import executors

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Predicted time, and how far it was off

Made by `scripts/predicted_time.py`. *Predicted* is what `plan` says from its calibration alone: a few real steps of
each configuration, as many processes at a time as runs would share the machine. *Taken* is the median over the seeds
of the committed records under `results/reference/`. The calibration knows nothing of those
runs. It counts the processor's time, so it speaks of a machine that does nothing else; other programs ran beside some
of the recorded runs, and the largest differences are theirs.
"""


def section(name: str, data_dir: Path | None) -> str:
    """The table of one experiment, its finished runs alone."""
    prepared = peftbench.plan(ROOT / "experiments" / f"{name}.yaml", data_dir=data_dir).prepared
    jobs = prepared.experiment.jobs or 1
    place = Place(prepared.experiment.device, jobs, max(1, executors.cores() // jobs), data_dir)
    costs = forecast.costs(prepared, place, lambda said: print(f"{name}: {said}", file=sys.stderr))
    finished = record.finished(record.read_all(ROOT / "results" / "reference" / name))
    told = run_time.predict(prepared.planned, [], costs)
    groups: dict[tuple[str, str], list[Planned]] = {}
    for p in prepared.planned:
        if p.spec.id in finished and told[p.spec.id].source == "calibration":
            groups.setdefault((p.spec.task.name, p.label), []).append(p)
    lines = [f"\n## {name}\n", "| task | method | predicted, s | taken, s | error |", "|---|---|---:|---:|---:|"]
    for (task, label), runs in groups.items():
        said, took = told[runs[0].spec.id].seconds, median(_seconds(finished, p) for p in runs)
        lines.append(f"| {task} | {label} | {said:.1f} | {took:.1f} | {said / took - 1:+.0%} |")
    return "\n".join([*lines, "", _total([p for g in groups.values() for p in g], told, finished)])


def _total(runs: list[Planned], told: dict[str, Predicted], finished: dict[str, Record]) -> str:
    said, took = sum(told[p.spec.id].seconds for p in runs), sum(_seconds(finished, p) for p in runs)
    usual = sum(median(_seconds(finished, q) for q in runs if _alike(p, q)) for p in runs)
    return (
        f"All {len(runs)} runs: {said:,.0f} s predicted, {took:,.0f} s taken ({said / took - 1:+.1%}); with each run "
        f"at its seeds' median, {usual:,.0f} s ({said / usual - 1:+.1%})."
    )


def _alike(p: Planned, q: Planned) -> bool:
    return (p.label, p.spec.task.name) == (q.label, q.spec.task.name)


def _seconds(finished: dict[str, Record], p: Planned) -> float:
    return finished[p.spec.id].body.seconds.total


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data-dir", type=Path, required=True, help="GLUE's official files")
    data_dir = options.parse_args().data_dir
    text = HEAD + "".join(section(name, data_dir) + "\n" for name in ("glue_small", "quickstart"))
    (ROOT / "docs" / "predicted-time.md").write_text(text)


if __name__ == "__main__":
    main()
