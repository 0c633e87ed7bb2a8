"""What other programs use of the machine's cores, by counters that the tests set; never by real load."""

from __future__ import annotations

from collections import namedtuple
from threading import Thread

import psutil
import pytest

from peftbench.measure import background_load

Linux = namedtuple("Linux", "user nice system idle iowait irq softirq steal guest guest_nice")
Mac = namedtuple("Mac", "user nice system idle")


class Machine:
    """Counters of four cores, one core's worth of which this process uses, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...]) -> None:
        self.times, self.own, self.now = times, 0.0, 0.0
        monkeypatch.setattr(psutil, "cpu_times", lambda: self.times)
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
        monkeypatch.setattr(background_load, "own_seconds", lambda: self.own)
        monkeypatch.setattr(background_load, "perf_counter", lambda: self.now)

    def goes_on(self, seconds: float, own: float, **used: float) -> None:
        self.now += seconds
        self.own += own
        self.times = self.times._replace(**{k: getattr(self.times, k) + v for k, v in used.items()})


def test_the_share_is_what_the_process_did_not_use_itself_over_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, Mac(100.0, 0.0, 50.0, 1000.0))
    watch = background_load.LoadMonitor()
    machine.goes_on(10, own=10, user=14, system=4, idle=22)
    assert watch.share() == pytest.approx(8 / 40)


def test_waiting_is_not_use_and_a_guests_time_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, Linux(*[0.0] * 10))
    watch = background_load.LoadMonitor()
    machine.goes_on(10, own=10, user=14, guest=2, nice=3, guest_nice=1, steal=1, idle=15, iowait=7)
    assert watch.share() == pytest.approx((14 + 3 + 1 - 10) / 40)


def test_counters_that_run_a_tick_behind_give_zero_and_never_less(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, Mac(0.0, 0.0, 0.0, 0.0))
    watch = background_load.LoadMonitor()
    machine.goes_on(10, own=10.02, user=10, idle=30)
    assert watch.share() == 0.0


@pytest.mark.parametrize("used", [{}, {"user": 3.0}])
def test_counters_that_lack_this_processs_own_use_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, used: dict[str, float]
) -> None:
    machine = Machine(monkeypatch, Mac(0.0, 0.0, 0.0, 0.0))
    watch = background_load.LoadMonitor()
    machine.goes_on(10, own=10, **used)
    assert watch.share() is None


def test_where_the_system_tells_nothing_the_share_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError("/proc/stat")

    machine = Machine(monkeypatch, Mac(0.0, 0.0, 0.0, 0.0))
    assert background_load.LoadMonitor().share() is None, "no time has gone by"
    monkeypatch.setattr(psutil, "cpu_times", refused)
    watch = background_load.LoadMonitor()
    machine.goes_on(10, own=0)
    assert watch.share() is None


def test_what_a_thread_of_this_process_uses_is_its_own() -> None:
    before = background_load.own_seconds()
    thread = Thread(target=lambda: sum(i * i for i in range(2_000_000)))
    thread.start()
    thread.join()
    assert background_load.own_seconds() > before
