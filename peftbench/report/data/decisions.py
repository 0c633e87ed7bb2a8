"""What is decided in a table, look by look: who is behind the best, who is within the margin of it, and who goes on.

Two questions are asked of every row, each at its share of 5 %:

- **The best.** Multiple comparisons with the best (Hsu, Ann. Stat. 12, 1984; Edwards and Hsu, J. Am. Stat. Assoc. 78,
  1983), each pair one-sided at level / (rows - 1). A row is *behind* if another is surely better than it; the others
  are candidates. A row is *within the margin* if it is surely not worse than each candidate by more than the margin.
  One event implies all of these claims: no row seems better than the true best by more than it is.
- **The reference.** Each row is better, worse, or equal within the margin (two one-sided tests: Schuirmann, J.
  Pharmacokinet. Biopharm. 15, 1987), corrected by Holm's method over the rows.

Beside them stand **planned questions**, which a file asks of two methods before the runs. They have a level of their
own, 5 % corrected by Holm's method over the questions alone.

With planned looks the level of each test is spent over them (`stats.spending`). What is decided at a look stays so. A
row stops once nothing more is asked of it: neither for itself nor because an open row must be compared with it. Holm's
correction over rows that stop at different looks is that of Tang and Geller (Biometrics 55, 1999). A row of which even
the last look would decide nothing stops as well (futility, which cannot raise the error).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from peftbench.records.design import FIXED, Claim, Design
from peftbench.report.data import scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.weak_cache import weak_cache
from peftbench.report.stats import intervals, moderated, power, spending
from peftbench.report.stats.intervals import LEVEL, RANGES, Estimate, Scores

ALPHA = 1 - LEVEL
POINTS = 0.02  # the margin where the file names none, as a share of the metric's unit range
FUTILE = 0.1  # a question stops when its chance of being decided by the last look is below this

Gaps = Mapping[str, Estimate]  # label -> how far it is ahead of one row
Test = Callable[[Estimate, float], str | None]  # a gap and a level -> the answer, if one is sure


@dataclass
class Row:
    """What is known of one row.

    Attributes:
        label: its label.
        behind: whether another row is surely better.
        cleared: candidates than which it is surely not worse by more than the margin.
        versus: "better", "worse" or "equal", compared with the reference; None if open, or for the reference itself.
        place_at, versus_at: numbers of seeds at which the two questions were decided; None if open.
        is_hopeless: whether no seeds up to the last look would probably decide what is open.
        seeds: number of seeds that it has, or is to have.
    """

    label: str
    behind: bool = False
    cleared: set[str] = field(default_factory=set)
    versus: str | None = None
    place_at: int | None = None
    versus_at: int | None = None
    is_hopeless: bool = False
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
    """

    rows: Mapping[str, Row]
    questions: Sequence[Question]
    margin: float
    looks: tuple[int, ...]
    looked: int
    going_on: Mapping[str, int]

    @property
    def candidates(self) -> list[str]:
        """Labels of the rows that may be the best."""
        return [label for label, r in self.rows.items() if not r.behind]

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
    """The largest difference that does not matter: the experiment's, or else 2 points, or 2 % of the best score."""
    if c.design.margin is not None:
        return c.design.margin
    if c.metric in RANGES:
        low, high = RANGES[c.metric]
        return POINTS * (high if low < 0 else high - low)
    means = [e.mean for e in c.entries if e.mean is not None]
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
        design: looks, spending and questions; without looks, all seeds are looked at once, each question at 5 %.
    """
    looks = tuple(design.looks)
    table = _Table(attempted, reference, -1 if direction == "min" else 1, margin, design)
    going = dict.fromkeys(attempted, looks[0]) if looks else {}
    for k, n in enumerate(looks or (0,)):
        if any(len(attempted[label]) < n for label in going):
            return Decisions(table.rows, table.questions, margin, looks or (table.most,), k, going)
        for label in going:
            table.rows[label].seeds = n
        now = _first(known, attempted, table.rows, bool(looks))
        table.look(now, k)
        going = dict.fromkeys(table.needed(now), looks[k + 1]) if k + 1 < len(looks) else {}
        if not going:
            break
    return Decisions(table.rows, table.questions, margin, looks or (table.most,), k + 1, going)


def _first(
    known: Mapping[str, Scores], attempted: Mapping[str, Sequence[int]], rows: Mapping[str, Row], cut: bool
) -> dict[str, Scores]:
    """The scores that a look may use: those of the first seeds of each row."""
    found = {}
    for label, s in known.items():
        allowed = set(attempted[label][: rows[label].seeds] if cut else attempted[label])
        seeds = [seed for seed in s.seeds if seed in allowed]
        if len(seeds) > 1:  # one seed says nothing of others
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
        self.tested = len(self.rows)  # rows that the error is divided among
        self.share = ALPHA / 2 if design.looks else ALPHA  # two questions share the error of a sequential design
        self.ahead: dict[str, Gaps] = {}  # of each row -> how far the others are ahead of it, at the latest look

    def look(self, known: Mapping[str, Scores], k: int) -> None:
        """Decide what the scores of look k decide."""
        self.ahead = {}
        if not self.looks:
            self.tested = len(known)
        self._answer(known, k)
        self._compare_with_best(known, k)
        if self.reference in known:
            self._compare_with_reference(known, k)
        self._give_up(known, k)

    def needed(self, known: Collection[str]) -> list[str]:
        """Labels of the rows that must go on, in the table's order."""
        wanted = set[str]()
        for row in (self.rows[label] for label in known if not self.rows[label].is_hopeless):
            if row.place_at is None:
                wanted |= {row.label, *(self._candidates(known) - row.cleared)}
            if self._asks_reference(row, known):
                wanted |= {row.label, self.reference}
        wanted |= {
            label for q in self.questions if self._is_worth_seeds(q) for label in (q.claim.method, q.claim.against)
        }
        return [label for label in self.rows if label in wanted]

    def _level(self, k: int, level: float) -> float:
        return spending.nominal_levels(self.looks, level, self.spending)[k] if self.looks else level

    def _compare_with_best(self, known: Mapping[str, Scores], k: int) -> None:
        level = self._level(k, self.share / max(1, self.tested - 1))
        for label in sorted(known, key=lambda label: -self.sign * known[label].values.mean()):
            if self.rows[label].behind:
                continue  # so that most tables need few of their pairs
            for other, gap in self._ahead_of(label, known).items():
                self.rows[other].behind |= _surely(gap.negative(), 0.0, level)
                if _surely(gap, -self.margin, level):
                    self.rows[other].cleared.add(label)
        for label in known:
            row = self.rows[label]
            if row.place_at is None and (row.behind or self._candidates(known) - {label} <= row.cleared):
                row.place_at = row.seeds

    def _ahead_of(self, label: str, known: Mapping[str, Scores]) -> Gaps:
        """How far each other row is ahead of one, with moderated variances."""
        if label not in self.ahead:
            others = [other for other in known if other != label]
            gaps = moderated.moderate([intervals.difference(known[other], known[label]) for other in others])
            signed = (g if self.sign > 0 else g.negative() for g in gaps)
            self.ahead[label] = dict(zip(others, signed, strict=True))
        return self.ahead[label]

    def _candidates(self, known: Collection[str]) -> set[str]:
        return {label for label in known if not self.rows[label].behind}

    def _compare_with_reference(self, known: Mapping[str, Scores], k: int) -> None:
        gaps = self._ahead_of(self.reference, known)
        self._step_down(gaps, k, ("better", "worse"), _differs)
        self._step_down(
            gaps, k, ("equal",), lambda gap, level: "equal" if _is_within(gap, self.margin, level) else None
        )

    def _step_down(self, gaps: Gaps, k: int, answers: tuple[str, ...], test: Test) -> None:
        """Holm's method: each answer raises the level of the rest."""
        while True:
            rest = self.tested - 1 - sum(row.versus in answers for row in self.rows.values())
            level = self._level(k, self.share / max(1, rest) / len(answers))
            asked = {label: gap for label, gap in gaps.items() if self.rows[label].versus is None}
            found = {label: answer for label, gap in asked.items() if (answer := test(gap, level))}
            for label, answer in found.items():
                self.rows[label].versus, self.rows[label].versus_at = answer, self.rows[label].seeds
            if not found:
                return

    def _equals(self, gap: Estimate, level: float) -> str | None:
        return "equal" if _is_within(gap, self.margin, level) else None

    def _asks_reference(self, row: Row, known: Collection[str]) -> bool:
        return row.versus is None and row.label != self.reference and self.reference in known

    def _answer(self, known: Mapping[str, Scores], k: int) -> None:
        for q in self.questions:
            if q.claim.method in known and q.claim.against in known:
                q.gap = self._ahead_of(q.claim.against, known)[q.claim.method]
        while True:
            asked = [q for q in self.questions if q.is_open and q.gap]
            level = self._level(k, ALPHA / max(1, sum(q.is_open for q in self.questions)))
            for q in asked:
                if q.gap and q.found is None and (found := self._found(q.gap, level)):
                    q.found, q.decided_at = found, self.rows[q.claim.method].seeds
                if q.gap and (holds := self._holds(q.claim, q.gap, level)) is not None:
                    q.holds, q.decided_at = holds, self.rows[q.claim.method].seeds
                if q.found == "worse":
                    self.rows[q.claim.method].behind = True
                if q.found == "better":
                    self.rows[q.claim.against].behind = True
            if not any(not q.is_open for q in asked):
                return

    def _found(self, gap: Estimate, level: float) -> str | None:
        return _differs(gap, level / 2) or self._equals(gap, level)

    def _holds(self, claim: Claim, gap: Estimate, level: float) -> bool | None:
        """Whether a claim is surely right or surely wrong."""
        match claim.relation:
            case "better":
                yes, no = _surely(gap, 0.0, level / 2), _surely(gap.negative(), 0.0, level / 2)
            case "worse":
                yes, no = _surely(gap.negative(), 0.0, level / 2), _surely(gap, 0.0, level / 2)
            case "equal":
                beyond = (_surely(side, self.margin, level / 2) for side in (gap, gap.negative()))
                yes, no = _is_within(gap, self.margin, level), any(beyond)
            case "not_worse":
                yes, no = _surely(gap, -self.margin, level), _surely(gap.negative(), self.margin, level / 2)
            case None:
                return None
        return True if yes else False if no else None

    def _is_worth_seeds(self, q: Question) -> bool:
        return q.is_open and q.gap is not None and self._chance_of_versus(q.gap, ALPHA / len(self.questions)) >= FUTILE

    def _give_up(self, known: Mapping[str, Scores], k: int) -> None:
        """Mark the rows of which the last look would probably decide nothing that is open."""
        if not self.looks:
            return
        for label in known:
            row = self.rows[label]
            chances = [self._chance_of_place(row, known)] if row.place_at is None else []
            if self._asks_reference(row, known):
                gap = self._ahead_of(self.reference, known)[label]
                chances.append(self._chance_of_versus(gap, self.share / max(1, self.tested - 1)))
            row.is_hopeless |= bool(chances) and max(chances) < FUTILE

    def _chance_of_place(self, row: Row, known: Mapping[str, Scores]) -> float:
        level = self._level(len(self.looks) - 1, self.share / max(1, self.tested - 1))
        others = {o: self._ahead_of(o, known)[row.label] for o in self._candidates(known) - {row.label}}
        behind = max((self._chance(gap.negative(), 0.0, level) for gap in others.values()), default=0.0)
        uncleared = (gap for o, gap in others.items() if o not in row.cleared)
        return max(behind, min((self._chance(gap, -self.margin, level) for gap in uncleared), default=1.0))

    def _chance_of_versus(self, gap: Estimate, share: float) -> float:
        level = self._level(len(self.looks) - 1, share)
        sides = gap, gap.negative()
        equal = min(self._chance(side, -self.margin, level) for side in sides)
        return max(equal, *(self._chance(side, 0.0, level / 2) for side in sides))

    def _chance(self, gap: Estimate, bound: float, level: float) -> float:
        return power.chance_above(gap, bound, self.looks[-1], level)


def _differs(gap: Estimate, level: float) -> str | None:
    if _surely(gap, 0.0, level):
        return "better"
    return "worse" if _surely(gap.negative(), 0.0, level) else None


def _is_within(gap: Estimate, margin: float, level: float) -> bool:
    """Two one-sided tests."""
    return _surely(gap, -margin, level) and _surely(gap.negative(), -margin, level)


def _surely(gap: Estimate, bound: float, level: float) -> bool:
    """Whether the one-sided test says that the true gap is above the bound."""
    half = gap.half(1 - 2 * level) if level > 0 else None
    return half is not None and gap.value - half > bound
