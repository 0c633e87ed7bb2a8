"""The command line called in this process, and a tiny experiment for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from peftbench.cli.app import main

TINY = """\
name: tiny
backbone: tiny-encoder
tasks: [{task: synthetic/classification, rows: 60}]
budget: {trainable_params: 2000, tolerance: 0.2, steps: 3, seeds: 2, max_length: 16, batch_size: 4}
profile: {processes: 1, rounds: 1, warmup: 0}
methods: [full, lora]
"""


@dataclass
class Done:
    code: int
    out: str
    err: str


Call = Callable[..., Done]


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Done]:
    """Run the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTBENCH_CACHE", str(cache_of_this_session(tmp_path)))

    def run(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["peftbench", *args])
        try:
            main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return run


def cache_of_this_session(tmp_path: Path) -> Path:
    """One cache for all tests of a session: each would else import torch to learn the methods' facts."""
    return tmp_path.parent / "peftbench-cache"


def tiny_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)
