"""Splitting: deterministic, stratified, and never with copies of one text on two sides.

Which rows go where depends on their content alone (a hash), not on a random generator or on the order of the file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from peftbench.tasks.dataset import Example

SHARE, MOST = 0.1, 1000  # of a carved split: a tenth of the rows, at most a thousand
Key = Callable[[Example], str]


def normal(text: str) -> str:
    """The text as far as it counts for being a copy: case and white space do not."""
    return " ".join(text.casefold().split())


def by_text(e: Example) -> str:
    """Rows of one group share the first text: also a premise used with two hypotheses stays on one side."""
    return normal(e.text)


def by_content(e: Example) -> str:
    """Rows of one group share both texts."""
    return normal(e.text) + "\n" + normal(e.pair or "")


def distinct(rows: Sequence[Example], key: Key = by_content) -> list[Example]:
    """The first row of every group."""
    first: dict[str, Example] = {}
    for e in rows:
        first.setdefault(key(e), e)
    return list(first.values())


def without(rows: Sequence[Example], others: Sequence[Example], key: Key = by_content) -> list[Example]:
    """`rows` less those that have a copy among `others`."""
    taken = {key(e) for e in others}
    return [e for e in rows if key(e) not in taken]


def carve(
    rows: Sequence[Example],
    salt: str,
    key: Key = by_text,
    share: float = SHARE,
    most: int = MOST,
    least: int = 1,
) -> tuple[list[Example], list[Example]]:
    """(rest, carved), both in the rows' order: about `share` of every class, at most `most` rows, whole groups only.

    Regression is stratified by tenths of the label's distribution. `salt` makes several carvings independent.
    """
    wanted = max(min(round(share * len(rows)), most), least)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, e in enumerate(rows):
        groups[key(e)].append(i)
    strata: dict[Hashable, list[str]] = defaultdict(list)
    stratum_of = _strata(rows)
    for k, members in groups.items():
        strata[stratum_of(rows[members[0]])].append(k)
    carved: set[int] = set()
    seen = 0
    for stratum in sorted(strata, key=str):
        seen += sum(len(groups[k]) for k in strata[stratum])
        quota = wanted * seen / len(rows)  # of all strata so far: what one rounds away, the next makes up for
        for k in sorted(strata[stratum], key=lambda k: _hash(salt, k)):
            # whole groups, as long as that brings the number nearer to the quota
            if len(carved) + len(groups[k]) / 2 <= quota and len(carved) + len(groups[k]) <= most:
                carved.update(groups[k])
    if not carved and len(groups) > 1:  # tiny sets: every quota rounded to nothing
        carved.update(groups[min(groups, key=lambda k: (len(groups[k]), k))])
    return [e for i, e in enumerate(rows) if i not in carved], [e for i, e in enumerate(rows) if i in carved]


def _hash(salt: str, key: str) -> bytes:
    return hashlib.sha256(f"{salt}\n{key}".encode("utf-8", "surrogatepass")).digest()


def _strata(rows: Sequence[Example]) -> Callable[[Example], Hashable]:
    """A function from an example to its class, or to the tenth of the labels' distribution it lies in."""
    values = sorted(float(e.label) for e in rows if isinstance(e.label, float))
    if not values:
        return lambda e: e.label
    cuts = sorted({values[len(values) * i // 10] for i in range(1, 10)})
    return lambda e: sum(float(e.label or 0.0) >= c for c in cuts)
