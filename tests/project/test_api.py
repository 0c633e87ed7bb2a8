"""The Python door: the same plan, records and table as the command line's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import TINY, Call

import peftbench
from peftbench.backbones import load as backbones
from peftbench.backbones import source, tiny
from peftbench.errors import UserError
from peftbench.plan import grid
from peftbench.records import record
from peftbench.run import runner
from peftbench.run.view import Lines

ROOT = Path(__file__).resolve().parents[2]
QUICK = {**yaml.safe_load(TINY), "profile": False}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for the session's tests, and an empty directory to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path.parent / "peftbench-cache"))


def test_functions_bear_the_names_of_packages_and_both_are_reached() -> None:
    assert callable(peftbench.plan)
    assert callable(peftbench.run)
    assert callable(peftbench.report)
    assert callable(peftbench.records)
    assert grid.__name__ == "peftbench.plan.grid"
    assert record.__name__ == "peftbench.records.record"
    assert runner.__name__ == "peftbench.run.runner"


def test_importing_peftbench_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, peftbench; print(sorted({'torch', 'pandas', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_frame_of_no_records_has_the_columns_of_records(tmp_path: Path) -> None:
    frame = peftbench.records(tmp_path / "none").frame()
    assert len(frame["status"]) == len(frame["task"]) == 0


def test_no_workers_and_a_text_in_place_of_a_list_are_refused(cached: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="jobs: given 0; must be from 1"):
        peftbench.run(QUICK, tmp_path, jobs=0)
    with pytest.raises(UserError, match=r"only: given the text 'method=lora'; give a list: only=\['method=lora'\]"):
        peftbench.plan(QUICK, only="method=lora")


def test_a_plan_is_the_grid_as_a_frame(cached: None) -> None:
    plan = peftbench.plan(QUICK, only=["method=lora"], overrides=["budget.seeds=3"])
    frame = plan.frame()
    assert len(plan) == len(frame) == 3
    assert set(frame["method"]) == {"lora"}
    assert list(frame["seed"]) == [0, 1, 2]
    assert list(frame["spec_id"]) == [spec.id for spec in plan.runs]
    assert repr(plan) == "Plan('tiny', 3 runs)"


def test_the_same_file_gives_the_same_runs_from_a_path_a_mapping_and_an_experiment(
    cached: None, tmp_path: Path
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(QUICK))
    plans = [peftbench.plan(path), peftbench.plan(str(path)), peftbench.plan(QUICK)]
    plans.append(peftbench.plan(plans[0].experiment))
    assert len({tuple(s.id for s in p.runs) for p in plans}) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_python_and_the_command_line_give_the_same_records_and_table(
    call: Call, tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = call("run", tiny, "--set", "profile=false", "--set", "budget.steps=2", "--results", "shell")
    plan = peftbench.plan(tiny, overrides=["profile=false", "budget.steps=2"])
    records = peftbench.run(plan, "python")
    assert capsys.readouterr().out == "", "nothing is printed unless it is asked for"
    report = peftbench.report(records)
    assert shell.code == 0
    assert records.outcome is not None
    assert records.outcome.code == 0
    assert report.table() in shell.out
    of_shell = peftbench.records("shell")
    assert [r.spec_id for r in of_shell] == [r.spec_id for r in records]
    assert [r.predictions for r in of_shell] == [r.predictions for r in records]
    frame = records.frame()
    assert set(frame["status"]) == {"finished"}
    assert frame["test_accuracy"].between(0, 1).all()
    assert report.frame()["mean"].tolist() == frame.groupby("method")["test_accuracy"].mean().tolist()
    assert "<table" in report._repr_html_()
    assert report.write("page").name == "report.md"
    assert report.check("page") == []
    overrides = {tuple(r.body.overrides) for r in [*records, *of_shell]}
    assert overrides == {("profile=false", "budget.steps=2")}, "kept in the record"


@pytest.mark.usefixtures("in_this_process")
def test_a_complete_grid_is_not_run_again(cached: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan = peftbench.plan(QUICK, only=["method=lora", "seed=0"])
    first = peftbench.run(plan, "r", progress=True)
    assert "finished lora on synthetic/classification, seed 0" in capsys.readouterr().out
    again = peftbench.run(plan, "r", progress=Lines())
    assert "started" not in capsys.readouterr().out
    assert [r.path for r in again] == [r.path for r in first]


@pytest.mark.slow
def test_a_model_in_memory_is_the_backbone_of_a_run(cached: None) -> None:
    net = backbones.load("tiny-encoder", "classification", 2)
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(net.net.config)
    plan = peftbench.plan(QUICK, only=["method=lora", "seed=0"], model=model, tokenizer=tiny.tokenizer("tiny-encoder"))
    (spec,) = plan.runs
    assert spec.backbone.fingerprint != source.fingerprint("tiny-encoder")
    again = peftbench.plan(QUICK, only=["method=lora", "seed=0"], model=model, tokenizer=tiny.tokenizer("tiny-encoder"))
    assert again.runs == plan.runs, "the same weights are the same model"
    (r,) = peftbench.run(plan, "r")
    assert r.is_finished


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": object()}, "give a transformers model"),
        ({"tokenizer": object()}, "without its model"),
        ({"only": ["method=lroa"]}, "lroa"),
        ({"overrides": ["budget.steps=x"]}, "must be a whole number"),
        ({"data_dir": "nowhere"}, "no such directory"),
    ],
)
def test_mistakes_are_user_errors(cached: None, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        peftbench.plan(QUICK, **given)


@pytest.mark.slow
@pytest.mark.embedded
def test_the_notebook_runs_and_its_table_is_the_command_lines(tmp_path: Path) -> None:
    script = ROOT / "examples" / "notebook.py"
    assert len(script.read_text().splitlines()) <= 30
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "peftbench", "report", "results/notebook"]
    shell = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert shell.stdout.rpartition("report: ")[0].strip() in done.stdout
    assert "predictions, merged [" in done.stdout
