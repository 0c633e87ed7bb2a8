"""Processor seconds of the parts of a command, in every process that it starts. Needs nothing of the package's code.

`prepare(folder)` returns environment variables; a Python process started with them writes `PID.json` into the folder.
It wraps the functions of PLACES when their modules are imported. A part does not contain the parts that run inside it.
A checkout that lacks one of the functions says so (`missing`); its seconds are then part of what calls it.
"""

from __future__ import annotations

import atexit
import functools
import importlib.abc
import importlib.machinery
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

STEPS = "training steps"
START = "interpreter and imports"
REST = "rest"
PLACES: dict[str, list[tuple[str, str]]] = {  # module -> (path of the function, part)
    "peftbench.api": [
        *(("plan", "plan"), ("run", "schedule"), ("report", "report")),
        *(("Report.refresh", "report"), ("Report.table", "report")),
    ],
    "peftbench.cli.experiments": [("_forecast", "forecast"), ("_write_report", "report")],
    "peftbench.records.environment": [("facts", "facts of the environment")],
    "peftbench.records.record": [("write", "records, written"), ("readable", "records, read")],
    "peftbench.run.attempt": [
        *(("SessionHost.__init__", START), ("SessionHost._write", "records, written")),
        ("_release_memory", "garbage collection"),
    ],
    "peftbench.run.children": [("end_own", "what runs leave behind")],
    "peftbench.run.process_state": [("snapshot", "what runs leave behind"), ("changed", "what runs leave behind")],
    "peftbench.run.session": [
        *(("Session.dataset", "data"), ("Session.encode", "tokens"), ("Session._summary", "summary of the data")),
        *(("Session.backbone", "network"), ("Session._load", "network"), ("Session.method", "method")),
        *(("Session._restore", "network, restored"), ("Session.execute", "run, other")),
        ("Session.profile", "profile, other"),
    ],
    "peftbench.run.one_run": [
        *(("Run.start", "attach"), ("Run.validate", "validation"), ("Run.test", "test"), ("fit", STEPS)),
        ("Run.describe", "sizes and adapter files"),
    ],
    "peftbench.run.train": [("Trainer.tracked_step", "tracked step")],
    "peftbench.measure.timing": [("interleaved", "profile, rounds"), ("interval", "profile, intervals")],
}


def prepare(folder: Path) -> dict[str, str]:
    """Put what a process needs into `folder`; returns the environment variables that make it write there."""
    code = folder / "code"
    code.mkdir(parents=True)
    shutil.copy(__file__, code / "part_clocks.py")
    (code / "sitecustomize.py").write_text(f"import part_clocks\n\npart_clocks.install({str(folder)!r})\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH", "")]))}


def read(folder: Path) -> list[dict[str, Any]]:
    """What each process has written: `cpu` seconds in all, and `seconds` and `calls` by part."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for process in found:
        process["seconds"][REST] = process["cpu"] - sum(process["seconds"].values())
    return found


class Clocks:
    """Processor seconds by part, of this process.

    Args:
        place: where they are written, after each part that is inside no other: a worker may be ended at any time.
    """

    def __init__(self, place: Path | None = None) -> None:
        self.place = place
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.missing: list[str] = []
        self._inner: list[float] = []  # for each part that runs now, the seconds of the parts inside it

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            # before a worker's session is built, this process has done nothing else
            began = 0.0 if part == START and not self.seconds else time.process_time()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - began
                self.seconds[part] = self.seconds.get(part, 0.0) + spent - self._inner.pop()
                self.calls[part] = self.calls.get(part, 0) + 1
                if self._inner:
                    self._inner[-1] += spent
                else:
                    self.write()

        return timed

    def patch(self, module: ModuleType, places: Sequence[tuple[str, str]]) -> None:
        """Put timed functions in place of a module's."""
        for path, part in places:
            *outer, name = path.split(".")
            owner: Any = module
            for step in outer:
                owner = getattr(owner, step, None)
            if owner is None or not hasattr(owner, name):
                self.missing.append(f"{module.__name__}.{path}")
            else:
                setattr(owner, name, self.wrap(getattr(owner, name), part))

    def write(self) -> None:
        """Write what `read` reads."""
        if self.place is not None and self.place.stem == str(os.getpid()):  # not in a fork
            told = {"seconds": self.seconds, "calls": self.calls, "missing": self.missing}
            self.place.write_text(json.dumps({"cpu": time.process_time(), **told}))


class Finder(importlib.abc.MetaPathFinder):
    """Patches the modules of PLACES when they are imported."""

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name in PLACES else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def patched(module: ModuleType) -> None:
            execute(module)
            self.clocks.patch(module, PLACES[name])

        spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


def install(folder: str) -> None:
    """Measure this process, if it is a command or a worker; it writes its seconds when it ends."""
    if "-m" not in sys.orig_argv:  # a guard beside a worker, or git
        return
    clocks = Clocks(Path(folder, f"{os.getpid()}.json"))
    sys.meta_path.insert(0, Finder(clocks))
    atexit.register(clocks.write)
