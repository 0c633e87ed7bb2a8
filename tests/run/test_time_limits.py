"""Time limits: a run that hangs, anywhere, ends as a timeout; what that means for the next command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import fake_session
import pytest
from test_pool import carry_out, setup, the_record

from peftbench.records import record
from peftbench.records.retries import Retries, TimeLimits
from peftbench.run import runner, time_limits
from peftbench.run.executors import pool as pool_module
from peftbench.run.executors.pool import Pool
from peftbench.run.jobs import Job
from peftbench.run.time_limits import Deadline, TimedOut


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(setup(tmp_path)) as pool:
        yield pool


def job(tmp_path: Path, limits: TimeLimits, number: int = 0, **hyper: object) -> Job:
    return Job("run", fake_session.spec(number, **hyper), "fake", str(tmp_path), limits=limits)


def test_a_run_that_is_too_slow_stops_at_its_next_step_and_keeps_its_process(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 60)
    event = carry_out(pool, job(tmp_path, TimeLimits(run=0.3), pause=0.2))
    kept = the_record(tmp_path)
    assert event.facts["status"] == kept.status == "timeout"
    assert kept.body.reason == "not done after the 0.3 s that a run may take"
    assert (kept.body.time_limit.of, kept.body.time_limit.seconds) == ("run", 0.3)
    assert carry_out(pool, job(tmp_path, TimeLimits(run=60), 1)).facts["status"] == "finished"
    assert len({line[0] for line in fake_session.journal(tmp_path / "journal")}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("do", ["hang", "hang in C"])
@pytest.mark.parametrize("limit", [TimeLimits(run=0.5), TimeLimits(step=0.5)], ids=["run", "step"])
def test_a_run_that_hangs_is_killed_and_the_next_one_runs(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, limit: TimeLimits
) -> None:
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 0.3)
    event = carry_out(pool, job(tmp_path, limit, do=do))
    kept = the_record(tmp_path)
    assert event.facts["status"] == kept.status == "timeout"
    assert kept.body.time_limit.seconds == 0.5
    assert carry_out(pool, job(tmp_path, TimeLimits(run=60, step=60), 1)).facts["status"] == "finished"


@pytest.mark.slow
def test_steps_within_their_limit_may_be_many(pool: Pool, tmp_path: Path) -> None:
    event = carry_out(pool, job(tmp_path, TimeLimits(step=2), pause=0.5))  # 2.5 s in all
    assert event.facts["status"] == "finished"


def test_a_job_and_its_limits_travel_to_a_worker(tmp_path: Path) -> None:
    one = job(tmp_path, TimeLimits(run=3.5, step=None))
    assert Job.from_json(one.to_json()) == one


def test_a_step_is_not_counted_before_training_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time_limits.time, "monotonic", lambda: now[0])
    watched = Deadline(TimeLimits(run=100, step=1), started=0.0)
    now[0] = 50
    assert watched.passed() is None, "loading and attaching are no step"
    watched.stop()
    now[0] = 52
    assert watched.passed() == ("step", 1)
    assert watched.passed(grace_seconds=1.5) is None
    with pytest.raises(TimedOut, match="no step ended within the 1 s"):
        watched.stop()


@pytest.fixture
def go(tmp_path: Path) -> Callable[..., runner.Outcome]:
    def go(specs: list, **options: object) -> runner.Outcome:
        kwargs = {"journal": str(tmp_path / "journal")}
        return runner.run(
            lambda records: specs, tmp_path / "r", session="fake_session:Session", experiment="fake", threads=1,
            session_kwargs=kwargs, **options,
        )  # fmt: skip

    return go


@pytest.mark.slow
def test_a_timeout_is_a_result_until_its_limit_is_raised(go: Callable, tmp_path: Path) -> None:
    specs = [fake_session.spec(0, pause=0.4), fake_session.spec(1)]

    def attempts() -> int:
        return len(record.read_all(tmp_path / "r"))

    first = go(specs, limits=TimeLimits(run=1))
    assert (first.code, first.counts) == (1, {"timeout": 1, "finished": 1})
    go(specs, limits=TimeLimits(run=1))
    go(specs, limits=TimeLimits(run=0.9))
    assert attempts() == 2, "nothing is repeated under the same limit or a lower one"
    go(specs, limits=TimeLimits(run=1), retry_failed=True)
    assert attempts() == 3
    assert go(specs, limits=TimeLimits(run=60)).code == 0
    assert attempts() == 4


@pytest.mark.slow
def test_a_profile_pass_may_take_the_seconds_of_each_of_its_methods(go: Callable, tmp_path: Path) -> None:
    runs = [fake_session.spec(n) for n in range(3)]
    assert go([fake_session.profile(*runs)], limits=TimeLimits(run=20)).code == 0
    records = record.read_all(tmp_path / "r")
    assert not any(Retries(records, limits=TimeLimits(run=1)).is_open(r.spec_id) for r in records)
