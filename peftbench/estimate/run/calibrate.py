"""Measure on this machine, once, how long the parts of runs take, and cache the results. Imports no torch.

As many processes measure at the same time as runs will share the machine, each with the threads of a run. The times
thus include their mutual slowdown. The results are cached by machine, device, threads, package versions and training
code; what is known is not measured again.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench import cache
from peftbench.cache import Store
from peftbench.method.catalogue import Catalogue
from peftbench.plan.grid import Planned
from peftbench.records import scratch
from peftbench.records.spec import RunSpec, as_dict, digest
from peftbench.run import children
from peftbench.run.executors.devices import VARIABLE
from peftbench.run.executors.pool import environment_of

WORKER = "peftbench.estimate.run.calibration_worker"  # what `python -m` runs; it imports torch
PATIENCE_SECONDS = 300.0  # for a worker to start, load and measure
SECONDS = 18.0  # after which a worker begins no further configuration; excludes starting and loading
FEW = 4  # simulated steps, which take about as long as a process takes to import torch and transformers
# What the time and memory of a step rest on.
CODE = ("methods", "method", "backbones", "tasks", "measure", "run", "estimate")


@dataclass(frozen=True)
class Place:
    """Where the runs of a grid compute.

    Attributes:
        device: Name of the device; may be "auto".
        jobs: Number of runs at the same time.
        threads: Threads of each run.
        data_dir: Directory of the data sets, if given.
        devices: `CUDA_VISIBLE_DEVICES` in the process of each of these runs; empty where all have what this one has.
    """

    device: str
    jobs: int
    threads: int
    data_dir: Path | None = None
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Costs:
    """What is known of the runs' costs; any part may be missing. Times are seconds of one run while `jobs` runs share
    the machine.

    Attributes:
        start: Seconds until a worker can load a model.
        loads: Seconds to load a task's data and network, by `task_key`.
        shapes: {split: {padded length: number of batches}}, by `task_key`.
        steps: Result of `calibration_worker.cost`, by `run_key`.
        batches: Layout of the batch that a run tracks, by `batch_key`.
        device: Type of the device, e.g. "cpu".
    """

    start: float | None
    loads: Mapping[str, float | None]
    shapes: Mapping[str, Mapping[str, Any] | None]
    steps: Mapping[str, Mapping[str, Any] | None]
    batches: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str | None = None


def known(planned: Sequence[Planned], catalogue: Catalogue, place: Place) -> Costs:
    """Return what earlier calibrations on this machine found for these runs."""
    answers = _store(catalogue, place).answers

    def find(kind: str, keys: Sequence[str]) -> dict[str, Any]:
        return {k: answers[f"{kind} {k}"] for k in dict.fromkeys(keys) if f"{kind} {k}" in answers}  # null: it failed

    tasks, runs = [task_key(p.spec) for p in planned], [run_key(p) for p in planned]
    batches = find("batch", [batch_key(p.spec) for p in planned])
    loads, shapes, steps = find("load", tasks), find("shape", tasks), find("cost", runs)
    return Costs(answers.get("start"), loads, shapes, steps, batches, answers.get("device"))


def missing(planned: Sequence[Planned], costs: Costs) -> tuple[dict[str, RunSpec], dict[str, RunSpec]]:
    """Return what is not measured yet.

    Returns:
        Tasks to tokenise and configurations to time, each by key, with one of its runs.
    """
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
    """Measure what is `missing`, in as many processes as runs will share the machine, and cache it.

    What does not fit into the time limit or cannot run is left out; the runs themselves will report the error.

    Args:
        tasks: Tasks to tokenise, by `task_key`.
        runs: Configurations to time, by `run_key`.
        catalogue: The methods.
        place: Where the runs compute.
        seeds: (seed, whether of trials) of the runs whose tracked batch is needed.
    """
    store = _store(catalogue, place)
    requests = {"tasks": _plain(tasks), "runs": _plain(runs)}
    common = {"seconds": SECONDS, "seeds": sorted(set(seeds))}
    for response in _run_workers(requests, catalogue, place, common, PATIENCE_SECONDS):
        for name in ("start", "device"):
            store.put(name, response[name])
        for kind, part in (("load", "loads"), ("shape", "shapes"), ("batch", "batches"), ("cost", "costs")):
            for key, value in response[part].items():
                store.put(f"{kind} {key}", value)
    for kind, specs in (("load", tasks), ("shape", tasks), ("cost", runs)):
        for key in _settled(specs, {k for k in specs if f"{kind} {k}" in store.answers}):
            store.put(f"{kind} {key}", None)  # it failed: no later plan waits for it again
    store.save()


def simulate(queries: Mapping[str, Mapping[str, Any]], catalogue: Catalogue, place: Place) -> dict[str, Any]:
    """Simulate peak memory for queries of `run_memory`, in as many processes as runs will share the machine.

    A few are simulated here if the plan has imported torch already, because a process takes longer to start.

    Args:
        queries: Queries by key.
        catalogue: The methods.
        place: Where the runs compute.

    Returns:
        Answers by key.
    """
    if "torch" in sys.modules and len(queries) <= FEW:
        from peftbench.estimate.run import run_peak

        with quiet():
            return {key: run_peak.answer(query, catalogue.plugins) for key, query in queries.items()}
    responses = _run_workers({"peaks": queries}, catalogue, place, {})
    return {key: answer for response in responses for key, answer in response["peaks"].items()}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch and transformers from logging what fails or is slow on tensors without numbers; a message says it."""
    names = ("torch._subclasses.fake_tensor", "transformers")
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, names)]
    for logger, _ in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)


def task_key(spec: RunSpec) -> str:
    """Return the key of what determines the lengths of a run's batches.

    The seed is left out: one seed represents all.
    """
    t = spec.train
    return digest([spec.backbone.fingerprint, spec.task.fingerprint, t.max_length, t.batch_size, t.steps])[:24]


def batch_key(spec: RunSpec) -> str:
    """Return the key of what determines which batch a run tracks."""
    seed = spec.seed if spec.trial is None else "trials"
    return f"{task_key(spec)} {spec.train.accumulation} {seed}"


def run_key(p: Planned) -> str:
    """Return the key of what determines the duration of a run's steps; texts, learning rate and seed do not."""
    backbone, method, t = as_dict(p.spec.backbone), p.like.method, p.spec.train
    shape = [p.task.kind == "generation", t.batch_size, t.max_length, t.accumulation]
    return digest([backbone, shape, method.name, dict(method.hyper)])[:24]


def _store(catalogue: Catalogue, place: Place) -> Store:
    machine = {
        "node": platform.node(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "place": [place.device, place.jobs, place.threads],
        **({"cards": len(set(place.devices))} if place.devices else {}),
        "packages": cache.versions("torch", "transformers"),
        "code": cache.code_key(*CODE, files=catalogue.plugins),
    }
    return catalogue.stores.open("steps", digest(machine))


def _run_workers(
    requests: Mapping[str, Mapping[str, Any]],
    catalogue: Catalogue,
    place: Place,
    common: Mapping[str, Any],
    patience_seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Distribute the requests over worker processes and return their responses.

    `common` goes to every worker. A worker that fails, or takes longer than it may, has no response.
    """
    with scratch.folder() as folder:
        workers = range(min(place.jobs, max(map(len, requests.values()))))
        shares = [
            {
                part: {k: v for j, (k, v) in enumerate(all_.items()) if j % place.jobs == i}
                for part, all_ in requests.items()
            }
            for i in workers
        ]
        started = [_start_worker(folder, i, {**common, **share}, catalogue, place) for i, share in enumerate(shares)]
        try:
            for process, _, _ in started:
                with suppress(subprocess.TimeoutExpired):  # a method hangs; its runs may have a time limit
                    process.wait(patience_seconds)
        finally:
            for process, guard, _ in started:
                process.kill()
                process.wait()
                children.wait_for_guard(guard)
        return [json.loads(path.read_text()) for _, _, path in started if path.is_file()]


def _start_worker(
    folder: Path, number: int, request: Mapping[str, Any], catalogue: Catalogue, place: Place
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes], Path]:
    """Start a worker process for its share of the requests; return it, its guard and its response file."""
    request_file, response_file = folder / f"request-{number}.json", folder / f"response-{number}.json"
    session = {
        "device": place.device,
        "threads": place.threads,
        "data_dir": None if place.data_dir is None else str(place.data_dir),
        "plugins": [str(p) for p in catalogue.plugins],
    }
    request_file.write_text(json.dumps({"session": session, "spawned": time.monotonic(), **request}))
    command = [sys.executable, "-P", "-m", WORKER, str(request_file), str(response_file)]
    null, environment = subprocess.DEVNULL, environment_of(place.threads)
    if place.devices:
        environment[VARIABLE] = place.devices[number % len(place.devices)]
    started = children.start(command, secrets.token_hex(8), environment, stdin=null, stdout=null, stderr=null)
    return *started, response_file


def _plain(specs: Mapping[str, RunSpec]) -> dict[str, Any]:
    return {key: as_dict(spec) for key, spec in specs.items()}


def _settled(requested: Mapping[str, RunSpec], measured: Collection[str]) -> list[str]:
    """Return the keys of sizes that cannot be measured, because other sizes of the same method were.

    Methods without any measured size are left out: time was too short for them, so they are tried again.
    """
    methods = {requested[key].method.name for key in measured}
    return [key for key, spec in requested.items() if key not in measured and spec.method.name in methods]
