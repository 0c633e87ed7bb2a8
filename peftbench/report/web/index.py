"""The index of a site: every result set with its verdicts, each with a link to its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftbench.report.data.average import Average
from peftbench.report.data.comparison import Comparison
from peftbench.report.media.plain import visible
from peftbench.report.web import sections, side_by_side, template, wording


@dataclass(frozen=True)
class Entry:
    """A result set: the file of its page, its name, and its tables."""

    file: str
    name: str
    shown: Sequence[Any]


def build(entries: Sequence[Entry]) -> bytes:
    """Build the index.

    Args:
        entries: the result sets, in the order of the list.
    """
    sets = [_of(e) for e in entries]
    beside = side_by_side.of([(e.file, e.name, [x for x in e.shown if isinstance(x, Comparison)]) for e in entries])
    page = template.of("index.html.j2")
    return page.render(sets=sets, beside=beside, style=template.style(), script=template.script("index.js")).encode()


def _of(e: Entry) -> dict[str, Any]:
    tables = [x for x in e.shown if isinstance(x, Comparison)]
    averages = [x for x in e.shown if isinstance(x, Average)]
    said = [
        (
            f"{wording.all_of(len(a.tasks) or len(tables)).capitalize()} tasks",
            wording.over_tasks(a, [c for c in tables if c.experiment == a.experiment]),
            a.slug,
        )
        for a in averages
        if not a.variant
    ] + [(visible(c.title), wording.of(c), c.slug) for c in tables]
    return {
        "file": e.file,
        "name": visible(e.name),
        "setting": sections.setting(tables),
        "verdicts": [{"title": title, "first": s[0], "rest": s[1:], "slug": slug} for title, s, slug in said],
        "other": [] if tables else sorted({visible(x.title) for x in e.shown if hasattr(x, "title")}),
    }
