"""The pairs that the page holds decide at any margin as the report does at that margin."""

from __future__ import annotations

import itertools
from pathlib import Path

import factories
import pytest

from peftbench.report import assemble
from peftbench.report.data import answer, decisions, pairs, scores
from peftbench.report.data.comparison import Comparison
from peftbench.report.stats import power
from peftbench.report.web import facts

REFERENCE = Path(__file__).resolve().parents[2] / "results/reference"
SETS = ("quickstart", "decided_small")
MARGINS = (0.0, 0.004, 0.01, 0.02, 0.035, 0.063, 0.1, 0.2, 0.5)


@pytest.fixture(scope="module")
def tables() -> list[Comparison]:
    return [c for name in SETS for c in assemble.load(REFERENCE / name).comparisons]


def within(c: Comparison, margin: float) -> list[str]:
    """As the page's scripts decide."""
    table, candidates = pairs.of(c), decisions.of(c).candidates
    rows = dict.fromkeys(label for label, _ in table)
    return sorted(a for a in rows if all(b == a or table[a, b].least > -margin for b in candidates))


@pytest.mark.parametrize("margin", MARGINS)
def test_a_fixed_number_of_seeds_is_decided_alike_at_any_margin(tables: list[Comparison], margin: float) -> None:
    for c in tables:
        if not c.design.looks:
            attempted = {e.label: sorted(r.spec.seed for r in e.runs) for e in c.entries}
            state = decisions.decide(scores.of(c), attempted, c.reference, c.direction, margin)
            known = {label for label, s in scores.of(c).items() if len(s.seeds) > 1}
            assert within(c, margin) == sorted(label for label in known if state.is_within(label))


def test_at_its_own_margin_every_table_has_the_answer_of_the_report(tables: list[Comparison]) -> None:
    assert any(answer.of(c).within for c in tables if answer.of(c))  # type: ignore[union-attr]
    for c in tables:
        told = answer.of(c)
        assert told is not None
        assert within(c, told.margin) == sorted(told.within)


def test_against_the_reference_pairs_say_what_the_answer_says(tables: list[Comparison]) -> None:
    for c in tables:
        told = answer.of(c)
        assert told is not None
        for label, how in told.versus.items():
            assert pairs.of(c)[label, c.reference].how(told.margin) == how


def test_a_smaller_margin_never_decides_more(tables: list[Comparison]) -> None:
    for c in tables:
        found = [set(within(c, margin)) for margin in MARGINS]
        assert all(a <= b for a, b in itertools.pairwise(found))


def test_the_smallest_margin_with_an_answer_has_one_just_above_it(tables: list[Comparison]) -> None:
    for c in tables:
        least = pairs.least_margin(c, decisions.of(c).candidates)
        assert least is not None
        assert within(c, least[0] + 1e-9) == sorted(least[1])
        assert within(c, least[0] - 1e-9) == []


def test_rows_hold_what_the_number_of_seeds_needed_is_computed_from(tables: list[Comparison]) -> None:
    for c in tables:
        told, rows = answer.of(c), {row["label"]: row for row in facts.of_table(c)["rows"]}
        assert told is not None
        needs = [rows[label]["need"] for label in told.open if rows[label]["need"]]
        if needs:
            seed, shared, examples, lent = (list(values) for values in zip(*needs, strict=True))
            k = len(needs)
            variance = power.VarianceComponents(sum(seed) / k, sum(shared) / k, min(examples), max(0, sum(lent) / k))
            assert variance.seeds_for(told.margin) == told.seeds_needed


def test_a_row_with_one_seed_has_no_pair(tmp_path: Path) -> None:
    factories.write_all(tmp_path, [*factories.grid(["full", "lora"], 2), factories.run("dora", 0)])
    (c,) = assemble.load(tmp_path).comparisons
    assert set(pairs.of(c)) == {("full", "lora"), ("lora", "full")}
    assert [row["known"] for row in facts.of_table(c)["rows"]].count(False) == 1
