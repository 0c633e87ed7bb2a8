"""A sample of the odd inputs that `make fuzz` draws by the thousand, and what its runner finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

from fuzzing import child  # noqa: E402
from fuzzing.case import Case  # noqa: E402
from fuzzing.child import Ran  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("count", ["2", pytest.param("12", marks=pytest.mark.full)])
def test_a_sample_of_each_family_has_no_fault(count: str) -> None:
    command = [sys.executable, "scripts/fuzz.py", "--count", count, "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert {"models", "records"} <= {row.split(" | ")[0].removeprefix("| ") for row in rows}


def ran(folder: Path, **facts: object) -> Ran:
    usual = {"number": 0, "code": 0, "out": "", "err": "", "seconds": 0.1, "bytes": 0, "hung": False, "outside": ()}
    return Ran(Case("x", (), folder), **{**usual, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"hung": True, "code": -9}, "it hangs"),
        ({"code": 70}, "exit code 70"),
        ({"code": -11}, "exit code -11"),
        ({"code": 1, "err": "Traceback (most recent call last):\n"}, "a traceback"),
        ({"code": 2, "err": "x" * 2_001}, "a message of 2,001 characters"),
        ({"code": 2, "out": "x" * 2_001}, "a message of 2,001 characters"),
        ({"outside": ("open '/etc/x'",)}, "it writes open '/etc/x'"),
        ({"bytes": 2**43}, "GiB"),
        ({"code": 2}, "it is refused without a word"),
    ],
    ids=str,
)
def test_each_fault_is_seen(facts: dict[str, object], said: str, tmp_path: Path) -> None:
    assert any(said in fault for fault in ran(tmp_path, **facts).faults)


def test_what_is_right_is_no_fault_and_a_sprung_trap_is_one(tmp_path: Path) -> None:
    for facts in ({}, {"code": 1}, {"code": 2, "err": "error: one message"}):
        assert ran(tmp_path, **facts).faults == []
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / child.TRAP).mkdir()
    assert ran(tmp_path).faults == ["a booby trap of the input ran"]


@pytest.mark.slow
def test_the_runner_sees_crashes_hangs_and_writes_of_real_children(tmp_path: Path) -> None:
    """In a process of its own, as the runner forks."""
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "scripts")!r})
from pathlib import Path
from fuzzing import child
from fuzzing.case import Case
from peftbench.cli import app
here = Path({str(tmp_path)!r})
(here / "case").mkdir()
def acts(what):
    app.main = what
    return child.run(Case("x", (), here / "case"), 0, 2, here / "desk").faults
print(acts(lambda: 1 / 0))
print(acts(lambda: time.sleep(60)))
print(acts(lambda: Path("../outside").write_text("x")))
print(acts(lambda: Path("inside").write_text("x")))
"""
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == "['a traceback']"
    assert lines[1] == "['it hangs']"
    assert "outside" in lines[2]
    assert lines[3] == "[]"
