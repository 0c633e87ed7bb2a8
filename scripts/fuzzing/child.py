"""Run one case in a forked child of the process that has imported peftbench, and watch it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from fuzzing.case import Case

TRAP = "trap-sprung"  # a file of this name is what booby traps write
LONGEST = 2_000  # characters of a message
MEMORY_BYTES = 3 << 30  # that one input may take, beyond what the imports take
LEFT_OUTSIDE = 5  # writes outside the folder that a child reports
PATHS = {  # audit events that change files, with the places of paths in their arguments
    "os.rename": (0, 1),
    "os.link": (0, 1),
    "os.symlink": (1,),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.utime": (0,),
}


@dataclass(frozen=True)
class Ran:
    """What one input did.

    Attributes:
        case: the input.
        number: its number in its family.
        code: the exit code; negative for a signal.
        out: what it printed on standard output.
        err: what it printed on standard error.
        seconds: how long it took.
        bytes: the most memory that it held.
        hung: whether it ran past the limit.
        outside: files outside its folder that it wrote.
    """

    case: Case
    number: int
    code: int
    out: str
    err: str
    seconds: float
    bytes: int
    hung: bool
    outside: tuple[str, ...]

    @property
    def message(self) -> str:
        """What it said of the input: standard error, and standard output where it is refused."""
        return self.err + (self.out if self.code == 2 else "")

    @cached_property  # before its folder goes
    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = {
            "it hangs": self.hung,
            f"exit code {self.code}": self.code not in self.case.codes and not self.hung,
            "a traceback": "Traceback (most recent call last)" in self.out + self.err,
            f"a message of {len(self.message):,} characters": len(self.message) > LONGEST,
            f"it writes {', '.join(self.outside)}": bool(self.outside),
            "a booby trap of the input ran": any(self.case.folder.rglob(TRAP)),
            f"it takes {self.bytes / 2**30:.1f} GiB": self.bytes > MEMORY_BYTES + _rss(),
            "it is refused without a word": self.code == 2 and not self.message.strip(),
        }
        return [what for what, is_so in found.items() if is_so]


def run(case: Case, number: int, seconds: float, desk: Path) -> Ran:
    """Run a case to its end, in a child.

    Args:
        case: the case.
        number: its number.
        seconds: the longest time that it may take.
        desk: a folder for its cache, its home, and what it prints.
    """
    for name in ("home", "temporary", "cache"):
        (desk / name).mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(case, desk)
    hung, status, usage = _wait(pid, started + seconds)
    taken = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # workers that it left behind
    texts = [(desk / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err", "outside")]
    code = os.waitstatus_to_exitcode(status)
    outside = tuple(texts[2].splitlines()[:LEFT_OUTSIDE])
    return Ran(case, number, code, texts[0], texts[1], taken, usage.ru_maxrss * 1024, hung, outside)


def _wait(pid: int, deadline: float) -> tuple[bool, int, Any]:
    """Wait for a child; kill it and all that it started at the deadline."""
    pause = 0.001
    while time.monotonic() < deadline:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return False, status, usage
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return True, status, usage


def _child(case: Case, desk: Path) -> NoReturn:
    """Become the command line of the case; never returns."""
    code = 70
    try:
        os.setsid()
        _redirect(desk)
        os.chdir(case.folder)
        own = {
            "HOME": desk / "home",
            "TMPDIR": desk / "temporary",
            "PEFTBENCH_CACHE": desk / "cache",
            "MPLCONFIGDIR": desk / "cache" / "matplotlib",
            "COLUMNS": "120",
        }
        os.environ.update({**{k: str(v) for k, v in own.items()}, **case.environment})
        tempfile.tempdir = None  # read TMPDIR again
        limit = _address_space() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _watch_writes([case.folder, desk], desk / "outside")
        code = _main(case.arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _main(arguments: Sequence[str]) -> int:
    from peftbench.cli import app

    sys.argv = ["peftbench", *arguments]
    try:
        app.main()
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _redirect(desk: Path) -> None:
    """Answer every question with yes, and write what is printed to files."""
    yes, write = os.open(desk / "yes", os.O_RDWR | os.O_CREAT | os.O_TRUNC), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.write(yes, b"y\n" * 100)
    os.lseek(yes, 0, os.SEEK_SET)
    os.close(os.open(desk / "outside", write, 0o600))
    for number, source in enumerate((yes, os.open(desk / "out", write, 0o600), os.open(desk / "err", write, 0o600))):
        os.dup2(source, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, m, encoding="utf-8") for n, m in enumerate(("r", "w", "w")))


def _watch_writes(allowed: Sequence[Path], log: Path) -> None:
    """Write to `log` each path outside the allowed folders that this process changes."""
    inside = tuple(f"{os.path.realpath(p)}{os.sep}" for p in allowed)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else "w" in (mode or "")
            paths = [path] if writes else []
        else:
            paths = [arguments[i] for i in PATHS.get(event, ())]
        for path in paths:
            if isinstance(path, (str, bytes, os.PathLike)):
                place = os.path.realpath(os.fsdecode(path))
                if not f"{place}{os.sep}".startswith(inside) and not place.startswith("/dev/"):
                    os.write(handle, f"{event} {place!r}\n".encode())

    sys.addaudithook(hook)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
