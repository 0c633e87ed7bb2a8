"""Options, variables and folders that make no sense end in exit code 2 and one short message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Call

from peftbench.cli import app

LONG = "a" * 100_000


def short(message: str, *said: str) -> None:
    assert len(message) <= 2_000
    assert "Traceback" not in message
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((LONG,), "No such command"),
        (("plan", f"--{LONG}", "x"), "No such option"),
        (("plan", "a", *["b c"] * 5_000), "unexpected extra argument"),
        (("plan", "a", "--jobs", LONG), "Invalid value for '--jobs'"),
        (("plan", LONG), "no experiment file"),
        (("plan", "x y " * 20_000), "no experiment file"),
        (("plan", "tiny.yaml", "--results", LONG), "File name too long"),
        (("plan", "tiny.yaml", "--data-dir", LONG), "there is no such directory"),
        (("plan", "tiny.yaml", "--plugin", LONG), "no plugin file"),
        (("plan", "tiny.yaml", "--plugin", "~nobody-here/x.py"), "no home directory"),
        (("plan", "tiny.yaml", "--only", f"method={LONG}"), "unknown method"),
        (("plan", "tiny.yaml", "--only", LONG), "write key=value"),
        (("plan", "tiny.yaml", "--set", f"{LONG}=1"), "unknown key"),
        (("plan", "tiny.yaml", "--set", f"budget.steps={'[' * 50_000}"), "more than 50"),
        (("plan", "tiny.yaml", "--set", "name=\udcff"), "cannot be read as a YAML value"),
        (("plan", "tiny.yaml", "--method", LONG), "unknown method"),
        (("plan", "tiny.yaml", "--device", LONG), "unknown device"),
        (("plan", "tiny.yaml", "--device", "cuda:-1"), "unknown device"),
        (("plan", "tiny.yaml", "--device", "meta"), "unknown device"),
        (("plan", "tiny.yaml", "--jobs", "1000000000"), "less than or equal to 1024"),
        (("run", "tiny.yaml", "--jobs", "1000000000"), "less than or equal to 1024"),
        (("run", "tiny.yaml", "--executor", LONG), "unknown executor"),
        (("report", LONG), "File name too long"),
        (("methods", LONG), "unknown method"),
        (("tasks", LONG), "unknown task"),
        (("tasks", "\udcff"), "unknown task"),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode() if isinstance(value, tuple) else "",
)
def test_nonsense_on_the_command_line_is_one_short_message(
    call: Call, tiny: str, arguments: tuple[str, ...], said: str
) -> None:
    done = call(*arguments)
    assert done.code == 2
    short(done.err, said)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("deep"), "values inside values"),
        (MemoryError(), "memory of this machine is not enough"),
        (OSError(36, "File name too long", "x" * 5_000), "File name too long; check this path"),
        (FileNotFoundError(2, "No such file or directory"), "the working directory is gone"),
    ],
)
def test_what_python_or_the_system_refuses_is_one_short_message(error: Exception, said: str) -> None:
    short(str(app._mistake(error)), said)


@pytest.mark.parametrize("value", ["x", "0", "-1", "1" * 5_000, "999999999"])
def test_a_number_of_threads_is_one_that_a_machine_can_have(
    call: Call, monkeypatch: pytest.MonkeyPatch, tiny: str, value: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    done = call("plan", tiny)
    assert done.code == 2
    short(done.err, "give a whole number from 1 to 4,096")


@pytest.mark.parametrize("value", ["file", "file/x", "/dev/null/x", "/proc/x", "a" * 300, "loop", "~nobody-here/x"])
def test_a_cache_that_cannot_be_made_is_told_before_work_begins(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: str, value: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("PEFTBENCH_CACHE", value)
    done = call("plan", tiny)
    assert done.code == 2
    short(done.err, "no home directory" if "~" in value else "cannot write the cache at")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, tiny: str, command: str) -> None:
    (tmp_path / "gone").mkdir()
    enter = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    environment = {**os.environ, "PEFTBENCH_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-c", enter, sys.executable, "-m", "peftbench", command, tiny]
    done = subprocess.run(words, cwd=tmp_path / "gone", env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    short(done.stderr, "the working directory is gone")


PLUGINS = {
    "raises.py": ("raise ValueError('x' * 100_000)", "does not load: ValueError"),
    "exits.py": ("import sys\nsys.exit(3)", "does not load: SystemExit"),
    "endless.py": ("def f():\n    f()\n\n\nf()", "does not load: RecursionError"),
    "own.py": ("class Own(BaseException):\n    pass\n\n\nraise Own('x')", "does not load: Own"),
    "syntax.py": ("def (", "does not load: SyntaxError"),
    "nul.py": ("x = 1\0", "does not load"),
    "nothing.py": ("", "registers no method"),
    "plugin.txt": ("x", "ends in .py"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_does_not_load_is_one_short_message(call: Call, tmp_path: Path, name: str) -> None:
    content, said = PLUGINS[name]
    (tmp_path / name).write_text(content)
    done = call("methods", "--plugin", name)
    assert done.code == 2
    short(done.err, said)


def test_a_plugin_that_is_no_file_is_not_waited_for(call: Call, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "device.py").symlink_to("/dev/zero")
    for name in ("pipe.py", "folder.py", "device.py"):
        done = call("methods", "--plugin", name)
        assert done.code == 2
        short(done.err, "no plugin file")
