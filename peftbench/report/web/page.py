"""Builds `index.html`: one page with every table of a report, its numbers, charts and scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.media.plain import natural, visible
from peftbench.report.web import bundle, charts, facts, sections, template, wording

NAME = "index.html"
Shown = Comparison | Latencies | Tuning | Average | AxisCurve  # as report/write/slugs.py names them


def build(shown: Sequence[Shown], runs: str = "../runs") -> bytes:
    """Build the page.

    Args:
        shown: the tables of a report, each with a slug of its own.
        runs: address of the folder with the records, as seen from the page; empty for records that are not at hand.

    Returns:
        The page, the same bytes for the same records and versions of the libraries.
    """
    results = _results(shown, runs)
    return (
        template.of("page.html.j2")
        .render(
            title=", ".join(dict.fromkeys(visible(x.experiment) for x in shown)),
            setting=sections.setting([x for x in shown if isinstance(x, Comparison)]),
            results=results,
            style=template.style(),
            facts=block(shown, results),
            bundle=template.safe(bundle.scripts()),
            script=template.scripts(),
        )
        .encode()
    )


def block(shown: Sequence[Shown], results: Sequence[Mapping[str, Any]] = ()) -> Any:
    """The numbers of the page as JSON that is safe within a script element."""
    tables = [x for x in shown if isinstance(x, Comparison)]
    slugs = {id(c): c.slug for c in tables}
    content = {
        "tables": {c.slug: facts.of_table(c) for c in tables},
        "averages": {a.slug: facts.of_average(a, tables, slugs) for a in shown if isinstance(a, Average)},
        "series": {r["slug"]: r["series"] for r in results},
        "sources": {r["slug"]: {"runs": r["runs"], "of": r["sources"]} for r in results if r["sources"]},
        "charts": charts.templates(),
        "shapes": charts.SHAPES,
        "inks": charts.INKS,
        "parts": charts.PARTS,
        "text": wording.template_block(),
    }
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return template.safe(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _results(shown: Sequence[Shown], runs: str) -> list[dict[str, Any]]:
    """What the page shows one at a time: averages and curves first, then tables, then what belongs to no table."""
    results = []
    for name in sorted({x.experiment for x in shown}, key=natural):
        group = [x for x in shown if x.experiment == name]
        tables = [x for x in group if isinstance(x, Comparison)]
        used: set[int] = set()
        results += [sections.of_average(a, tables) for a in group if isinstance(a, Average)]
        results += [sections.of_axis(a) for a in group if isinstance(a, AxisCurve)]
        for c in tables:
            results.append(sections.of_table(c, [x for x in group if _belongs(x, c)], runs))
            used |= {id(x) for x in group if _belongs(x, c)}
        alone = [x for x in group if isinstance(x, (Latencies, Tuning)) and id(x) not in used]
        results += [sections.alone(x, runs) for x in alone]
    many = len({x.experiment for x in shown}) > 1
    return [{**r, "title": f"{r['experiment']}: {r['title']}"} if many else r for r in results]


def _belongs(x: Shown, c: Comparison) -> bool:
    """Whether a pass or trials are of a table's task."""
    match x:
        case Latencies():
            return x.profile.spec.task.name == c.task
        case Tuning():
            return x.task == c.task
    return False
