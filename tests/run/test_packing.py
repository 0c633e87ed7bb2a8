"""`--pack`: where a job goes on cards with others, by the pure rule and with real worker processes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import card_session
import fake_session
import pytest

from peftbench.records import record
from peftbench.run.executors import Ended, Setup
from peftbench.run.executors.devices import Card
from peftbench.run.executors.local import LocalExecutor
from peftbench.run.executors.packing import OVERHEAD_BYTES, Peaks, Place, Tenant, place
from peftbench.run.jobs import Job

TWO = (10, 10)


def busy(worker: int, card: int, size: int | None) -> Tenant:
    return Tenant(worker, card, size, idle=False)


def idle(worker: int, card: int, size: int | None, loaded: bool = False) -> Tenant:
    return Tenant(worker, card, size, idle=True, loaded=loaded)


def test_empty_cards_are_filled_before_any_is_shared() -> None:
    assert place(4, TWO, [busy(1, 0, 4)], 8) == Place(1, None, False, ())
    assert place(4, TWO, [busy(1, 0, 4), busy(2, 1, 4)], 8) == Place(0, None, False, ())


def test_a_job_goes_only_where_it_fits_with_those_that_run() -> None:
    assert place(5, TWO, [busy(1, 0, 6), busy(2, 1, 5)], 8) == Place(1, None, False, ())
    assert place(6, TWO, [busy(1, 0, 6), busy(2, 1, 5)], 8) is None


def test_a_job_of_unknown_size_has_a_card_to_itself() -> None:
    assert place(None, TWO, [busy(1, 0, 1)], 8) == Place(1, None, True, ())
    assert place(None, TWO, [busy(1, 0, 1), busy(2, 1, 1)], 8) is None
    assert place(1, (10,), [busy(1, 0, None)], 8) is None, "and nobody joins it"


def test_a_job_that_fits_on_no_card_is_tried_alone_on_the_largest() -> None:
    assert place(30, (10, 20), [], 8) == Place(1, None, True, ())
    assert place(30, (10, 20), [busy(1, 1, 1)], 8) == Place(0, None, True, ())


def test_a_job_that_only_the_large_card_holds_waits_for_it() -> None:
    assert place(15, (10, 20), [busy(1, 1, 6)], 8) is None


def test_an_idle_worker_that_has_the_network_loaded_is_preferred() -> None:
    assert place(4, TWO, [idle(1, 1, 4, loaded=True)], 8) == Place(1, 1, False, ())
    assert place(4, TWO, [busy(1, 0, 2), idle(2, 0, 4, loaded=True)], 8) == Place(1, None, False, ()), "an empty card"


def test_idle_workers_keep_their_memory_until_it_is_needed() -> None:
    assert place(4, (10,), [idle(1, 0, 6)], 8) == Place(0, None, False, ())
    assert place(5, (10,), [idle(1, 0, 6)], 8) == Place(0, None, False, (1,))
    assert place(5, (10,), [idle(1, 0, 3), idle(2, 0, 6)], 8) == Place(0, None, False, (2,)), "the small one stays"
    assert place(5, (10,), [idle(1, 0, None)], 8) == Place(0, None, False, (1,)), "it holds nobody knows what"
    assert place(None, (10,), [idle(1, 0, 1), idle(2, 0, 1, loaded=True)], 8) == Place(0, 2, True, (1,))


def test_there_are_never_more_workers_than_slots() -> None:
    assert place(1, TWO, [busy(1, 0, 1), busy(2, 1, 1)], 2) is None
    assert place(1, TWO, [busy(1, 0, 1), idle(2, 1, 1)], 2) == Place(1, None, False, (2,))
    assert place(1, TWO, [idle(1, 0, 1, loaded=True), busy(2, 1, 1)], 2) == Place(0, 1, False, ())


def test_no_card_is_ever_overfull_whatever_comes() -> None:
    for seed in range(300):
        simulate(random.Random(seed))


def simulate(rng: random.Random) -> None:
    """Jobs come and end in any order; every place must keep the promises of the module."""
    cards, slots = [rng.randint(5, 20) for _ in range(rng.randint(1, 3))], rng.randint(1, 6)
    tenants: dict[int, Tenant] = {}
    for _ in range(60):
        if tenants and rng.random() < 0.4:
            number = rng.choice(list(tenants))
            tenants[number] = replace(tenants[number], idle=True)
        need = rng.choice([None, *range(1, 25)])
        seen = [replace(t, loaded=t.idle and rng.random() < 0.5) for t in tenants.values()]
        found = place(need, cards, seen, slots)
        running = [t for t in seen if not t.idle]
        if found is None:
            assert running, "on an empty machine every job has a place"
            continue
        for number in found.ended:
            assert tenants.pop(number).idle
        if found.worker is not None:
            assert next(t for t in seen if t.worker == found.worker).loaded
        number = found.worker or min(set(range(1, slots + 1)) - set(tenants))
        tenants[number] = busy(number, found.card, None if found.alone else need)
        assert len(tenants) <= slots
        assert found.alone == (need is None or need > max(cards))
        for card, size in enumerate(cards):
            there = [t for t in tenants.values() if t.card == card]
            if any(t.bytes is None and not t.idle for t in there):
                assert len(there) == 1
            elif any(not t.idle for t in there) and found.card == card:
                assert sum(t.bytes or 0 for t in there) <= size
                assert None not in [t.bytes for t in there]


def test_a_run_has_the_peak_of_its_trials() -> None:
    trial = replace(fake_session.spec(0), trial=0)
    final = replace(trial, trial=None, seed=3, train=replace(trial.train, lr=5e-4))
    other = replace(final, train=replace(final.train, batch_size=8))
    peaks = Peaks({trial.id: 7})
    assert peaks.of(final) is None
    assert (peaks.of(trial), peaks.of(final), peaks.of(other)) == (7, 7, None)
    assert peaks.of(fake_session.profile(trial)) is None


def run_packed(folder: Path, specs: Sequence[Any], peaks: dict[str, int], cards: Sequence[int], jobs: int) -> list[str]:
    """Run specs on cards of so many bytes; returns their statuses in order of the specs."""
    kwargs = {"journal": str(folder / "journal"), "device": "cuda"}
    setup = Setup("card_session:Session", kwargs, jobs, threads=1, options={"pack": "true"}, peaks=peaks)
    executor = LocalExecutor(setup, lambda: [Card(str(n), size) for n, size in enumerate(cards)])
    for spec in specs:
        executor.submit(Job("run", spec, "fake", str(folder)))
    ended, deadline = {}, time.monotonic() + 180
    try:
        while executor.busy:
            assert time.monotonic() < deadline, "it takes too long"
            ended |= {e.job.spec.id: str(e.facts["status"]) for e in executor.poll(0.05) if isinstance(e, Ended)}
    finally:
        executor.close()
    return [ended[spec.id] for spec in specs]


def most_at_once(folder: Path, sizes: dict[str, int]) -> dict[str, int]:
    """The most bytes of runs at the same time on each card, by what the sessions noted."""
    now: dict[str, int] = {}
    most: dict[str, int] = {}
    for _, card, what, spec_id in card_session.journal(folder):
        now[card] = now.get(card, 0) + sizes[spec_id] * (1 if what == "begins" else -1)
        most[card] = max(most.get(card, 0), now[card])
    return most


@pytest.mark.slow
def test_runs_share_the_cards_as_far_as_their_memory_holds_them(tmp_path: Path) -> None:
    specs = [fake_session.spec(n, pause=0.2, rank=n) for n in range(8)]  # a rank each: no run has the peak of another
    peaks = {spec.id: (3 if n < 2 else 1) * 10**9 for n, spec in enumerate(specs)}
    sizes = {key: peak + OVERHEAD_BYTES for key, peak in peaks.items()}
    card = sizes[specs[0].id] + sizes[specs[-1].id]
    assert run_packed(tmp_path, specs, peaks, [card, card], jobs=8) == ["finished"] * 8
    most = most_at_once(tmp_path, sizes)
    assert set(most) == {"0", "1"}
    assert all(bytes_ <= card for bytes_ in most.values())
    assert max(most_at_once(tmp_path, dict.fromkeys(sizes, 1)).values()) >= 2, "some have run side by side"


@pytest.mark.slow
def test_a_run_of_unknown_size_and_one_that_fits_nowhere_run_alone(tmp_path: Path) -> None:
    specs = [fake_session.spec(n, pause=0.1, rank=n) for n in range(4)]
    peaks = {specs[0].id: 10**9, specs[1].id: 10**9, specs[2].id: 10**12}
    assert run_packed(tmp_path, specs, peaks, [10 * 10**9], jobs=4) == ["finished"] * 4
    running: set[str] = set()
    for _, _, what, spec_id in card_session.journal(tmp_path):
        if what == "begins" and (spec_id in (specs[2].id, specs[3].id) or running & {specs[2].id, specs[3].id}):
            assert not running
        running = running | {spec_id} if what == "begins" else running - {spec_id}


@pytest.mark.slow
def test_a_lack_of_memory_beside_others_says_nothing_of_the_run_and_alone_it_does(tmp_path: Path) -> None:
    beside, alone = fake_session.spec(0, do="oom", rank=1), fake_session.spec(1, do="oom", rank=2)
    assert run_packed(tmp_path, [beside, alone], {beside.id: 10**9}, [10 * 10**9], 2) == ["interrupted", "oom"]
    reasons = {r.spec_id: r.body.reason for r in record.read_all(tmp_path)}
    assert "without --pack it has the device to itself: RuntimeError" in (reasons[beside.id] or "")
    assert "--pack" not in (reasons[alone.id] or "")


@pytest.mark.slow
def test_a_packed_worker_that_dies_gives_its_memory_back(tmp_path: Path) -> None:
    specs = [fake_session.spec(0, do="kill"), fake_session.spec(1), fake_session.spec(2, task="synthetic/other")]
    peaks = {spec.id: 6 * 10**9 for spec in specs}
    assert run_packed(tmp_path, specs, peaks, [10 * 10**9], 2) == ["killed", "finished", "finished"]
    assert len({pid for pid, *_ in card_session.journal(tmp_path)}) == 3, "another network, another process"
