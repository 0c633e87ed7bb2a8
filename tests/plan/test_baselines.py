"""`run --against`: a new method beside baselines that ran before, or a refusal that names what is not the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import factories
import planning
import pytest
import verify_session
from commands import Call, Done

from peftbench.records import record
from peftbench.records.spec import RunSpec, as_dict

SSF = str(Path(__file__).resolve().parents[2] / "examples" / "ssf.py")
FILE = """\
name: tiny
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 2, max_length: 16, batch_size: 4}
train: {head_lr: 5e-3}
backbone_dropout: 0.0
profile: {processes: 1, rounds: 1, warmup: 0}
methods: [full, lora]
"""


def baselines(
    folder: Path, text: str = FILE, validation: Callable[[RunSpec], float] | None = None, **changes: Any
) -> Path:
    """Records of every run of an experiment, as if it had been run; `changes` go into each body.

    `validation` gives the scores of trials.
    """
    path = folder.with_suffix(".yaml")
    path.write_text(text)
    for p in planning.prepared(path).planned:
        body = {
            **verify_session.body(p.spec),
            "kind": "run",
            "spec_id": p.spec.id,
            "slug": p.spec.slug,
            "status": "finished",
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:00:01+00:00",
            "seconds": {"total": 1.0},
            "experiment": "tiny",
            "spec": as_dict(p.spec),
            "reference": "full",
            "reason": None,
            "traceback": None,
            "env": factories.ENV,
            **deepcopy(changes),
        }
        body["parameters"]["trainable"] = p.trainable
        if validation is not None and p.spec.trial is not None:
            body["metrics"]["validation"] = {body["metrics"]["primary"]: validation(p.spec)}
        record.write(folder, body)
    return folder


@pytest.fixture
def base(call: Call, tmp_path: Path) -> Path:
    return baselines(tmp_path / "base")


@pytest.fixture
def plan(call: Call, tmp_path: Path, base: Path) -> Any:
    """What `plan --against` says of the file with some text in it replaced."""

    def run(*arguments: str, old: str = "", new: str = "", against: Path = base, text: str = FILE) -> Done:
        path = tmp_path / "mine.yaml"
        assert old in text
        path.write_text(text.replace(old, new, 1) if old else text)
        asked = arguments or ("--only", "method=ssf")
        return call("plan", str(path), "--plugin", SSF, "--against", str(against), "--json", *asked)

    return run


def rows(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_only_the_new_method_is_planned_on_the_seeds_of_the_baselines(plan: Any) -> None:
    planned = rows(plan())
    assert [(r["label"], r["seed"]) for r in planned] == [("ssf", 0), ("ssf", 1)]
    assert {r["lr"] for r in planned} == {0.01}, "the rate that the method declares"


def test_a_rate_and_a_label_can_be_given_and_then_nothing_else_is_new(plan: Any) -> None:
    planned = rows(plan("--method", "ssf: {lr: 3e-2, label: mine, roles: q}"))
    assert {(r["label"], r["lr"]) for r in planned} == {("mine", 0.03)}
    grid = rows(plan("--method", "ssf: {lr: [1e-2, 3e-2]}"))
    assert len({r["label"] for r in grid}) == 2


def test_a_method_that_the_file_has_may_be_the_new_one(plan: Any) -> None:
    planned = rows(plan("--only", "method=bitfit", old="[full, lora]", new="[full, lora, bitfit]"))
    assert {r["label"] for r in planned} == {"bitfit"}


REFUSED = {
    "steps": ("steps: 3", "steps: 4", "steps: 3 there, 4 here"),
    "batch": ("batch_size: 4", "batch_size: 5", "batch size: 4 there, 5 here"),
    "length": ("max_length: 16", "max_length: 17", "max_length: 16 there, 17 here"),
    "head": ("head_lr: 5e-3", "head_lr: 4e-3", "head_lr: 0.005 there, 0.004 here"),
    "data": ("rows: 60", "rows: 80", "data fingerprint: "),
    "model": ("backbone: tiny-encoder", "backbone: tiny-decoder", "model fingerprint: "),
    "dtype": ("name: tiny", "name: tiny\ndtype: bfloat16", "dtype: float32 there, bfloat16 here"),
    "dropout": ("backbone_dropout: 0.0", "backbone_dropout: 0.1", "backbone_dropout: 0.0 there, 0.1 here"),
    "more seeds": ("seeds: 2", "seeds: 3", "the reference full has no finished run of seed 2 there"),
    "fewer seeds": ("seeds: 2", "seeds: 1", "seeds: 2 there, 1 here"),
    "size": ("trainable_params: 2000", "trainable_params: 1000", "trainable_params: 2,000 there, 1,000 here"),
    "no size": ("trainable_params: 2000, ", "", "trainable_params: 2,000 there, none here"),
    "task": ("synthetic/classification", "synthetic/regression", "no runs on synthetic/regression there"),
    "name": ("name: tiny", "name: other", "no finished runs of the experiment other; it holds tiny"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_comparable_is_refused_by_name(plan: Any, what: str) -> None:
    old, new, said = REFUSED[what]
    done = plan(old=old, new=new)
    assert done.code == 2
    assert said in done.err
    assert "--against" in done.err


TUNED = FILE.replace("seeds: 2,", "seeds: 2, trials: 3, tuning_steps: 2,")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials: 3", "trials: 2", "trials: 3 there, 2 here"),
        ("trials: 3, tuning_steps: 2,", "trials: null,", "trials: 3 there, none here"),
        ("tuning_steps: 2", "tuning_steps: 1", "tuning_steps: 2 there, 1 here"),
    ],
)
def test_baselines_tuned_otherwise_are_refused(plan: Any, tmp_path: Path, old: str, new: str, said: str) -> None:
    tuned = baselines(tmp_path / "tuned", TUNED)
    done = plan(text=TUNED, old=old, new=new, against=tuned)
    assert done.code == 2
    assert said in done.err
    assert rows(plan(text=TUNED, against=tuned)), "the same trials are comparable"


def test_by_default_the_new_method_gets_the_trials_that_the_baselines_had(plan: Any, tmp_path: Path) -> None:
    planned = rows(plan(against=baselines(tmp_path / "tuned", TUNED)))
    trials = [r for r in planned if r["trial"] is not None]
    assert [(r["label"], r["trial"], r["steps"]) for r in trials] == [("ssf", i, 2) for i in range(3)]
    assert len({r["lr"] for r in trials}) == 3
    finals = [r for r in planned if r["trial"] is None]
    assert [(r["seed"], r["waits_for_trials"], r["trials_may_come"]) for r in finals] == [(0, True, 6), (1, True, 6)]
    assert not any(r["trial"] is not None for r in rows(plan())), "those without trials leave it without"


def test_trials_as_long_as_final_runs_are_so_for_the_new_method_too(plan: Any, tmp_path: Path) -> None:
    tuned = baselines(tmp_path / "tuned", TUNED.replace(", tuning_steps: 2", ""))
    assert {(r["trial"] is None, r["steps"]) for r in rows(plan(against=tuned))} == {(True, 3), (False, 3)}


def test_a_new_method_is_not_extended_where_the_baselines_stayed_at_their_edges(plan: Any, tmp_path: Path) -> None:
    tuned = baselines(tmp_path / "tuned", TUNED, validation=lambda s: min(1.0, 10 * s.train.lr))
    planned = rows(plan(against=tuned))
    assert sum(r["trial"] is not None for r in planned) == 3
    assert {r["trials_may_come"] for r in planned} == {0}
    refused = plan(text=TUNED, old="trials: 3", new="trials: 3, extensions: 2", against=tuned)
    assert refused.code == 2
    assert "extensions: none there, up to 2 here" in refused.err


def test_a_new_method_whose_rate_is_given_keeps_it_beside_tuned_baselines(plan: Any, tmp_path: Path) -> None:
    done = plan("--method", "ssf: {lr: 1e-2}", against=baselines(tmp_path / "tuned", TUNED))
    assert {(r["trial"], r["lr"]) for r in rows(done)} == {(None, 0.01)}
    assert "no trials, at the rate that was given, where the baselines had theirs: ssf" in done.err


def test_a_rate_that_is_given_beside_tuned_baselines_is_named(plan: Any, tmp_path: Path) -> None:
    tuned = baselines(tmp_path / "tuned", TUNED)
    done = plan("--method", "ssf: {lr: 1e-2}", text=TUNED, against=tuned)
    assert done.code == 0
    assert "no trials, at the rate that was given, where the baselines had theirs: ssf" in done.err


def test_baselines_without_trials_are_no_match_for_a_tuned_method(plan: Any) -> None:
    done = plan(text=TUNED)
    assert done.code == 2
    assert "trials: none there, 3 here" in done.err


def test_baselines_that_are_not_there_are_called_missing(plan: Any, tmp_path: Path) -> None:
    done = plan(against=tmp_path / "nowhere")
    assert done.code == 2
    assert "nowhere" in done.err
    assert "no such directory" in done.err


def test_every_difference_is_named_at_once(plan: Any) -> None:
    said = plan(old="steps: 3, seeds: 2, max_length: 16", new="steps: 5, seeds: 2, max_length: 17").err
    assert "steps: 3 there, 5 here" in said
    assert "max_length: 16 there, 17 here" in said


def test_one_seed_of_several_may_be_asked_for(plan: Any) -> None:
    assert [r["seed"] for r in rows(plan("--only", "method=ssf", "--only", "seed=1"))] == [1]


def test_a_label_that_the_baselines_have_is_refused(plan: Any) -> None:
    done = plan("--only", "method=lora")
    assert done.code == 2
    assert "it has rows of lora already" in done.err
    assert "--method 'lora: {label: lora-mine}'" in done.err


def test_nothing_new_is_refused(plan: Any) -> None:
    done = plan("--only", "seed=0")
    assert done.code == 2
    assert "say which method is new" in done.err


def test_a_mistake_in_a_method_given_here_is_named_with_its_place(plan: Any) -> None:
    done = plan("--method", "ssf: {roless: q}")
    assert done.code == 2
    assert "unknown hyperparameter 'roless'" in done.err
    assert "--method" in done.err
    assert plan("--method", "sfs").code == 2


def test_baselines_without_the_reference_are_refused(plan: Any, tmp_path: Path) -> None:
    alone = baselines(tmp_path / "alone", FILE.replace("[full, lora]", "[lora]"))
    done = plan(against=alone)
    assert done.code == 2
    assert "no finished run of the reference full there" in done.err


def test_trials_of_a_tuning_are_no_baselines(plan: Any, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "trials"
    for r in record.read_all(base):
        record.write(out, factories.as_trial(r.raw(), 1))
    done = plan(against=out)
    assert done.code == 2
    assert "it holds no finished runs" in done.err


def test_baselines_of_an_older_version_are_named(plan: Any, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "old"
    for r in record.read_all(base):
        body = r.raw()
        body["spec"]["method"]["version"] = 0 if r.spec.method.name == "lora" else 1
        record.write(out, factories.with_ids(body))
    done = plan(against=out)
    assert done.code == 0
    assert re.search(r"older version of their method.*: lora\n", done.err)


def test_the_new_records_may_not_go_among_the_baselines(plan: Any, base: Path) -> None:
    done = plan("--only", "method=ssf", "--results", str(base))
    assert done.code == 2
    assert "that is where the baselines lie" in done.err


@pytest.mark.slow
def test_a_method_from_a_plugin_gets_its_row_in_the_table_of_the_baselines(
    call: Call,
    base: Path,
    tmp_path: Path,
) -> None:
    before = {p: p.read_bytes() for p in base.rglob("*") if p.is_file()}
    asked = (str(tmp_path / "base.yaml"), "--plugin", SSF, "--only", "method=ssf", "--against", "base")
    done = call("run", *asked)
    assert done.code == 0, done.err
    assert {p: p.read_bytes() for p in base.rglob("*") if p.is_file()} == before
    made = tmp_path / "results" / "tiny-ssf"
    runs = [r for r in record.read_all(made) if r.kind == "run"]
    (timed,) = [r for r in record.read_all(made) if r.kind == "profile"]
    assert {r.spec.method.label for r in runs} == {"ssf"}
    assert [m.label for m in timed.spec.methods] == ["full", "ssf"], "timed beside the reference"
    table = (made / "report" / "tables" / "tiny--synthetic_classification.md").read_text()
    found = [line for line in table.splitlines() if re.match(r"\|\s*\**(full|ssf|lora)\b", line)]
    assert len(found) == 3
    assert "ssf: runs in results/tiny-ssf; the other 2 rows: runs in base." in table
    rows = json.loads(call("report", "results/tiny-ssf", "--against", "base", "--json").out)
    ssf = next(r for r in rows if r["method"] == "ssf")
    assert (ssf["n"], set(ssf["scores"])) == (2, {"0", "1"})
    assert ssf["relative_sd"] is not None, "paired with the reference, seed by seed"
    assert ssf["step_ratio"] is not None, "to the reference, timed beside it"
    assert next(r for r in rows if r["method"] == "full")["step_seconds"] is None, "a baseline keeps its own times"
    assert call("report", "results/tiny-ssf", "--against", "base", "--check").code == 0
    assert call("run", *asked, "-q").code == 0, "nothing is left to do"
    assert len(record.read_all(made)) == 3


AXES = FILE.replace("steps: 3, ", "").replace("methods:", "axes: {train_size: [20, all], steps: [2, 3]}\nmethods:")


def test_a_new_method_runs_at_every_value_of_the_axes_of_its_baselines(plan: Any, tmp_path: Path) -> None:
    there = baselines(tmp_path / "axes", AXES)
    rows = json.loads(plan(against=there, text=AXES).out)
    assert {r["label"] for r in rows} == {"ssf"}
    assert sorted({(str(r["train_size"]), r["steps"], r["seed"]) for r in rows}) == [
        (size, steps, seed) for size in ("20", "all") for steps in (2, 3) for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("[20, all]", "[20, 30]", r"task options: .*'limit_train': 20.* there, .*'limit_train': 30.* here"),
        ("[2, 3]", "[2, 4]", "steps: 2 there, 4 here|steps: 3 there, 4 here"),
    ],
)
def test_a_value_of_an_axis_that_the_baselines_lack_is_named(
    plan: Any, tmp_path: Path, old: str, new: str, difference: str
) -> None:
    refused = plan(against=baselines(tmp_path / "axes", AXES), text=AXES, old=old, new=new)
    assert refused.code == 2
    assert re.search(difference, refused.err), refused.err
