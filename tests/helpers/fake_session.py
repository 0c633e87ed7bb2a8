"""A session without torch: it sleeps instead of training, and fails in the way that the method's `do` asks for.

Workers import it as "fake_session:Session". Run as a script it is a whole runner on a fake grid, to be killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import factories
import family
import psutil

from peftbench.errors import UserError
from peftbench.records.spec import BackboneSpec, MethodSpec, ProfileSpec, RunSpec, TaskSpec, TrainSpec

STEPS = 5
KEPT: list[bytearray] = []


class Diverged(Exception):
    def __init__(self, step: int) -> None:
        super().__init__(f"the loss is not finite at step {step}")
        self.step = step


class Abandoned(Exception):
    pass


class Session:
    """`journal` is a file to which each start of a run adds a line, so that tests can count what really ran."""

    device = "cpu"

    def __init__(self, journal: str, threads: int = 1, shared: bool = False, refuse: str = "", **_: Any) -> None:
        self.journal, self.threads, self.shared = Path(journal), threads, shared
        if refuse == "user":
            raise UserError("no such data directory")
        if refuse == "bug":
            raise KeyError("bug in the session")
        if refuse == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        self.note("opened")

    def note(self, what: str) -> None:
        with self.journal.open("a") as f:
            f.write(f"{os.getpid()} {self.threads} {self.shared} {what}\n")

    def execute(self, spec: RunSpec, on_progress: Callable, stop: Callable[[], bool]) -> dict[str, Any]:
        self.note(f"run {spec.id}")
        print("a library's noise on standard output", flush=True)
        do = spec.method.hyper.get("do")
        losses = []
        for step in range(1, STEPS + 1):
            if stop():
                raise Abandoned(f"stopped before step {step}")
            time.sleep(spec.method.hyper.get("pause", 0.002))
            losses.append(int(hashlib.sha256(f"{spec.id} {step}".encode()).hexdigest()[:8], 16) / 2**32)
            on_progress({"step": step, "steps": STEPS, "loss": losses[-1], "phase": "train"})
            if step == 2 and do:
                misbehave(do, self.journal)
        values = [round(x * 10) for x in losses]
        trained = {"parameters": factories.parameters(1), "curve": {"loss": losses, "validation": []}}
        if spec.trial is not None:
            metrics = {"validation": {"accuracy": spec.train.lr}, "primary": "accuracy", "direction": "max"}
            return {**trained, "metrics": metrics}
        scores = {"test": {"accuracy": 0.5}, "validation": {}, "majority": None}
        return {
            **trained,
            "metrics": {**scores, "primary": "accuracy", "direction": "max"},
            "predictions": {"ids": list("abcde"), "values": values, "labels": values},
        }

    def profile(self, spec: ProfileSpec, on_progress: Callable, stop: Callable[[], bool]) -> dict[str, Any]:
        others = [p for p in psutil.Process().parent().children() if p.pid != os.getpid() and is_worker(p)]
        self.note(f"profile {spec.id} {'with others' if others else 'alone'}")
        rows = [factories.profile_row(m.label, spec.task.name, 70.0) for m in spec.methods]
        return {"rows": rows, "base": None, "time": {"background_cpu_share": None, "product": None}, "sources": {}}


def misbehave(do: str, journal: Path) -> None:
    if do == "diverge":
        raise Diverged(2)
    if do == "oom":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
    if do == "memory":
        raise MemoryError
    if do == "scatter":  # 300 MB in small blocks, below one that stays
        blocks = [bytearray(60_000) for _ in range(5_000)]
        KEPT.append(bytearray(60_000))
        assert len(blocks) == 5_000
    if do == "raise":
        raise ZeroDivisionError("a bug in a method")
    if do == "user":
        raise UserError("label 7 is outside 0..5")
    if do == "cuda":
        raise RuntimeError("CUDA error: device-side assert triggered")
    if do == "exit":
        sys.exit(7)
    if do == "kill" or (do == "kill once" and not (journal.parent / "killed").exists()):
        (journal.parent / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if do.startswith("children"):
        family.start(journal.parent / "children")
        misbehave(do.removeprefix("children").strip(), journal)
    if do == "thread":
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        threading.Thread(target=busy, daemon=True).start()
    if do == "hang":
        (journal.parent / "hangs").touch()  # a run that has only begun still stops at its next step
        time.sleep(600)
    if do == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    if do == "no more files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        open(journal)  # noqa: SIM115
    if do == "no larger files":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if do == "segfault":
        ctypes.string_at(0)
    if do == "abort":
        os.abort()
    if do == "leave":
        os._exit(0)
    if do == "recurse":
        misbehave_again(do)
    if do == "write to every descriptor":
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(fd, b'{"nonsense": 1}\n[]\nnull\n"\xff\n')
        time.sleep(600)
    if do == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
        raise Hangs
    if do == "odd":
        raise Odd(journal)
    if do == "hang in C":  # which holds the interpreter: no thread of the process runs meanwhile
        ctypes.PyDLL(None).sleep(600)


def misbehave_again(do: str) -> None:
    misbehave_again(do)


class Hangs(Exception):
    """Its text never ends."""

    def __str__(self) -> str:
        time.sleep(600)
        return ""


class Odd(BaseException):
    """No process can send it to another, and its text is what few files hold."""

    def __init__(self, journal: Path) -> None:
        super().__init__(open(journal), "a\ud800b\x00c\n" + "x" * 10_000_000)  # noqa: SIM115


def busy() -> None:
    while True:
        time.sleep(0.01)


def is_worker(process: psutil.Process) -> bool:
    """Whether it carries out runs; the guard of a worker only waits."""
    try:
        return "peftbench.run.executors.worker" in process.cmdline()
    except psutil.Error:
        return False


def spec(number: int, task: str = "synthetic/words", **hyper: Any) -> RunSpec:
    """The `number`-th run of a fake grid."""
    method = MethodSpec("lora", f"lora-{number}", 1, hyper)
    train = TrainSpec(lr=1e-3, steps=STEPS, batch_size=4, max_length=8)
    return RunSpec(BackboneSpec("tiny-encoder", "f0"), TaskSpec(task, "d0"), method, train, seed=number)


def profile(*runs: RunSpec) -> ProfileSpec:
    first = runs[0]
    return ProfileSpec(first.backbone, first.task, tuple(r.method for r in runs), tuple(1e-3 for _ in runs), 4, 8)


def grid(count: int, pause: float) -> list[RunSpec]:
    return [spec(n, task=f"synthetic/{n % 2}", pause=pause) for n in range(count)]


def journal(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    from peftbench.run import runner

    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--hyper", type=json.loads, default={})
    parser.add_argument("--executor", default="local")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    specs = [spec(0, **given.hyper)] if given.hyper else grid(given.count, given.pause)
    kwargs: Mapping[str, Any] = {"journal": str(given.results.parent / "journal")}
    outcome = runner.run(
        lambda records: specs, given.results, experiment="fake", session="fake_session:Session",
        session_kwargs=kwargs, jobs=given.jobs, threads=1, executor=given.executor, options=given.options,
    )  # fmt: skip
    print(json.dumps({"code": outcome.code, "counts": outcome.counts}), flush=True)
    sys.exit(outcome.code)


if __name__ == "__main__":
    main()
