"""Write the tables of docs/estimate.md, and their figure, from the predictions that come with the package.

    python scripts/estimate_page.py [--check]

The predictions are those of `peftbench estimate --check --out peftbench/estimate/published`. With --check nothing is
written, and the exit code says whether the page is up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peftbench.estimate.published import published_check, published_points, published_predict
from peftbench.estimate.published.published_check import Checked, Rivals
from peftbench.estimate.published.published_points import PublishedPoint

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "estimate.md"
FIGURE = "published"
SPEED = ROOT / "results" / "benchmarks" / "estimate_speed.json"


def main() -> None:
    points = published_points.points()
    predicted, rivals = published_predict.stored(), published_check.read_rivals()
    checked = published_check.check(points, lambda point: predicted.get(point.id), rivals)
    text = PAGE.read_text(encoding="utf-8")
    for name, content in sections(points, checked, rivals).items():
        text = replaced(text, name, content)
    files = {PAGE: text.encode()}
    files |= {PAGE.parent / name: content for name, content in published_check.figure(points, checked, FIGURE)}
    if "--check" in sys.argv[1:]:
        old = [path.name for path, content in files.items() if not path.exists() or path.read_bytes() != content]
        sys.exit(f"out of date: {', '.join(old)}; run python scripts/estimate_page.py" if old else 0)
    for path, content in files.items():
        path.write_bytes(content)


def sections(points: Sequence[PublishedPoint], checked: Checked, rivals: Rivals) -> dict[str, str]:
    """Return the generated text between the markers of the page, by name."""
    errors, *rest = published_check.as_text(checked, rivals).split("\n\n")
    return {
        "errors": errors,
        "bounds": rest[0],
        "rivals": rest[1],
        "left out": left_out(points),
        "after a step": rows(points, checked, "after_step"),
        "longest texts": rows(points, checked, "longest_context"),
        "speed": speed(),
        "points": rows(points, checked, "allocated", "active"),
    }


def speed() -> str:
    """Return the processor seconds of benchmarks/estimate_speed.py, from its record."""
    record = json.loads(SPEED.read_text(encoding="utf-8"))
    commands = record["about"]["commands"]
    lines = ["| command | processor seconds, least and median | target |", "|---|---:|---:|"]
    for name, row in record["rows"].items():
        seconds = row["cpu_seconds"]
        said = f"`{' '.join(commands[name])}`"
        lines.append(f"| {said} | {seconds['min']:.1f}, {seconds['median']:.1f} | {row['target_seconds']:.0f} |")
    return "\n".join(lines)


def left_out(points: Sequence[PublishedPoint]) -> str:
    """Return the reasons for which points are not predicted, with their number."""
    reasons: dict[str, list[str]] = {}
    for point in points:
        if point.left_out:
            reasons.setdefault(point.left_out, []).append(point.id)
    lines = [f"| {reason} | {len(ids)} | {', '.join(ids)} |" for reason, ids in sorted(reasons.items())]
    return "\n".join(["| reason | points | which |", "|---|---:|---|", *lines])


def rows(points: Sequence[PublishedPoint], checked: Checked, *measures: str) -> str:
    """Return a table of single points: what was measured, what is predicted, and the error."""
    lines = [
        "| point | model | method | batch x tokens | measured | predicted | error |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for point in points:
        if point.measure not in measures or point.id not in checked.predicted:
            continue
        own = checked.predicted[point.id]
        error = published_check.error(point, own)
        hyper = " ".join(f"{key}={value}" for key, value in point.hyper.items() if key in ("rank", "roles", "length"))
        size = f"{point.batch} x {point.seq}" if point.seq else f"{point.batch}, {point.gpu}"
        if point.unit == "tokens":
            told, mine = f"{point.value:,.0f} tokens", f"{own:,} tokens"
        else:
            told, mine = f"{point.value_bytes / 1e9:.2f} GB", f"{own / 1e9:.2f} GB"
        what = f"{point.method} {hyper}".strip()
        lines.append(f"| {point.id} | {point.model} | {what} | {size} | {told} | {mine} | {error:+.1f} % |")
    return "\n".join(lines) if len(lines) > 2 else ""


def replaced(text: str, name: str, content: str) -> str:
    """Return the page with `content` between the markers called `name`."""
    start, end = f"<!-- {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(start)
    if not found:
        raise SystemExit(f"{PAGE}: no marker {start.strip()}")
    return f"{before}{start}{content}\n{rest[rest.index(end) :]}"


if __name__ == "__main__":
    main()
