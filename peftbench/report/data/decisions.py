"""What is decided in a table, look by look: who is behind the best, who is within the margin of it, and who goes on.

Two questions are asked of every row. Each has an error of 5 % over all rows, or of 2.5 % where looks are planned:

- **The best.** Multiple comparisons with the best (Hsu, Ann. Stat. 12, 1984; Edwards and Hsu, J. Am. Stat. Assoc. 78,
  1983), each pair one-sided at level / (rows - 1). A row is *behind* if another is surely better than it; the others
  are candidates. A row is *within the margin* if it is surely not worse than each candidate by more than the margin.
  With at most the level's probability the best is called behind, or a row within the margin that is not: one event,
  that no row seems better compared with the best than it is, implies all claims. Of several equally good rows this
  holds for any given one, and "behind" means that another is at least as good.
- **The reference.** Each row is better, worse, or equal within the margin (two one-sided tests: Schuirmann, J.
  Pharmacokinet. Biopharm. 15, 1987), each row at level / (rows - 1). Whatever the truth, one kind of claim on a row can
  be wrong, so that the two tests need not share its level. Holm's method would not keep it: a row that is rightly
  called different passes on a level of which its test of equality has spent a part.

Beside them stand **planned questions**, which a file asks of two methods before the runs. They have 5 % of their own,
shared equally, and change nothing of what is said of the best.

With planned looks the level of each test is spent over them (`stats.spending`). A pair is tested at a look only if
both rows have the seeds of that look. What is decided stays so, and a row stops once nothing more is asked of it:
neither for itself (a row behind goes on while it may yet be within the margin) nor because an open row must be compared
with it. A question of which even the last look would probably decide nothing is given up (futility, which cannot raise
the error).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from peftbench.records.design import FIXED, Claim, Design, Relation
from peftbench.report.data import scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import equivalence, intervals, moderated, power, spending
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate, Scores

ALPHA = 1 - LEVEL
POINTS = 0.02  # the margin where the file names none, as a share of the metric's unit range
FUTILE = 0.1  # a question stops when its chance of being decided by the last look is below this

Gaps = Mapping[str, Estimate]  # label -> how far it is ahead of one row
Test = tuple[Estimate, float, float]  # one-sided: the gap, what it must exceed, and the level


@dataclass
class Row:
    """What is known of one row.

    Attributes:
        label: its label.
        behind: whether another row is surely better.
        cleared: candidates than which it is surely not worse by more than the margin.
        versus: "better", "worse" or "equal", compared with the reference; None if open, or for the reference itself.
        place_at, versus_at: numbers of seeds at which the two questions were decided; None if open.
        is_hopeless, versus_is_hopeless: whether even the last look would probably not decide the two.
        is_out: whether it has too few scores to be compared, and gets no more.
        seeds: number of seeds that it has, or is to have.
    """

    label: str
    behind: bool = False
    cleared: set[str] = field(default_factory=set)
    versus: str | None = None
    place_at: int | None = None
    versus_at: int | None = None
    is_hopeless: bool = False
    versus_is_hopeless: bool = False
    is_out: bool = False
    seeds: int = 0


@dataclass
class Question:
    """A planned question, and what is known of it.

    Attributes:
        claim: what is asked.
        gap: how far the method is ahead of the other, in the metric's unit; above 0 is better. None until both have two
            seeds.
        found: "better", "worse" or "equal" (within the margin); None if open.
        holds: whether the claim is right; None if open, or if it claims nothing.
        decided_at: number of seeds that decided it.
    """

    claim: Claim
    gap: Estimate | None = None
    found: str | None = None
    holds: bool | None = None
    decided_at: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether more seeds are wanted for it."""
        return self.holds is None if self.claim.relation else self.found is None


@dataclass(frozen=True)
class Decisions:
    """The state of a table.

    Attributes:
        rows: label -> row.
        questions: the planned questions.
        margin: largest difference that does not matter, in the metric's unit.
        looks: the planned numbers of seeds; one number where they are fixed.
        looked: how many of the looks the records allow.
        going_on: label -> number of seeds that it is to have next; empty when all have stopped.
        surely: (row, candidate for the best) -> what the gap of the first is surely above and below, by all looks.
    """

    rows: Mapping[str, Row]
    questions: Sequence[Question]
    margin: float
    looks: tuple[int, ...]
    looked: int
    going_on: Mapping[str, int]
    surely: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    @property
    def candidates(self) -> list[str]:
        """Labels of the rows that may be the best."""
        return [label for label, r in self.rows.items() if not r.behind and not r.is_out]

    def is_within(self, label: str) -> bool:
        """Whether a row is surely within the margin of the best."""
        return self.rows[label].place_at is not None and set(self.candidates) - {label} <= self.rows[label].cleared

    @property
    def open(self) -> list[str]:
        """Labels of the rows of which it is not known whether they are behind or within the margin."""
        return [label for label, r in self.rows.items() if r.place_at is None]


@weak_cache
def of(c: Comparison) -> Decisions:
    """What is decided in a table, by its own design. Computed once per comparison."""
    attempted = {e.label: sorted(r.spec.seed for r in e.runs) for e in c.entries}
    return decide(scores.of(c), attempted, c.reference, c.direction, margin_of(c), c.design)


def margin_of(c: Comparison) -> float:
    """The largest difference that does not matter: the experiment's, or else 2 points, or 2 % of the best score.

    With planned looks that is the best of the first look, so that later seeds do not change what is decided.
    """
    if c.design.margin is not None:
        return c.design.margin
    if c.metric in RANGES:
        low, high = RANGES[c.metric]
        return POINTS * (high if low < 0 else high - low)
    first = c.design.looks[0] if c.design.looks else None
    of_rows = ([e.scores[s] for s in sorted(r.spec.seed for r in e.runs)[:first] if s in e.scores] for e in c.entries)
    means = [math.fsum(values) / len(values) for values in of_rows if values]
    return POINTS * abs(min(means) if c.direction == "min" else max(means)) if means else 0.0


def decide(
    known: Mapping[str, Scores],
    attempted: Mapping[str, Sequence[int]],
    reference: str,
    direction: str,
    margin: float,
    design: Design = FIXED,
) -> Decisions:
    """Compute what is decided from scores alone.

    Args:
        known: label -> scores; a row without any is missing.
        attempted: label -> seeds that were tried, ascending, whether they gave a score or not. Look k takes the first
            `design.looks[k]` of them.
        reference: label of the reference; it may be missing.
        direction: "max" or "min", which of the two is better.
        margin: largest difference that does not matter, in the metric's unit; at least 0.
        design: looks, spending and questions; without looks, all seeds are looked at once.
    """
    looks = tuple(design.looks)
    table = _Table(attempted, reference, -1 if direction == "min" else 1, margin, design)
    going = dict.fromkeys(attempted, looks[0]) if looks else {}
    for k, n in enumerate(looks or (0,)):
        if any(len(attempted[label]) < n for label in going):
            return Decisions(table.rows, table.questions, margin, looks or (table.most,), k, going, table.surely)
        for label in going:
            table.rows[label].seeds = n
        table.look(_first(known, attempted, table.rows, bool(looks)), k, going or attempted)
        going = dict.fromkeys(table.needed(), looks[k + 1]) if k + 1 < len(looks) else {}
        if not going:
            break
    return Decisions(table.rows, table.questions, margin, looks or (table.most,), k + 1, going, table.surely)


def _first(
    known: Mapping[str, Scores], attempted: Mapping[str, Sequence[int]], rows: Mapping[str, Row], cut: bool
) -> dict[str, Scores]:
    """The scores that a look may use: those of the first seeds of each row."""
    found = {}
    for label, s in known.items():
        allowed = set(attempted[label][: rows[label].seeds] if cut else attempted[label])
        seeds = [seed for seed in s.seeds if seed in allowed]
        if seeds:
            found[label] = s if len(seeds) == len(s.seeds) else s.at(seeds)
    return found


class _Table:
    """The rows while looks go on."""

    def __init__(
        self, attempted: Mapping[str, Sequence[int]], reference: str, sign: int, margin: float, design: Design
    ) -> None:
        self.rows = {label: Row(label, seeds=len(seeds)) for label, seeds in attempted.items()}
        self.most = max((len(seeds) for seeds in attempted.values()), default=0)
        self.reference, self.sign, self.margin = reference, sign, margin
        self.questions = [Question(claim) for claim in design.claims]
        self.looks, self.spending = tuple(design.looks), design.spending
        self.share = ALPHA / 2 if design.looks else ALPHA  # two questions share the error of a sequential design
        self.of_row = self.share / max(1, len(self.rows) - 1)
        self.of_question = ALPHA / max(1, len(self.questions))
        self.known: Mapping[str, Scores] = {}  # scores of the rows that can be compared, at the latest look
        self.new: set[str] = set()  # the rows among them that this look has given seeds
        self.waiting: set[str] = set()  # rows that have too few scores as yet
        self.gaps: dict[tuple[str, str], Estimate] = {}  # of two rows -> how far the first is ahead, at the latest look
        self.surely: dict[tuple[str, str], tuple[float, float]] = {}  # the tightest bounds of all looks
        self.ahead: dict[str, Gaps] = {}  # of each row -> how far the others are, with moderated variances

    def look(self, scored: Mapping[str, Scores], k: int, at: Collection[str]) -> None:
        """Decide what look k decides.

        Args:
            scored: the scores so far.
            k: number of the look.
            at: the rows that this look has given seeds.
        """
        self.known = {label: s for label, s in scored.items() if len(s.seeds) > 1}  # one seed says nothing of others
        self.new = set(at) & set(self.known)
        is_last = k + 1 >= len(self.looks)
        for label in set(at) - self.new:  # a row stops if it has tried two seeds or more in vain
            self.rows[label].is_out = is_last or (label not in scored and self.rows[label].seeds > 1)
        self.waiting = {label for label in at if label not in self.known and not self.rows[label].is_out}
        self.gaps, self.ahead = {}, {}
        self._answer(k)
        self._compare_with_best(k)
        self._compare_with_reference(k)
        if self.looks:
            self._give_up()

    def needed(self) -> list[str]:
        """Labels of the rows that must go on, in the table's order."""
        wanted = set(self.waiting)
        for row in (self.rows[label] for label in self.known):
            if self._asks_place(row) and not row.is_hopeless:
                wanted |= {row.label, *(self._candidates() - row.cleared)}
            if self._asks_reference(row) and not row.versus_is_hopeless:
                wanted |= {row.label, self.reference}
        for q in filter(self._is_worth_seeds, self.questions):
            wanted |= {q.claim.method, q.claim.against}
        return [label for label in self.rows if label in wanted]

    def _level(self, k: int, level: float) -> float:
        return spending.nominal_levels(self.looks, level, self.spending)[k] if self.looks else level

    def _compare_with_best(self, k: int) -> None:
        level = self._level(k, self.of_row)
        for label in sorted(self.new, key=lambda label: (-self.sign * self.known[label].values.mean(), label)):
            if self.rows[label].behind:
                continue  # so that most tables need few of their pairs
            for other, gap in self._ahead_of(label).items():
                if other in self.new:
                    low, high = equivalence.bounds(gap, level)
                    before = self.surely.get((other, label), (low, high))
                    self.surely[other, label] = max(low, before[0]), min(high, before[1])
                    self.rows[other].behind |= high < 0
                    if low > -self.margin:
                        self.rows[other].cleared.add(label)
        for label in self.known:
            row = self.rows[label]
            if row.place_at is None and (row.behind or self._candidates() - {label} <= row.cleared):
                row.place_at = row.seeds

    def _ahead_of(self, label: str) -> Gaps:
        """How far each other row is ahead of one, with moderated variances."""
        if label not in self.ahead:
            others = [other for other in self.known if other != label]
            gaps = moderated.moderate([self._gap(other, label) for other in others])
            self.ahead[label] = dict(zip(others, gaps, strict=True))
        return self.ahead[label]

    def _gap(self, one: str, other: str) -> Estimate:
        """How far one row is ahead of another; from the other side, the same with the other sign."""
        if (one, other) not in self.gaps:
            gap = intervals.difference(self.known[one], self.known[other])
            gap = gap if self.sign > 0 else gap.negative()
            self.gaps |= {(one, other): gap, (other, one): gap.negative()}
        return self.gaps[one, other]

    def _candidates(self) -> set[str]:
        return {label for label in {*self.known, *self.waiting} if not self.rows[label].behind}

    def _compare_with_reference(self, k: int) -> None:
        if self.reference not in self.new:
            return
        level = self._level(k, self.of_row)
        for label, gap in self._ahead_of(self.reference).items():
            row = self.rows[label]
            if row.versus is None and label in self.new and (found := _answered(self._ways(gap, level))):
                row.versus, row.versus_at = found, row.seeds

    def _asks_place(self, row: Row) -> bool:
        """Whether more seeds could say more: a row that is behind may still be within the margin."""
        return row.place_at is None or (row.behind and not self._candidates() <= row.cleared)

    def _asks_reference(self, row: Row) -> bool:
        return row.versus is None and row.label != self.reference and self.reference in {*self.known, *self.waiting}

    def _answer(self, k: int) -> None:
        level = self._level(k, self.of_question)
        for q in self.questions:
            if q.claim.method not in self.known or q.claim.against not in self.known:
                continue
            q.gap = self._ahead_of(q.claim.against)[q.claim.method]
            if not q.is_open or not {q.claim.method, q.claim.against} <= self.new:
                continue
            if q.found is None and (found := _answered(self._ways(q.gap, level))):
                q.found, q.decided_at = found, self.rows[q.claim.method].seeds
            if q.claim.relation and (answer := _answered(self._ways(q.gap, level, q.claim.relation))):
                q.holds, q.decided_at = answer == "right", self.rows[q.claim.method].seeds

    def _ways(self, gap: Estimate, level: float, claim: Relation | None = None) -> list[tuple[str, list[Test]]]:
        """(an answer, the tests that must all be sure to give it), of a claim or of how two rows compare."""
        back = gap.negative()
        better, worse = (gap, 0.0, level / 2), (back, 0.0, level / 2)
        not_worse, equal = (gap, -self.margin, level), [(gap, -self.margin, level), (back, -self.margin, level)]
        above, below = (gap, self.margin, level / 2), (back, self.margin, level / 2)
        match claim:
            case "better":
                return [("right", [better]), ("wrong", [worse])]
            case "worse":
                return [("right", [worse]), ("wrong", [better])]
            case "equal":
                return [("right", equal), ("wrong", [above]), ("wrong", [below])]
            case "not_worse":
                return [("right", [not_worse]), ("wrong", [below])]
            case None:
                return [("better", [better]), ("worse", [worse]), ("equal", equal)]

    def _is_worth_seeds(self, q: Question) -> bool:
        level = self._level(len(self.looks) - 1, self.of_question)
        return q.is_open and q.gap is not None and self._is_likely(self._ways(q.gap, level, q.claim.relation))

    def _give_up(self) -> None:
        """Mark what is open and would probably stay so at the last look."""
        level = self._level(len(self.looks) - 1, self.of_row)
        for label in self.new:
            row = self.rows[label]
            if self._asks_place(row) and not row.is_hopeless:
                row.is_hopeless = not self._is_likely(self._ways_to_place(row, level))
            if self._asks_reference(row) and self.reference in self.known and not row.versus_is_hopeless:
                ways = self._ways(self._ahead_of(self.reference)[label], level)
                row.versus_is_hopeless = not self._is_likely(ways)

    def _ways_to_place(self, row: Row, level: float) -> list[tuple[str, list[Test]]]:
        others = {o: self._ahead_of(o)[row.label] for o in self._candidates() - self.waiting - {row.label}}
        behind = [] if row.behind else [("behind", [(gap.negative(), 0.0, level)]) for gap in others.values()]
        return [*behind, ("within", [(gap, -self.margin, level) for o, gap in others.items() if o not in row.cleared])]

    def _is_likely(self, ways: Sequence[tuple[str, Sequence[Test]]]) -> bool:
        """Whether the last look has a chance to give one of some answers."""
        return any(all(power.chance_above(gap, bound, self.looks[-1], level) >= FUTILE for gap, bound, level in tests)
                   for _, tests in ways)  # fmt: skip


def _answered(ways: Sequence[tuple[str, Sequence[Test]]]) -> str | None:
    """The first answer that is sure."""
    return next((answer for answer, tests in ways if all(equivalence.is_above(*test) for test in tests)), None)
