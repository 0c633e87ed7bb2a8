"""What a command says while it works: on a terminal one line that goes again, in a pipe lines, and never on stdout."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from peftbench.cli import doing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_line_counts_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doing, "EVERY_SECONDS", 0.01)
    out = Terminal()
    with doing.Doing("planning mine ...", out) as line:
        assert "planning mine ... 0 s" in out.getvalue(), "at once"
        until = time.monotonic() + 10
        while out.getvalue().count(doing.CLEAR) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        line.now("simulating ...")
        line.note("note: this stays")
    said = out.getvalue()
    assert said.count("planning mine ...") >= 3
    assert "simulating ... 0 s" in said
    assert f"{doing.CLEAR}note: this stays\n" in said
    assert said.endswith(doing.CLEAR)


def test_a_long_text_stays_in_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = Terminal()
    with doing.Doing("x" * 500 + "\nmore\x1b[2J", out):
        pass
    assert max(map(len, out.getvalue().split(doing.CLEAR))) < 40
    assert "more" not in out.getvalue()


def test_in_a_pipe_each_text_is_a_line_and_the_first_is_left_out() -> None:
    out = io.StringIO()
    with doing.Doing("planning mine ...", out) as line:
        line.now("measuring ...")
        line.note("note: one")
    assert out.getvalue() == "measuring ...\nnote: one\n"


def test_plan_says_what_it_does_on_standard_error_alone(call: Callable[..., Any], tiny: str) -> None:
    done = call("plan", tiny, "--json")
    assert done.code == 0
    assert done.out.startswith("[")
    assert done.err == "tiny: predicting memory and time of 4 runs ...\n"


@pytest.mark.slow
def test_plan_on_a_terminal_begins_with_what_it_does(tiny: str) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "peftbench", "plan", tiny]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, check=True, text=True)
    said = os.read(ours, 100_000).decode()
    for end in (ours, theirs):
        os.close(end)
    assert "planning" in said.partition("tiny.yaml")[0]
    assert said.endswith(doing.CLEAR)
    assert "planning" not in done.stdout
    assert "tiny: 4 runs" in done.stdout
