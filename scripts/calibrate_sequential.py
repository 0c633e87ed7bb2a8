"""How often seeds until decided lead to a wrong claim, and how many seeds they save, on runs with a known truth.

    python scripts/calibrate_sequential.py

writes results/calibration/sequential.json and a table in docs/statistics.md. The runs are drawn as in
`calibrate_statistics`; each table is judged look by look by `peftbench.report.data.decisions`, as records are. With
tuning, each method first takes the best of six configurations by their scores of one seed on validation examples; the
truth is then the accuracy of what it took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import calibrate_statistics as drawn
import numpy as np
from calibrate_statistics import TABLES, USUAL, Array, Truth, rate

from peftbench.records.design import Claim, Design
from peftbench.report.data import decisions
from peftbench.report.data.decisions import Decisions
from peftbench.report.stats import spending

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "results" / "calibration" / "sequential.json"
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- sequential: made by scripts/calibrate_sequential.py -->", "<!-- sequential ends -->"
MARGIN = 0.02
SHARP = replace(USUAL, own=0.01, examples=500)  # so that 30 seeds tell the margin from none
OFFERED = np.array([0.0, 0.0, -0.01, -0.02, -0.03, -0.05])  # what a tuned method chooses from
VALIDATION = 200  # examples
FEWEST = 0.2  # share of decided rows below which designs are not compared
FIXED = (3, 5, 8, 12, 16, 20, 25, 30)  # seeds of fixed designs, to compare with
LONG, SHORT = spending.looks(3, 30), spending.looks(2, 10)
WORDS = {"the same, 5 points": "the same (1.0), 5 points apart"}
QUESTIONS = [Claim(method="1", against="0"), Claim(method="2", against="0", relation="not_worse")]


@dataclass(frozen=True)
class Table:
    """How the true accuracies of a table's rows differ; row 0 is the reference.

    Attributes:
        runs: how its runs are drawn.
        gaps: of row 0, row 1, and then in turn of the others, from ACCURACY; from one to the other if `steps`.
        last: the gap of the last row, if it differs.
        tuned: whether each method chooses its configuration first.
    """

    runs: Truth
    gaps: tuple[float, ...] = (0.0,)
    last: float | None = None
    steps: bool = False
    tuned: bool = False

    def of(self, rows: int) -> Array:
        """(rows,) differences from ACCURACY."""
        turn = self.gaps[2:] or self.gaps
        found = [self.gaps[i] if i < min(2, len(self.gaps)) else turn[i % len(turn)] for i in range(rows)]
        if self.last is not None:
            found[-1] = self.last
        return np.linspace(*self.gaps, rows) if self.steps else np.array(found)


EQUAL = tuple(Table(t) for t in TABLES)
DIFFERENT = (
    Table(replace(USUAL, what="one row 2 points better than all others"), last=MARGIN),
    Table(replace(USUAL, what="every other row 5 points worse"), (0.0, -0.05)),
    Table(replace(USUAL, what="all rows within 1 point, in even steps"), (0.0, -0.01), steps=True),
    Table(replace(SHARP, what="one row the margin behind the best, the others far"), (0.0, -MARGIN, -0.1)),
    Table(replace(SHARP, what="every other row the margin from the reference"), (0.0, -MARGIN)),
)
TUNED = (
    Table(replace(USUAL, what="after tuning, seeds 2 points apart"), tuned=True),
    Table(replace(SHARP, what="after tuning, seeds 1 point apart"), tuned=True),
)
ALL = (*EQUAL, *DIFFERENT, *TUNED)
FEW = (EQUAL[0], EQUAL[5], EQUAL[10], *DIFFERENT, TUNED[1])
SHARPEST = (EQUAL[0], EQUAL[5], EQUAL[6], EQUAL[8], EQUAL[10], DIFFERENT[0], *DIFFERENT[3:], TUNED[1])
CELLS = (  # truths, rows, looks, whether questions are planned, repeats
    (ALL, 3, LONG, False, 1000),
    (SHARPEST, 3, SHORT, True, 1000),
    (FEW, 8, LONG, False, 500),
    ((EQUAL[0], DIFFERENT[4]), 19, LONG, False, 500),
)


def main() -> None:
    found: list[dict[str, Any]] = []
    for truths, rows, looks, asks, repeats in CELLS:
        found += [cell(t, rows, looks, asks, repeats) for t in truths]
        OUT.write_text(json.dumps({"margin": MARGIN, "cells": found}, indent=1) + "\n")
    PAGE.write_text(replaced(PAGE.read_text(), found))
    print(section(found))


def cell(t: Table, rows: int, looks: Sequence[int], asks: bool, repeats: int) -> dict[str, Any]:
    """Wrong claims and seeds of one truth, in tables of this many rows."""
    random = drawn.stream("sequential", asdict(t), rows, looks, asks, repeats)
    design = Design(margin=MARGIN, looks=list(looks), claims=QUESTIONS if asks else [])
    wrong = np.zeros(4, int)
    decided, versus, seeds, of_decided = [], [], [], []
    fixed: dict[int, list[float]] = {n: [] for n in (*FIXED, looks[-1]) if looks[0] <= n <= looks[-1]}
    began = time.process_time()
    for i in range(repeats):
        gaps = t.of(rows)
        gaps = _tuned(t.runs, gaps, random) if t.tuned else gaps
        known = {str(m): s for m, s in enumerate(drawn.runs(t.runs, gaps, looks[-1], random, exact=True))}
        attempted = {label: list(range(looks[-1])) for label in known}
        d = decisions.decide(known, attempted, "0", "max", MARGIN, design)
        wrong += wrong_claims(d, gaps)
        decided += [r.place_at is not None for r in d.rows.values()]
        versus += [r.versus is not None for label, r in d.rows.items() if label != "0"]
        seeds += [r.seeds for r in d.rows.values()]
        of_decided += [r.place_at for r in d.rows.values() if r.place_at is not None]
        for n in fixed if i < repeats // 10 else ():
            at_once = Design(margin=MARGIN, looks=[n])
            then = decisions.decide(known, attempted, "0", "max", MARGIN, at_once)
            fixed[n].append(np.mean([r.place_at is not None for r in then.rows.values()]))
    names = ("best", "any_best", "reference", "questions")
    print(f"{t.runs.what}, {rows} rows, {looks}: {wrong} of {repeats}, {np.mean(seeds):.1f} seeds, "
          f"{time.process_time() - began:.0f} s", flush=True)  # fmt: skip
    return {
        "what": t.runs.what,
        "rows": rows,
        "looks": list(looks),
        "asks": asks,
        "repeats": repeats,
        **{name: rate(int(k), repeats) for name, k in zip(names, wrong, strict=True)},
        "decided": round(float(np.mean(decided)), 4),
        "versus_decided": round(float(np.mean(versus)), 4),
        "seeds": round(float(np.mean(seeds)), 2),
        "seeds_of_decided": round(float(np.mean(of_decided)), 2) if of_decided else None,
        "fixed_decided": {n: round(float(np.mean(shares)), 4) for n, shares in fixed.items()},
    }


def _tuned(t: Truth, gaps: Array, random: np.random.RandomState) -> Array:
    """The true differences of what each method chooses by one seed on validation examples of its own."""
    offered = (gaps[:, None] + OFFERED).ravel()
    scores = drawn.runs(replace(t, examples=VALIDATION), offered, 1, random)
    best = np.array([s.values[0] for s in scores]).reshape(len(gaps), -1).argmax(1)
    return gaps + OFFERED[best]


def wrong_claims(d: Decisions, gaps: Array) -> list[bool]:
    """Whether a table is wrong on the best, on any of several best, on the reference, and on a planned question."""
    best = gaps.max()
    within = any(d.is_within(str(i)) and best - g > MARGIN - 1e-9 for i, g in enumerate(gaps))
    behind = [d.rows[str(i)].behind for i, g in enumerate(gaps) if g == best]
    versus = any(_is_wrong(d.rows[str(i)].versus, g - gaps[0]) for i, g in enumerate(gaps))
    asked = any(_is_wrong(q.found, _ahead(q, gaps)) or _is_wrong(q.holds, _ahead(q, gaps)) for q in d.questions)
    return [behind[0] or within, any(behind) or within, versus, asked]


def _ahead(q: decisions.Question, gaps: Array) -> float:
    return float(gaps[int(q.claim.method)] - gaps[int(q.claim.against)])


def _is_wrong(answer: str | bool | None, ahead: float) -> bool:
    """Whether an answer is wrong: of how two rows compare, or of whether one is not worse by more than the margin."""
    tiny = 1e-9
    return {
        "better": ahead <= tiny,
        "worse": ahead >= -tiny,
        "equal": abs(ahead) >= MARGIN - tiny,
        True: ahead <= -MARGIN + tiny,
        False: ahead > -MARGIN + tiny,
        None: False,
    }[answer]


def same_power(r: Mapping[str, Any]) -> float | None:
    """Seeds of a fixed design that decides as many rows, between the two nearest; None where hardly any are."""
    if r["decided"] < FEWEST:
        return None
    shares = np.maximum.accumulate(list(r["fixed_decided"].values()))
    return float(np.interp(r["decided"], shares, [int(n) for n in r["fixed_decided"]]))


def replaced(text: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The page's text with its tables as `found` has them."""
    before, _, rest = text.partition(BEGIN)
    return before + section(found) + rest.partition(END)[2]


def section(found: Sequence[Mapping[str, Any]]) -> str:
    """What stands between the two markers."""
    return "\n".join([BEGIN, *_section(found), END])


def _section(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    from tabulate import tabulate

    heads = ["truth", "best: wrong", "any best", "reference: wrong", "best: decided", "reference: decided", "seeds",
             "of decided", "fixed, as many decided", "saved"]  # fmt: skip
    kinds = dict.fromkeys((r["rows"], tuple(r["looks"]), r["asks"], r["repeats"]) for r in found)
    for rows, looks, asks, repeats in kinds:
        cells = [r for r in found if (r["rows"], tuple(r["looks"]), r["asks"]) == (rows, looks, asks)]
        planned = ", with two planned questions" if asks else ""
        yield f"\n{rows} rows, looks at {', '.join(map(str, looks))} seeds{planned} ({repeats:,} tables each):"
        lines = [_line(r) + ([_percent(r["questions"])] if asks else []) for r in cells]
        table = tabulate(lines, [*heads, *(["questions: wrong"] if asks else [])], "pipe", disable_numparse=True,
                         colalign=["left", *["right"] * (len(lines[0]) - 1)])  # fmt: skip
        yield f"\n{table}"
    yield ""


def _line(r: Mapping[str, Any]) -> list[str]:
    as_many = same_power(r)
    return [
        WORDS.get(r["what"], r["what"]),
        _percent(r["best"]),
        f"{100 * r['any_best'][0]:.1f}",
        _percent(r["reference"]),
        f"{100 * r['decided']:.0f}",
        f"{100 * r['versus_decided']:.0f}",
        f"{r['seeds']:.1f}",
        "—" if r["seeds_of_decided"] is None else f"{r['seeds_of_decided']:.1f}",
        "—" if as_many is None else f"{as_many:.0f}",
        "—" if as_many is None else f"{100 * (1 - r['seeds'] / as_many):.0f}",
    ]


def _percent(found: Sequence[float]) -> str:
    share, low, high = (100 * v for v in found)
    return f"{share:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
