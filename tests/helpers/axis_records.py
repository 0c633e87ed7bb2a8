"""Made-up records of an experiment with axes: scores that follow given curves, from predictions on one test split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import factories
from scipy.stats import norm

from peftbench.records import spec

SIZES = (100, 300, 1000, 3000, 4354)
ALL = SIZES[-1]  # every row of the made-up task
# accuracy at the sizes: ia3 starts above lora and full, and ends below both; lora is as full from 1,000 on
CURVES = {
    "full": (0.55, 0.66, 0.80, 0.86, 0.88),
    "lora": (0.55, 0.62, 0.79, 0.86, 0.88),
    "ia3": (0.68, 0.71, 0.74, 0.76, 0.77),
}
CLASSES = ["animal", "place"]


def run(label: str, seed: int, accuracy: float, n: int = 400, **changes: Any) -> dict[str, Any]:
    """A run whose predictions are right with a probability; each test example is as hard for every run."""
    rng = random.Random(f"{label} {seed} {accuracy}")
    labels = [i % 2 for i in range(n)]
    bar = float(norm.ppf(accuracy)) * 1.25**0.5
    hard = [random.Random(f"{i}").gauss(0, 1) for i in range(n)]
    values = [y if rng.gauss(0, 0.5) + h < bar else 1 - y for y, h in zip(labels, hard, strict=True)]
    score = sum(v == y for v, y in zip(values, labels, strict=True)) / n
    body = factories.run(label, seed, score, examples=n, **{"majority": 0.5, "experiment": "sizes", **changes})
    body["predictions"] = {"ids": body["predictions"]["ids"], "values": values, "labels": labels}
    return body


def sized(body: Mapping[str, Any], size: int, per_class: Sequence[int] | None = None) -> dict[str, Any]:
    """A run on a number of training examples; `ALL` is no limit."""
    asked = spec.RunSpec.from_dict(body["spec"])
    options = {} if size == ALL else {"limit_train": size}
    fingerprint = hashlib.sha256(f"{size} rows".encode()).hexdigest()
    asked = replace(asked, task=replace(asked.task, options=options, fingerprint=fingerprint))
    counts = {"copies": 0, "contradictory": 0, "tokens": 9 * size, "longest": 9, "cut_texts": 0, "cut_tokens": 0}
    train = {**counts, "rows": size, "per_class": list(per_class or (size - size // 2, size // 2))}
    test = {**train, "rows": 400, "per_class": [200, 200]}
    data = {"classes": CLASSES, "splits": {"train": train, "test": test}, "cut_from": "end", "doubled": {}}
    return factories.with_ids({**body, "spec": spec.as_dict(asked), "data": data})


def experiment(
    sizes: Sequence[int] = SIZES, curves: Mapping[str, Sequence[float]] = CURVES, seeds: int = 5, **changes: Any
) -> list[dict[str, Any]]:
    """Every run of methods that follow curves over the training sizes."""
    return [
        sized(run(label, seed, accuracy, **changes), size)
        for label, accuracies in curves.items()
        for size, accuracy in zip(sizes, accuracies, strict=True)
        for seed in range(seeds)
    ]
