"""Standard streams that may be closed, full or gone, or lack characters, while the command goes on.

Writing to such a stream fails, in the middle of whatever is printed. Here writing never fails: what cannot be written
is dropped, and the first failure is kept. In the end, a command that only prints exits with an error; one that makes
files exits as it would have done, with a note.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

MAKE_FILES = {"run", "profile", "report", "figures", "export", "import", "fetch", "new-method"}
LOST, PIPE = 1, 128 + 13  # exit codes of a command whose output is lost; the second as a shell shows SIGPIPE


class Forgiving(io.FileIO):
    """A file descriptor; what cannot be written to it is dropped.

    Attributes:
        failure: the first error of writing.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the data, and wait where a pipe is full; return the number of bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and self.failure is None:
            try:
                written = super().write(left)
                if written is None:  # a pipe that does not wait itself
                    select.select([], [self.fileno()], [])
                left = left[written or 0 :]
            except OSError as error:
                self.failure = error
        return size


def use_utf8() -> None:
    """Start this program anew where names of files cannot have all characters, as in the locale C with PYTHONUTF8=0.

    What it prints stays in the encoding of the streams.
    """
    if sys.getfilesystemencoding().lower() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", getattr(sys.stdout, "encoding", None) or "ascii")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_streams() -> Forgiving | None:
    """Put standard output and standard error in place, so that printing does not fail.

    Returns:
        What standard output is written to; None if another program has replaced it.
    """
    for fd in range(3):
        _fill(fd)
    output = _open("stdout", 1)
    _open("stderr", 2)
    return output


def exit_code(code: int, output: Forgiving | None, arguments: Sequence[str]) -> int:
    """Return the exit code of a command, and say so if its standard output is lost.

    Args:
        code: its exit code but for that.
        output: what `open_streams` returned.
        arguments: the words of the command line.
    """
    if output is None:
        return code
    sys.stdout.flush()
    failure = output.failure
    if failure is None:
        return code
    command = next((a for a in arguments if not a.startswith("-")), "")
    makes_files = command in MAKE_FILES and not {"--json", "--help", "-h"} & set(arguments)
    nobody_reads = failure.errno == errno.EPIPE
    if makes_files:
        print(f"note: standard output is incomplete: {failure.strerror}", file=sys.stderr, flush=True)
    elif not nobody_reads:
        print(f"error: cannot write to standard output: {failure.strerror}", file=sys.stderr, flush=True)
    if code or makes_files:
        return code
    return PIPE if nobody_reads else LOST


def _fill(fd: int) -> None:
    """Occupy a closed descriptor, as else the next file that is opened would get what is printed.

    It is open for reading only: writing to it fails, as it should.
    """
    try:
        os.fstat(fd)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # the lowest free number, which is `fd`


def _open(name: str, fd: int) -> Forgiving | None:
    """Replace one stream, unless another program has done so."""
    before = getattr(sys, name)
    if before is not getattr(sys, f"__{name}__"):
        if isinstance(before, io.TextIOWrapper):
            before.reconfigure(errors="backslashreplace")
        return None
    raw = Forgiving(fd, "wb", closefd=False)
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",  # on a terminal that lacks a character
        line_buffering=before.line_buffering if before else True,
        write_through=before.write_through if before else False,
    )
    setattr(sys, name, stream)
    return raw
