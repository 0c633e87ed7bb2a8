"""Ways through the page of a report: its contents, the anchors that they lead to, and parts that are folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from peftbench.report.data.average import Average
from peftbench.report.data.axis_curves import AxisCurve
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.latencies import Latencies
from peftbench.report.data.tunings import Tuning
from peftbench.report.media.markdown import escape
from peftbench.report.write.slugs import Shown

ORDER = (Average, AxisCurve, Comparison, Latencies, Tuning)  # of the sections of an experiment


def heading(x: Shown) -> str:
    """The heading of a section, with the anchor that the contents lead to: a file name, so no name of somebody's."""
    return f'<a id="{x.slug}"></a>\n\n### {escape(title(x))}\n'


def title(x: Shown) -> str:
    """What a section is called."""
    if isinstance(x, Average):
        return "Average over tasks"
    return f"Latency, {x.title}" if isinstance(x, Latencies) else x.title


def contents(by_experiment: Mapping[str, Sequence[Shown]]) -> str:
    """A list of links to every section, by experiment, in the order of the page."""
    lines = []
    for name, group in by_experiment.items():
        lines.append(f"- {escape(name)}")
        lines += [f"  - [{_linked(title(x))}](#{x.slug})" for x in in_order(group)]
    return "\n".join([*lines, "- [How to read the tables](#how-to-read)", ""])


def in_order(group: Sequence[Shown]) -> list[Shown]:
    """The sections of an experiment as the page has them."""
    return [x for kind in ORDER for x in group if isinstance(x, kind)]


def folded(summary: str, parts: Iterable[str]) -> str:
    """Parts of the page under one line that opens them; empty without parts.

    Args:
        summary: the line, without a name of somebody's.
        parts: Markdown, which GitHub reads as such between empty lines. Python-Markdown takes it for HTML, so that it
            must be escaped as `media.markdown.escape` does: it may hold no block of code.
    """
    inside = "\n".join(part.rstrip("\n") + "\n" for part in parts)
    return f"<details>\n<summary>{summary}</summary>\n\n{inside}\n</details>\n" if inside else ""


def _linked(text: str) -> str:
    """A name within a link: brackets would end its text."""
    return escape(text).replace("\\[", "[").replace("\\]", "]").replace("[", "&#91;").replace("]", "&#93;")
