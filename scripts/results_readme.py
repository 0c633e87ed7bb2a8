"""Write results/README.md: what each set of committed results is, from its records; run it after they change.

python scripts/results_readme.py

What no record says (which command made it, and for results that are no run records, when) stands in `about.yaml` beside
the set; a set is every directory under results/ that has one.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from msgspec import to_builtins
from tabulate import tabulate

from peftbench.records import record
from peftbench.records.record import Record, RunRecord, TrialRecord
from peftbench.report.data import collect, decisions, tunings
from peftbench.report.data.comparison import Comparison
from peftbench.report.papers import _build

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
ABOUT = "about.yaml"
KEYS = {"what", "command", "date", "wall"}
HEAD = """\
# Results

A run writes to `results/NAME/` (not tracked): `runs/` has the records, one JSON file per attempt; `report/` the tables
and figures made from them. `python -m peftbench report DIR` makes the report again, with `--check` it says whether the
one there is what the records give; `python -m peftbench verify DIR --sample 5` runs some of them again and compares.

A report's page and its figures as SVG are not tracked: `report` makes them beside what is.

Sets under `archive/` are superseded: no claim stands on them. Where a set has `runs.tar.xz` in place of `runs/`, the
records are packed (`python -m peftbench pack`): every command reads them as it reads files, and `tar -xJf` gives these
back, byte for byte.

What follows is tracked. It is written by `python scripts/results_readme.py` from the records and from the `about.yaml`
beside them. Wall time is the time in which at least one of the set's records was being made.
"""
SPENT = """\
## What the sets spent

Runs: those that finished with a score on the test split. At an edge: chosen rates beyond which no trial lies. Of at
most: what the design allows, every configuration with the most seeds; designs that stop at a verdict have it. Saved:
the share that did not run, once no row goes on. Processor hours: durations of all records, trials and failures
included, times their threads; most ran beside other work, which makes them long.
"""


def text() -> str:
    """The whole file."""
    folders = sorted(path.parent for path in RESULTS.rglob(ABOUT))
    return "\n".join([HEAD, _spent(folders), *("\n".join(_section(folder)) for folder in folders)])


def _spent(folders: Sequence[Path]) -> str:
    """The table of seeds, trials and processor hours, a row for each set with run records and one for all."""
    read = {folder.relative_to(RESULTS).as_posix(): _records(folder) for folder in folders}
    looks = {f"paper/{figure.name}": figure.looks for figure in _build.known().values() if figure.looks}
    rows = [_row(name, records, looks.get(name)) for name, records in read.items() if records]
    total = ["all", *(sum(column) for column in zip(*(row[1:3] for row in rows), strict=True)), "", "", ""]
    total.append(sum(row[-1] for row in rows))
    headers = ["set", "runs", "trials", "at an edge", "of at most", "saved", "processor hours"]
    align = ["left", *["right"] * 6]
    return SPENT + "\n" + tabulate([*rows, total], headers, tablefmt="github", floatfmt=".1f", colalign=align) + "\n"


@cache
def _records(folder: Path) -> list[Record]:
    return record.read_all(folder)


def _row(name: str, records: Sequence[Record], looks: Sequence[int] | None) -> list[Any]:
    runs = [r for r in records if isinstance(r, RunRecord) and r.is_finished]
    at_edge, chosen = tunings.edge_counts(tunings.of(records))
    sequential = [c for c in collect.compare(records) if looks or c.design.looks]
    most = sum((looks or c.design.looks)[-1] * len(c.entries) for c in sequential)
    spent = sum(len(e.runs) for c in sequential for e in c.entries)
    going_on = any(_goes_on(c, looks) for c in sequential)
    return [
        name,
        len(runs),
        sum(isinstance(r, TrialRecord) for r in records),
        f"{at_edge} of {chosen}" if chosen else "",
        most or "",
        "going on" if going_on else f"{1 - spent / most:.0%}" if most else "",
        sum(r.body.seconds.total * (r.env.threads or 1) for r in records) / 3600,
    ]


def _goes_on(c: Comparison, looks: Sequence[int] | None) -> bool:
    """Whether seeds are still to run: of a row that is not decided, or in a figure that has not had its last look."""
    if looks:
        return max(len(e.runs) for e in c.entries) < looks[-1]
    return bool(decisions.of(c).going_on)


def _section(folder: Path) -> Iterator[str]:
    about = yaml.safe_load((folder / ABOUT).read_text())
    if wrong := sorted(set(about) - KEYS) or sorted({"what", "command"} - set(about)):
        raise ValueError(f"{folder / ABOUT}: keys are {', '.join(sorted(KEYS))}; wrong or missing: {', '.join(wrong)}")
    records = _records(folder)
    yield f"## {folder.relative_to(RESULTS).as_posix()}\n"
    yield "\n".join(textwrap.wrap(" ".join(about["what"].split()), 120)) + "\n"
    commands = about["command"] if isinstance(about["command"], list) else [about["command"]]
    yield from (f"    {command}" for command in commands)
    yield ""
    if records:
        yield f"- Records: {_counts(records)}"
    yield from (f"- Tuning: {line}" for line in _tuning(records))
    yield from (f"- Machine: {line}" for line in _machines(records, folder))
    yield f"- Date: {_dates(records) if records else about['date']}"
    yield f"- Wall time: {_duration(_wall_seconds(records)) if records else about['wall']}"
    yield ""


def _counts(records: Sequence[Record]) -> str:
    names = {"run": ("finished run", "finished runs"), "profile": ("profile pass", "profile passes")}
    kinds = Counter(r.kind if r.is_finished else r.status for r in records)
    return ", ".join(f"{n} {names.get(k, (k, k))[n > 1]}" for k, n in sorted(kinds.items(), key=_order))


def _tuning(records: Sequence[Record]) -> Iterator[str]:
    tables = tunings.of(records)
    at_edge, chosen = tunings.edge_counts(tables)
    if chosen:
        rows = [row for t in tables for row in t.rows]
        trials, further = sum(len(row.trials) for row in rows), sum(row.further for row in rows)
        yield f"{at_edge} of {chosen} chosen values at an edge; {further} of {trials} trials beyond their first space"


def _order(item: tuple[str, int]) -> tuple[bool, bool, str]:
    return item[0] != "run", item[0] != "profile", item[0]


def _machines(records: Sequence[Record], folder: Path) -> list[str]:
    """One line for each kind of machine and versions, the threads of its runs and passes together."""
    threads: dict[str, Counter[str]] = {}
    for kind, env in [(r.kind, to_builtins(r.env)) for r in records] or [("", e) for e in _environments(folder)]:
        gpu = f"{env['gpu']['name']}, " if env.get("gpu") else ""
        packages = ", ".join(f"{name} {env['packages'][name]}" for name in ("torch", "transformers"))
        capability = f" ({env['cpu']['capability']})" if env["cpu"]["capability"] else ""
        cpu = f"{env['cpu']['model']}{capability}"
        machine = f"{gpu}{cpu}, {env['platform']}, Python {env['python']}, {packages}"
        count = env["threads"]
        said = f"{count} thread{'' if count == 1 else 's'}" if count else ""
        what = {"run": "a run", "profile": "a profile pass"}.get(kind, "")
        threads.setdefault(machine, Counter())[" ".join(t for t in (said, what and f"for {what}") if t)] += 1
    return [f"{machine}; {', '.join(sorted(t for t in told if t))}".rstrip("; ") for machine, told in threads.items()]


def _environments(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The environments in files that are no run records."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        for env in (content.get("env"), content.get("environment"), (content.get("about") or {}).get("env")):
            if env:
                yield env


def _dates(records: Sequence[Record]) -> str:
    first, last = min(r.body.started for r in records)[:10], max(r.body.ended for r in records)[:10]
    return first if first == last else f"{first} to {last}"


def _wall_seconds(records: Sequence[Record]) -> float:
    """The length of the union of the records' spans: runs side by side count once, pauses not at all."""
    spans = sorted((_time(r, "started"), _time(r, "ended")) for r in records)
    total, reached = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _time(r: Record, key: str) -> float:
    return datetime.fromisoformat(getattr(r.body, key)).timestamp()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    (RESULTS / "README.md").write_text(text())
