"""What an exception says of an attempt: is it the method's result, or did the machine fail the run?

The surroundings of a run are never a method's result. The rule, in this order:

1. Memory of the run's device that ran out is `oom`: on a GPU the GPU's, on the CPU that of torch's tensors. Any other
   memory of the machine is surroundings.
2. What fails while data and network are loaded is surroundings: planning has loaded them, and no method takes part.
3. What the machine has too little of, or what is broken (full disk, too many open files, no more threads, an input or
   output error), is surroundings, whoever asked for it and however a library words it.
4. Any other OSError is the method's own if the method's code made the call. If the engine made the call, on its own
   files, it is surroundings. So is an error that the engine raised from such an OSError.
5. Everything else is an error of the method.

A wrong guess of "surroundings" costs two more attempts (see records/retries.py); a wrong guess of "error" would put the
machine's fault into a table.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from peftbench.errors import UserError
from peftbench.method import registry

ENGINE = Path(__file__).resolve().parents[1]
LIBRARIES = {"site-packages", "dist-packages"}

TENSOR_MEMORY = ("not enough memory", "can't allocate memory")  # torch's allocator on the CPU
DEVICE_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
OF_THE_MACHINE = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENXIO", "ENODEV", "ESTALE", "ENOLCK", "EFBIG"),
        *("EMFILE", "ENFILE", "EAGAIN", "ENOMEM", "EUSERS", "ENOBUFS"),
        *("ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)
WORDS = (  # of libraries that raise no OSError for what the machine lacks
    *(os.strerror(number) for number in sorted(OF_THE_MACHINE - {errno.ENXIO, errno.ENODEV})),
    *TENSOR_MEMORY,  # where it is not that of the run's device
    "can't start new thread",
    "Thread creation failed",
    "shared memory object",
    "out of shared memory. Please",  # of a loader's worker; a GPU kernel says this otherwise
    "unable to mmap",
    "Bus error",
    "received 0 items of ancdata",
    "uncorrectable ECC",
    "device(s) is/are busy or unavailable",
    "no CUDA-capable device",
    "CUDA driver initialization failed",
    "GPU is lost",
)
MESSAGE = 2_000  # characters kept of a message
TRACEBACK = 20_000  # characters kept of a traceback
READING_SECONDS = 2.0  # that reading an exception's text may take
READER = "an exception's text"  # the name of the thread that reads it
LOADING = "This happened while data and network were loaded, before the method took part."  # a note on an exception
CHAIN = 50  # exceptions followed from one to its cause

_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ProcessDied(RuntimeError):
    """A process that took part in a run is gone; the message has the reason."""


def is_out_of_memory(error: BaseException, device: str) -> bool:
    """Whether the memory of the run's device ran out.

    Args:
        error: what the attempt raised.
        device: the device of the run, such as "cpu" or "cuda:0".
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text, on_cpu = message_of(error), device.startswith("cpu")
    if any(words in text for words in TENSOR_MEMORY):
        return on_cpu
    return any(words in text for words in DEVICE_MEMORY)


def is_of_surroundings(error: BaseException) -> bool:
    """Whether the machine failed the run, by the rule above."""
    return any(_is_machine(e) or _is_engine_os_error(e) for e in _chain(error))


def _chain(error: BaseException, contexts: bool = False) -> Iterator[BaseException]:
    """The error, those that it was raised from, and the members of groups; `contexts`: those that it replaced, too."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < CHAIN:
        e = waiting.pop(0)
        if id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        if isinstance(e, BaseExceptionGroup):
            waiting += e.exceptions
        waiting += [c for c in (e.__cause__, e.__context__ if contexts else None) if c is not None]


def _is_machine(error: BaseException) -> bool:
    if isinstance(error, MemoryError | ProcessDied) or LOADING in getattr(error, "__notes__", ()):
        return True
    if isinstance(error, OSError):
        if error.errno in OF_THE_MACHINE:
            return True
        return error.errno is None and _is_worded(error)
    return isinstance(error, Exception) and not isinstance(error, UserError) and _is_worded(error)


def _is_worded(error: Exception) -> bool:
    text = message_of(error)
    return any(words in text for words in WORDS)


def _is_engine_os_error(error: BaseException) -> bool:
    """Whether the engine, not a method, made the call that failed: the innermost frame of either decides."""
    if not isinstance(error, OSError):
        return False
    methods = registry.folders()
    for path in reversed(_files(error.__traceback__)):
        inside = [m for m in methods if path.is_relative_to(m) and not LIBRARIES & {*path.relative_to(m).parts}]
        if path.is_relative_to(ENGINE) and not any(m.is_relative_to(ENGINE) for m in inside):
            return True
        if inside:
            return False
    return False


def _files(trace: TracebackType | None) -> list[Path]:
    """The source files of a traceback's frames, the outermost first."""
    files = []
    while trace is not None:
        files.append(Path(trace.tb_frame.f_code.co_filename))
        trace = trace.tb_next
    return [Path(os.path.realpath(f)) for f in files if f.is_absolute()]


@contextmanager
def noted_as_loading() -> Iterator[None]:
    """Note on what is raised within that it happened while loading; memory that runs out is the network's size."""
    try:
        yield
    except Exception as error:
        error.add_note(LOADING)
        raise


def release_frames(error: BaseException) -> None:
    """Drop the local variables of the calls that failed, with the tensors that they hold. The traceback stays."""
    for e in _chain(error, contexts=True):
        traceback.clear_frames(e.__traceback__)


def message_of(error: BaseException) -> str:
    """The error's text as one that a record can hold, whatever its `__str__` does; "" if it has none."""
    return clean(_read(lambda: str(error), "its text cannot be read"), MESSAGE)


def describe(error: BaseException) -> dict[str, str | None]:
    """The message and traceback of an error, fit for a record; a user's mistake needs no traceback."""
    text = message_of(error)
    if isinstance(error, UserError):
        return {"message": text, "traceback": None}
    name = clean(type(error).__name__, 200)
    lines = _read(lambda: "".join(traceback.format_exception(error)), "the traceback cannot be written")
    return {"message": clean(f"{name}: {text}" if text else name, MESSAGE), "traceback": clean(lines, TRACEBACK)}


def clean(text: str, most: int) -> str:
    """A text without characters that act or that no file can hold, with its beginning and end if it is too long.

    Args:
        text: the text; line breaks and tabs stay.
        most: the number of characters that are kept at most.
    """
    if len(text) > most:
        mark = f"\n... {len(text) - most:,} characters left out ...\n"
        kept = max(0, most - len(mark))
        text = f"{text[: kept - kept // 2]}{mark}{text[len(text) - kept // 2 :]}"
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def reader_hangs() -> bool:
    """Whether the code of an exception still runs in this process, though nobody waits for it."""
    return any(thread.name == READER for thread in threading.enumerate())


def _read(read: Callable[[], str], otherwise: str) -> str:
    """The text that a function of somebody else returns; a sentence if it raises, hangs, or returns no text."""
    answers: list[str] = []

    def work() -> None:
        try:
            answers.append(str.__str__(read()))
        except BaseException as error:
            answers.append(f"({otherwise}: {type(error).__name__})")

    thread = threading.Thread(target=work, name=READER, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is to be had
        work()
    else:
        thread.join(READING_SECONDS)
    return answers[0] if answers else f"({otherwise}: it takes longer than {READING_SECONDS:.0f} s)"
