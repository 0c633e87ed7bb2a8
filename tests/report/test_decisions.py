"""What is decided in a table, look by look: obvious cases, what must change nothing, and levels that must not leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtrit

from peftbench.records.design import FIXED, Claim, Design
from peftbench.report.data import decisions
from peftbench.report.data.decisions import Decisions
from peftbench.report.stats.intervals import Scores

LOOKS = [3, 5, 8, 12, 20, 30]
DESIGN = Design(looks=LOOKS)
MARGIN = 0.02
Known = Mapping[str, Scores]


def noise(seeds: int, stream: int, spread: float = 1.0) -> NDArray[np.float64]:
    return spread * np.random.RandomState(stream).normal(0, 1, seeds)


def row(values: Sequence[float] | NDArray[np.float64], first: int = 0) -> Scores:
    return Scores(tuple(range(first, first + len(values))), np.asarray(values, float), None)


def rows(means: Mapping[str, float], spread: float = 0.004, seeds: int = 30) -> dict[str, Scores]:
    return {label: row(m + noise(seeds, i, spread)) for i, (label, m) in enumerate(means.items())}


def decided(known: Known, design: Design = DESIGN, reference: str = "full", **changes: Any) -> Decisions:
    given = {"attempted": {label: list(s.seeds) for label, s in known.items()}, "direction": "max", "margin": MARGIN}
    given |= changes
    return decisions.decide(known, given["attempted"], reference, given["direction"], given["margin"], design)


def told(d: Decisions) -> dict[str, tuple[Any, ...]]:
    return {r.label: (r.behind, d.is_within(r.label), frozenset(r.cleared), r.versus, r.place_at, r.versus_at,
                      r.is_hopeless, r.versus_is_hopeless, r.is_out, r.seeds) for r in d.rows.values()}  # fmt: skip


# Obvious cases


def test_a_row_that_is_far_behind_is_behind_and_worse_and_stops() -> None:
    d = decided(rows({"full": 0.8, "lora": 0.8, "ia3": 0.6}))
    assert d.rows["ia3"].behind
    assert d.rows["ia3"].versus == "worse"
    assert d.rows["ia3"].seeds < 30
    assert not d.is_within("ia3")
    assert d.candidates == ["full", "lora"]
    assert d.going_on == {}


def test_rows_that_hardly_differ_are_within_the_margin_and_equal_and_stop() -> None:
    d = decided(rows({"full": 0.8, "lora": 0.8, "dora": 0.8}))
    assert all(d.is_within(label) for label in d.rows)
    assert [d.rows[label].versus for label in ("lora", "dora")] == ["equal", "equal"]
    assert all(r.seeds < 30 for r in d.rows.values())
    assert d.open == []


def test_a_row_that_is_far_better_is_the_only_one_within_the_margin() -> None:
    d = decided(rows({"full": 0.7, "lora": 0.8, "ia3": 0.7}))
    assert [label for label in d.rows if d.is_within(label)] == ["lora"]
    assert d.rows["lora"].versus == "better"
    assert d.candidates == ["lora"]


def test_a_row_that_is_a_little_behind_is_both_behind_and_within_the_margin() -> None:
    d = decided(rows({"full": 0.8, "lora": 0.79}, spread=0.002), FIXED)
    assert d.rows["lora"].behind
    assert d.is_within("lora")
    assert d.rows["lora"].versus == "worse"


def test_two_rows_whose_seeds_differ_much_stay_open_and_go_on() -> None:
    known = rows({"full": 0.8, "lora": 0.8}, spread=0.03, seeds=3)
    d = decided(known)
    assert d.open == ["full", "lora"]
    assert d.going_on == {"full": 5, "lora": 5}
    assert d.looked == 1


def test_before_every_row_has_the_seeds_of_the_first_look_nothing_is_decided() -> None:
    known = rows({"full": 0.8, "lora": 0.6}, seeds=3)
    d = decided({"full": known["full"], "lora": known["lora"].at([0, 1])})
    assert d.looked == 0
    assert d.going_on == {"full": 3, "lora": 3}
    assert d.open == ["full", "lora"]


def test_a_fixed_number_of_seeds_is_looked_at_once() -> None:
    d = decided(rows({"full": 0.8, "lora": 0.8, "ia3": 0.6}, seeds=5), FIXED)
    assert d.going_on == {}
    assert d.looks == (5,)
    assert d.rows["ia3"].behind
    assert {r.seeds for r in d.rows.values()} == {5}


def test_a_table_of_one_row_or_none_is_decided() -> None:
    assert decided(rows({"full": 0.8})).is_within("full")
    assert decided({}).rows == {}
    assert decided({}, FIXED).rows == {}


def test_without_a_reference_the_best_is_still_found() -> None:
    d = decided(rows({"lora": 0.8, "ia3": 0.6}), reference="full")
    assert d.candidates == ["lora"]
    assert {r.versus for r in d.rows.values()} == {None}
    assert d.going_on == {}


def test_with_a_margin_of_0_only_a_better_row_is_within_it_and_none_is_equal() -> None:
    d = decided(rows({"full": 0.8, "lora": 0.8, "ia3": 0.9}), margin=0.0)
    assert [label for label in d.rows if d.is_within(label)] == ["ia3"]
    assert d.rows["lora"].versus != "equal"


def test_scores_that_do_not_vary_decide_nothing_where_no_examples_are_known() -> None:
    d = decided({"full": row([0.8] * 30), "lora": row([0.6] * 30)})
    assert d.open == ["full", "lora"]


def test_rows_without_a_seed_in_common_are_compared() -> None:
    d = decided({"full": row(0.8 + noise(30, 0, 0.004)), "lora": row(0.6 + noise(30, 1, 0.004), first=100)})
    assert d.candidates == ["full"]


# What must change nothing

MIXED = rows({"full": 0.8, "lora": 0.797, "ia3": 0.7, "dora": 0.79, "bitfit": 0.6}, spread=0.012)


def test_the_mixed_table_has_rows_that_stop_at_several_looks() -> None:
    assert len({r.seeds for r in decided(MIXED).rows.values()}) > 2


def test_the_order_of_rows_changes_nothing() -> None:
    assert told(decided(dict(reversed(MIXED.items())))) == told(decided(MIXED))


def test_labels_change_nothing() -> None:
    names = dict(zip(MIXED, "edcba", strict=True))
    expected = {names[label]: (*t[:2], frozenset(names[o] for o in t[2]), *t[3:])
                for label, t in told(decided(MIXED)).items()}  # fmt: skip
    assert told(decided({names[label]: s for label, s in MIXED.items()}, reference="e")) == expected


@pytest.mark.parametrize("looks", [LOOKS, []])
def test_a_constant_and_a_scale_change_nothing(looks: list[int]) -> None:
    moved = {label: row(100 * (s.values - 3)) for label, s in MIXED.items()}
    assert told(decided(moved, Design(looks=looks), margin=100 * MARGIN)) == told(decided(MIXED, Design(looks=looks)))


@pytest.mark.parametrize("looks", [LOOKS, []])
def test_errors_are_judged_as_scores_are(looks: list[int]) -> None:
    errors = {label: row(1 - s.values) for label, s in MIXED.items()}
    assert told(decided(errors, Design(looks=looks), direction="min")) == told(decided(MIXED, Design(looks=looks)))


def test_seeds_beyond_what_a_row_was_to_have_change_nothing() -> None:
    d = decided(MIXED)
    cut = {label: s.at(range(d.rows[label].seeds)) for label, s in MIXED.items()}
    assert told(decided(cut)) == told(d)


@pytest.mark.parametrize("k", range(len(LOOKS) - 1))
def test_what_a_look_says_goes_on_leads_to_the_same_decisions(k: int) -> None:
    """The records of a look ask for the seeds that the next one judges: the plan and the report agree."""
    counts = dict.fromkeys(MIXED, LOOKS[0])
    for _ in range(k):
        counts |= decided({label: s.at(range(counts[label])) for label, s in MIXED.items()}).going_on
    d = decided({label: s.at(range(counts[label])) for label, s in MIXED.items()})
    assert {label: r.seeds for label, r in d.rows.items()} == counts


def test_what_is_decided_stays_so_whatever_later_seeds_say() -> None:
    known = rows({"full": 0.8, "lora": 0.8, "ia3": 0.6})
    at = decided(known).rows["ia3"].seeds
    turned = {**known, "ia3": row(np.where(np.arange(30) < at, known["ia3"].values, 1.0))}
    assert told(decided(turned)) == told(decided(known))


# Levels that must not leak


def apart(seeds: int, t: float, spread: float, stream: int) -> NDArray[np.float64]:
    """Values whose mean is `t` standard errors above 0."""
    values = noise(seeds, stream)
    values = (values - values.mean()) / values.std(ddof=1) * spread
    return np.asarray(values + t * spread / np.sqrt(seeds))


def test_what_is_decided_of_one_row_leaves_the_level_of_another_where_it_was() -> None:
    """Holm's method passes on the level of a row that is called different, of which its test of equality has spent a
    part: with one equal row and one exactly the margin away, it is wrong nearly twice as often as it says."""
    base = noise(10, 0, 0.01)
    t = -(stdtrit(9.25, 0.05 / 4) + stdtrit(9.25, 0.05 / 2)) / 2  # significant at 5 %, not at 2.5 %
    known = {"full": row(0.8 + base), "lora": row(0.8 + base + apart(10, t, 0.02, 1)),
             "ia3": row(0.6 + base + noise(10, 2, 0.02))}  # fmt: skip
    d = decided(known, FIXED)
    assert d.rows["ia3"].versus == "worse"
    assert d.rows["lora"].versus is None


def test_a_question_that_is_answered_leaves_the_level_of_another_where_it_was() -> None:
    base = noise(10, 0, 0.01)
    t = -(stdtrit(9.25, 0.05 / 4) + stdtrit(9.25, 0.05 / 2)) / 2
    known = {"full": row(0.8 + base), "lora": row(0.8 + base + apart(10, t, 0.02, 1)),
             "ia3": row(0.8 + base + noise(10, 2, 0.002))}  # fmt: skip
    claims = [Claim(method="lora", against="full"), Claim(method="ia3", against="full")]
    d = decided(known, Design(claims=claims))
    assert [q.found for q in d.questions] == [None, "equal"]


def test_a_planned_question_has_its_own_level_and_changes_nothing_of_the_best() -> None:
    base = noise(10, 0, 0.01)
    t = -(stdtrit(9.5, 0.05 / 2) + stdtrit(9.5, 0.05 / 4)) / 2  # by the question's level, and not by that of four pairs
    known = {"full": row(0.8 + base), "lora": row(0.8 + base - apart(10, t, 0.02, 1)),
             **{f"row {i}": row(0.8 + base + apart(10, 0.0, 0.02, i)) for i in (2, 3, 4)}}  # fmt: skip
    asked = decided(known, Design(claims=[Claim(method="lora", against="full")]))
    assert asked.questions[0].found == "worse"
    assert told(asked) == told(decided(known, FIXED))
    assert not asked.rows["lora"].behind


def test_a_pair_is_not_tested_again_when_only_one_of_its_rows_has_new_seeds() -> None:
    """A row stops since it is behind one candidate. Its old seeds against another candidate do not meet the laxer level
    of a later look."""
    base, more = noise(30, 0, 0.02), noise(30, 1, 0.05)
    u = np.concatenate([apart(15, 0.0, 0.01, 2), noise(15, 3, 0.01)])
    ahead = 3.2 * 0.01 / np.sqrt(15)  # of the limit, in the pair of "lora" and "full"
    known = {
        "full": row(0.8 + base),
        "dora": row(0.8 + base + u),
        "lora": row(0.8 - MARGIN + ahead + base + u + noise(30, 4, 1e-4)),
        "ia3": row(0.8 + base + more),
    }
    d = decided(known, Design(looks=[15, 30], spending="obrien_fleming"), reference="none")
    assert d.rows["lora"].behind
    assert d.rows["lora"].seeds == 15
    assert d.rows["full"].seeds == 30
    assert "full" not in d.rows["lora"].cleared


def test_a_margin_that_follows_from_the_scores_follows_from_those_of_the_first_look() -> None:
    def table(later: float) -> Any:
        seeds = range(5)
        scores = {s: 3.0 if s < 3 else later for s in seeds}
        entry = SimpleNamespace(runs=[SimpleNamespace(spec=SimpleNamespace(seed=s)) for s in seeds], scores=scores)
        return SimpleNamespace(design=DESIGN, metric="perplexity", direction="min", entries=[entry])

    assert decisions.margin_of(table(9.0)) == decisions.margin_of(table(1.0)) == pytest.approx(0.06)


# Rows without scores


def test_a_row_of_which_no_seed_gives_a_score_stops_and_the_others_have_an_answer() -> None:
    known = rows({"full": 0.8, "lora": 0.8, "ia3": 0.6})
    d = decided(known, attempted={**{label: range(30) for label in known}, "broken": range(30)})
    assert d.rows["broken"].seeds == 3
    assert d.rows["broken"].is_out
    assert d.candidates == ["full", "lora"]
    assert d.is_within("lora")


@pytest.mark.parametrize("looks", [LOOKS, []])
def test_a_reference_without_scores_leaves_the_best_to_be_found(looks: list[int]) -> None:
    known = rows({"lora": 0.8, "ia3": 0.6})
    d = decided(known, Design(looks=looks), attempted={"full": range(3), **{label: range(30) for label in known}})
    assert d.candidates == ["lora"]
    assert d.is_within("lora")


def test_a_row_with_one_score_goes_on_and_none_is_within_the_margin_of_a_best_that_it_may_be() -> None:
    known = {**rows({"full": 0.8, "lora": 0.8}, spread=1e-6), "ia3": Scores((2,), np.array([0.9]), None)}
    attempted = {label: range(3) for label in known}
    d = decided(known, attempted=attempted)
    assert d.going_on == {"full": 5, "lora": 5, "ia3": 5}
    assert not any(d.is_within(label) for label in known)
    assert not d.rows["ia3"].is_out


def test_a_row_with_one_score_at_the_last_look_is_left_out() -> None:
    known = {**rows({"full": 0.8, "lora": 0.8}, seeds=5), "ia3": Scores((2,), np.array([0.9]), None)}
    for design in (FIXED, Design(looks=[5])):
        d = decided(known, design, attempted={label: range(5) for label in known})
        assert d.rows["ia3"].is_out
        assert d.candidates == ["full", "lora"]
        assert d.is_within("lora")


def test_one_seed_at_the_first_look_decides_nothing_and_all_go_on() -> None:
    known = rows({"full": 0.8, "lora": 0.6}, seeds=1)
    d = decided(known, Design(looks=[1, 2, 3]))
    assert d.going_on == {"full": 2, "lora": 2}
    assert d.open == ["full", "lora"]


def test_failed_seeds_count_as_tried() -> None:
    whole = rows({"full": 0.8, "lora": 0.8, "ia3": 0.6})
    known = {**whole, "lora": whole["lora"].at([s for s in range(30) if s % 4])}
    d = decided(known, attempted={label: range(30) for label in known})
    assert d.rows["ia3"].behind
    assert d.is_within("lora")
    assert d.rows["lora"].seeds == d.rows["lora"].versus_at


# Planned questions


@pytest.mark.parametrize(("relation", "lora", "ia3"), [
    (None, "equal", "worse"), ("better", None, False), ("worse", None, True), ("equal", True, False),
    ("not_worse", True, False),
])  # fmt: skip
def test_a_question_is_answered(relation: Any, lora: Any, ia3: Any) -> None:
    known = rows({"full": 0.8, "lora": 0.8, "ia3": 0.6})
    claims = [Claim(method=m, against="full", relation=relation) for m in ("lora", "ia3")]
    found = decided(known, Design(looks=LOOKS, claims=claims)).questions
    assert [q.holds if relation else q.found for q in found] == [lora, ia3]
    assert [q.is_open for q in found] == [lora is None, False]


def test_a_claim_of_not_being_worse_goes_on_though_neither_better_nor_equal_is_likely() -> None:
    base = noise(12, 0, 0.02)
    known = {"best": row(3 + base + apart(12, 0.0, 0.1, 2)), "full": row(0.8 + base),
             "lora": row(0.8175 + base + apart(12, 0.0, 0.25, 1))}  # fmt: skip
    going = []
    for relation in ("better", "equal", None, "not_worse"):
        asked = Design(looks=[12, 30], claims=[Claim(method="lora", against="full", relation=relation)])
        going.append(list(decided(known, asked, reference="none").going_on))
    assert going == [[], [], [], ["full", "lora"]]


def test_a_question_of_rows_that_are_decided_keeps_them_going() -> None:
    base = noise(30, 0, 0.02)
    known = {"best": row(0.95 + base + noise(30, 3, 0.002)), "full": row(0.8 + base),
             "lora": row(0.8 + base + noise(30, 1, 0.03))}  # fmt: skip
    cut = {label: s.at(range(12)) for label, s in known.items()}
    without = decided(cut, reference="none")
    asked = decided(cut, Design(looks=LOOKS, claims=[Claim(method="lora", against="full")]), reference="none")
    assert without.rows["full"].behind
    assert without.rows["lora"].behind
    assert without.going_on == {}
    assert asked.going_on == {"full": 20, "lora": 20}


# Futility


def test_a_question_that_the_last_look_would_probably_not_decide_is_given_up() -> None:
    base = noise(30, 0, 0.02)
    known = {"full": row(0.8 + base), "lora": row(0.8 + base + apart(30, 0.0, 0.3, 1))}
    d = decided(known)
    assert d.rows["lora"].is_hopeless
    assert d.rows["lora"].versus_is_hopeless
    assert max(r.seeds for r in d.rows.values()) < 30


def test_a_row_whose_place_is_given_up_goes_on_for_the_reference_without_the_candidates() -> None:
    """ "ia3" cannot be told from "dora", whose seeds are far apart; both can be told from the reference."""
    base = noise(30, 0, 0.01)
    known = {"full": row(0.8 + base), "dora": row(0.8 + base + apart(30, 0.0, 0.4, 1)),
             "ia3": row(0.803 + base + noise(30, 2, 0.012))}  # fmt: skip
    d = decided(known)
    assert d.rows["ia3"].is_hopeless
    assert d.rows["ia3"].versus == "equal"
    assert d.rows["dora"].seeds < d.rows["ia3"].seeds
