"""The executor `local` on several GPUs: each worker process sees a card of its own. The cards are made up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import card_session
import fake_session
import pytest
import yaml
from commands import TINY

import peftbench
from peftbench.errors import UserError
from peftbench.records import record
from peftbench.run import executors
from peftbench.run.executors import Ended, Setup, cuda_driver, devices
from peftbench.run.executors.devices import Card, cards_of
from peftbench.run.executors.local import LocalExecutor
from peftbench.run.jobs import Job

GB = 10**9
FOUR = tuple(Card(str(n), 80 * GB) for n in range(4))


def setup(folder: Path, device: str = "cuda", **more: Any) -> Setup:
    return Setup("card_session:Session", {"journal": str(folder / "journal"), "device": device}, threads=1, **more)


def job(folder: Path, spec: Any) -> Job:
    return Job("run" if hasattr(spec, "seed") else "profile", spec, "fake", str(folder))


def carry_out(executor: LocalExecutor, jobs: Sequence[Job], seconds: float = 120) -> list[Ended]:
    ended, deadline = [], time.monotonic() + seconds
    for one in jobs:
        executor.submit(one)
    try:
        while executor.busy:
            assert time.monotonic() < deadline, "it takes too long"
            ended += [e for e in executor.poll(0.05) if isinstance(e, Ended)]
    finally:
        executor.close()
    return ended


def cards_seen(folder: Path) -> dict[str, set[str]]:
    """The cards of each process."""
    seen: dict[str, set[str]] = {}
    for pid, cards, *_ in card_session.journal(folder):
        seen.setdefault(pid, set()).add(cards)
    return seen


def driver(sizes: Mapping[str | None, list[int]]) -> Callable[[str | None], list[int]]:
    return lambda variable: sizes[variable]


def test_without_an_outer_variable_cards_are_named_by_their_numbers() -> None:
    assert cards_of(None, driver({None: [80, 40]})) == (Card("0", 80), Card("1", 40))


def test_cards_have_the_names_of_an_outer_variable_in_its_order() -> None:
    assert [c.name for c in cards_of("3, 1", driver({"3, 1": [80, 80]}))] == ["3", "1"]
    names = "GPU-8932f937,GPU-7d1a"
    assert [c.name for c in cards_of(names, driver({names: [80, 80]}))] == names.split(",")


def test_what_the_driver_does_not_show_is_no_card() -> None:
    assert cards_of("", driver({"": []})) == ()
    assert [c.name for c in cards_of("2,9,1", driver({"2,9,1": [80]}))] == ["2"], "9 is none, and hides what follows"


def test_each_mig_instance_is_a_card_though_a_process_sees_one_of_them_at_a_time() -> None:
    names = ["MIG-5f0c", "MIG-77aa", "MIG-gone"]
    sizes: dict[str | None, list[int]] = {"MIG-5f0c": [10], "MIG-77aa": [20], "MIG-gone": []}
    assert cards_of(",".join(names), driver(sizes)) == (Card("MIG-5f0c", 10), Card("MIG-77aa", 20))


def test_the_driver_is_asked_in_a_process_that_prints_bytes() -> None:
    done = subprocess.run([sys.executable, "-I", "-S", cuda_driver.__file__], capture_output=True, check=True)
    assert all(size > 10**8 for size in json.loads(done.stdout))


def test_a_torch_without_cuda_sees_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    monkeypatch.setattr(devices, "_visible", lambda *_: FOUR)
    assert devices.visible() == ()


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:1"])
def test_nothing_is_placed_where_the_device_is_no_card_or_one_by_name(device: str) -> None:
    asked = devices.layout(device, {}, 1, lambda: pytest.fail("asked the driver"))
    assert (asked.groups, asked.environments(3)) == ((), {})
    assert devices.workers(asked, 7, None).jobs == 7, "as many processes as given use it"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_nothing_is_placed_where_there_are_no_cards(device: str) -> None:
    assert devices.layout(device, {}, 1, tuple).groups == ()


@pytest.mark.parametrize(
    ("device", "options", "each", "words"),
    [
        ("cuda", {"devices": "4"}, 1, r"no card is numbered '4'.*4 GPUs, numbered from 0 to 3"),
        ("cuda", {"devices": "1,,2"}, 1, "no card is numbered ''"),
        ("cuda", {"devices": "-1"}, 1, "no card is numbered '-1'"),
        ("cuda", {"devices": "²"}, 1, "no card is numbered"),
        ("cuda", {"devices": "1,1"}, 1, "named twice"),
        ("cuda:1", {"devices": "0"}, 1, "names the card already"),
        ("cuda:4", {"pack": "true"}, 1, "no card is numbered '4'"),
        ("cuda:1", {}, 2, "computes on 2"),
        ("cuda", {}, 5, "each run computes on 5 cards, and 4 GPUs can be used"),
        ("cuda", {"pack": "true"}, 2, "has them to itself"),
        ("cuda", {"pack": "yes"}, 1, "must be true or false"),
        ("cpu", {"pack": "true"}, 1, "--pack: the device is cpu"),
        ("mps", {"devices": "0"}, 1, "local.devices=0: the device is mps"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(device: str, options: dict[str, str], each: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        devices.layout(device, options, each, lambda: FOUR)


def test_options_for_cards_are_refused_where_there_are_none() -> None:
    for options in ({"pack": "true"}, {"devices": "0"}):
        with pytest.raises(UserError, match="sees no CUDA device"):
            devices.layout("auto", options, 1, tuple)


@pytest.mark.parametrize(
    ("given", "in_file", "jobs", "note"),
    [
        (None, None, 4, "4 jobs at a time, each on one card of its own"),
        (None, 2, 2, None),
        (None, 9, 4, "4 of the 9 jobs of the file at a time, as 4 GPUs can be used"),
        (3, 9, 3, None),
        (1, None, 1, None),
    ],
)
def test_there_is_a_job_for_each_card_unless_fewer_are_wanted(
    given: int | None, in_file: int | None, jobs: int, note: str | None
) -> None:
    found = devices.workers(devices.layout("auto", {}, 1, lambda: FOUR), given, in_file)
    assert (found.jobs, found.devices) == (jobs, tuple(str(n) for n in range(jobs)))
    assert found.note == note if note is None else (found.note or "").startswith(note)


def test_more_jobs_than_cards_are_refused_unless_they_are_packed() -> None:
    plain, packed = (devices.layout("cuda", {"pack": text}, 1, lambda: FOUR) for text in ("false", "true"))
    with pytest.raises(UserError, match=r"--jobs 16: 4 GPUs can be used.*--jobs 4, or --pack"):
        devices.workers(plain, 16, None)
    assert devices.workers(packed, 16, None).devices == tuple("0123" * 4)
    assert devices.workers(packed, None, None).jobs >= 4


def test_one_card_is_one_job_and_needs_no_word() -> None:
    layout = devices.layout("auto", {"devices": "2"}, 1, lambda: FOUR)
    assert devices.workers(layout, None, None) == executors.Workers(1, ("2",))


def test_runs_over_several_cards_have_as_many_each_and_none_is_left_half() -> None:
    layout = devices.layout("cuda", {"devices": "3,2,1"}, 2, lambda: FOUR)
    assert layout.environments(1) == {1: {"CUDA_VISIBLE_DEVICES": "3,2"}}
    with pytest.raises(UserError, match="2 GPUs can be used, and each run has 2 cards to itself; use --jobs 1"):
        devices.check(layout, 2)


def test_only_packing_asks_for_predicted_peaks() -> None:
    assert executors.needs_peaks("local", {"pack": "true"})
    assert not executors.needs_peaks("local", {"devices": "0"})
    executors.check_options("local", {"devices": "0", "pack": "true"})
    with pytest.raises(UserError, match="unknown local option 'device'; did you mean 'devices'"):
        executors.check_options("local", {"device": "0"})


def test_each_worker_process_has_a_card_of_its_own(tmp_path: Path) -> None:
    cards = (Card("5", GB), Card("GPU-8932f937", GB))
    executor = LocalExecutor(setup(tmp_path, jobs=2), lambda: cards)
    executor.pool.grow(2)
    while len(executor.pool.idle()) < 2:  # none has all the work while the other loads
        executor.pool.poll(0.05)
    ended = carry_out(executor, [job(tmp_path, fake_session.spec(n, pause=0.1)) for n in range(6)])
    assert [e.facts["status"] for e in ended] == ["finished"] * 6
    assert sorted(map(tuple, cards_seen(tmp_path).values())) == [("5",), ("GPU-8932f937",)]
    assert {line[2] for line in fake_session.journal(tmp_path / "journal")} == {"True"}, "they share the machine"


def test_the_process_that_replaces_a_dead_one_has_its_card(tmp_path: Path) -> None:
    executor = LocalExecutor(setup(tmp_path, options={"devices": "3"}), lambda: FOUR)
    carry_out(executor, [job(tmp_path, fake_session.spec(0, do="kill")), job(tmp_path, fake_session.spec(1))])
    assert list(cards_seen(tmp_path).values()) == [{"3"}, {"3"}]


def test_a_pass_that_measures_time_has_one_card_of_those_chosen(tmp_path: Path) -> None:
    timed = fake_session.profile(fake_session.spec(0))
    executor = LocalExecutor(setup(tmp_path, jobs=2, exclusive=True, options={"devices": "2,3"}), lambda: FOUR)
    (ended,) = carry_out(executor, [job(tmp_path, timed)])
    assert ended.facts["status"] == "finished"
    assert [line[1:3] for line in card_session.journal(tmp_path)] == [["2", "profiles"]]


def test_a_card_that_the_device_names_is_found_by_the_session_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    carry_out(LocalExecutor(setup(tmp_path, "cuda:1"), lambda: FOUR), [job(tmp_path, fake_session.spec(0))])
    assert list(cards_seen(tmp_path).values()) == [{"all"}]


def test_too_many_jobs_are_refused_before_any_process_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--jobs 5: 4 GPUs can be used"):
        LocalExecutor(setup(tmp_path, jobs=5), lambda: FOUR)
    assert record.read_all(tmp_path) == []


@pytest.mark.slow
def test_a_plan_has_a_worker_for_each_card_unless_file_or_user_say_otherwise(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path.parent / "peftbench-cache"))
    monkeypatch.setattr(devices, "visible", lambda: FOUR)
    plan = peftbench.plan(tiny)
    assert plan.workers().jobs == plan.workers("cuda").jobs == 4
    assert plan.workers("cpu").jobs == plan.workers("cuda:0").jobs == 1
    assert plan.workers(options={"devices": "0,2"}).devices == ("0", "2")
    assert peftbench.plan(tiny, overrides=["jobs=3"]).workers().jobs == 3
    assert plan.workers(jobs=2).jobs == 2
    with pytest.raises(UserError, match="--jobs 5"):
        plan.workers(jobs=5)
    assert peftbench.plan({**yaml.safe_load(TINY), "profile": False, "parallel": {"data": 2}}).workers().devices == (
        "0,1",
        "2,3",
    )
    timed = peftbench.plan(yaml.safe_load(TINY.replace("steps: 3", "seconds: 3")))
    assert timed.workers().jobs == 1, "runs that share the machine get less done in their seconds"
