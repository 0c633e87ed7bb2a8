"""How long the parts of runs take on this machine: measured once, on real steps, and remembered. Imports no torch.

As many processes as runs will share the machine measure at the same time, each with the threads that a run will have,
so that what neighbours cost each other is in the figures. The answers are kept by machine, device, threads, package
versions and the code that trains; what is known is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.manifest import ENGINE, Manifest, Store, method_files, versions
from peftbench.plan import Planned
from peftbench.spec import RunSpec, as_dict, digest
from peftbench.workers import environment_of

SECONDS = 18.0  # after which a process begins no further configuration; starting and loading come before
CODE = ("train.py", "run.py", "evaluate.py", "edit.py", "losses.py", "measure/calibration.py")


@dataclass(frozen=True)
class Place:
    """Where the runs of a grid compute."""

    device: str  # "auto" too
    jobs: int
    threads: int  # of each run
    data_dir: Path | None = None


@dataclass(frozen=True)
class Costs:
    """What is known; anything may be missing. Times are seconds of one run among those that share the machine."""

    start: float | None  # of a worker, until it can load a model
    loads: Mapping[str, float | None]  # of a task's data and network, by `task_key`
    shapes: Mapping[str, Mapping[str, Any] | None]  # {split: {padded length: batches}}, by `task_key`
    steps: Mapping[str, Mapping[str, Any] | None]  # what measure.calibration.cost found, by `run_key`


def known(planned: Sequence[Planned], manifest: Manifest, place: Place) -> Costs:
    """What earlier calibrations found about these runs, here."""
    answers = _store(manifest, place).answers

    def find(kind: str, keys: Sequence[str]) -> dict[str, Any]:
        return {k: answers[f"{kind} {k}"] for k in dict.fromkeys(keys) if f"{kind} {k}" in answers}  # null: in vain

    tasks, runs = [task_key(p.spec) for p in planned], [run_key(p) for p in planned]
    return Costs(answers.get("start"), find("load", tasks), find("shape", tasks), find("cost", runs))


def missing(planned: Sequence[Planned], costs: Costs) -> tuple[dict[str, RunSpec], dict[str, RunSpec]]:
    """(tasks whose texts are to be counted, configurations to be timed), each by its key with one run of it."""
    tasks = {task_key(p.spec): p.spec for p in reversed(planned)}
    runs = {run_key(p): p.spec for p in reversed(planned)}
    return (
        {k: s for k, s in reversed(tasks.items()) if k not in costs.shapes},
        {k: s for k, s in reversed(runs.items()) if k not in costs.steps},
    )


def measure(tasks: Mapping[str, RunSpec], runs: Mapping[str, RunSpec], manifest: Manifest, place: Place) -> None:
    """Time what is `missing`, in as many processes as runs will share the machine, and remember it.

    What does not fit into the time, or cannot run, is left out: the runs themselves will say what is wrong.
    """
    store = _store(manifest, place)
    with tempfile.TemporaryDirectory(prefix="peftbench-") as scratch:
        processes = range(min(place.jobs, max(len(tasks), len(runs))))
        started = [_start(Path(scratch), i, tasks, runs, manifest, place) for i in processes]
        for process, path in started:
            process.wait()
            told = json.loads(path.read_text()) if path.is_file() else {}
            if "start" in told:
                store.get("start", lambda told=told: told["start"])  # type: ignore[misc]
            for kind, part in (("load", "loads"), ("shape", "shapes"), ("cost", "costs")):
                for key, value in told.get(part, {}).items():
                    store.get(f"{kind} {key}", lambda value=value: value)  # type: ignore[misc]
        for kind, asked in (("load", tasks), ("shape", tasks), ("cost", runs)):
            for key in _settled(asked, {k for k in asked if f"{kind} {k}" in store.answers}):
                store.get(f"{kind} {key}", lambda: None)  # asked in vain: another plan does not wait for it again
    store.save()


def task_key(spec: RunSpec) -> str:
    """What decides the lengths of a run's batches, but for the seed: one seed's stand for all."""
    t = spec.train
    return digest([spec.backbone.fingerprint, spec.task.fingerprint, t.max_length, t.batch_size, t.steps])[:24]


def run_key(p: Planned) -> str:
    """What decides how long a run's steps take: neither the task's texts nor the rate or the seed."""
    backbone, method, t = as_dict(p.spec.backbone), p.spec.method, p.spec.train
    shape = [p.task.kind == "generation", t.batch_size, t.max_length, t.accumulation]
    return digest([backbone, shape, method.name, dict(method.hyper)])[:24]


def _store(manifest: Manifest, place: Place) -> Store:
    files = [*(ENGINE / name for name in CODE), *method_files(), *manifest.plugins]
    machine = {
        "node": platform.node(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "place": [place.device, place.jobs, place.threads],
        "packages": versions("torch", "transformers"),
        "code": [hashlib.sha256(p.read_bytes()).hexdigest() for p in files],
    }
    return Store(manifest.folder, "steps", digest(machine))


def _start(
    folder: Path,
    number: int,
    tasks: Mapping[str, RunSpec],
    runs: Mapping[str, RunSpec],
    manifest: Manifest,
    place: Place,
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that measures its share of the questions; ours begins with the others', so that all are busy."""

    def share(asked: Mapping[str, RunSpec]) -> dict[str, Any]:
        return {k: as_dict(s) for i, (k, s) in enumerate(asked.items()) if i % place.jobs == number}

    question, answer = folder / f"question-{number}.json", folder / f"answer-{number}.json"
    asked = {
        "session": {
            "device": place.device,
            "threads": place.threads,
            "data_dir": None if place.data_dir is None else str(place.data_dir),
            "plugins": [str(p) for p in manifest.plugins],
        },
        "spawned": time.time(),
        "seconds": SECONDS,
        "tasks": share(tasks),
        "runs": share(runs),
    }
    question.write_text(json.dumps(asked))
    command = [sys.executable, "-P", "-m", "peftbench.measure.calibration", str(question), str(answer)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment_of(place.threads), stdout=nowhere, stderr=nowhere), answer


def _settled(asked: Mapping[str, RunSpec], answered: Collection[str]) -> list[str]:
    """What needs no further question: other sizes of methods that were timed. Those for which the time was too short
    to try a single size are asked again."""
    methods = {asked[key].method.name for key in answered}
    return [key for key, spec in asked.items() if key not in answered and spec.method.name in methods]
