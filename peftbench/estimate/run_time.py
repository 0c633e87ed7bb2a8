"""How long a run will take: from finished runs like it, else from what was measured here, else by arithmetic.

What was measured (calibrate.py) are a configuration's steps and evaluated batches at three lengths. A run's time is
their sum over the lengths of the batches that it will see, each length's time on the line between its neighbours, and
what comes once: loading, attaching, the step under the memory tracker.

The arithmetic counts the products of matrices: 2 operations a weight and token forward, and backward as many again for
the gradient of the activations (none where only the head trains) and, where the base trains, as many for the gradient
of the weights. It leaves out attention, optimiser and Python, and is good for planning an afternoon.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from peftbench.estimate.calibrate import Costs, run_key, task_key
from peftbench.plan.grid import Planned
from peftbench.records.record import Record, is_trial

TOKENS_PER_WORD = 1.4
FLOPS_PER_SECOND = 2e10  # of a core, for the arithmetic
SETUP_SECONDS = 1.0  # of each run: attach, tokenise or read the cache, write the record
DECODING = 8.0  # generating a token alone moves all weights for one token's worth of arithmetic


@dataclass(frozen=True)
class Predicted:
    """Seconds of one run among those that share the machine. `measured`: by the calibration alone, if there is one."""

    seconds: float
    source: str  # "finished runs" | "calibration" | "arithmetic"
    measured: float | None


def predict(planned: Sequence[Planned], records: Iterable[Record], costs: Costs) -> dict[str, Predicted]:
    """The prediction for each run by spec id. Finished runs are taken to have shared the machine likewise."""
    finished: dict[tuple[str, str, bool], list[float]] = {}
    for r in records:
        if r.kind == "run" and r.is_finished:
            spent = r.body["seconds"]["total"] / max(1, r.spec["train"]["steps"])
            key = (r.spec["method"]["label"], r.spec["task"]["name"], is_trial(r))
            finished.setdefault(key, []).append(spent)
    unmeasured = _similar(planned, costs)
    found = {}
    for p in planned:
        measured = _measured(p, costs, unmeasured)
        key = (p.label, p.spec.task.name, p.spec.trial is not None)
        like = finished.get(key) or ([] if measured is not None else finished.get((*key[:2], not key[2])))
        if like:
            found[p.spec.id] = Predicted(median(like) * max(1, p.spec.train.steps), "finished runs", measured)
        elif measured is not None:
            found[p.spec.id] = Predicted(measured, "calibration", measured)
        else:
            found[p.spec.id] = Predicted(computed(p), "arithmetic", None)
    return found


def loading(planned: Sequence[Planned], costs: Costs) -> float:
    """Seconds until a worker can compute, and for loading each task's data and network once; 0 where not measured."""
    tasks = dict.fromkeys(task_key(p.spec) for p in planned)
    return (costs.start or 0.0) + sum(costs.loads.get(k) or 0.0 for k in tasks) if planned else 0.0


def at(length: float, measured: Mapping[str, float]) -> float:
    """Seconds at a length, on the line through the two measured lengths around it, or the two nearest it.

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
    """Seconds by arithmetic."""
    train, sites, rows = p.spec.train, p.task.sites, p.task.rows
    tokens = min(train.max_length, TOKENS_PER_WORD * p.task.mean_words + 2)
    linear = sum(s.size[0] * s.size[1] for s in sites.linear())
    weights = linear if linear and p.task.kind != "generation" else sites.base  # causal: the vocabulary multiplies too
    per_token = 6 if p.trainable >= sites.base else 4 if p.trainable else 2
    steps = train.steps * train.batch_size * tokens * per_token * weights
    looked_at = rows["validation"] * _evaluations(p) + (rows["test"] if p.spec.trial is None else 0)
    evaluated = looked_at * tokens * 2 * weights * (DECODING if p.task.kind == "generation" else 1)
    return SETUP_SECONDS + (train.seconds or 0.0) + (steps + evaluated) / FLOPS_PER_SECOND


def _evaluations(p: Planned) -> int:
    """How often the validation split is evaluated: when it is due, and after the last step."""
    train = p.spec.train
    return 1 if train.eval_every is None else max(1, math.ceil(train.steps / train.eval_every))


def _measured(p: Planned, costs: Costs, similar: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Seconds from the calibration: those of a similar configuration where this one was not timed."""
    shape = costs.shapes.get(task_key(p.spec))
    cost = costs.steps.get(run_key(p)) or similar.get(run_key(p))
    if shape is None or cost is None:
        return None

    def total(split: str, seconds: Mapping[str, float]) -> float:
        return sum(batches * at(float(n), seconds) for n, batches in shape[split].items())

    once = cost["setup"] + max(0.0, cost["tracked"] - at(max(map(float, cost["steps"])), cost["steps"]))
    limit, tested = p.spec.train.seconds, p.spec.trial is None
    trained = total("train", cost["steps"]) if limit is None else limit
    looked = _evaluations(p) * total("validation", cost["evaluated"])
    looked += total("test", cost["evaluated"]) if tested else 0.0
    answers = shape.get("generated", []) if tested else []
    written = len(answers) * cost.get("prompt", 0.0) + sum(answers) * cost.get("token", 0.0)
    return float(once + trained + looked + written)


def _similar(planned: Sequence[Planned], costs: Costs) -> dict[str, Mapping[str, Any]]:
    """For each configuration that was not timed, what was found for the timed one nearest to it in what it trains."""
    keyed = {run_key(p): p for p in planned}
    timed = [(p, cost) for key, p in keyed.items() if (cost := costs.steps.get(key)) is not None]
    found = {}
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
            found[key] = timed[min(alike)[1]][1]
    return found
