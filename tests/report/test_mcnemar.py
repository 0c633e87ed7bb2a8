"""McNemar's test of two trained networks: against statsmodels, and where a table of differences shows it."""

from __future__ import annotations

import csv
import io
import json

import factories
import numpy as np
import pytest
from scipy.stats import binom

from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import verdicts
from peftbench.report.data.collect import compare
from peftbench.report.stats import intervals, mcnemar
from peftbench.report.stats.intervals import Scores
from peftbench.report.stats.mcnemar import McNemar
from peftbench.report.tables import differences
from peftbench.report.write import page

PAIRS = [(0, 0), (0, 1), (1, 0), (5, 5), (0, 3), (12, 5), (5, 12), (40, 41), (300, 250), (9000, 9500)]
ANSWERS = {"full": "1111111100", "lora": "1111111010", "ia3": "1100000001"}  # 1: right


def answered(label, right, seed=0, metric="accuracy"):
    """A run that has right what `right` has a 1 for, ten times over; its score is its accuracy."""
    right = [mark == "1" for mark in right * 10]
    body = factories.run(label, seed, sum(right) / len(right), examples=len(right), majority=0.3, metric=metric)
    values = [y if ok else 1 - y for y, ok in zip(body["predictions"]["labels"], right, strict=True)]
    body["predictions"] = {**body["predictions"], "values": values}
    return body


def compared(folder, bodies):
    factories.write_all(folder, bodies)
    (c,) = compare(record.read_all(folder))
    return c


def headings(c):
    return [column.heading for column in differences.columns(c) if "McNemar" in column.heading]


def networks(right, seeds=(0,)):
    right = np.array(right, dtype=float)
    return Scores(tuple(seeds), right.mean(1), right - right.mean(1, keepdims=True), 1 / right.shape[1])


@pytest.mark.parametrize(("won", "lost"), PAIRS)
def test_the_p_value_is_the_exact_one_less_the_probability_of_what_was_seen(won, lost):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    exact = tables.mcnemar([[10, won], [lost, 10]], exact=True).pvalue
    seen = 0.0 if won == lost else float(binom.pmf(won, won + lost, 0.5))
    assert McNemar(won, lost).p == pytest.approx(exact - seen, rel=1e-9)
    assert McNemar(won, lost).p == McNemar(lost, won).p


@pytest.mark.parametrize(("examples", "discordant"), [(50, 0.1), (50, 0.4), (100, 0.05), (100, 0.5)])
def test_the_level_of_the_test_holds_over_all_outcomes(examples, discordant):
    """Computed, not drawn: the probability of p < 5 % for two equally good networks."""
    n = np.arange(examples + 1)
    alarms = [binom.pmf([k for k in range(m + 1) if McNemar(k, m - k).p < 0.05], m, 0.5).sum() for m in n]
    assert 0.02 < binom.pmf(n, examples, discordant) @ alarms < 0.05


def test_two_networks_are_compared_by_what_only_one_of_them_has_right():
    a, b = networks([[1, 1, 1, 0, 0, 1]]), networks([[1, 0, 0, 1, 0, 1]])
    assert mcnemar.between(a, b) == McNemar(won=2, lost=1)
    assert mcnemar.between(b, a) == McNemar(won=1, lost=2)
    assert mcnemar.between(networks([[1, 1, 1]]), networks([[0, 0, 0]])) == McNemar(3, 0)
    assert mcnemar.between(networks([[1, 1, 1]]), networks([[1, 1, 1]])) == McNemar(0, 0)


def test_the_difference_that_is_tested_is_that_of_the_shown_estimate():
    rng = np.random.RandomState(0)
    for n in (3, 10, 97, 1000):
        a, b = (networks([rng.random_sample(n) < share]) for share in (0.7, 0.6))
        test = mcnemar.between(a, b)
        assert (test.won - test.lost) / n == pytest.approx(intervals.difference(a, b).value)


def test_a_row_with_one_seed_meets_the_network_of_that_seed():
    three = networks([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], (0, 1, 2))
    assert mcnemar.between(networks([[1, 1, 1, 1]], (1,)), three) == McNemar(2, 0)
    assert mcnemar.between(networks([[1, 1, 1, 1]], (9,)), three) is None, "no network to choose"
    assert mcnemar.between(networks([[1, 1, 1, 0]], (9,)), networks([[0, 1, 1, 1]], (0,))) == McNemar(1, 1)


def test_more_seeds_or_missing_predictions_have_no_such_test():
    two = networks([[1, 0, 1], [1, 1, 0]], (0, 1))
    assert mcnemar.between(two, two) is None
    one = networks([[1, 0, 1]])
    assert mcnemar.between(one, Scores((0,), np.array([0.5]), None)) is None


def test_a_table_of_one_seed_has_mcnemars_test_against_the_reference_and_the_best(tmp_path):
    c = compared(tmp_path, [answered(label, right) for label, right in ANSWERS.items()])
    v = verdicts.of(c)
    assert v["full"].mcnemar is None
    assert v["ia3"].mcnemar.counts == McNemar(won=10, lost=60)
    assert v["lora"].mcnemar.counts == McNemar(won=10, lost=10)
    assert v["ia3"].mcnemar.p_adjusted == pytest.approx(2 * v["ia3"].mcnemar.p), "Holm over two rows"
    assert v["lora"].mcnemar.p_adjusted == 1.0
    assert v["ia3"].mcnemar_to_best.p_adjusted == pytest.approx(2 * v["ia3"].mcnemar.p), "Bonferroni over two"
    assert headings(c) == ["McNemar against full: p (won / lost)", "McNemar against the best: p (won / lost)"]
    (shown,) = [column for column in differences.columns(c) if column.heading.startswith("McNemar against full")]
    assert [shown.cell(e) for e in c.entries] == ["—", "< 0.001 (10 / 60)", "1.000 (10 / 10)"]
    assert "about these networks, not the methods" in differences.legend(c)


def test_a_mixed_table_has_it_for_the_row_with_one_seed(tmp_path):
    c = compared(tmp_path, [*(answered("full", ANSWERS["full"], s) for s in range(3)), answered("ia3", "1100000001", 1),
                            *(answered("lora", ANSWERS["lora"], s) for s in range(3))])  # fmt: skip
    found = {label: v.mcnemar for label, v in verdicts.of(c).items()}
    assert [label for label, test in found.items() if test] == ["ia3"]
    assert found["ia3"].p_adjusted == found["ia3"].p, "the only one of the table"


@pytest.mark.parametrize("changes", [{"seeds": 2}, {"metric": "f1"}, {"metric": "mcc"}, {"metric": "f1_macro"}])
def test_a_table_where_it_does_not_apply_does_not_name_it(tmp_path, changes):
    seeds = range(changes.pop("seeds", 1))
    c = compared(tmp_path, [answered(label, right, s, **changes) for label, right in ANSWERS.items() for s in seeds])
    assert headings(c) == []
    assert "McNemar" not in differences.legend(c)
    assert differences.row(c, c.entries[0])["mcnemar_p"] is None


def test_a_network_whose_predictions_contradict_its_score_is_not_tested(tmp_path):
    bodies = [answered(label, right) for label, right in ANSWERS.items()]
    bodies[2]["metrics"]["test"]["accuracy"] += 0.1
    c = compared(tmp_path, bodies)
    assert [label for label, v in verdicts.of(c).items() if v.mcnemar] == ["lora"]


def test_files_and_rows_for_programs_have_the_counts_and_p_values(tmp_path):
    c = compared(tmp_path, [answered(label, right) for label, right in ANSWERS.items()])
    texts = dict(page._tables(c, ()))
    (row,) = [r for r in csv.DictReader(io.StringIO(texts[f"{c.slug}--differences.csv"])) if r["method"] == "ia3"]
    (same,) = [r for r in json.loads(json.dumps(assemble.rows(tmp_path))) if r["method"] == "ia3"]
    for name in ("mcnemar", "mcnemar_to_best"):
        assert (row[f"{name}_won"], row[f"{name}_lost"]) == ("10", "60")
        assert (same[f"{name}_won"], same[f"{name}_lost"]) == (10, 60)
        assert 0 < float(row[f"{name}_p"]) == same[f"{name}_p"] < 1e-6
    assert same["mcnemar_p_holm"] == same["mcnemar_to_best_p_bonferroni"] == pytest.approx(2 * same["mcnemar_p"])
    assert "McNemar against full: p (won / lost)" in texts[f"{c.slug}--differences.md"]
