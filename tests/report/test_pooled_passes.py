"""A profile pass in several processes is pooled into one record, with an interval over the processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import factories
import msgspec
import numpy as np
import pytest
from scipy import stats

from peftbench.measure import timing
from peftbench.records import record
from peftbench.records.costs import PassSeconds, ProfileRow, Quartiles
from peftbench.report.assemble import compare
from peftbench.report.data import pooled_passes
from peftbench.report.tables import profile_text

LABELS = ("full", "lora")


def body(process: int, lora: float, started: str = "2026-01-01T01:00:00Z", **changes: Any) -> dict[str, Any]:
    """One process's record, lora's step taking `lora` milliseconds against full's 95."""
    return factories.profile(
        LABELS, work=True, process=process, step_ms={"full": 95.0, "lora": lora}, started=started, **changes
    )


def written(tmp_path: Path, *bodies: dict[str, Any]) -> list[record.Record]:
    factories.write_all(tmp_path, list(bodies))
    return record.read_all(tmp_path)


def test_the_processes_of_a_pass_are_one_and_their_ratio_lies_between_theirs(tmp_path: Path) -> None:
    records = written(tmp_path, *(body(i, ms) for i, ms in enumerate((70.0, 71.0, 76.0))))
    (one,) = pooled_passes.pool(records)
    assert one.processes == 3
    ratio = one.rows[1].ratio
    assert ratio
    logs = [math.log(ms / 95) for ms in (70.0, 71.0, 76.0)]
    expected = stats.t.interval(0.95, 2, np.mean(logs), stats.sem(logs))
    assert ratio.median == pytest.approx(math.exp(np.mean(logs)))
    assert (ratio.low, ratio.high) == pytest.approx(tuple(np.exp(expected)))
    assert ratio.n == 33


def test_samples_are_put_together_and_summed_up_anew() -> None:
    samples = [1.0] * 10, [2.0] * 6, [3.0] * 6
    joined = pooled_passes._joined([PassSeconds(**timing.summary(s), p95=None, ratio=None) for s in samples])
    assert joined.samples == [1.0] * 10 + [2.0] * 6 + [3.0] * 6
    assert {k: getattr(joined, k) for k in ("median", "iqr", "n")} == timing.spread(joined.samples)
    assert joined.p95 == pytest.approx(np.quantile(joined.samples, 0.95)), "22 samples reach it, 10 did not"


def test_what_one_process_lacks_and_what_is_largest_somewhere_is_kept() -> None:
    row = msgspec.convert(factories.profile_row("full", "synthetic/words", 70.0), ProfileRow)
    one, two = (msgspec.structs.replace(row, merge_max_change=change) for change in (1e-7, 3e-7))
    joined = pooled_passes._joined([one, two])
    assert (joined.merge_max_change, joined.flops, joined.latency[0].merged) == (3e-7, None, None)


def test_passes_of_other_settings_or_environments_stay_apart(tmp_path: Path) -> None:
    elsewhere = {**factories.ENV, "code": {**factories.ENV["code"], "source": "1" * 16}}
    records = written(tmp_path, body(0, 70.0), body(1, 71.0), body(1, 71.0, env=elsewhere), body(2, 70.0, status="oom"))
    found = pooled_passes.pool(records)
    assert sorted((r.processes, r.status) for r in found) == [(1, "finished"), (1, "oom"), (2, "finished")]


def test_one_process_alone_is_left_as_it_is(tmp_path: Path) -> None:
    records = written(tmp_path, body(0, 70.0))
    assert pooled_passes.pool(records) == records


def test_reports_and_the_profile_command_show_the_processes_as_one_pass(tmp_path: Path) -> None:
    first = [body(i, ms) for i, ms in enumerate((70.0, 72.0, 74.0))]
    again = [body(i, ms, "2026-01-02T00:00:00Z") for i, ms in enumerate((71.0, 73.0, 75.0))]
    records = written(tmp_path, *factories.grid(LABELS, seeds=1), *first, *again)
    (c,) = compare(records)
    lora = next(e for e in c.entries if e.label == "lora")
    assert lora.times
    assert lora.times.ratio
    assert lora.times.ratio.n == 33
    assert any("in 3 processes" in note for note in c.notes)
    (new,) = pooled_passes.pool(r for r in records if r.body.started.startswith("2026-01-02"))
    text = " ".join(profile_text.text(new, records).split())
    assert "3 processes of 5 rounds" in text
    assert "This is attempt 2 of the same pass." in text
    assert "overlap with that attempt's for 1 of 1." in text


def test_intervals_cover_the_truth_when_processes_differ_where_those_of_one_process_do_not() -> None:
    rng = np.random.default_rng(0)
    covered = {"processes": 0, "rounds": 0}
    passes, truth, apart, within = 400, 0.8, 0.04, 0.02
    for _ in range(passes):
        parts = []
        for level in rng.normal(math.log(truth), apart, 5):
            logs = rng.normal(level, within, 5)
            parts.append(Quartiles(median=float(np.exp(np.median(logs))), iqr=0.0, n=5))
        many = pooled_passes.pool_ratios(parts)
        covered["processes"] += many.low <= truth <= many.high
        one = np.exp(rng.normal(rng.normal(math.log(truth), apart), within, 25))
        half = 1.96 * one.std(ddof=1) / 5
        covered["rounds"] += abs(one.mean() - truth) <= half
    assert covered["processes"] / passes > 0.92
    assert covered["rounds"] / passes < 0.5
