"""How long the parts of runs take on this machine: measured once, on real steps, and remembered. Imports no torch.

As many processes as runs will share the machine measure at the same time, each with the threads that a run will have,
so that what neighbours cost each other is in the figures. The answers are kept by machine, device, threads, package
versions and the code that trains; what is known is not measured again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench import cache
from peftbench.cache import Store
from peftbench.method.catalogue import Catalogue
from peftbench.plan.grid import Planned
from peftbench.records.spec import RunSpec, as_dict, digest
from peftbench.run.executors.pool import environment_of

WORKER = "peftbench.estimate.calibration_worker"  # what `python -m` runs; it imports torch
SECONDS = 18.0  # after which a process begins no further configuration; starting and loading come before
# What the time and memory of a step rest on.
CODE = ("methods", "method", "backbones", "tasks", "measure", "run", "estimate")


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
    batches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the one to be tracked, by `batch_key`
    device: str | None = None  # "cpu" | "cuda" | ...


def known(planned: Sequence[Planned], catalogue: Catalogue, place: Place) -> Costs:
    """What earlier calibrations found about these runs, here."""
    answers = _store(catalogue, place).answers

    def find(kind: str, keys: Sequence[str]) -> dict[str, Any]:
        return {k: answers[f"{kind} {k}"] for k in dict.fromkeys(keys) if f"{kind} {k}" in answers}  # null: in vain

    tasks, runs = [task_key(p.spec) for p in planned], [run_key(p) for p in planned]
    batches = find("batch", [batch_key(p.spec) for p in planned])
    loads, shapes, steps = find("load", tasks), find("shape", tasks), find("cost", runs)
    return Costs(answers.get("start"), loads, shapes, steps, batches, answers.get("device"))


def missing(planned: Sequence[Planned], costs: Costs) -> tuple[dict[str, RunSpec], dict[str, RunSpec]]:
    """(tasks whose texts are to be counted, configurations to be timed), each by its key with one run of it."""
    tasks = {task_key(p.spec): p.spec for p in reversed(planned)}
    runs = {run_key(p): p.like for p in reversed(planned)}
    read = {k for k, shape in costs.shapes.items() if shape is not None}
    unread = {task_key(p.spec) for p in planned if batch_key(p.spec) not in costs.batches} & read
    return (
        {k: s for k, s in reversed(tasks.items()) if k not in costs.shapes or k in unread},
        {k: s for k, s in reversed(runs.items()) if k not in costs.steps},
    )


def measure(
    tasks: Mapping[str, RunSpec],
    runs: Mapping[str, RunSpec],
    catalogue: Catalogue,
    place: Place,
    seeds: Iterable[tuple[int, bool]] = (),
) -> None:
    """Time what is `missing`, in as many processes as runs will share the machine, and remember it.

    What does not fit into the time, or cannot run, is left out: the runs themselves will say what is wrong. Of each
    task, the batch that a run of each of `seeds` (number, whether of trials) will track is remembered too.
    """
    store = _store(catalogue, place)
    asked = {"tasks": _plain(tasks), "runs": _plain(runs)}
    for told in _asked(asked, catalogue, place, {"seconds": SECONDS, "seeds": sorted(set(seeds))}):
        for name in ("start", "device"):
            store.put(name, told[name])
        for kind, part in (("load", "loads"), ("shape", "shapes"), ("batch", "batches"), ("cost", "costs")):
            for key, value in told[part].items():
                store.put(f"{kind} {key}", value)
    for kind, specs in (("load", tasks), ("shape", tasks), ("cost", runs)):
        for key in _settled(specs, {k for k in specs if f"{kind} {k}" in store.answers}):
            store.put(f"{kind} {key}", None)  # asked in vain: another plan does not wait for it again
    store.save()


def simulate(asked: Mapping[str, Mapping[str, Any]], catalogue: Catalogue, place: Place) -> dict[str, Any]:
    """The answers to questions about peak memory (peaks.py), by key; in as many processes as runs will share."""
    told = _asked({"peaks": asked}, catalogue, place, {})
    return {key: answer for part in told for key, answer in part["peaks"].items()}


def task_key(spec: RunSpec) -> str:
    """What decides the lengths of a run's batches, but for the seed: one seed's stand for all."""
    t = spec.train
    return digest([spec.backbone.fingerprint, spec.task.fingerprint, t.max_length, t.batch_size, t.steps])[:24]


def batch_key(spec: RunSpec) -> str:
    """What decides which batch a run tracks."""
    whose = spec.seed if spec.trial is None else "trials"
    return f"{task_key(spec)} {spec.train.accumulation} {whose}"


def run_key(p: Planned) -> str:
    """What decides how long a run's steps take: neither the task's texts nor the rate or the seed."""
    backbone, method, t = as_dict(p.spec.backbone), p.like.method, p.spec.train
    shape = [p.task.kind == "generation", t.batch_size, t.max_length, t.accumulation]
    return digest([backbone, shape, method.name, dict(method.hyper)])[:24]


def _store(catalogue: Catalogue, place: Place) -> Store:
    machine = {
        "node": platform.node(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "place": [place.device, place.jobs, place.threads],
        "packages": cache.versions("torch", "transformers"),
        "code": cache.code_key(*CODE, files=catalogue.plugins),
    }
    return catalogue.stores.open("steps", digest(machine))


def _asked(
    asked: Mapping[str, Mapping[str, Any]], catalogue: Catalogue, place: Place, more: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the processes told that answered, each its share of the questions; `more` goes to all of them."""
    with tempfile.TemporaryDirectory(prefix="peftbench-") as scratch:
        processes = range(min(place.jobs, max(map(len, asked.values()))))
        shares = [
            {
                part: {k: v for j, (k, v) in enumerate(all_.items()) if j % place.jobs == i}
                for part, all_ in asked.items()
            }
            for i in processes
        ]
        started = [_start(Path(scratch), i, {**more, **share}, catalogue, place) for i, share in enumerate(shares)]
        for process, _ in started:
            process.wait()
        return [json.loads(path.read_text()) for _, path in started if path.is_file()]


def _start(
    folder: Path, number: int, asked: Mapping[str, Any], catalogue: Catalogue, place: Place
) -> tuple[subprocess.Popen[bytes], Path]:
    """A process that answers its questions; ours begins with the others', so that all are busy."""
    question, answer = folder / f"question-{number}.json", folder / f"answer-{number}.json"
    session = {
        "device": place.device,
        "threads": place.threads,
        "data_dir": None if place.data_dir is None else str(place.data_dir),
        "plugins": [str(p) for p in catalogue.plugins],
    }
    question.write_text(json.dumps({"session": session, "spawned": time.time(), **asked}))
    command = [sys.executable, "-P", "-m", WORKER, str(question), str(answer)]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment_of(place.threads), stdout=nowhere, stderr=nowhere), answer


def _plain(specs: Mapping[str, RunSpec]) -> dict[str, Any]:
    return {key: as_dict(spec) for key, spec in specs.items()}


def _settled(asked: Mapping[str, RunSpec], answered: Collection[str]) -> list[str]:
    """What needs no further question: other sizes of methods that were timed. Those for which the time was too short
    to try a single size are asked again."""
    methods = {asked[key].method.name for key in answered}
    return [key for key, spec in asked.items() if key not in answered and spec.method.name in methods]
