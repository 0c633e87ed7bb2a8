"""Predict how long a run will take: from finished runs like it, else from calibration, else by arithmetic.

Calibration (calibrate.py) times a configuration's steps and evaluated batches at three lengths. A run's time is the sum
over the lengths of its batches, interpolated linearly between measured lengths, plus what happens once: loading,
attaching, the step under the memory tracker.

The arithmetic counts matrix products: 2 operations per weight and token in the forward pass. The gradient of the
activations takes as many again, unless only the head trains; so does the gradient of the weights, if the base trains.
The arithmetic ignores attention, optimiser and Python, and is a rough guide only.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from peftbench.estimate.run.calibrate import Costs, run_key, task_key
from peftbench.plan.grid import Planned
from peftbench.records.record import Record, TrainingRecord, TrialRecord

TOKENS_PER_WORD = 1.4
FLOPS_PER_SECOND = 2e10  # of a core, in the arithmetic
SETUP_SECONDS = 1.0  # of each run: attach, tokenise or read the cache, write the record
DECODING = 8.0  # slowdown per generated token: each one reads all weights


@dataclass(frozen=True)
class Predicted:
    """The predicted time of one run, while `jobs` runs share the machine.

    Attributes:
        seconds: The prediction.
        source: "finished runs", "calibration" or "arithmetic".
        measured: Seconds from the calibration alone, if there is one.
    """

    seconds: float
    source: str
    measured: float | None


def predict(planned: Sequence[Planned], records: Iterable[Record], costs: Costs) -> dict[str, Predicted]:
    """Predict the time of each run.

    Args:
        planned: The runs.
        records: Finished runs, which are assumed to have shared the machine in the same way.
        costs: Calibrated costs.

    Returns:
        The prediction by spec id.
    """
    finished: dict[tuple[str, str, bool], list[float]] = {}
    for r in records:
        if isinstance(r, TrainingRecord) and r.is_finished:
            spent = r.body.seconds.total / max(1, r.spec.train.steps)
            key = (r.spec.method.label, r.spec.task.name, isinstance(r, TrialRecord))
            finished.setdefault(key, []).append(spent)
    unmeasured = _similar(planned, costs)
    predictions = {}
    for p in planned:
        measured = _measured(p, costs, unmeasured)
        key = (p.label, p.spec.task.name, p.spec.trial is not None)
        like = finished.get(key) or ([] if measured is not None else finished.get((*key[:2], not key[2])))
        if like:
            predictions[p.spec.id] = Predicted(median(like) * max(1, p.spec.train.steps), "finished runs", measured)
        elif measured is not None:
            predictions[p.spec.id] = Predicted(measured, "calibration", measured)
        else:
            predictions[p.spec.id] = Predicted(computed(p), "arithmetic", None)
    return predictions


def loading(planned: Sequence[Planned], costs: Costs) -> float:
    """Return the seconds to start a worker and to load each task's data and network once; 0 for what is unknown."""
    tasks = dict.fromkeys(task_key(p.spec) for p in planned)
    return (costs.start or 0.0) + sum(costs.loads.get(k) or 0.0 for k in tasks) if planned else 0.0


def at(length: float, measured: Mapping[str, float]) -> float:
    """Return the seconds at a length, linear between the two measured lengths around it, or through the nearest two.

    >>> at(20, {"10": 1.0, "30": 2.0})
    1.5
    """
    points = sorted((float(n), seconds) for n, seconds in measured.items())
    if len(points) == 1:
        return points[0][1] * length / points[0][0]
    i = min(max(bisect_left([n for n, _ in points], length), 1), len(points) - 1)
    (n0, s0), (n1, s1) = points[i - 1], points[i]
    return max(0.0, s0 + (s1 - s0) * (length - n0) / (n1 - n0))


def computed(p: Planned) -> float:
    """Return the seconds of a run by arithmetic."""
    train, sites, rows = p.spec.train, p.task.sites, p.task.rows
    tokens = min(train.max_length, TOKENS_PER_WORD * p.task.mean_words + 2)
    linear = sum(s.size[0] * s.size[1] for s in sites.linear())
    weights = linear if linear and p.task.kind != "generation" else sites.base  # causal: the vocabulary multiplies too
    per_token = 6 if p.trainable >= sites.base else 4 if p.trainable else 2
    steps = train.steps * train.batch_size * tokens * per_token * weights
    evaluated_rows = rows["validation"] * _evaluations(p) + (rows["test"] if p.spec.trial is None else 0)
    evaluated = evaluated_rows * tokens * 2 * weights * (DECODING if p.task.kind == "generation" else 1)
    return SETUP_SECONDS + (train.seconds or 0.0) + (steps + evaluated) / FLOPS_PER_SECOND


def _evaluations(p: Planned) -> int:
    """Return how often the validation split is evaluated: when it is due, and after the last step."""
    train = p.spec.train
    return 1 if train.eval_every is None else max(1, math.ceil(train.steps / train.eval_every))


def _measured(p: Planned, costs: Costs, similar: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the seconds of a run from the calibration; a similar configuration replaces one that was not timed."""
    shape = costs.shapes.get(task_key(p.spec))
    cost = costs.steps.get(run_key(p)) or similar.get(run_key(p))
    if shape is None or cost is None:
        return None

    def total(split: str, seconds: Mapping[str, float]) -> float:
        return sum(batches * at(float(n), seconds) for n, batches in shape[split].items())

    once = cost["setup"] + max(0.0, cost["tracked"] - at(max(map(float, cost["steps"])), cost["steps"]))
    limit, tested = p.spec.train.seconds, p.spec.trial is None
    trained = total("train", cost["steps"]) if limit is None else limit
    evaluated = _evaluations(p) * total("validation", cost["evaluated"])
    evaluated += total("test", cost["evaluated"]) if tested else 0.0
    answers = shape.get("generated", []) if tested else []
    generated = len(answers) * cost.get("prompt", 0.0) + sum(answers) * cost.get("token", 0.0)
    return float(once + trained + evaluated + generated)


def _similar(planned: Sequence[Planned], costs: Costs) -> dict[str, Mapping[str, Any]]:
    """Return, for each configuration without times, the costs of a timed one.

    It is the one whose number of trainable parameters is nearest.
    """
    keyed = {run_key(p): p for p in planned}
    timed = [(p, cost) for key, p in keyed.items() if (cost := costs.steps.get(key)) is not None]
    similar = {}
    for key, p in keyed.items():
        if costs.steps.get(key) is not None:
            continue
        t = p.spec.train
        alike = [
            (abs(math.log1p(q.trainable) - math.log1p(p.trainable)), i)
            for i, (q, _) in enumerate(timed)
            if q.spec.backbone == p.spec.backbone
            and (q.task.kind == "generation") == (p.task.kind == "generation")
            and (q.spec.train.batch_size, q.spec.train.max_length) == (t.batch_size, t.max_length)
        ]
        if alike:
            similar[key] = timed[min(alike)[1]][1]
    return similar
