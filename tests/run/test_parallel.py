"""Several processes that share a run compute what one process computes, or say why not."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import rank_program
import torch
from rank_program import Result, on
from run_specs import spec
from safetensors.torch import load_file

from peftbench.backbones import devices
from peftbench.errors import UserError
from peftbench.estimate.run import run_peak
from peftbench.method import registry
from peftbench.records.retries import TimeLimits
from peftbench.records.spec import RunSpec, as_dict
from peftbench.run import failures
from peftbench.run.parallel import launch
from peftbench.run.session import Abandoned, Diverged, Session
from peftbench.run.time_limits import Deadline, TimedOut
from peftbench.tasks import batches

METHODS = sorted(registry.discover())
CLOSE = 1e-10  # of float64 after Adam's steps, which divide by square roots of squares of rounding errors
NETWORKS = ("tiny-encoder", "tiny-decoder", "tiny-t5")
KINDS = [{"data": 2}, {"shards": 2}]

pytestmark = pytest.mark.slow


def agree(one: Result, several: Result) -> None:
    assert several.refused == one.refused == ""
    assert several.losses == pytest.approx(one.losses, rel=1e-6)  # a loss is a number of float32
    for name in ("gradients", "state"):
        here, there = getattr(one, name), getattr(several, name)
        assert here.keys() == there.keys()
        for key, t in here.items():
            assert torch.allclose(t, there[key].to(t.dtype), rtol=CLOSE, atol=CLOSE), f"{name} {key}"
    assert one.logits is not None
    assert torch.allclose(one.logits, several.logits, rtol=1e-8, atol=1e-8)
    assert one.codes.keys() == several.codes.keys()
    assert all(torch.equal(t, several.codes[name]) for name, t in one.codes.items())


@pytest.mark.parametrize(
    "networks", [NETWORKS[:1], pytest.param(NETWORKS[1:], marks=pytest.mark.full)], ids=["encoder", "decoders"]
)
def test_every_method_on_two_processes_equals_itself_on_one_or_is_refused_with_the_reason(
    networks: tuple[str, ...],
) -> None:
    cases: list[Any] = [(method, {}, network) for network in networks for method in METHODS]
    alone = on({}, cases)
    for parallel in KINDS:
        for (method, _, _), one, two in zip(cases, alone, on(parallel, cases), strict=True):
            if method == "galore" and "shards" in parallel:
                assert "steps whole weights" in two.refused
            elif one.refused:
                assert two.refused == one.refused
            else:
                agree(one, two)


def test_three_processes_micro_batches_and_gradient_checkpointing_change_nothing() -> None:
    cases: list[Any] = [(method, {}, "tiny-encoder") for method in ("full", "qlora", "adalora", "prefix")]
    alone = on({}, cases)
    for parallel, options in (
        ({"shards": 3}, {}),
        ({"shards": 2}, {"accumulation": 3, "gradient_checkpointing": True}),
    ):
        for one, several in zip(alone, on(parallel, cases, **options), strict=True):
            agree(one, several)


def test_experts_that_some_processes_send_no_token_to_train_as_on_one_process() -> None:
    cases: list[Any] = [("lora", {"roles": "q gate up down"}, "experts"), ("qlora", {}, "sinks")]
    alone = on({}, cases)
    for parallel in KINDS:
        for one, two in zip(alone, on(parallel, cases), strict=True):
            agree(one, two)


@pytest.mark.full
def test_a_rank_holds_its_part_of_the_base_and_all_of_the_adapter() -> None:
    cases: list[Any] = [(method, {}, "tiny-decoder") for method in ("full", "lora", "qlora", "pissa")]
    for one, two, three in zip(*(on(p, cases) for p in ({}, {"shards": 2}, {"shards": 3})), strict=True):
        assert one.bytes > two.bytes > three.bytes
        base = 2 * (one.bytes - two.bytes)
        assert three.bytes == pytest.approx(one.bytes - base * 2 / 3, rel=0.05)


def test_a_checkpoint_of_so_many_ranks_goes_on_with_any_other_number(tmp_path: Path) -> None:
    cases: list[Any] = [(method, {}, "tiny-encoder") for method in ("full", "adalora", "qlora")]
    whole = on({}, cases)
    for first, then in (({}, {"shards": 3}), ({"shards": 3}, {"data": 2}), ({"shards": 2}, {})):
        file = tmp_path / f"of {first}"
        on(first, cases, checkpoint=file, stop=2)
        for one, rest in zip(whole, on(then, cases, checkpoint=file), strict=True):
            assert rest.resumed == [2]
            agree(one, replace(rest, gradients=one.gradients))


@pytest.mark.parametrize("bug", rank_program.PLANTS)
def test_what_lets_public_programs_train_silently_for_nothing_ends_a_run_with_a_sentence(bug: str) -> None:
    with pytest.raises(RuntimeError, match=rank_program.SENTENCES[bug]):
        on({"shards": 2}, [("full" if bug == "optimizer first" else "qlora", {}, "tiny-encoder")], plant=bug)


# The whole way: a session that starts its ranks.


@pytest.fixture(scope="module")
def session() -> Session:
    return Session("cpu", threads=2)


def shared(method: str = "lora", **train: Any) -> RunSpec:
    asked = spec(method, **{"shards": 2, **train})
    return replace(asked, backbone=replace(asked.backbone, dropout=0.0))


def test_a_run_on_two_ranks_has_the_record_and_the_adapter_of_one_process(tmp_path: Path) -> None:
    one, two = (
        Session("cpu", threads=2, adapters=tmp_path / str(n)).execute(shared(shards=n, eval_every=2)) for n in (1, 2)
    )
    files = [sorted((tmp_path / str(n)).glob("*.safetensors")) for n in (1, 2)]
    assert [len(some) for some in files] == [2, 2]  # the adapter and the head
    for paths in zip(*files, strict=True):
        here, there = map(load_file, paths)
        assert here.keys() == there.keys()
        assert all(torch.allclose(t, there[name], rtol=1e-4, atol=1e-5) for name, t in here.items())
    assert two["curve"]["loss"] == pytest.approx(one["curve"]["loss"], rel=1e-5)
    assert two["metrics"] == one["metrics"]
    assert two["predictions"] == one["predictions"]
    assert two["parameters"] == one["parameters"]
    assert len(two["memory"]["ranks"]) == 2


@pytest.mark.parametrize(
    "method",
    ["qlora", *(pytest.param(name, marks=pytest.mark.full) for name in ("full", "prefix"))],  # 4-bit base and adapter
)
def test_the_bytes_of_a_rank_are_those_that_the_simulation_says(session: Session, method: str) -> None:
    asked = shared(method)
    measured = session.execute(asked)["memory"]
    dataset = session.dataset(asked.task)
    backbone = session.backbone(asked.backbone, dataset)
    data = session.encode(dataset, backbone, asked.train.max_length)["train"]
    order = batches.order(data.lengths, asked.train.batch_size, asked.train.steps, devices.stream("order", *asked.axes))
    layout = run_peak.batch_layout(data, order, backbone.tokenizer.pad_token_id, 1)
    query = {"spec": as_dict(asked), "kind": dataset.kind, "labels": len(dataset.labels), "batch": layout}
    assert run_peak.peak(query)["bytes"] == measured["ranks"][0] == measured["peak_bytes"]


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.full), "full"])
def test_a_request_to_stop_reaches_every_rank_and_the_next_attempt_goes_on(method: str, tmp_path: Path) -> None:
    """Also right behind an evaluation, which leaves nothing gathered."""
    asked, saved = shared(method, steps=30, eval_every=1), {"folder": str(tmp_path), "every": 1_000}
    begun = threading.Event()
    with pytest.raises(Abandoned):
        Session("cpu", threads=2, checkpoints=saved).execute(
            asked, lambda facts: begun.set() if facts.get("step", 0) >= 3 else None, begun.is_set
        )
    rest = Session("cpu", threads=2, checkpoints=saved).execute(asked)
    whole = Session("cpu", threads=2).execute(asked)
    assert rest["resumed"][0]["step"] >= 3
    assert rest["curve"] == whole["curve"]
    assert rest["predictions"] == whole["predictions"]


def test_a_request_to_stop_before_the_first_step_is_not_kept_waiting(session: Session) -> None:
    with pytest.raises(Abandoned, match="before the first step"):
        session.execute(shared(steps=60), stop=lambda: True)
    assert ranks() == []


def test_a_rank_that_dies_ends_the_run_as_the_machines_fault_and_leaves_no_process(session: Session) -> None:
    def kill(facts: Any) -> None:
        for victim in [p for p in ranks() if facts.get("step", 0) >= 3 and p.environ()["RANK"] == "1"]:
            os.kill(victim.pid, signal.SIGKILL)

    with pytest.raises(failures.ProcessDied, match="rank 1: its process was killed by signal 9") as caught:
        session.execute(shared(steps=500), kill)
    assert failures.is_of_surroundings(caught.value)
    deadline = time.monotonic() + 20
    while ranks() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ranks() == []


def test_a_rank_that_hangs_is_noticed_by_the_limit_of_a_step(session: Session) -> None:
    def hang(facts: Any) -> None:
        for victim in [p for p in ranks() if facts.get("step", 0) >= 3 and p.environ()["RANK"] == "1"]:
            victim.suspend()

    watch = Deadline(TimeLimits(step=4.0))
    with pytest.raises(TimedOut, match="no step ended within the 4 s"):
        session.execute(shared(steps=500), hang, watch.stop)
    assert ranks() == []


def test_what_the_machine_failed_in_a_rank_is_the_machines_fault(tmp_path: Path) -> None:
    asked = shared()
    gone = replace(asked, backbone=replace(asked.backbone, model=str(tmp_path / "gone")))
    with pytest.raises(failures.ProcessDied, match="rank 0"):
        Session("cpu", threads=2).execute(gone)


def test_what_ranks_refuse_and_where_they_diverge_is_what_a_single_process_says(session: Session) -> None:
    with pytest.raises(UserError, match="steps whole weights"):
        session.execute(shared("galore"))
    with pytest.raises(Diverged, match="the loss became") as caught:
        session.execute(shared("full", lr=1e30, steps=20))
    assert caught.value.body["curve"]["loss"]


def ranks() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if launch.RANK in " ".join(p.cmdline())]
