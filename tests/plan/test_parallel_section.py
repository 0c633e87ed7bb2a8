"""`parallel` in an experiment: what it makes of the runs, and what several processes cannot share."""

from __future__ import annotations

from pathlib import Path

import planning
import pytest

from peftbench.errors import UserError
from peftbench.plan import read
from peftbench.records import comparable

FILE = """\
name: tiny
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {steps: 3, max_length: 16, batch_size: 8}
methods: [lora]
reference: lora
"""


def written(tmp_path: Path, more: str, file: str = FILE) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(f"{file}{more}\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("more", "shape"), [("parallel: {data: 2}", (2, 1)), ("parallel: {shards: 4}", (1, 4))])
def test_runs_on_several_devices_are_other_runs_and_measure_their_own_times(
    tmp_path: Path, more: str, shape: tuple[int, int]
) -> None:
    alone = planning.prepared(written(tmp_path, "profile: false")).planned[0].spec
    prepared = planning.prepared(written(tmp_path, more))
    run = prepared.planned[0].spec
    assert (run.train.data_parallel, run.train.shards) == shape
    assert prepared.experiment.profile is None
    assert run.id != alone.id
    kind = "data" if shape[0] > 1 else "shards"
    assert [d.name for d in comparable.differences(alone, run)] == [f"parallel.{kind}"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("parallel: {}", "give data or shards"),
        ("parallel: {data: 2, shards: 2}", "give data or shards"),
        ("parallel: {shards: 1}", "greater than or equal to 2"),
        ("parallel: {shard: 2}", "did you mean 'shards'"),
        ("parallel: {shards: 3}", "8 examples cannot be divided among 3 processes; write 9"),
        ("parallel: {shards: 2}\nprofile: {rounds: 3}", "write profile: false"),
        ("parallel: {shards: 2}\ncompile: true", "write compile: false"),
        ("parallel: {shards: 2}\nprobes: [decomposition]", "remove them"),
    ],
)
def test_what_several_processes_cannot_share_is_refused_with_the_fix(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(UserError, match=r"e\.yaml") as caught:
        read.load(written(tmp_path, more))
    assert said in str(caught.value)


def test_micro_batches_are_divided_too(tmp_path: Path) -> None:
    file = FILE.replace("batch_size: 8", "batch_size: 8, accumulation: 4")
    with pytest.raises(UserError, match="among 4 processes x 4 parts; write 16"):
        read.load(written(tmp_path, "parallel: {data: 4}", file))


def test_budgets_of_seconds_and_memory_are_of_one_process(tmp_path: Path) -> None:
    for budget in ("seconds: 5", "steps: 3, memory: 1GB"):
        file = FILE.replace("steps: 3", budget)
        with pytest.raises(UserError, match=r"write (steps|accumulation): N"):
            read.load(written(tmp_path, "parallel: {data: 2}", file))


@pytest.mark.slow
def test_a_method_whose_optimiser_cannot_step_shards_is_refused_by_the_plan(tmp_path: Path) -> None:
    file = FILE.replace("[lora]\nreference: lora", "[galore]\nreference: galore")
    with pytest.raises(UserError, match=r"galore: its optimiser steps whole weights.*parallel: \{data: N\}"):
        planning.prepared(written(tmp_path, "parallel: {shards: 2}", file))
