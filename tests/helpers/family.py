"""Child processes of every kind that a method may start: each writes its number into a file, and would stay."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

STAY = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(600)"
GRANDCHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
KINDS = ("program", "own session", "orphan", "deaf", "no environment", "forked", "grandchild of a fork")


def start(folder: Path) -> None:
    """Start one process of each kind, and wait until all are there."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, "-c", STAY, str(folder)]
    subprocess.Popen(program)
    subprocess.Popen(program, start_new_session=True)
    subprocess.run([sys.executable, "-c", GRANDCHILD, str(folder), STAY], check=True)
    subprocess.Popen([sys.executable, "-c", f"import signal; signal.signal(15, signal.SIG_IGN); {STAY}", str(folder)])
    subprocess.Popen(program, env={})
    context = multiprocessing.get_context("fork")
    context.Process(target=_stay, args=(folder,), daemon=True).start()
    context.Process(target=_start_program, args=(program, folder)).start()
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < len(KINDS) + 1:
        assert time.monotonic() < deadline, "the children did not start"
        time.sleep(0.01)


def wait_until_ended(pid: int) -> None:
    """Wait for the end of a child process without asking for its exit code, so that it keeps its number."""
    deadline = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(folder: Path) -> list[psutil.Process]:
    """The processes that `start` has started in this folder and that still live."""
    found = []
    for path in folder.iterdir() if folder.exists() else []:
        try:
            process = psutil.Process(int(path.name))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _stay(folder: Path) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def _start_program(program: list[str], folder: Path) -> None:
    subprocess.Popen(program)
    _stay(folder)
