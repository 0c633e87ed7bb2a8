"""`verify` does no more than its limits allow, reads no file elsewhere, and goes on without what it cannot repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import verify_session
from commands import Call

from peftbench.backbones import source
from peftbench.errors import UserError
from peftbench.records import spec
from peftbench.run import runner
from peftbench.verify.records import bounds, repeat, summary
from peftbench.verify.records.repeat import RepeatRequest

RUN = verify_session.spec("full")


def asks(**changes: Any) -> spec.RunSpec:
    """The run with other values of its training."""
    return replace(RUN, train=replace(RUN.train, **changes))


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (asks(steps=10**7), "steps: 10,000,000, and verify repeats at most 100,000"),
        (asks(batch_size=10**6), "a batch size of 1,000,000"),
        (asks(max_length=10**6), "a max_length of 1,000,000"),
        (asks(batch_size=4_000, max_length=30_000), "tokens in a step: 120,000,000"),
        (asks(steps=90_000, batch_size=4_000, max_length=8), "examples in all steps: 360,000,000"),
        (asks(steps=90_000, eval_every=1), "evaluations: 90,000"),
        (replace(RUN, method=replace(RUN.method, name="lora", hyper={"rank": 10**9})), "lora.rank 1,000,000,000"),
        (replace(RUN, method=replace(RUN.method, name="x", hyper={"a": {"b": [1, -(10**9)]}})), "x.a 1,000,000,000"),
        (replace(RUN, task=replace(RUN.task, options={"limit_train": 10**9})), "limit_train 1,000,000,000"),
    ],
    ids=["steps", "batch", "length", "tokens", "examples", "evaluations", "rank", "nested", "rows"],
)
def test_a_run_that_asks_for_more_than_a_limit_is_named_with_the_option_that_raises_it(
    run: spec.RunSpec, said: str
) -> None:
    assert bounds.exceeded(RUN, bounds.LIMITS) is None
    why = bounds.exceeded(run, bounds.LIMITS)
    assert why is not None
    assert said in why
    raised = why.partition("--limit ")[2].split(" --limit ")
    assert bounds.exceeded(run, bounds.parse(raised)) is None


def test_every_committed_run_is_within_the_limits() -> None:
    from peftbench.records import record

    root = Path(__file__).resolve().parents[2] / "results"
    for runs in sorted(root.glob("**/runs")):
        for r in record.read_all(runs.parent):
            if isinstance(r, record.TrainingRecord):
                assert bounds.exceeded(r.spec, bounds.LIMITS) is None, r.path


@pytest.mark.parametrize("text", ["steps", "steps=", "steps=x", "steps=-1", "step=5", "steps=²", "steps=1e9", "=5"])
def test_what_is_no_limit_is_the_users_mistake(text: str) -> None:
    with pytest.raises(UserError, match="--limit"):
        bounds.parse([text])
    assert bounds.parse(["steps=200_000"])["steps"] == 200_000


@pytest.mark.parametrize("model", ["/", "/etc", "~", "../..", "ELSEWHERE", "LINK"])
def test_a_model_outside_the_given_directories_is_not_read(model: str, tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (here / "link").symlink_to(elsewhere)
    model = {"ELSEWHERE": str(elsewhere), "LINK": str(here / "link")}.get(model, model)
    backbone = replace(RUN.backbone, model=model)
    assert "outside the working directory" in str(bounds.outside(backbone, RUN.task, None, [here]))
    assert bounds.outside(replace(backbone, model=str(here)), RUN.task, None, [here]) is None
    assert bounds.outside(replace(backbone, model=str(elsewhere)), RUN.task, elsewhere, [here]) is None


def test_a_file_outside_the_given_directories_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for path in (tmp_path / "secret.csv", tmp_path / "here" / "mine.csv"):
        path.write_text("text,label\na,b\n")
    task = spec.TaskSpec("local/x", "f" * 64, 2, options={"train": str(tmp_path / "secret.csv"), "text": "text"})
    assert "secret.csv, outside" in str(bounds.outside(RUN.backbone, task, None, [tmp_path / "here"]))
    mine = replace(task, options={**task.options, "train": str(tmp_path / "here" / "mine.csv")})
    assert bounds.outside(RUN.backbone, mine, None, [tmp_path / "here"]) is None


def test_presets_and_names_of_the_hub_are_no_files(tmp_path: Path) -> None:
    for model in (*source.PRESETS, "some/model", "a\0b", "x" * 5_000):
        assert bounds.outside(replace(RUN.backbone, model=model), RUN.task, None, [tmp_path]) is None


def test_one_record_that_cannot_be_repeated_does_not_stop_the_others(tmp_path: Path) -> None:
    """Of an unknown method, of an unknown task, of values out of range, and one that asks for too much."""
    odd = [
        asks(steps=10**7),
        replace(RUN, method=replace(RUN.method, name="of a plugin", label="plugin")),
        replace(RUN, task=replace(RUN.task, name="nobody/knows")),
        replace(RUN, method=replace(RUN.method, name="lora", label="lora", hyper={"rank": -1})),
    ]
    session = {"device": "cpu", "journal": str(tmp_path / "journal")}
    runner.run(lambda _: [RUN, *odd], tmp_path / "made", experiment="e", session="verify_session:Session",
               session_kwargs=session, threads=1)  # fmt: skip
    request = RepeatRequest(session="verify_session:Session", more=session)
    found = repeat.verify(tmp_path / "made", tmp_path / "again", request)
    statuses = {o.record.spec.id: o.status for o in found.outcomes}
    assert statuses[RUN.id] == "identical"
    assert {statuses[s.id] for s in odd if s.id in statuses} == {"not repeated"}
    assert statuses[odd[0].id] == statuses[odd[1].id] == statuses[odd[2].id] == "not repeated"
    assert found.code == 1
    printed = summary.as_text(found, tmp_path / "made")
    assert "--limit steps=10000000" in printed
    assert "--plugin" in printed


def test_the_command_line_takes_limits(call: Call, tmp_path: Path) -> None:
    wrong = call("verify", str(tmp_path), "--limit", "speed=3")
    assert wrong.code == 2
    assert "unknown limit 'speed'" in wrong.err
