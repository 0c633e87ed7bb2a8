"""One figure for each benchmark's JSON, and the tables of docs/benchmarks.md between its markers.

    python benchmarks/figure.py [--results results/benchmarks] [--docs docs/benchmarks.md]

The same JSON gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from targets import READERS, Measured, measured, parts, rows, setting, verdict

from peftbench.report.figures import style

BEGIN, END = "<!-- measured: made by benchmarks/figure.py -->", "<!-- measured ends -->"
HEADER = ["what", "must", "reach for", "measured", "verdict"]
COLOURS = {"reached": style.COLOURS[3], "met": style.COLOURS[1], "met within the interval": style.COLOURS[6]}
MISSED = style.COLOURS[2]
LEGEND = (
    "solid line: must not exceed; dotted: reached for\n"
    "green: reached; blue: met (pale: within the interval); orange: missed"
)
TITLES = {
    "step_time": "Training step, ours / peft",
    "step_dropout": "Training step with dropout",
    "step_memory": "Peak memory of a training step, ours / peft",
    "grid": "Wall time of a grid, ours / Trainer + peft",
    "start": "Time of commands that train nothing, as a share of the time allowed",
    "run_overhead": "Quickstart: CPU time beside its steps, wall time",
    "fixed_costs": "CPU time of commands, now / before",
    "executors": "What an executor adds to a run, as a share of the time allowed",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--docs", type=Path, default=Path("docs/benchmarks.md"))
    args = parser.parse_args()
    found = read(args.results)
    for name, told in found.items():
        for file, content in files(name, told).items():
            (args.results / file).write_bytes(content)
    args.docs.write_text(replaced(args.docs.read_text(), section(found, "../results/benchmarks")))
    print(f"{len(found)} benchmarks in {args.docs}")


def read(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Every benchmark by its file's name, model and dtype, in the order of the targets; other JSON is left alone."""
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for name, told in files.items():  # the kind may stand in the file's name alone
        told.setdefault("benchmark", name.partition("-")[0])
    known = [parts(name, told) for name, told in files.items() if told["benchmark"] in READERS]
    found = {name: told for several in known for name, told in several.items()}
    return dict(sorted(found.items(), key=lambda item: list(READERS).index(item[1]["benchmark"])))


def files(name: str, told: Mapping[str, Any]) -> dict[str, bytes]:
    """The figure as PNG and SVG, by the files' names."""
    with style.drawing():
        return dict(style.files(name, draw(title(told), setting(told), measured(told))))


def title(told: Mapping[str, Any]) -> str:
    about = told["about"]
    where = ", ".join(str(about[key]) for key in ("model", "dtype") if about.get(key))
    return TITLES[told["benchmark"]] + (f": {where}" if where else "")


def draw(heading: str, subtitle: str, values: Sequence[Measured]) -> Figure:
    """Bars with intervals; a black line is what a value must not exceed, a dotted one what is reached for."""
    figure = Figure(figsize=(8.0, 1.6 + 0.34 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [m.what for m in values]
    colours = [COLOURS.get(verdict(m), MISSED) for m in values]
    sns.barplot(x=[m.value for m in values], y=names, hue=names, palette=colours, legend=False, ax=axes, width=0.66)
    for i, m in enumerate(values):
        if m.low is not None and m.high is not None:
            axes.plot([m.low, m.high], [i, i], color="#222222", linewidth=1.6, solid_capstyle="butt")
        axes.plot([m.target.must] * 2, [i - 0.42, i + 0.42], color="#000000", linewidth=1.8)
        if m.target.reach is not None:
            axes.plot([m.target.reach] * 2, [i - 0.42, i + 0.42], color="#000000", linewidth=1.4, linestyle=":")
        end = max(m.value, m.high or 0.0, m.target.must)
        axes.annotate(f"{m.value:.2f}", (end, i), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0, 1.12 * max(max(m.value, m.high or 0.0, m.target.must) for m in values))
    axes.set_title(heading, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(LEGEND, color=style.MUTED, fontsize=8.5)
    axes.set_ylabel("")
    figure.supxlabel(textwrap.fill(subtitle, 110), fontsize=6.5, color=style.MUTED, x=0.01, ha="left")
    style.settle(figure)
    return figure


def section(found: Mapping[str, Mapping[str, Any]], folder: str) -> str:
    """What stands between the markers: one heading, table and figure for each JSON."""
    if not found:
        return "Not measured yet.\n"
    written = []
    for name, told in found.items():
        lines = [f"### {title(told)}", "", setting(told) + ".", "", line(HEADER), "|---" * len(HEADER) + "|"]
        lines += [line(row) for row in rows(measured(told))]
        if told["benchmark"] == "grid":
            lines += ["", *quality(told["quality"])]
        if told["benchmark"] == "step_dropout":
            lines += ["", *kernels(told["rows"]["own masks"]["kernels"])]
        written.append("\n".join([*lines, "", f"![{title(told)}]({folder}/{name}.png)", ""]))
    return "\n".join(written)


def kernels(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the processor's time of a step goes into, by operation."""
    cells = [[f"`{k['name']}`", str(k["calls"]), f"{k['ms']:.1f}", f"{k['share']:.1%}"] for k in found]
    return [line(["operation of a step", "calls", "ms", "share"]), "|---" * 4 + "|", *map(line, cells)]


def quality(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean and deviation over seeds of both sides, and the difference over all methods with its 95 % interval."""
    lines = [line(["task", "method", "this suite", "Trainer + peft", "difference"]), "|---" * 5 + "|"]
    for row in found:
        if row["method"] is None:
            half = row["half_width"]
            difference = f"{row['difference']:+.3f}" + ("" if half is None else f" ± {half:.3f}")
            lines.append(line([row["task"], "all", f"{row['ours']:.3f}", f"{row['peft']:.3f}", difference]))
        else:
            sides = [row[side] for side in ("ours", "peft")]
            cells = [f"{s['mean']:.3f}" + ("" if s["sd"] is None else f" ± {s['sd']:.3f}") for s in sides]
            lines.append(line([row["task"], row["method"], *cells, ""]))
    return lines


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def replaced(text: str, inside: str) -> str:
    """The page with `inside` between its markers. Raises ValueError where they are not there, once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page must have {BEGIN} and {END} once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{inside}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
