"""Which runs may be compared: one answer from `--against`, from the report and from a paper's figure."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import planning
import pytest
import verify_session
from factories import ENV, profile, run
from paper_records import flat, roles_runs

from peftbench.errors import UserError
from peftbench.plan import baselines
from peftbench.plan.prepare import Prepared
from peftbench.records import comparable, record
from peftbench.records.spec import BackboneSpec, ProfileSpec, RunSpec, TaskSpec, TrainSpec, as_dict
from peftbench.report.data.collect import compare
from peftbench.report.papers import NotRun, Results, lora_roles

FILE = """\
name: tiny
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {steps: 3, seeds: 1, max_length: 16, batch_size: 4}
profile: false
methods: [full, lora, bitfit]
"""
MEMORY = {"train.memory": 2**30}
OFTEN = {"train.eval_every": 1}
BEST = {"train.checkpoint": "best"}

Changes = dict[str, Any]  # "train.steps" -> value
PAIRS: dict[str, tuple[Changes, Changes, list[str]]] = {  # what -> both sides' fields, and what is to be named
    "nothing": ({}, {}, []),
    "rate": ({}, {"train.lr": 0.5}, []),
    "parts of a batch under a budget of memory": (MEMORY, {**MEMORY, "train.accumulation": 4}, []),
    "parts of a batch": ({}, {"train.accumulation": 4}, ["accumulation"]),
    "memory": (MEMORY, {"train.memory": 2**20}, ["memory"]),
    "a budget of memory on one side": ({}, {**MEMORY, "train.accumulation": 4}, ["memory"]),
    "checkpoint": (OFTEN, {**OFTEN, **BEST}, ["checkpoint"]),
    "patience": ({**OFTEN, "train.patience": 2}, {**OFTEN, "train.patience": 3}, ["patience"]),
    "evaluations that decide nothing": ({}, OFTEN, []),
    "evaluations that decide": ({**OFTEN, **BEST}, {"train.eval_every": 2, **BEST}, ["eval_every"]),
    "steps": ({}, {"train.steps": 4}, ["steps"]),
    "tokens": ({}, {"train.tokens": 900}, ["tokens"]),
    "seconds": ({"train.seconds": 9.0}, {"train.seconds": 8.0}, ["seconds"]),
    "head": ({}, {"train.head_lr": 1e-3}, ["head_lr"]),
    "schedule": ({}, {"train.warmup": 0.5, "train.decay": "constant"}, ["warmup", "decay"]),
    "data": ({}, {"task.fingerprint": "d" * 64}, ["data fingerprint"]),
    "code of the task": ({}, {"task.version": 7}, ["version of the task's code"]),
    "stand-in": ({}, {"task.stand_in_for": "glue/rte"}, ["stand-in for"]),
    "rows": ({}, {"task.options": {"rows": 80}}, ["task options"]),
    "model": ({}, {"backbone.fingerprint": "e" * 64}, ["model fingerprint"]),
    "dtype": ({}, {"backbone.dtype": "bfloat16"}, ["dtype"]),
    "compile": ({}, {"backbone.compile": True}, ["compile"]),
    "checkpointing": ({}, {"backbone.gradient_checkpointing": True}, ["gradient_checkpointing"]),
    "dropout": ({}, {"backbone.dropout": 0.3}, ["backbone_dropout"]),
}  # fmt: skip
EACH_PAIR = pytest.mark.parametrize("pair", PAIRS)


def changed(spec: RunSpec, changes: Changes) -> RunSpec:
    for place, value in changes.items():
        part, key = place.split(".")
        spec = replace(spec, **{part: replace(getattr(spec, part), **{key: value})})
    return spec


def named(text: str) -> list[str]:
    """The differences that a text names, in the order of the table of names."""
    return [name for name in comparable.NAMES.values() if re.search(rf"(^|[\s(]){re.escape(name)}: ", text)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = tmp_path_factory.mktemp("comparable") / "tiny.yaml"
    path.write_text(FILE)
    return planning.prepared(path)


def body(spec: RunSpec) -> dict[str, Any]:
    made = run(spec.method.label, spec.seed, experiment="tiny", method=spec.method)
    return {**made, **verify_session.body(spec), **asked(spec), "env": ENV}


def asked(spec: RunSpec) -> dict[str, Any]:
    return {"spec": as_dict(spec), "spec_id": spec.id, "slug": spec.slug}


def split(planned: Prepared, here: Changes, there: Changes) -> tuple[Prepared, list[dict[str, Any]]]:
    """The plan of the new method as changed by `here`, and the baselines' records as changed by `there`."""
    ours, theirs = ([p for p in planned.planned if (p.label == "bitfit") is new] for new in (True, False))
    mine = replace(planned, planned=[replace(p, spec=changed(p.spec, here)) for p in ours])
    return mine, [body(changed(p.spec, there)) for p in theirs]


@EACH_PAIR
def test_against_names_what_keeps_two_runs_apart(planned: Prepared, tmp_path: Path, pair: str) -> None:
    here, there, names = PAIRS[pair]
    mine, bodies = split(planned, here, there)
    for made in bodies:
        record.write(tmp_path, made)
    if not names:
        assert len(baselines.baselines(mine, tmp_path, {}).runs) == 2
        return
    with pytest.raises(UserError) as refused:
        baselines.baselines(mine, tmp_path, {})
    assert sorted(named(str(refused.value))) == sorted(names)


@EACH_PAIR
def test_the_report_names_what_keeps_two_runs_apart(planned: Prepared, tmp_path: Path, pair: str) -> None:
    here, there, names = PAIRS[pair]
    mine, bodies = split(planned, here, there)
    for made in [*bodies, *(body(p.spec) for p in mine.planned)]:
        record.write(tmp_path, made)
    tables = compare(record.read_all(tmp_path))
    assert len(tables) == (2 if names else 1)
    for table in tables:
        assert sorted(named("\n".join(table.notes))) == sorted(names)


@pytest.mark.slow
@EACH_PAIR
def test_a_papers_figure_names_what_keeps_two_runs_apart(tmp_path: Path, pair: str) -> None:
    here, there, names = PAIRS[pair]
    folder = tmp_path / lora_roles.FIGURE.folders[0]
    for i, made in enumerate(roles_runs(flat(0.8))):  # three seeds of each configuration
        spec = changed(RunSpec.from_dict(made["spec"]), here if i < 3 else there)
        record.write(folder, {**made, **asked(spec)})
    if not names:
        assert lora_roles.FIGURE.reproduce(Results(tmp_path)).table.rows
        return
    with pytest.raises(NotRun) as refused:
        lora_roles.FIGURE.reproduce(Results(tmp_path))
    assert sorted(named(str(refused.value))) == sorted(names)


def test_every_field_of_a_setting_has_a_name() -> None:
    parts = {"backbone": BackboneSpec, "task": TaskSpec, "train": TrainSpec}
    known = {f"{part}.{f.name}" for part, cls in parts.items() for f in fields(cls)}
    assert known - set(comparable.NAMES) == {"train.lr"}
    assert set(comparable.NAMES) <= known
    assert len(set(comparable.NAMES.values())) == len(comparable.NAMES), "two fields of one name"


def test_a_difference_has_both_values_and_a_fingerprint_in_short(planned: Prepared) -> None:
    spec = planned.planned[0].spec
    other = changed(spec, {"train.clip": None, "backbone.fingerprint": "e" * 64})
    told = [str(d) for d in comparable.differences(spec, other)]
    short = spec.backbone.fingerprint[:12]
    assert told == [f"model fingerprint: {'e' * 12} there, {short} here", "clip: none there, 1.0 here"]


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({}, True),
        ({"train.steps": 9, "train.checkpoint": "best", "train.eval_every": 3}, True),
        ({"train.accumulation": 2}, False),
        ({"train.accumulation": 2, **MEMORY}, True),
        ({"train.batch_size": 2}, False),
        ({"task.fingerprint": "d" * 64}, False),
        ({"backbone.compile": True}, False),
    ],
)
def test_times_apply_to_runs_of_the_same_step_whatever_their_schedule(changes: Changes, applies: bool) -> None:
    spec = changed(RunSpec.from_dict(run("lora")["spec"]), changes)
    assert comparable.times_apply(ProfileSpec.from_dict(profile(["lora"])["spec"]), spec) is applies
