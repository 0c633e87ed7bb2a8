"""What a language model forgot: the table of a report, from the probes in its records."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from scipy import stats

from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import forgetting
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.data.forgetting import ANSWERS, LOSS
from peftbench.report.tables import columns
from peftbench.report.tables import forgetting as page

BASE = [3.0, 4.0, 5.0, 4.0]


def probed(label: str, seed: int, after: list[float], right: str = "1100", **changes: Any) -> dict[str, Any]:
    """A run whose windows have the losses `after` at its end, and which answers as in `right`; the base has 1110."""
    losses = [{"step": s, "loss": float(np.mean(w)), "windows": w} for s, w in ((0, BASE), (5, [9.0] * 4), (9, after))]
    answers = [
        {"step": s, "accuracy": sum(map(int, r)) / len(r), "right": [int(x) for x in r]}
        for s, r in ((0, "1110"), (9, right))
    ]
    named = {"version": 1, "paper": "", "definition": ""}
    probes = {"wikitext2_loss": {**named, "points": losses}, "arc_easy": {**named, "points": answers}}
    return {**factories.run(label, seed, 0.5), "probes": probes | changes}


def table(folder: Path, bodies: list[dict[str, Any]]) -> Comparison:
    factories.write_all(folder, bodies)
    (c,) = compare(record.read_all(folder))
    return c


def test_the_change_is_that_of_the_tested_weights_from_the_base_with_the_interval_over_seeds_and_windows(
    tmp_path: Path,
) -> None:
    ends = [[3.5, 4.0, 6.0, 4.5], [3.5, 4.5, 5.5, 4.5], [4.0, 4.5, 6.0, 4.5]]
    c = table(tmp_path, [probed("full", s, after) for s, after in enumerate(ends)])
    found = forgetting.of(c.entries[0], LOSS)
    assert found is not None
    rise = np.asarray(ends) - BASE
    assert (found.before, found.after) == pytest.approx((4.0, np.mean(ends)))
    assert found.change.value == pytest.approx(rise.mean())
    of_seeds = stats.t.ppf(0.975, 2) * rise.mean(1).std(ddof=1) / 3**0.5
    assert (found.change.half() or 0) > of_seeds, "the windows are a sample too"
    assert forgetting.known(c) == [LOSS, ANSWERS]


def test_answers_are_lost_in_percent_of_the_questions_and_a_loss_has_its_sign(tmp_path: Path) -> None:
    c = table(tmp_path, [probed("full", s, [4.0, 5.0, 6.0, 5.0]) for s in (0, 1)])
    cells = {column.heading: column.cell(c.entries[0]) for column in page.columns(c)[:-1]}
    assert cells == {
        "method": "full",
        "WikiText-2: loss, before": "4.000",
        "after": "50.0",  # the last of that name: of the answers
        "change": "+1.000 [+1.000, +1.000]",
        "ARC-Easy: right answers, %, before": "75.0",
    }
    assert page.columns(c)[-1].cell(c.entries[0]).startswith("−25.0 [−")
    (row,) = page.rows(c)
    assert row["wikitext2_loss_change"] == 1.0
    assert row["arc_easy_change"] == -0.25


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    c = table(tmp_path, [probed("full", 0, [4.0, 5.0, 6.0, 5.0])])
    assert page.columns(c)[3].cell(c.entries[0]) == "+1.000"
    assert page.rows(c)[0]["wikitext2_loss_low"] is None


def test_without_the_probe_there_is_no_table_and_beside_it_a_dash(tmp_path: Path) -> None:
    plain = factories.run("full", 0, 0.5)
    assert not page.known(table(tmp_path / "a", [plain]))
    c = table(tmp_path / "b", [plain, probed("lora", 0, BASE)])
    assert [page.columns(c)[1].cell(e) for e in c.entries] == ["—", "4.000"]
    half = table(tmp_path / "c", [probed("lora", 0, BASE), factories.run("lora", 1, 0.5)])
    assert not page.known(half), "a mean over some of the seeds would be no row of this table"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [{"step": 0, "loss": 4.0, "windows": BASE}],
        [{"step": 0}, {"step": 9}],
        [{"step": 0, "loss": 4.0, "windows": "abc"}, {"step": 9, "loss": 4.0, "windows": BASE}],
        [{"step": 0, "loss": 4.0, "windows": [1]}, {"step": 9, "loss": 4.0, "windows": [1, 2]}],
        [{"step": 0, "loss": 4.0, "windows": [[1]]}, {"step": 9, "loss": 4.0, "windows": [[1]]}],
        [{"step": 0, "loss": None, "windows": BASE}, {"step": 9, "loss": 4.0, "windows": BASE}],
        [{"step": 0, "loss": 10**400, "windows": BASE}, {"step": 9, "loss": 4.0, "windows": BASE}],
    ],
)
def test_points_of_another_form_are_no_numbers_and_no_fault(tmp_path: Path, points: list[Any]) -> None:
    odd = {"version": 1, "paper": "", "definition": "", "points": points}
    assert forgetting.known(table(tmp_path, [probed("full", 0, BASE, wikitext2_loss=odd)])) == [ANSWERS]


@pytest.mark.slow
def test_the_report_has_it_in_every_form(tmp_path: Path) -> None:
    factories.write_all(tmp_path, [probed(m, s, [4.0, 5.0, 6.0, 5.0]) for m in ("full", "lora") for s in (0, 1)])
    written = {p.name: p for p in assemble.write(tmp_path)}
    (name,) = [n for n in written if n.endswith("--forgetting.csv")]
    rows = list(csv.DictReader(io.StringIO(written[name].read_text())))
    assert [float(r["wikitext2_loss_change"]) for r in rows] == [1.0, 1.0]
    for other in (".md", ".tex"):
        assert "ARC-Easy" in written[name.replace(".csv", other)].read_text()
    assert "What was forgotten" in written["report.md"].read_text()
    assert 'data-section="forgetting"' in written["index.html"].read_text()
    (c,) = compare(record.read_all(tmp_path))
    assert columns.markdown(page.columns(c), c.entries) in written["report.md"].read_text()
