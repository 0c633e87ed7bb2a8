"""`peftbench merge` and `pack`: what they print, their exit codes, and the report of a merged set."""

from __future__ import annotations

from pathlib import Path

import factories
import pytest
from commands import Call

from peftbench.run import lock

H100 = {
    **factories.ENV,
    "device": "cuda",
    "gpu": {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "cuda": "12.4"},
}


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    """A machine without a GPU, a, and one with, b; each has timed what it ran, and both ran `full`."""
    a = [*factories.grid(["full", "lora"]), factories.profile(["full", "lora", "ia3"])]
    b = factories.grid(["dora"], env=H100)
    timed = factories.profile(["full", "dora"], env=H100, step_ms={"full": 9.5, "dora": 13.3})
    factories.write_all(tmp_path / "a", [*a, *factories.grid(["ia3"], seeds=1)])
    factories.write_all(tmp_path / "b", [*b, timed])
    return tmp_path


def test_it_says_what_each_directory_gave_and_what_comes_next(call: Call, machines: Path) -> None:
    done = call("merge", "a", "b", "--into", "all")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "a: 6 records, 6 copied",
        "b: 3 records, 3 copied",
        "next: python -m peftbench report all",
    ]
    assert call("merge", "a", "b", "--into", "all").out.startswith("a: 6 records, 0 copied\n")
    assert not (machines / "all" / ".lock").exists()


def test_the_report_says_which_row_was_trained_and_timed_where_and_compares_within_a_kind(
    call: Call, machines: Path
) -> None:
    call("merge", "a", "b", "--into", "all")
    done = call("report", "all")
    assert done.code == 0, done.err
    text = " ".join((machines / "all" / "report" / "report.md").read_text().split())
    assert "Trained on NVIDIA H100 80GB HBM3: dora; a processor: full, lora, ia3." in text
    assert "Here they are of a processor, 1 thread (Linux x86_64): full, lora, ia3." in text
    assert (
        "Measured on NVIDIA H100 80GB HBM3 (a processor, Linux x86_64), and not in this table: "
        "full 9.5 ms a step (0.10 × full), dora 13.3 ms a step (0.14 × full)."
    ) in text


def test_a_damaged_record_is_named_and_the_exit_code_says_so(call: Call, machines: Path) -> None:
    victim = sorted((machines / "b" / "runs").iterdir())[0]
    victim.write_text("{}")
    done = call("merge", "a", "b", "--into", "all")
    assert done.code == 1
    assert "b: 2 records, 2 copied" in done.out
    assert victim.name in done.err


def test_what_is_no_results_directory_is_refused_and_makes_none(call: Call, machines: Path) -> None:
    done = call("merge", "a", "c", "--into", "all")
    assert (done.code, done.out) == (2, "")
    assert "c: no results directory" in done.err
    assert not (machines / "all").exists()


def test_a_target_that_a_run_uses_is_refused(call: Call, machines: Path) -> None:
    with lock.hold(machines / "all"):
        done = call("merge", "a", "--into", "all")
    assert done.code == 2
    assert "another run" in done.err


def test_pack_says_what_it_saved_and_a_packed_set_is_merged_and_reported(call: Call, machines: Path) -> None:
    done = call("pack", "a")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("a/runs.tar.xz: 6 records, ")
    assert sorted(p.name for p in (machines / "a").iterdir()) == ["runs.tar.xz"]
    again = call("pack", "a")
    assert (again.code, again.out) == (0, "a/runs.tar.xz: 6 records, nothing new\n")
    assert "runs.tar.xz, runs/lora" in call("explain", "a", "lora", "score").out
    assert call("merge", "a", "b", "--into", "all").out.startswith("a: 6 records, 6 copied\n")
    assert "lora" in call("report", "a").out


def test_what_cannot_be_packed_is_said(call: Call, machines: Path) -> None:
    for folder, said in (("nowhere", "nothing to pack"), ("a", "is using this directory")):
        with lock.hold(machines / "a"):
            done = call("pack", folder)
        assert (done.code, len(done.err.splitlines())) == (2, 1)
        assert said in done.err
    assert not (machines / "nowhere").exists()
    (machines / "a" / "runs" / "x--1.json").write_text("{")
    done = call("pack", "a")
    assert done.code == 2
    assert "x--1.json" in done.err
    assert not (machines / "a" / "runs.tar.xz").exists()
