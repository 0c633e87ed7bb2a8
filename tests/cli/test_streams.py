"""Standard streams that are closed, full, gone or ASCII: no traceback, the right exit code, and the grid goes on."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import TINY, cache_of_this_session

from peftbench.cli import progress
from peftbench.records import record
from peftbench.run.view import Lines, Quiet

COMMAND = f"{sys.executable} -P -m peftbench"
GRID = TINY.replace("seeds: 2", "seeds: 1").replace("{processes: 1, rounds: 1, warmup: 0}", "false")  # two runs
FULL = pytest.mark.full


@pytest.fixture
def shell(tmp_path: Path):
    """A function that runs a line of the shell in which `$P` is the command line."""
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    env = {**os.environ, "P": COMMAND, "PYTHONPATH": paths, "PEFTBENCH_CACHE": str(cache_of_this_session(tmp_path))}
    (tmp_path / "tiny.yaml").write_text(GRID)

    def run(line: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", f"set -o pipefail; {line}"]
        done = subprocess.run(
            command, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Traceback" not in done.stdout + done.stderr
        assert "Exception ignored" not in done.stderr
        return done

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("--version", ">&-"), ("--help", ">/dev/full"), ("methods", ">&-"), ("tasks --json", ">/dev/full"),
        *(pytest.param(words, where, marks=FULL) for words, where in (
            ("--version", ">/dev/full"), ("--help", ">&-"), ("methods", ">/dev/full"), ("tasks --json", ">&-"),
            ("run --help", ">&-"), ("run --help", ">/dev/full"), ("schema", ">&-"), ("schema", ">/dev/full"),
        )),
    ],
)  # fmt: skip
def test_a_command_that_only_prints_says_that_its_output_is_lost(shell, words: str, where: str) -> None:
    done = shell(f"$P {words} {where}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: cannot write to standard output: ")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">&- 2>/dev/full"])
def test_an_output_that_cannot_even_be_said_to_be_lost_is_an_exit_code(shell, where: str) -> None:
    assert shell(f"$P methods {where}").returncode == 1
    assert shell(f"$P plan nothing.yaml {where}").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["2>&-", "<&-", pytest.param("2>/dev/full", marks=FULL), pytest.param("</dev/null", marks=FULL)]
)
def test_standard_output_is_whole_where_another_stream_is_not_there(shell, where: str) -> None:
    assert shell(f"$P methods {where}").stdout == shell("$P methods").stdout


@pytest.mark.slow
def test_an_error_is_not_printed_to_standard_output_where_standard_error_is_closed(shell) -> None:
    done = shell("$P plan nothing.yaml 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.slow
def test_a_reader_that_has_read_enough_ends_the_command_without_a_word(shell) -> None:
    done = shell("$P schema | head -c 1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "{", "")


RUN = "$P run tiny.yaml --results r"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "note"),
    [
        (f"{RUN} <&- >&- 2>&-", ""),
        (f"{RUN} | head -1", "Broken pipe"),
        pytest.param(f"{RUN} >&-", "Bad file descriptor", marks=FULL),
        pytest.param(f"{RUN} >/dev/full", "No space left on device", marks=FULL),
        pytest.param(f"{RUN} >/dev/full 2>/dev/full", "", marks=FULL),
    ],
)
def test_a_grid_goes_on_without_its_output(shell, tmp_path: Path, line: str, note: str) -> None:
    done = shell(line)
    assert done.returncode == 0
    assert note in done.stderr
    assert {r.status for r in record.read_all(tmp_path / "r")} == {"finished"}
    assert (tmp_path / "r" / "report" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("0", "methods"), ("1", "run --help"), ("many", "--help"),
        *(pytest.param(columns, words, marks=FULL) for columns, words in (
            ("100000", "methods"), ("1", "methods"), ("many", "methods"), ("0", "--help"), ("1", "--help"),
            ("100000", "--help"), ("0", "run --help"), ("100000", "run --help"), ("many", "run --help"),
        )),
    ],
)  # fmt: skip
def test_a_terminal_of_any_width_breaks_no_command(shell, columns: str, words: str) -> None:
    assert shell(f"$P {words}", COLUMNS=columns, LINES=columns, TERM="dumb", NO_COLOR="1").returncode == 0


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        ASCII,
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=FULL),
        pytest.param({"LC_ALL": "C"}, marks=FULL),
        pytest.param({"LC_ALL": "POSIX", **ASCII}, marks=FULL),
    ],
)
def test_ascii_is_enough(shell, tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "tiny.yaml").write_text(GRID.replace("lora]", "lora: {label: 'déjà'}]"), encoding="utf-8")
    done = shell(RUN, **env)
    assert done.returncode == 0, done.stderr
    assert "\\xe9j" in done.stdout or "déjà" in done.stdout
    assert {r.status for r in record.read_all(tmp_path / "r")} == {"finished"}
    assert shell("$P report r", **env).returncode == 0


class Broken:
    """A stream that cannot be written to."""

    encoding = "utf-8"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("I/O operation on closed file")])
def test_a_view_goes_on_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(error))
    Quiet().note("a failure")
    Lines(Broken(error)).note("a line")  # type: ignore[arg-type]
    progress.view(False, Broken(error)).note("a line")  # type: ignore[arg-type]


def test_a_view_writes_escapes_where_a_character_is_lacking(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="ascii") as out:
        Lines(out).note("déjà")
    assert (tmp_path / "out.txt").read_text() == "d\\xe9j\\xe0\n"


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [True, False], ids=["nohup", "without nohup"])
def test_a_terminal_that_goes_away_ends_the_grid_in_order_or_under_nohup_not_at_all(
    tmp_path: Path, ignored: bool
) -> None:
    steps, runs = 3 if ignored else 50_000, tmp_path / "r" / "runs"
    (tmp_path / "tiny.yaml").write_text(GRID.replace("steps: 3", f"steps: {steps}"))
    paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
    env = {**os.environ, "PYTHONPATH": paths, "PEFTBENCH_CACHE": str(cache_of_this_session(tmp_path))}
    env |= {"TERM": "xterm", "COLUMNS": "100"}
    words = [sys.executable, "-P", "-m", "peftbench", "run", "tiny.yaml", "--results", "r"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # whatever these tests run under
        os.execve(words[0], words, env)

    def is_under_way(shown: bytes) -> bool:
        """Whether other runs come after one that has ended, or a run is at one of its many steps."""
        return any(runs.glob("*.json")) if ignored else b"/50000" in shown

    shown = _shown(terminal, is_under_way)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if ignored else 130), shown.decode(errors="replace")
    assert {r.status for r in record.read_all(tmp_path / "r")} == {"finished" if ignored else "abandoned"}
    assert not (tmp_path / "r" / ".lock").exists()


def _shown(terminal: int, enough: Callable[[bytes], bool]) -> bytes:
    """What a terminal shows until that is enough, or until nobody writes to it any more."""
    shown, deadline = b"", time.monotonic() + 240
    while not enough(shown) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
    return shown
