"""Deterministic, stratified splits that never have copies of one text on two sides.

A hash of its content decides the side of a row, independent of random generators and of the order of the file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from peftbench.tasks.dataset import Example, example

SHARE, MOST = 0.1, 1000  # a carved split has a tenth of the rows, at most a thousand
Key = Callable[[Example], str]  # rows with equal keys form a group


def normal(text: str) -> str:
    """Normalise a text for the comparison of copies: fold case and white space."""
    return " ".join(text.casefold().split())


def by_text(e: Example) -> str:
    """Group rows by the first text, so that a premise with two hypotheses stays on one side."""
    return normal(e.text)


def by_content(e: Example) -> str:
    """Group rows by both texts."""
    return normal(e.text) + "\n" + normal(e.pair or "")


def distinct(rows: Sequence[Example], key: Key = by_content) -> list[Example]:
    """Return the first row of each group."""
    first: dict[str, Example] = {}
    for e in rows:
        first.setdefault(key(e), e)
    return list(first.values())


def without(rows: Sequence[Example], others: Sequence[Example], key: Key = by_content) -> list[Example]:
    """Return the rows that have no copy among the others."""
    taken = {key(e) for e in others}
    return [e for e in rows if key(e) not in taken]


def one_a_prompt(rows: Sequence[Example]) -> list[Example]:
    """Merge the examples of each prompt into one, with all its references. Rows without references stay."""
    if not any(e.references for e in rows):
        return list(rows)
    answers: dict[str, list[str]] = {}
    for e in rows:
        answers.setdefault(e.text, []).extend(e.references)
    return [example(text, references=references) for text, references in answers.items()]


def carve(
    rows: Sequence[Example],
    salt: str,
    key: Key = by_text,
    share: float = SHARE,
    most: int = MOST,
    least: int = 1,
) -> tuple[list[Example], list[Example]]:
    """Carve a split from rows: about the same share of each class, in whole groups.

    Regression is stratified by tenths of the labels' distribution.

    Args:
        rows: the examples.
        salt: makes several carvings of the same rows independent.
        key: decides the groups.
        share: the share of the rows to carve.
        most: the largest number of rows to carve.
        least: the smallest number of rows to aim at.

    Returns:
        The rest and the carved rows, both in the original order.
    """
    target = max(min(round(share * len(rows)), most), least)
    groups, strata = _groups_by_stratum(rows, key)
    carved: set[int] = set()
    seen = 0
    for stratum in sorted(strata, key=str):
        seen += sum(len(groups[k]) for k in strata[stratum])
        quota = target * seen / len(rows)  # for all strata so far, so that rounding errors do not add up
        for k in sorted(strata[stratum], key=lambda k: _hash(salt, k)):
            # take a whole group if that brings the number nearer to the quota
            if len(carved) + len(groups[k]) / 2 <= quota and len(carved) + len(groups[k]) <= most:
                carved.update(groups[k])
    if not carved and len(groups) > 1:  # in tiny sets every quota may round to 0
        carved.update(groups[min(groups, key=lambda k: (len(groups[k]), k))])
    return [e for i, e in enumerate(rows) if i not in carved], [e for i, e in enumerate(rows) if i in carved]


def _groups_by_stratum(rows: Sequence[Example], key: Key) -> tuple[dict[str, list[int]], dict[Hashable, list[str]]]:
    """Return the rows' indices by group, and the groups by the stratum of their first row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, e in enumerate(rows):
        groups[key(e)].append(i)
    strata: dict[Hashable, list[str]] = defaultdict(list)
    stratum_of = _strata(rows)
    for k, members in groups.items():
        strata[stratum_of(rows[members[0]])].append(k)
    return groups, strata


def _hash(salt: str, key: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{key}".encode("utf-8", "surrogatepass")).digest()


def _strata(rows: Sequence[Example]) -> Callable[[Example], Hashable]:
    """Return the function from an example to its class, or to the tenth of the labels' distribution it is in."""
    values = sorted(float(e.label) for e in rows if isinstance(e.label, float))
    if not values:
        return lambda e: e.label
    cuts = sorted({values[len(values) * i // 10] for i in range(1, 10)})
    return lambda e: sum(float(e.label or 0.0) >= c for c in cuts)
