"""Axes of an experiment: nested training sets, the product of several axes, identities, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import peftbench
from peftbench import tasks
from peftbench.errors import UserError

SYNTHETIC = "synthetic/classification"


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "name": "sizes",
        "backbone": "tiny-encoder",
        "tasks": [SYNTHETIC],
        "budget": {"seeds": 2, "batch_size": 8, "max_length": 64},
        "profile": False,
        "methods": ["full", {"lora": {"lr": 1e-3}}],
        **changes,
    }


def runs(axes: Mapping[str, Any], **options: Any) -> list[Any]:
    changes = options.pop("changes", {})
    return list(peftbench.plan(asked(axes=axes, **changes), **options).runs)


def local(tmp_path: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return {"task": "local", "train": str(path), "text": "text", "label": "label"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("synthetic/classification", {}), ("synthetic/regression", {}), ("synthetic/generation", {}), ("local", None)],
)
def test_the_smaller_training_set_is_inside_the_larger_and_the_other_splits_stay(
    name: str, options: dict[str, Any] | None, tmp_path: Path
) -> None:
    if options is None:  # a user's file with copies, which are told apart by ids
        options = local(tmp_path, [(f"text {i // 2 % 90}", "ab"[i // 2 % 2]) for i in range(300)])
        name = options.pop("task")
    sizes = (10, 37, 100, None)
    made = [tasks.open_task(name, {**options, **({} if n is None else {"limit_train": n})}) for n in sizes]
    for small, large in itertools.pairwise(made):
        assert {e.id for e in small.train} < {e.id for e in large.train}
        assert [e for e in large.train if e in set(small.train)] == list(small.train), "in the same order"
        assert (small.validation, small.test, small.labels) == (large.validation, large.test, large.labels)


def test_a_run_on_an_axis_is_the_run_of_a_file_without_axes() -> None:
    ids = {r.id for r in runs({"train_size": [16, "all"], "steps": [3, 6], "rank": [2, 4]})}
    ordinary = set()
    for limit, steps in itertools.product(({"limit_train": 16}, {}), (3, 6)):
        lora = {"lora": {"lr": 1e-3, "rank": [2, 4]}}
        budget = {"seeds": 2, "batch_size": 8, "max_length": 64, "steps": steps}
        plain = asked(tasks=[{"task": SYNTHETIC, **limit}], budget=budget, methods=["full", lora])
        ordinary |= {r.id for r in peftbench.plan(plain).runs}
    assert ids == ordinary


def test_several_axes_give_their_product_and_a_method_without_the_hyperparameter_runs_once() -> None:
    planned = runs({"train_size": ["all", 64, 16], "steps": [6, 3], "rank": [4, 2]})
    assert len(planned) == len({r.id for r in planned}) == 3 * 2 * (1 + 2) * 2
    sizes = list(dict.fromkeys(r.task.options.get("limit_train") for r in planned))
    assert sizes == [16, 64, None], "ascending, all last"
    assert list(dict.fromkeys(r.train.steps for r in planned)) == [3, 6]
    labels = [r.method.label for r in planned if (r.train.steps, r.seed) == (3, 0) and not r.task.options]
    assert labels == ["full", "lora rank=2", "lora rank=4"]


def test_every_task_has_the_values_of_the_axes() -> None:
    planned = runs({"train_size": [16, 64]}, changes={"tasks": [SYNTHETIC, "synthetic/pair"]})
    assert {(r.task.name, r.task.options["limit_train"]) for r in planned} == set(
        itertools.product((SYNTHETIC, "synthetic/pair"), (16, 64))
    )


def test_only_selects_values_of_an_axis_and_what_does_not_depend_on_it() -> None:
    axes = {"train_size": [16, 64, "all"], "rank": [2, 4]}
    chosen = runs(axes, only=["train_size=16", "train_size=all", "rank=4", "seed=0"])
    assert [(r.task.options.get("limit_train"), r.method.label) for r in chosen] == [
        (16, "full"), (16, "lora rank=4"), (None, "full"), (None, "lora rank=4"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--only train_size=17: unknown train_size '17'.*16, 64, all"):
        runs(axes, only=["train_size=17"])
    with pytest.raises(UserError, match=r"unknown key 'steps'. Valid: method, rank, seed, task, train_size"):
        runs(axes, only=["steps=3"])


def test_set_replaces_an_axis_and_makes_one() -> None:
    whole = runs({"train_size": [16, 64]}, overrides=["axes.train_size=[32]", "axes.rank=[3]"])
    assert {(r.task.options["limit_train"], r.method.label) for r in whole} == {(32, "full"), (32, "lora rank=3")}
    made = peftbench.plan(asked(), overrides=["axes.steps=[2, 5]"]).runs
    assert {r.train.steps for r in made} == {2, 5}


def test_a_plan_says_the_training_size_of_its_runs_and_its_data() -> None:
    planned = peftbench.plan(asked(axes={"train_size": [16, "all"]}))
    assert list(planned.frame()["train_size"].unique()) == [16, "all"]
    rows = {name: data.splits["train"].rows for name, (data, _) in planned.data_summaries().items()}
    assert rows == {f"{SYNTHETIC}, train_size 16": 16, f"{SYNTHETIC}, train_size all": 256}


def test_each_training_size_has_a_profile_pass_of_its_own() -> None:
    from peftbench.plan import next_runs

    planned = peftbench.plan(asked(axes={"train_size": [16, 64], "steps": [2, 3]}, profile={"processes": 2}))
    assert planned.experiment.profile is not None
    passes = next_runs.passes(planned.experiment, planned.experiment.profile, planned.prepared.planned)
    assert [(p.task.options["limit_train"], p.process) for p in passes] == [(16, 0), (64, 0), (16, 1), (64, 1)]


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        ({"train_size": [4, "all"]}, {}, r"axes.train_size: 4 examples are less than a batch of 8 .* at least 8"),
        ({"train_size": ["all", 16, "all"]}, {}, r"axes.train_size: 'all' is given twice"),
        ({"rank": [2, 2]}, {}, r"axes.rank: 2 is given twice"),
        ({"train_size": [257]}, {}, r"257 examples, and synthetic/classification has 256 to train on; write all"),
        ({"train_size": [256, "all"]}, {}, r"256 and all are the same 256 examples"),
        ({"train_size": 100}, {}, r"axes.train_size: given 100; an axis is a list of whole numbers .*, or all"),
        ({"train_size": []}, {}, r"axes.train_size: given \[\]; an axis is a list"),
        ({"train_size": ["every"]}, {}, r"given 'every'; the values of this axis are whole numbers .*, or all"),
        ({"steps": ["all"]}, {}, r"axes.steps: given 'all'; the values of this axis are whole numbers from 1 to"),
        ({"steps": [True]}, {}, r"axes.steps: given True; "),
        ({"steps": [0.5]}, {}, r"axes.steps: given 0.5; "),
        ({"rank": list(range(1, 102))}, {}, r"axes.rank: 101 values; an axis has at most 100"),
        ({"rnk": [1]}, {}, r"axes.rnk: unknown axis 'rnk'; did you mean 'rank'\?"),
        ({"rank": [2**21]}, {}, r"axes.rank: given 2097152; must be at most 1,048,576"),
        ([3], {}, r"axes: given \[3\]; must be a mapping"),
        ({"steps": [3]}, {"budget": {"steps": 5}}, r"budget.steps: given here, and as the axis steps"),
        ({"steps": [3]}, {"budget": {"tokens": 500}}, r"axes.steps: the budget counts tokens"),
        ({"steps": [3]}, {"tasks": [{"task": SYNTHETIC, "steps": 2}]}, r"tasks\[0\].steps: given here, and as the"),
        ({"train_size": [16]}, {"tasks": [{"task": SYNTHETIC, "limit_train": 9}]}, r"tasks\[0\].limit_train: given"),
        ({"rank": [3]}, {"methods": ["full", {"lora": {"rank": 2}}]}, r"methods\[1\].lora.rank: given here, and as"),
    ],
)  # fmt: skip
def test_an_axis_that_cannot_be_is_refused_with_its_place_and_the_fix(
    axes: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        peftbench.plan(asked(axes=axes, **changes))


def test_a_files_rows_under_two_sizes_are_refused_though_their_options_are_no_part_of_their_identity(
    tmp_path: Path,
) -> None:
    task = local(tmp_path, [(f"text number {i}", "ab"[i % 2]) for i in range(100)])
    with pytest.raises(UserError, match="81 and all are the same 81 examples of local/rows"):
        peftbench.plan(asked(tasks=[task], axes={"train_size": [81, "all"]}))
