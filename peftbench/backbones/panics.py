"""Panics of the compiled part of a tokenizer, as errors of Python.

A panic reaches Python as a BaseException, which no `except Exception` catches, and writes itself to file descriptor 2.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOCK = threading.RLock()  # threads share the descriptor


class PanicError(Exception):
    """The compiled part of a tokenizer panicked."""


@contextmanager
def caught() -> Iterator[None]:
    """Raise a panic of the block as a `PanicError`, and keep what it writes to file descriptor 2 away.

    What else the block writes there appears when it ends.
    """
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        with _raised():
            yield
        return
    with _LOCK, tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        panicked = False
        try:
            with _raised():
                yield
        except PanicError:
            panicked = True
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if not panicked:
                written.seek(0)
                with suppress(OSError):  # nobody reads it
                    while part := written.read(65536):
                        os.write(2, part)


@contextmanager
def _raised() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PanicError(" ".join(str(error).split())[:300]) from None
