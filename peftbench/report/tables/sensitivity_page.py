"""What a report says of the sensitivity of its verdicts: a sentence, a readable table, and rows for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peftbench.report.data.sensitivity import Change, Sensitivity
from peftbench.report.media.markdown import escape
from peftbench.report.tables import columns as tables
from peftbench.report.tables import formatting
from peftbench.report.tables.columns import Column
from peftbench.report.tables.formatting import listed

MOST = 5  # exceptions that a sentence names, beside those that turn a verdict round
TURNED = " instead of "
LEGEND = {
    "seed": (
        "The verdicts of the table, and what they become without one seed. Tied and behind: against the best; better, "
        "worse and open: against the reference, p corrected by Holm. Fewer seeds give wider intervals, so that a "
        "verdict which is lost whichever seed is left out may be lost for that alone. A dash: nothing to compare, or "
        "one seed is all that would be left."
    ),
    "task": (
        "The verdicts of the average, and what they become without one task. Tied and behind: mean ranks against the "
        "best, by Nemenyi's test; better, worse and open: whether the 95 % interval of the relative score leaves out "
        "1. Fewer tasks give a larger critical difference, so that a verdict which is lost whichever task is left out "
        "may be lost for that alone. A dash: nothing to compare, or too few tasks for the test."
    ),
}


def known(s: Sensitivity) -> bool:
    """Whether there is anything to show: a part was left out, and there is a verdict."""
    return bool(s.without) and any(o.best or o.reference for o in s.whole.values())


def sentence(s: Sensitivity, reference: str) -> str:
    """Which verdicts change without a part of the data.

    Args:
        s: what is known.
        reference: label of the reference.
    """
    parts, changes = len(s.without), s.changes
    if not changes:
        return f"Every verdict holds without any one of the {parts} {s.part}s."
    clauses = _clauses(s, reference)
    if len(clauses) <= MOST:
        return f"Verdicts hold without any one of the {parts} {s.part}s, except: {'; '.join(clauses)}."
    changed = len({change.label for change in changes})
    turned = "".join(f"; {clause}" for clause in clauses if TURNED in clause)
    return (
        f"Verdicts on {changed} of {len(s.whole)} configurations change without one or another of the {parts} "
        f"{s.part}s{turned}."
    )


def line(s: Sensitivity, reference: str, slug: str) -> str:
    """The sentence as Markdown, with links to the tables of the file name `slug`."""
    file = f"tables/{slug}--sensitivity"
    return f"{escape(sentence(s, reference))} All of them as [CSV]({file}.csv), [Markdown]({file}.md).\n"


def tables_of(s: Sensitivity, reference: str, slug: str, title: str) -> Iterator[tuple[str, str]]:
    """(file name, content) of the tables."""
    table = tables.markdown(columns(s, reference), list(s.whole))
    heading = f"# {escape(title)}: verdicts without each {s.part}"
    yield f"{slug}--sensitivity.md", f"{heading}\n\n{table}\n{escape(sentence(s, reference))}\n\n{LEGEND[s.part]}\n"
    yield f"{slug}--sensitivity.csv", tables.csv(rows(s))


def columns(s: Sensitivity, reference: str) -> list[Column]:
    """Columns of the readable table; its rows are labels."""
    return [
        Column("method", str),
        Column("against the best", lambda label: s.whole[label].best or formatting.DASH),
        Column(f"without a {s.part}, against the best", _changed(s, "best")),
        Column(f"against {reference}", lambda label: s.whole[label].reference or formatting.DASH),
        Column(f"without a {s.part}, against {reference}", _changed(s, "reference")),
    ]


def rows(s: Sensitivity) -> list[dict[str, Any]]:
    """One flat row per configuration and part.

    Returns:
        method: label of the configuration.
        without: the seed or task that is left out; None for all data.
        against_best: "tied" or "behind"; None if there is no verdict.
        against_reference: "better", "worse" or "open"; None if there is no verdict.
    """
    all_ = [(None, s.whole), *s.without.items()]
    return [
        {"method": label, "without": part, "against_best": o.best, "against_reference": o.reference}
        for label in s.whole
        for part, outcomes in all_
        if (o := outcomes.get(label))
    ]


def _changed(s: Sensitivity, against: str) -> Callable[[str], str]:
    def cell(label: str) -> str:
        changes = [c for c in s.changes_of(label) if c.against == against]
        return "; ".join(f"{c.after} without {_or(s, c.without)}" for c in changes) or _unchanged(s, label, against)

    return cell


def _unchanged(s: Sensitivity, label: str, against: str) -> str:
    compared = [o for outcomes in s.without.values() if (o := outcomes.get(label)) and getattr(o, against)]
    return "the same" if compared and getattr(s.whole[label], against) else formatting.DASH


def _clauses(s: Sensitivity, reference: str) -> list[str]:
    """The exceptions, those first that turn a verdict round; configurations with the same ones share a clause."""
    same: dict[tuple[str, str], list[str]] = {}
    for label in s.whole:
        phrases: dict[tuple[str, str], list[str]] = {}
        for change in s.changes_of(label):
            start, what, end = _phrase(s, change, reference)
            phrases.setdefault((start, end), []).append(what)
        for (start, end), whats in phrases.items():
            said = f"{start}{(' or ' if start else ' and ').join(whats)}"
            same.setdefault((said, end), []).append(label)
    clauses = [f"{listed(n)} {'is' if len(n) == 1 else 'are'} {said} {end}" for (said, end), n in same.items()]
    return sorted(clauses, key=lambda clause: TURNED not in clause)


def _phrase(s: Sensitivity, change: Change, reference: str) -> tuple[str, str, str]:
    """(how the words start, the verdict, without what) of a change."""
    behind = "behind" if s.part == "seed" else "behind in mean rank"
    words = {"behind": behind, "better": f"better than {reference}", "worse": f"worse than {reference}"}
    everywhere = len(change.without) == len(s.without)
    end = f"whichever {s.part} is left out" if everywhere else f"without {_or(s, change.without)}"
    if change.before not in words:
        return "", words[change.after], end
    if change.after in words:
        return "", f"{change.after}{TURNED}{words[change.before]}", end
    if everywhere:
        return "", words[change.before], f"only with all {len(s.without)} {s.part}s"
    return "no longer ", words[change.before], end


def _or(s: Sensitivity, parts: Sequence[str]) -> str:
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
    return f"seed {joined}" if s.part == "seed" else joined
