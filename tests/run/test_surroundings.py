"""The surroundings of a run are no method's result: what an exception says, and what another command repeats."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftbench.errors import UserError
from peftbench.run import failures


def raised(do: Callable[[], Any]) -> BaseException:
    try:
        do()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def status(error: BaseException, device: str = "cpu") -> str:
    if failures.is_out_of_memory(error, device):
        return "oom"
    return "interrupted" if failures.is_of_surroundings(error) else "error"


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EMFILE", "ENFILE", "EAGAIN", "ENOMEM", "EFBIG"])
def test_what_the_machine_lacks_is_surroundings_whoever_asked_for_it(name: str) -> None:
    number = getattr(errno, name)
    assert status(OSError(number, os.strerror(number), "/data/file")) == "interrupted"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("libgomp: Thread creation failed: Resource temporarily unavailable"),
        RuntimeError("unable to open shared memory object </torch_12> in read-write mode: Too many open files (24)"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        MemoryError(),
    ],
    ids=lambda e: str(e)[:24],
)
def test_libraries_may_word_it_as_they_like(error: Exception) -> None:
    assert status(error) == "interrupted"


CPU = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
GPU = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize(
    ("error", "device", "expected"),
    [
        (RuntimeError(CPU), "cpu", "oom"),
        (RuntimeError(CPU), "cuda:0", "interrupted"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), "cuda", "interrupted"),
        (torch.OutOfMemoryError(GPU), "cuda:0", "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda:0", "oom"),
        (MemoryError("Unable to allocate 7.00 TiB for an array"), "cuda:0", "interrupted"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "cpu", "interrupted"),
    ],
    ids=str,
)
def test_only_the_memory_of_the_runs_device_is_a_result(error: Exception, device: str, expected: str) -> None:
    assert status(error, device) == expected


def test_a_groups_members_and_causes_count() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert status(ExceptionGroup("two", [ValueError("a"), full])) == "interrupted"

    def wrapped() -> None:
        raise UserError("cannot write the cache") from full

    assert status(raised(wrapped)) == "interrupted"
    assert status(UserError("the disk says: No space left on device")) == "error", "a user's mistake is in words"


def test_a_chain_of_causes_in_a_circle_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert status(one) == "error"


def test_what_happened_while_loading_is_surroundings() -> None:
    error = ValueError("the header is too large")
    error.add_note(failures.LOADING)
    assert status(error) == "interrupted"


PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from peftbench import cache
from peftbench.method import Edit, Method, Sites, register

@register
@dataclass(frozen=True)
class Reads(Method):
    '''Reads a file.'''
    name, paper, lr = "reads_a_file", "none", 1e-3

    def attach(self, edit: Edit) -> None:
        edit()

    def parameters(self, sites: Sites) -> int:
        return 0

def own_file():
    return Path("/there/is/no/such/file").read_bytes()

def engines_folder(folder):
    return cache.file(folder / "x", lambda part: None)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Any:
    from peftbench.method import registry

    path = tmp_path / "code" / "reads.py"
    path.parent.mkdir()
    path.write_text(PLUGIN)
    registry._load_file(path)
    yield importlib.import_module("peftbench_plugin_reads")
    del registry._registry["reads_a_file"], registry._sources["reads_a_file"]
    registry._plugins.pop(path.resolve())


def test_a_methods_own_file_is_its_own_fault(plugin: Any) -> None:
    assert status(raised(plugin.own_file)) == "error"


def test_a_file_of_the_engine_is_not_the_fault_of_the_method_that_asked_for_it(plugin: Any, tmp_path: Path) -> None:
    def vanishes(part: Path) -> None:
        raise AssertionError("never reached")

    assert status(raised(lambda: plugin.engines_folder(tmp_path / "f"))) == "interrupted"  # os.replace of what is not there


def bad_str(what: Callable[[], Any]) -> Exception:
    class Odd(Exception):
        def __str__(self) -> Any:
            return what()

    return Odd()


def boom() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("a\ud800b\x00c\x1b[31md\u202ee"), "ValueError: a\ufffdb\ufffdc\ufffd[31md\ufffde"),
        (ValueError("two\nlines"), "ValueError: two\nlines"),
        (bad_str(lambda: 5), "Odd: (its text cannot be read: TypeError)"),
        (bad_str(boom), "Odd: (its text cannot be read: SystemExit)"),
        (bad_str(lambda: 1 / 0), "Odd: (its text cannot be read: ZeroDivisionError)"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(7), "SystemExit: 7"),
        (ExceptionGroup("many", [ValueError("x")]), "ExceptionGroup: many (1 sub-exception)"),
    ],
    ids=range(8),
)
def test_every_exception_has_a_text_that_a_record_holds(error: BaseException, said: str) -> None:
    details = failures.describe(raised(lambda: _throw(error)))
    assert details["message"] == said
    assert not failures._NOT_TEXT.search(str(details["traceback"]))


def _throw(error: BaseException) -> None:
    raise error


def test_a_long_text_keeps_its_beginning_and_end() -> None:
    details = failures.describe(raised(lambda: _throw(ValueError(f"begin{'x' * 10_000_000}end"))))
    message = str(details["message"])
    assert len(message) <= failures.MESSAGE
    assert message.startswith("ValueError: begin")
    assert message.endswith("end")
    assert "characters left out" in message
    assert len(str(details["traceback"])) <= failures.TRACEBACK


def test_an_exceptions_text_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(failures, "READING_SECONDS", 0.05)
    go_on = threading.Event()
    error = bad_str(lambda: str(go_on.wait(30)))
    assert "takes longer than" in str(failures.describe(error)["message"])
    assert failures.reader_hangs(), "so that the process takes no further run"
    go_on.set()
