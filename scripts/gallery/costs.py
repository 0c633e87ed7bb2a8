"""What the committed records and estimates say of each method: scores, sizes, memory and time."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SET = "embedded_small"
REPORT = ROOT / "results" / "reference" / SET / "report"
TABLES, RUNS = REPORT / "tables", REPORT.parent / "runs"
ESTIMATES = ROOT / "docs" / "methods" / "estimates.json"
UP = "../.."  # from docs/methods to the root
Row = Mapping[str, str]


@dataclass(frozen=True)
class Costs:
    """The rows of one set of results.

    Attributes:
        average: The rows of the average over tasks, by name of the method; a method may have several configurations.
        tasks: For each task, the rows of its table by label.
        estimates: What scripts/method_estimates.py wrote.
    """

    average: Mapping[str, Sequence[Row]]
    tasks: Mapping[str, Mapping[str, Row]]
    estimates: Mapping[str, Any]


def read() -> Costs:
    """Read the tables of the report, which `report --check` holds to the records, and the estimates."""
    average: dict[str, list[Row]] = {}
    rows = _rows(TABLES / f"{SET}--average.csv")
    for row in rows:
        average.setdefault(row["method_name"], []).append(row)
    tasks = {
        task: {r["method"]: r for r in _rows(TABLES / f"{SET}--{task.replace('/', '_')}.csv")}
        for task in rows[0]["tasks"].split("; ")
    }
    return Costs(average, tasks, json.loads(ESTIMATES.read_text(encoding="utf-8")))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def seeds(costs: Costs) -> str:
    """Say how many seeds the rows have: with seeds until decided not all have the same."""
    counts = {int(row["n"]) for rows in costs.tasks.values() for row in rows.values()}
    return f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else f"{max(counts)} seeds"


def score(row: Row) -> str:
    """Return the score relative to full fine-tuning with its interval."""
    if not row["relative_low"]:
        return f"{float(row['relative']):.3f}"
    return f"{float(row['relative']):.3f} [{float(row['relative_low']):.3f}, {float(row['relative_high']):.3f}]"


def ratio(row: Row, key: str) -> str:
    return f"{float(row[key]):.2f}" if row[key] else "—"


def whole(value: str) -> str:
    return f"{float(value):,.0f}"


def stored(costs: Costs, label: str) -> str:
    """Return the bytes of the adapter's file, which are the same on every task, or nearly so: those of the first."""
    return whole(next(iter(costs.tasks.values()))[label]["stored_bytes"])


def against_full(row: Row) -> str:
    """Say where the interval of the score lies."""
    name = row["method"]
    if not row["relative_low"]:
        return f"`{name}` is the reference: its score is 1 by definition."
    if float(row["relative_high"]) < 1:
        return f"The interval of `{name}` lies below full fine-tuning; it is not corrected for the number of methods."
    if float(row["relative_low"]) > 1:
        return f"The interval of `{name}` lies above full fine-tuning; it is not corrected for the number of methods."
    return f"`{name}` cannot be told from full fine-tuning by its interval."


def measured(costs: Costs, method: str) -> str:
    """Return the section of a card about the committed records."""
    rows = costs.average.get(method)
    if not rows:
        return f"`{SET}` has no records of this method."
    lines = [
        "| configuration | score / full [95 %] | mean rank | trainable | stored, bytes | peak / full | step / full |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        label = row["method"]
        lines.append(
            f"| {label} | {score(row)} | {float(row['rank']):.1f} | {whole(row['trainable'])} | {stored(costs, label)} "
            f"| {ratio(row, 'peak_memory_ratio')} | {ratio(row, 'step_ratio')} |"
        )
    lines += ["", " ".join(against_full(row) for row in rows), ""]
    lines += _by_task(costs, [row["method"] for row in rows])
    folder = f"results/reference/{SET}"
    first = sorted(path.name for path in RUNS.glob(f"{rows[0]['method']}--*--s0--*.json"))[0]
    lines += [
        "",
        f"From [`{folder}/report/report.md`]({UP}/{folder}/report/report.md): a model of 23 million parameters, "
        f"60 steps, {seeds(costs)}. Peak is that of a training step. One of the records:\n",
        f"[`{folder}/runs/{first}`]({UP}/{folder}/runs/{first})",
    ]
    return "\n".join(lines)


def _by_task(costs: Costs, labels: Sequence[str]) -> list[str]:
    lines = ["| task | metric | " + " | ".join(labels) + " |", "|---|---|" + "---:|" * len(labels)]
    for task, rows in costs.tasks.items():
        cells = [_score(rows[label]) for label in labels]
        name = task.partition("/")[2].replace("_", " ")
        lines.append(f"| {name} | {rows[labels[0]]['metric']} | {' | '.join(cells)} |")
    return lines


def _score(row: Row) -> str:
    return f"{float(row['mean']):.3f} [{float(row['mean_low']):.3f}, {float(row['mean_high']):.3f}]"


def predicted(costs: Costs, method: str) -> str:
    """Return the section of a card about one large model."""
    setting, found = costs.estimates["setting"], costs.estimates["methods"].get(method)
    model = setting["model"]
    command = f"    python -m peftbench estimate {model} {method} --seq {setting['seq']} --dtype bf16"
    if found is None:
        return f"{command}\n\nIt is not in the table of estimates yet; `scripts/method_estimates.py` makes it."
    if "refused" in found:
        return f"{command}\n\nThe model is refused: {found['refused']}."
    full = costs.estimates["methods"]["full"]["peak_bytes"]
    share = "" if method == "full" else f", {found['peak_bytes'] / full:.2f} of full fine-tuning's"
    return (
        f"{command}\n\nOne step takes {found['peak_bytes'] / 1e9:.1f} GB at its peak{share}. "
        f"{found['trainable']:,} numbers train, and the adapter's file has {_size(found['stored_bytes'])}. This is "
        f"predicted, not measured: program `peftbench`, batch {setting['batch']}, {setting['seq']} tokens, "
        f"{setting['dtype']}, the method's defaults ([how exact](../estimate.md))."
    )


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
