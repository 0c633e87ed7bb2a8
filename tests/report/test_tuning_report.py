"""Trials in reports: apart from final results, with what was chosen, at which edge, and what fewer would have found."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import factories
import pytest

from peftbench.records import record, spec
from peftbench.records.record import RunRecord, TrialRecord
from peftbench.report import assemble
from peftbench.report.data.tunings import edge_counts, expected_best
from peftbench.report.tables import trials

SPACE = {"lr": [1e-4, 1e-2], "alpha": [8.0, 16.0, 32.0]}
RATES = (1e-3, 2e-3, 5e-4, 4e-3, 8e-3, 1.6e-2)
WIDER = {"lr": [1e-4, 4e-2], "alpha": [8.0, 16.0, 32.0]}


def trial(
    number: int,
    score: float | None,
    label: str = "lora",
    space: Any = SPACE,
    direction: str = "max",
    first_space: Any = None,
    **values: Any,
) -> dict[str, Any]:
    """A trial's record; without a score it diverged."""
    lr = RATES[number]
    body = factories.run(label, 0, status="finished" if score is not None else "diverged", lr=lr, direction=direction)
    alpha = values.get("alpha", SPACE["alpha"][number % 3])
    method = factories.method_spec(label)
    method = replace(method, hyper={**method.hyper, **({"alpha": alpha} if "alpha" in space else {})})
    asked = replace(
        spec.RunSpec.from_dict(body["spec"]),
        method=method,
        trial=number,
        space=space,
        first_space=first_space or {},
        train=replace(spec.RunSpec.from_dict(body["spec"]).train, steps=20),
    )
    metrics = {"validation": {"accuracy": score}, "primary": "accuracy", "direction": direction}
    body |= {"spec": spec.as_dict(asked), "spec_id": asked.id, "slug": asked.slug, "hyper": dict(method.hyper)}
    return {k: v for k, v in body.items() if k != "predictions"} | {"metrics": metrics if score is not None else None}


def final(best: dict[str, Any], seed: int, score: float) -> dict[str, Any]:
    """The final run with a trial's values."""
    chosen = spec.RunSpec.from_dict(best["spec"])
    return factories.run(chosen.method.label, seed, score, lr=chosen.train.lr, method=chosen.method)


def choose_rates(
    scores: Sequence[float | None] = (0.5, 0.6, 0.4, 0.55), best: int = 1, **more: Any
) -> list[dict[str, Any]]:
    trials = [trial(i, score, **more) for i, score in enumerate(scores)]
    return [*trials, *(final(trials[best], seed, 0.7 + seed / 100) for seed in (0, 1))]


def loaded(tmp_path: Path, bodies: Sequence[dict[str, Any]]) -> assemble.ReportData:
    factories.write_all(tmp_path, bodies)
    return assemble.load(tmp_path)


def notes(found: assemble.ReportData) -> str:
    return "\n".join(found.comparisons[0].notes)


def test_trials_are_in_no_table_of_final_results(tmp_path: Path) -> None:
    (c,) = loaded(tmp_path, choose_rates()).comparisons
    (e,) = c.entries
    assert (e.label, e.n, e.mean, e.failed) == ("lora", 2, pytest.approx(0.705), 0)


def test_beside_tuned_baselines_their_trials_are_told_too(tmp_path: Path) -> None:
    factories.write_all(tmp_path / "base", [*choose_rates(), *factories.grid(["full"])])
    factories.write_all(tmp_path / "own", choose_rates((0.5, 0.4, 0.3, 0.6), best=3, label="dora"))
    found = assemble.load_against(tmp_path / "own", tmp_path / "base")
    assert [t.label for tuning in found.tunings for t in tuning.rows] == ["dora", "lora"]
    assert "dora lr=0.004 alpha=8; lora lr=0.002 alpha=16." in notes(found)
    assert "No trials, at the rate that the experiment gives: full." in notes(found)


def test_a_table_names_the_trials_and_what_they_chose(tmp_path: Path) -> None:
    found = loaded(tmp_path, [*choose_rates(), *factories.grid(["full"])])
    assert "4 trials of 20 steps a method: lora lr=0.002 alpha=16." in notes(found)
    assert "No trials, at the rate that the experiment gives: full." in notes(found)
    (t,) = found.tunings
    assert [(row.label, row.failed, row.chosen) for row in t.rows] == [("lora", 0, {"lr": 2e-3, "alpha": 16.0})]


@pytest.mark.parametrize(
    ("scores", "best", "edges"),
    [
        ((0.5, 0.6, 0.4, 0.55), 1, {}),
        ((0.5, 0.6, 0.4, 0.7), 3, {"lr": "upper", "alpha": "lower"}),
        ((0.5, 0.6, 0.9, 0.7), 2, {"lr": "lower", "alpha": "upper"}),
        ((0.9, None, 0.5, None), 0, {"alpha": "lower"}),
        ((None, None, None, None), 0, {}),
    ],
)
def test_a_choice_at_the_edge_of_what_was_tried_is_marked(
    tmp_path: Path, scores: tuple[float | None, ...], best: int, edges: dict[str, str]
) -> None:
    found = loaded(tmp_path, choose_rates(scores, best))
    (row,) = found.tunings[0].rows
    assert row.edges == edges
    assert ("At the edge of what was tried" in notes(found)) == bool(edges)
    for key, edge in edges.items():
        assert f"{key}: {edge}" in notes(found)


def test_trials_that_extend_the_space_are_in_the_row_that_they_extend(tmp_path: Path) -> None:
    first = [trial(i, score) for i, score in enumerate((0.5, 0.6, 0.4, 0.7))]
    more = [trial(i, score, space=WIDER, first_space=SPACE, alpha=16.0) for i, score in ((4, 0.9), (5, 0.8))]
    found = loaded(tmp_path, [*first, *more, final(more[0], 0, 0.7)])
    ((row,),) = [t.rows for t in found.tunings]
    assert (len(row.trials), row.further, row.edges, row.chosen["lr"]) == (6, 2, {}, 8e-3)
    text = assemble.text_table(tmp_path, found)
    assert "4 + 2" in text
    assert "At an edge: none of 2 chosen values." in " ".join(text.split())
    assert "Tuned on the validation split, 4 trials of 20 steps a method: lora lr=0.008 alpha=16." in notes(found)
    assert "Further trials, beyond an edge where the best so far lay: lora 2." in notes(found)
    assert [r["extends"] for r in trials.trial_rows(found.tunings[0])] == [False] * 4 + [True] * 2


def test_the_best_of_an_extension_may_lie_at_its_edge(tmp_path: Path) -> None:
    first = [trial(i, score) for i, score in enumerate((0.5, 0.6, 0.4, 0.7))]
    more = [trial(i, score, space=WIDER, first_space=SPACE, alpha=16.0) for i, score in ((4, 0.8), (5, 0.9))]
    found = loaded(tmp_path, [*first, *more])
    assert found.tunings[0].rows[0].edges == {"lr": "upper"}
    assert "At an edge: 1 of 2 chosen values." in trials.legend(found.tunings[0])


def test_values_at_an_edge_are_counted_over_all_rows_that_have_chosen(tmp_path: Path) -> None:
    bodies = [
        *choose_rates((0.5, 0.6, 0.4, 0.7), best=3),
        *choose_rates((0.5, 0.6, 0.4, 0.5), label="dora"),
        *choose_rates((None,) * 4, best=0, label="ia3"),
    ]
    found = loaded(tmp_path, bodies)
    assert edge_counts(found.tunings) == (2, 4)
    assert "At an edge: 2 of 4 chosen values." in trials.legend(found.tunings[0])


def test_a_chosen_value_at_a_limit_of_its_method_is_at_no_edge(tmp_path: Path) -> None:
    space = {"lr": [1e-4, 1e-2], "alpha": [0.0, 1.0, 2.0]}
    bodies = [
        trial(i, score, space=space, alpha=alpha) | ({"bounds": {"alpha": {"minimum": 0}}} if score else {})
        for i, (score, alpha) in enumerate(((0.9, 0.0), (0.6, 1.0), (0.4, 2.0), (None, 1.0)))
    ]
    assert loaded(tmp_path, bodies).tunings[0].rows[0].edges == {}


@pytest.mark.parametrize("values", [3, None, "wide", {}, {"low": 1}, [], [[1], [2]]])
def test_a_space_of_another_program_has_no_edge(tmp_path: Path, values: Any) -> None:
    found = loaded(tmp_path, [trial(i, s, space={"alpha": values}) for i, s in enumerate((0.9, 0.6))])
    assert found.tunings[0].rows[0].edges == {}
    assert assemble.text_table(tmp_path, found)


def test_failed_trials_are_counted_and_lose(tmp_path: Path) -> None:
    found = loaded(tmp_path, choose_rates((None, 0.6, 0.4, None)))
    lines = assemble.text_table(tmp_path, found).splitlines()
    line = next(line for line in lines if "lr=0.002" in line and "4" in line and "*" not in line)
    assert line.split()[1:3] == ["4", "2"]


def test_final_runs_that_the_trials_no_longer_choose_are_said_to_be_old(tmp_path: Path) -> None:
    found = loaded(tmp_path, [*choose_rates((0.5, 0.6, 0.4, 0.9), best=1)])
    assert "Not what their trials choose now, as there are others since: lora." in notes(found)


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    bodies = choose_rates((0.5, 0.6, 0.4, 0.55), best=2, direction="min")
    errors = [json.loads(json.dumps(b).replace('"accuracy"', '"mae"').replace('"max"', '"min"')) for b in bodies]
    (row,) = loaded(tmp_path, errors).tunings[0].rows
    assert row.chosen["lr"] == RATES[2]


def test_trials_alone_make_a_report(tmp_path: Path) -> None:
    factories.write_all(tmp_path, choose_rates()[:3])
    page, *_ = assemble.write(tmp_path)
    assert "Tuning, embedded/question_type" in page.read_text()
    assert "lr=0.002" in assemble.text_table(tmp_path)


def test_the_report_has_tables_and_curves_of_the_trials(tmp_path: Path) -> None:
    other = [trial(i, s, "ia3", space={"lr": [1e-3, 1e-1]}) for i, s in enumerate((0.3, None, 0.5, 0.2))]
    factories.write_all(tmp_path, [*choose_rates(), *other])
    assemble.write(tmp_path)
    out, slug = tmp_path / "report", "quickstart--embedded_question_type--tuning"
    for name in ("expected-best", "rates"):
        for kind in ("png", "svg"):
            assert (out / "figures" / f"{slug}--{name}.{kind}").stat().st_size > 1000
        assert f"{slug}--{name}.png" in (out / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((out / "tables" / f"{slug}.csv").read_text())))
    assert len(rows) == 8
    assert [(r["method"], r["trial"]) for r in rows if r["chosen"] == "True"] == [("lora", "1"), ("ia3", "2")]
    assert {r["status"] for r in rows} == {"finished", "diverged"}
    curve = list(csv.DictReader(io.StringIO((out / "tables" / f"{slug}--expected-best.csv").read_text())))
    ia3 = [float(r["expected_best"]) for r in curve if r["method"] == "ia3"]
    assert ia3 == pytest.approx(expected_best([0.3, 0.2, 0.5, 0.2])), "the failed one as the table's worst"


def test_rows_for_programs_have_the_choice_and_the_exemptions(tmp_path: Path) -> None:
    exempt = replace(factories.method_spec("full"), exempt={"trials": "its published rate"})
    bodies = [*choose_rates(), factories.run("full", 0, 0.7, method=exempt)]
    factories.write_all(tmp_path, bodies)
    rows = {r["method"]: r for r in json.loads(json.dumps(assemble.rows(tmp_path)))}
    assert rows["lora"]["tuning"] == {
        "trials": 4, "further": 0, "failed": 0, "chosen": {"lr": 0.002, "alpha": 16.0}, "edges": {}, "validation": 0.6,
    }  # fmt: skip
    assert rows["full"]["tuning"] is None
    assert (rows["full"]["exempt"], rows["lora"]["exempt"]) == ({"trials": "its published rate"}, {})


@pytest.mark.slow
def test_every_table_prints_who_is_exempt_and_why(tmp_path: Path) -> None:
    exempt = replace(factories.method_spec("ia3"), exempt={"trainable_params": "it has one size"})
    tasks = ("embedded/question_type", "embedded/movie_sentiment")
    bodies = [factories.run("ia3", s, task=t, method=exempt) for t in tasks for s in (0, 1)]
    factories.write_all(tmp_path, [*bodies, *factories.grid(["full", "lora"], tasks=dict.fromkeys(tasks))])
    said = "Exempt from the budget of trainable_params: ia3 (it has one size)."
    found = assemble.load(tmp_path)
    assert all(said in c.notes for c in found.comparisons)
    assert " ".join(assemble.text_table(tmp_path, found).split()).count(said) == 3, "two tasks and their average"
    assemble.write(tmp_path)
    for name in ("average", "embedded_question_type", "embedded_movie_sentiment"):
        for kind in ("md", "tex"):
            text = (tmp_path / "report" / "tables" / f"quickstart--{name}.{kind}").read_text()
            assert "ia3 (it has one size)" in text.replace("\\", "")


def test_a_table_says_what_limited_its_runs(tmp_path: Path) -> None:
    def limited(label: str, seed: int, stopped: int, **train: Any) -> dict[str, Any]:
        body = factories.run(label, seed)
        asked = spec.RunSpec.from_dict(body["spec"])
        asked = replace(asked, train=replace(asked.train, **train))
        trained = {"tokens": 1000 * stopped, "seconds": 60.1, "repeatable": False}
        body |= {"spec": spec.as_dict(asked), "spec_id": asked.id, "stopped_at": stopped, "trained": trained}
        body["curve"]["loss"] = [0.5] * stopped
        return body

    timed = [limited(label, 0, n, steps=0, seconds=60.0) for label, n in (("full", 31), ("lora", 77))]
    found = loaded(tmp_path / "seconds", timed)
    assert "after 60 seconds of training steps after 31 to 77 steps" in notes(found)
    assert "do not repeat to the bit" in notes(found)
    assert "60 s of steps" in assemble.text_table(tmp_path / "seconds", found)
    told = [limited(label, 0, 40, tokens=40_000) for label in ("full", "lora")]
    assert "a budget of 40,000 training tokens: the runs saw 40,000" in notes(loaded(tmp_path / "tokens", told))
    parts = {"full": 4, "lora": 1}
    small = [limited(label, 0, 40, memory=2**30, accumulation=n) for label, n in parts.items()]
    found = loaded(tmp_path / "memory", small)
    assert len(found.comparisons) == 1, "other parts of a batch are no other training"
    assert "A budget of 1,024 MiB" in notes(found)
    assert "full 4, lora 1." in notes(found)


@pytest.mark.parametrize("direction", ["max", "min"])
@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_expected_best_of_k_is_the_mean_over_all_subsets_of_k(n: int, direction: str) -> None:
    draw = random.Random(n)
    scores = [round(draw.random(), 1) for _ in range(n)]  # ties, too
    best = max if direction == "max" else min
    by_hand = [fmean(map(best, itertools.combinations(scores, k))) for k in range(1, len(scores) + 1)]
    assert expected_best(scores, direction) == pytest.approx(by_hand)


def test_a_trials_record_needs_no_predictions_and_a_final_ones_does(tmp_path: Path) -> None:
    assert isinstance(record.read(record.write(tmp_path, trial(0, 0.5))), TrialRecord)
    whole = factories.run()
    assert isinstance(record.read(record.write(tmp_path, whole)), RunRecord)
    with pytest.raises(ValueError, match="must have predictions"):
        record.write(tmp_path, {**whole, "predictions": None})
