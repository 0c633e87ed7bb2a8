"""What an experiment whose runs take several devices may ask for."""

from __future__ import annotations

from collections.abc import Iterator

from peftbench.errors import UserError
from peftbench.plan.experiment import Experiment
from peftbench.plan.strict_yaml import Place


def conflicts(experiment: Experiment) -> Iterator[UserError]:
    """Yield an error for each setting that several processes cannot share, at the place to change."""
    if experiment.parallel is None:
        return
    ranks, b = experiment.parallel.ranks, experiment.budget
    parts = ranks * b.accumulation
    sizes: dict[Place, int] = {("budget", "batch_size"): b.batch_size}
    sizes |= {("tasks", i, "batch_size"): t.batch_size for i, t in enumerate(experiment.tasks) if t.batch_size}
    for place, size in sizes.items():
        if size % parts:
            by = f"{ranks} processes" + (f" x {b.accumulation} parts" if b.accumulation > 1 else "")
            nearest = max(parts, round(size / parts) * parts)
            yield experiment.error(place, f"{size} examples cannot be divided among {by}; write {nearest}")
    if b.seconds is not None:
        yield experiment.error(("budget", "seconds"), "processes that share a run count steps; write steps: N")
    if b.memory is not None:
        yield experiment.error(("budget", "memory"), "it is of one process; with parallel, write accumulation: N")
    if experiment.compile:
        yield experiment.error(("compile",), "it does not work with parallel; write compile: false")
    if experiment.probes and experiment.parallel.shards:
        yield experiment.error(("probes",), "they read whole weights, which shards do not have; remove them")
    if experiment.profile is not None:
        message = "a pass measures one process; with parallel, runs time their own steps: write profile: false"
        yield experiment.error(("profile",), message)
