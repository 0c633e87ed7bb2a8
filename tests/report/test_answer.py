"""The answer of a table: what to take, said first, in words, in JSON and from Python."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import pytest

import peftbench
from peftbench.records import record
from peftbench.report import assemble
from peftbench.report.data import answer, decisions, verdicts
from peftbench.report.data.answer import Answer
from peftbench.report.data.collect import compare
from peftbench.report.data.comparison import Comparison
from peftbench.report.tables import answers

NEAR = {"full": (0.800, 0.802, 0.801), "lora": (0.801, 0.800, 0.803), "ia3": (0.600, 0.604, 0.602)}
DESIGN = {"margin": 0.02, "prefer": "memory", "looks": [], "spending": "pocock", "claims": []}


def bodies(scores: dict[str, tuple[float, ...]], **changes: Any) -> list[dict[str, Any]]:
    """Runs whose scores are all that is known of them: correlations, without the influence of examples."""
    made = []
    for label, values in scores.items():
        for seed, value in enumerate(values):
            body = factories.run(label, seed, value, metric="pearson", majority=None)
            made.append({**body, **changes})
    return made


def table(folder: Path, runs: list[dict[str, Any]]) -> Comparison:
    factories.write_all(folder, runs)
    (c,) = compare(record.read_all(folder))
    return c


def of(folder: Path, scores: dict[str, tuple[float, ...]], **changes: Any) -> Answer:
    found = answer.of(table(folder, bodies(scores, **changes)))
    assert found is not None
    return found


def claim(method: str, against: str, relation: str | None = None, task: str | None = None) -> dict[str, Any]:
    return {"method": method, "against": against, "relation": relation, "task": task}


def test_of_costs_that_are_alike_the_best_score_decides() -> None:
    """A hundredth of the memory is none worth a worse score; two hundredths are."""
    scores = {"dora": 0.80, "lora": 0.81, "full": 0.85}
    assert answer.cheapest({"dora": 100.0, "lora": 100.9, "full": 300.0}, scores) == "lora"
    assert answer.cheapest({"dora": 100.0, "lora": 102.0, "full": 300.0}, scores) == "dora"
    assert answer.cheapest({}, scores) is None


def test_a_choice_among_alike_costs_says_so(tmp_path: Path) -> None:
    a = replace(of(tmp_path, NEAR), is_least=False)
    assert "Answer: lora needs the least peak memory" in answers.recommendation(a)
    assert ", give or take 1 %, of those" in answers.recommendation(a)


def test_the_cheapest_of_those_within_the_margin_is_recommended(tmp_path: Path) -> None:
    a = of(tmp_path, NEAR)
    assert (a.within, a.behind, a.open) == (("full", "lora"), ("ia3",), ())
    assert a.chosen == "lora", "it needs less memory than full"
    assert a.cost_ratio is not None
    assert a.cost_ratio < 1
    assert "Answer: lora needs the least peak memory" in answers.recommendation(a)
    assert "surely within 2 points of pearson of the best: full and lora" in answers.recommendation(a)


def test_what_is_preferred_decides(tmp_path: Path) -> None:
    a = of(tmp_path, NEAR, design={**DESIGN, "prefer": "parameters"})
    assert a.chosen == "lora"
    assert "trainable parameters" in answers.recommendation(a)


def test_a_cost_that_was_not_measured_chooses_nothing(tmp_path: Path) -> None:
    a = of(tmp_path, NEAR, design={**DESIGN, "prefer": "time"})
    assert a.chosen is None
    assert "which costs the least time for a step was not measured" in answers.recommendation(a)


def test_where_nothing_is_sure_it_says_so_and_what_it_takes(tmp_path: Path) -> None:
    a = of(tmp_path, {"full": (0.80, 0.70, 0.75), "lora": (0.70, 0.79, 0.75)})
    assert a.chosen is None
    assert a.within == ()
    assert answers.recommendation(a) == "No answer yet: no method is surely within 2 points of pearson of the best."
    assert a.seeds_needed is not None
    assert a.seeds_needed > 3


def test_the_margin_of_the_file_counts(tmp_path: Path) -> None:
    scores = {"full": (0.800, 0.802, 0.801), "lora": (0.77, 0.773, 0.7705)}
    assert of(tmp_path / "two", scores).within == ("full",)
    five = of(tmp_path / "five", scores, design={**DESIGN, "margin": 0.05})
    assert five.within == ("full", "lora")
    assert five.versus == {"lora": "worse"}
    assert "within 5 points" in answers.recommendation(five)


def test_a_table_with_one_seed_or_one_row_has_no_answer(tmp_path: Path) -> None:
    assert answer.of(table(tmp_path / "seed", bodies({"full": (0.8,), "lora": (0.7,)}))) is None
    assert answer.of(table(tmp_path / "row", bodies({"full": (0.8, 0.81, 0.79)}))) is None


def test_the_answer_stands_before_the_tables(tmp_path: Path) -> None:
    factories.write_all(tmp_path, bodies(NEAR))
    page = assemble.write(tmp_path)[0].read_text()
    assert page.index("Answer: lora") < page.index("How to read the tables")
    lines = assemble.text_table(tmp_path).splitlines()
    assert lines[1].startswith("Answer: lora")
    assert next(i for i, line in enumerate(lines) if line.startswith("method")) > 1


def test_the_answer_is_json_beside_the_page_and_a_list_in_python(tmp_path: Path) -> None:
    factories.write_all(tmp_path, bodies(NEAR))
    assemble.write(tmp_path)
    (told,) = json.loads((tmp_path / "report/verdict.json").read_text())
    (found,) = peftbench.report(tmp_path).verdict()
    assert told["chosen"] == found.chosen == "lora"
    assert told["sentence"] == answers.recommendation(found)
    rows = {row["method"]: row for row in assemble.rows(tmp_path)}
    assert {label: row["verdict"] for label, row in rows.items()} == {
        "full": "within",
        "lora": "within",
        "ia3": "behind",
    }
    assert rows["ia3"]["versus_reference"] == "worse"
    assert rows["lora"]["decided_seeds"] == 3


def test_a_planned_question_is_answered_at_the_full_level(tmp_path: Path) -> None:
    turns = ((0.790, 0.800, 0.812), (0.812, 0.790, 0.800), (0.800, 0.812, 0.790))
    others = {f"other{i}": turns[i % 3] for i in range(8)}
    scores = {"full": (0.800, 0.81, 0.795), "lora": (0.781, 0.788, 0.774), **others}
    plain = table(tmp_path / "plain", bodies(scores))
    asked = table(tmp_path / "asked", bodies(scores, design={**DESIGN, "claims": [claim("lora", "full", "worse")]}))
    assert (answer.of(plain) or pytest.fail("no answer")).versus["lora"] is None, "one of nine rows"
    (question,) = decisions.of(asked).questions
    assert question.holds is True
    assert verdicts.of(asked)["lora"].tied is False, "the best is worse than none"
    said = " ".join(answers.first(asked))
    assert "Planned question: is lora worse than full? Yes; lora is worse (−2.07 points [" in said
    assert "], 3 seeds, at 5 %)." in said


def test_a_claim_that_is_wrong_is_said_to_be(tmp_path: Path) -> None:
    c = table(
        tmp_path, bodies(NEAR, design={**DESIGN, "claims": [claim("ia3", "full", "equal"), claim("lora", "ia3")]})
    )
    said = " ".join([*answers.first(c), *answers.sentences(c)])
    assert "is ia3 equal to full within 2 points of pearson? No; ia3 is worse" in said
    assert "how does lora compare with ia3? lora is better" in said


def test_a_claim_on_another_task_is_not_asked_here(tmp_path: Path) -> None:
    c = table(tmp_path, bodies(NEAR, design={**DESIGN, "claims": [claim("lora", "full", None, "glue/rte")]}))
    assert decisions.of(c).questions == []


def test_a_claim_that_was_added_after_runs_is_kept_apart(tmp_path: Path) -> None:
    runs = bodies(NEAR)
    late = {**DESIGN, "claims": [claim("lora", "full", "equal")]}
    runs[5] = {
        **runs[5],
        "design": late,
        "started": "2026-02-01T00:00:00Z",
        "ended": "2026-02-01T00:00:00Z",
    }  # lora's last seed
    c = table(tmp_path, runs)
    assert decisions.of(c).questions == []
    assert "Asked after runs, and so no planned question: lora is equal to full" in " ".join(answers.sentences(c))


def test_a_table_with_looks_takes_its_marks_from_them(tmp_path: Path) -> None:
    scores = {"full": (0.80, 0.81, 0.79), "lora": (0.77, 0.787, 0.768), "ia3": (0.3, 0.31, 0.32)}
    fixed = table(tmp_path / "fixed", bodies(scores))
    looked = table(tmp_path / "looked", bodies(scores, design={**DESIGN, "looks": [3, 5, 8]}))
    assert verdicts.of(fixed)["ia3"].p_holm is not None
    assert verdicts.of(looked)["ia3"].p_holm is None, "a p-value of one look says nothing of all"
    assert verdicts.of(looked)["ia3"].tied is False
    assert decisions.of(looked).going_on == {"full": 5, "lora": 5}
    said = assemble.text_table(tmp_path / "looked")
    assert "Seeds until decided, looked at after 3, 5 and 8: 9 runs of at most 24" in " ".join(said.split())
    assert "Holm" not in said


def test_over_tasks_those_within_the_margin_on_each_are_named(tmp_path: Path) -> None:
    runs = bodies(NEAR)
    for body in bodies({**NEAR, "lora": (0.70, 0.703, 0.7005)}):
        spec = json.loads(json.dumps(body["spec"]))
        spec["task"]["name"], spec["task"]["fingerprint"] = "glue/rte", "e" * 64
        runs.append(factories.with_ids({**body, "spec": spec}))
    factories.write_all(tmp_path, runs)
    page = assemble.write(tmp_path)[0].read_text()
    assert "Surely within the margin of the best on each of embedded/question_type and glue/rte: full." in page


def errors(looks: list[int]) -> list[dict[str, Any]]:
    """Runs of a reference without any error, in a file that names no margin."""
    runs = []
    for label, values in {"full": (0.0, 0.0, 0.0), "lora": (0.1, 0.0, 0.2), "ia3": (0.5, 0.6, 0.4)}.items():
        facts = {"metric": "mae", "direction": "min", "majority": None}
        runs += [factories.run(label, seed, value, **facts) for seed, value in enumerate(values)]
    return [{**body, "design": {**DESIGN, "margin": None, "looks": looks}} for body in runs]


@pytest.mark.parametrize("looks", [[], [3, 5]])
def test_errors_of_zero_leave_no_margin_and_an_answer_is_said_to_be_missing(looks: list[int], tmp_path: Path) -> None:
    """2 % of the best error is the margin where a file names none; no number of seeds or examples shows nothing."""
    a = answer.of(table(tmp_path, errors(looks)))
    assert a is not None
    assert (a.margin, a.within, a.seeds_needed, a.examples_needed) == (0.0, (), None, None)
    assert "No answer yet" in assemble.text_table(tmp_path)


def test_a_row_that_goes_on_for_the_reference_is_not_said_to_have_stopped(tmp_path: Path) -> None:
    c = table(tmp_path, errors([3, 5]))
    state, said = decisions.of(c), " ".join([*answers.first(c), *answers.sentences(c)])
    assert state.rows["full"].is_hopeless
    assert "full" in state.going_on
    assert "The last look would probably not decide it: full and lora." in said
    assert "Stopped" not in said


def changed_after(first: int, later: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Runs whose file was changed after the first seeds of each row."""
    planned = {**DESIGN, "looks": [3, 5, 8]}
    scores = {"full": (0.80, 0.81, 0.79, 0.80, 0.82), "lora": (0.79, 0.80, 0.80, 0.81, 0.82)}
    runs = bodies(scores, design=planned)
    dates = {"started": "2026-02-01T00:00:00Z", "ended": "2026-02-01T00:00:00Z", "design": later}
    return [body if body["spec"]["seed"] < first else {**body, **dates} for body in runs]


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (None, "4 for no margin of its own and a fixed number of seeds"),
        (
            {**DESIGN, "margin": 0.05, "looks": [3, 5, 8]},
            "4 for a margin of 0.05 and looks after 3, 5, 8 seeds (pocock)",
        ),
        ({**DESIGN, "looks": [3, 4]}, "4 for a margin of 0.02 and looks after 3, 4 seeds (pocock)"),
    ],
)
def test_a_plan_that_was_changed_after_runs_is_said_to_be(
    later: dict[str, Any] | None, said: str, tmp_path: Path
) -> None:
    c = table(tmp_path, changed_after(3, later))
    (note,) = [note for note in c.notes if "The plan was changed after runs" in note]
    assert "of 10 runs, 6 for a margin of 0.02 and looks after 3, 5, 8 seeds (pocock) were made" in note
    assert said in note


def test_a_claim_or_a_preference_that_was_changed_is_no_other_plan(tmp_path: Path) -> None:
    later = {**DESIGN, "looks": [3, 5, 8], "prefer": "time", "claims": [claim("lora", "full")]}
    assert not [n for n in table(tmp_path, changed_after(3, later)).notes if "plan" in n]


def test_without_a_score_of_the_reference_nothing_is_said_against_it(tmp_path: Path) -> None:
    scores = {"lora": (0.80, 0.81, 0.79), "ia3": (0.3, 0.31, 0.32)}
    factories.write_all(tmp_path, bodies(scores, design={**DESIGN, "looks": [3, 5, 8]}))
    said = assemble.text_table(tmp_path)
    assert "Answer: lora" in said
    assert "Against full" not in said


def test_no_fewer_seeds_than_the_last_look_are_said_to_be_enough(tmp_path: Path) -> None:
    """What one look at so many seeds would show, looks that share the error need not."""
    scores = {"full": (0.80, 0.81, 0.82, 0.81, 0.8, 0.83), "lora": (0.80, 0.81, 0.79, 0.8), "ia3": (0.3, 0.31, 0.32)}
    c = table(tmp_path, bodies(scores, design={**DESIGN, "looks": [3, 5, 8]}))
    a = answer.of(c)
    assert a is not None
    assert a.seeds_needed is not None
    assert a.seeds_needed < 8
    assert "seeds would show" not in " ".join(answers.sentences(c))


def test_a_question_on_a_row_that_is_not_there_says_which(tmp_path: Path) -> None:
    asked = {**DESIGN, "claims": [claim("nobody", "full"), claim("lora", "nobody", "equal")]}
    said = list(answers.first(table(tmp_path, bodies(NEAR, design=asked))))[1:]
    assert [s.rpartition("? ")[2] for s in said] == ["Not answered: nobody is not in this table."] * 2


@pytest.mark.parametrize(
    ("metric", "direction", "unit", "said"),
    [
        ("pearson", "max", 0.01, "Yes (+5 points ["),
        ("bleu", "max", 1.0, "Yes (+5 points ["),
        ("mae", "min", 0.01, "Yes (+0.05 ["),
    ],
)
def test_how_far_a_method_is_ahead_is_in_the_unit_of_the_metric(
    metric: str, direction: str, unit: float, said: str, tmp_path: Path
) -> None:
    """The method is neither surely better nor surely equal, but surely not worse by more than the margin."""
    asked = {**DESIGN, "margin": 24 * unit, "claims": [claim("lora", "full", "not_worse")]}
    scores = {"full": (50, 48, 52), "lora": (40, 55, 70) if direction == "max" else (60, 41, 34)}
    runs = [
        {**factories.run(label, seed, value * unit, metric=metric, direction=direction, majority=None), "design": asked}
        for label, values in scores.items()
        for seed, value in enumerate(values)
    ]
    (sentence,) = (s for s in answers.first(table(tmp_path, runs)) if s.startswith("Planned"))
    assert said in sentence


@pytest.mark.parametrize("looks", [[], [3, 5]])
def test_a_table_beside_baselines_says_that_their_looks_are_not_its_own(looks: list[int], tmp_path: Path) -> None:
    later = {"started": "2026-02-01T00:00:00Z", "ended": "2026-02-01T00:00:00Z"}
    asked = {"design": {**DESIGN, "claims": [claim("mine", "full")]}, **later}
    factories.write_all(tmp_path / "base", bodies(NEAR, design={**DESIGN, "looks": looks}))
    factories.write_all(tmp_path / "mine", bodies({"mine": (0.800, 0.802, 0.801)}, **asked))
    (c,) = assemble.load_against(tmp_path / "mine", tmp_path / "base").comparisons
    assert any("The baselines' seeds ran until decided" in note for note in c.notes) == bool(looks)
    assert not any("plan was changed" in note for note in c.notes)
    (question,) = decisions.of(c).questions
    assert question.found == "equal"


def test_the_answer_alone_is_a_command_that_writes_nothing_and_refuses_what_it_would_ignore(
    tmp_path: Path, call: Any
) -> None:
    factories.write_all(tmp_path, bodies(NEAR))
    alone = call("report", str(tmp_path), "--verdict")
    assert alone.code == 0
    assert "Answer: lora needs the least peak memory" in alone.out
    assert not (tmp_path / "report").exists()
    assert json.loads(call("report", str(tmp_path), "--verdict", "--json").out)[0]["chosen"] == "lora"
    refused = call("report", str(tmp_path), "--verdict", "--check")
    assert refused.code == 2
    assert "--verdict writes nothing; leave out --check" in refused.err
    missing = call("report", str(tmp_path / "nowhere"), "--verdict", "--json")
    assert missing.code == 2
    assert "no records of runs here" in missing.err
