"""A made-up grid for tests of planning: two tasks, three configurations, and records of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import factories

from peftbench.backbones.sites import Site, Sites
from peftbench.estimate.run.forecast import measures
from peftbench.plan import experiment, read
from peftbench.plan import grid as plan
from peftbench.plan.configurations import Configuration
from peftbench.plan.prepare import Prepared, prepare
from peftbench.plan.resolve import Facts, TaskFacts
from peftbench.plan.selection import Selection
from peftbench.records import record
from peftbench.records.record import Record
from peftbench.records.spec import BackboneSpec, ProfileSpec, RunSpec, TaskSpec, as_dict

TEXT = """\
name: e
backbone: tiny-encoder
tasks: [{task: one, stand_in: other}, {task: two, steps: 7, batch_size: 4, max_length: 9, eval_every: 2}]
budget: {trainable_params: 1000, tolerance: 0.1, steps: 5, seeds: 2}
methods: [placeholder]
"""
SITES = Sites("bert", tuple(Site("q", f"layer.{i}", (16, 16), 256) for i in range(4)), 5000, 34, 16, {})


def configuration(label: str, knob: str | None = "rank", given: bool = False, **hyper: Any) -> Configuration:
    return Configuration(
        name=label.partition(" ")[0],
        label=label,
        lr=1e-3,
        hyper=hyper,
        version=1,
        knob=knob,
        knob_is_given=given,
        knob_schema={"type": "integer", "minimum": 1},
        defaults={"rank": 8, "alpha": 16.0} if knob else {},
        place=("methods", 0),
    )


CONFIGURATIONS = [
    configuration("full", knob=None),
    configuration("lora"),
    configuration("lora rank=2", given=True, rank=2),
]
PARAMETERS = {"full": lambda hyper: 5000, "lora": lambda hyper: 128 * hyper["rank"]}


def parameters(name: str, hyper: Mapping[str, Any], sites: Sites) -> int:
    return PARAMETERS[name](hyper)


def load(tmp_path: Path, text: str) -> experiment.Experiment:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    return read.load(path)


def known(asked: experiment.Experiment) -> Facts:
    found = [
        TaskFacts(
            t, TaskSpec(t.task, "f" * 64), "classification", 10.0, {"train": 9, "validation": 3, "test": 3}, SITES
        )
        for t in asked.tasks
    ]
    return Facts(BackboneSpec("tiny-encoder", "0" * 64), tuple(found))


def grid(asked: experiment.Experiment, part: Selection | None = None) -> list[plan.Planned]:
    return plan.grid(asked, known(asked), CONFIGURATIONS, parameters, part or Selection())


def recorded(
    spec: RunSpec | ProfileSpec,
    status: str = "finished",
    attempt: int = 1,
    seconds: float = 9.0,
    score: float | None = None,
    direction: str = "max",
    bounds: Mapping[str, Any] | None = None,
) -> Record:
    """A record of the spec; with `score`, a trial's on validation, and the limits of the values that it drew."""
    pattern = factories.run() if isinstance(spec, RunSpec) else {**factories.profile(), "rows": []}
    if isinstance(spec, RunSpec) and spec.trial is not None:
        pattern = factories.as_trial(pattern, spec.trial)
        pattern["metrics"] |= {"validation": {"accuracy": score}, "direction": direction}
        pattern |= {"bounds": dict(bounds or {})}
    body = {
        **{k: v for k, v in pattern.items() if k != "predictions"},
        "spec_id": spec.id,
        "slug": spec.slug,
        "attempt": attempt,
        "status": status,
        "started": f"2026-01-01T00:00:0{attempt}Z",
        "spec": as_dict(spec),
        "seconds": {"total": seconds},
    }
    return record.of(f"{spec.id}-{attempt}.json", body)


def prepared(source: Any, **options: Any) -> Prepared:
    """An experiment prepared as the command line does it, with what budgets of tokens and memory ask."""
    return prepare(read.load(source), measures=measures(options.get("data_dir")), **options)
