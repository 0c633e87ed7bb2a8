"""A session without torch whose results follow from the spec alone; `shift` makes another machine of it.

Workers import it as "verify_session:Session".
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import factories

from peftbench import tasks
from peftbench.backbones import source
from peftbench.method.catalogue import Catalogue
from peftbench.records.spec import BackboneSpec, MethodSpec, RunSpec, TaskSpec, TrainSpec

STEPS, EXAMPLES = 6, 40


class Diverged(Exception):
    pass


class Abandoned(Exception):
    pass


class Session:
    """`journal` gets a line for each run: its threads and spec id. `shift` is added to every loss, as a share of it,
    and `flip` to that many predictions; `fail` raises."""

    def __init__(
        self, journal: str, threads: int = 1, shift: float = 0.0, flip: int = 0, fail: bool = False, **_: Any
    ) -> None:
        self.journal, self.threads, self.shift, self.flip, self.fail = Path(journal), threads, shift, flip, fail

    def execute(self, spec: RunSpec, on_progress: Any, stop: Any) -> dict[str, Any]:
        with self.journal.open("a") as f:
            f.write(f"{self.threads} {spec.id}\n")
        if self.fail:
            raise ZeroDivisionError("a bug")
        return body(spec, self.shift, self.flip)


def body(spec: RunSpec, shift: float = 0.0, flip: int = 0) -> dict[str, Any]:
    """What a run measures, with scores that follow from its predictions."""
    rng = random.Random(spec.id)
    losses = [(0.7 - 0.05 * i + 0.01 * rng.random()) * (1 + shift) for i in range(STEPS)]
    labels = [i % 2 for i in range(EXAMPLES)]
    values = [v if rng.random() < 0.8 else 1 - v for v in labels]
    values = [1 - v if i < flip else v for i, v in enumerate(values)]
    score = sum(v == y for v, y in zip(values, labels, strict=True)) / EXAMPLES
    stated: dict[str, Any] = {"validation": {"accuracy": 0.5}, "primary": "accuracy", "direction": "max"}
    tested = {
        "metrics": {**stated, "test": {"accuracy": score}, "majority": 0.5},
        "predictions": {"ids": [f"e{i}" for i in range(EXAMPLES)], "values": values, "labels": labels},
    }
    return {
        "hyper": dict(spec.method.hyper),
        "parameters": factories.parameters(16, head=4),
        "memory": {**factories.memory(4964), "resident_bytes": rng.randrange(10**9)},
        "curve": {"loss": losses, "validation": [{"step": STEPS, "accuracy": 0.5}]},
        "stopped_at": STEPS,
        "checkpoint_step": STEPS,
        **(tested if spec.trial is None else {"metrics": stated}),
    }


def spec(method: str = "full", task: str = "synthetic/classification", seed: int = 0, **changes: Any) -> RunSpec:
    """A run that this version of the code can repeat, as far as its fingerprints and versions say."""
    backbone = BackboneSpec("tiny-encoder", source.fingerprint("tiny-encoder"))
    data = TaskSpec(task, tasks.open_task(task).fingerprint, tasks.VERSION[task])
    train = TrainSpec(lr=1e-3, steps=STEPS, batch_size=4, max_length=8)
    version = Catalogue().methods()[method].version
    asked = {"backbone": backbone, "task": data, "method": MethodSpec(method, method, version, {}), "train": train}
    return RunSpec(**{**asked, "seed": seed, **changes})
