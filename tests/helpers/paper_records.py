"""Made-up runs for the tests of the papers' figures: predictions that have exactly the score asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import run, write_all

from peftbench.records import spec
from peftbench.report.papers import Reproduction, Results, lora_plus_rates, lora_rank, lora_roles, prefix_length

EXAMPLES = 400


def trained(
    name: str,
    hyper: dict[str, Any],
    score: float,
    seed: int = 0,
    lr: float = 1e-3,
    validation: float | None = None,
    params: int = 1000,
    errors: str | None = None,
    label: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A run whose predictions have exactly the accuracy `score`; `errors` draws which ones are wrong, else the seed."""
    label = label or " ".join([name, *(f"{k}={v}" for k, v in hyper.items()), f"lr={lr:g}"])
    asked = spec.MethodSpec(name, label, 1, hyper)
    body = run(label, seed, round(score * EXAMPLES) / EXAMPLES, method=asked, lr=lr, examples=EXAMPLES, **changes)
    body["parameters"]["trainable"] = params
    if body["status"] == "finished":
        right = np.ones(EXAMPLES, dtype=int)
        right[_drawn(errors or str(seed)).permutation(EXAMPLES)[: EXAMPLES - round(score * EXAMPLES)]] = 0
        labels = [i % 2 for i in range(EXAMPLES)]
        values = [y if ok else 1 - y for y, ok in zip(labels, right, strict=True)]
        body["predictions"] = {"ids": [f"{i:016x}" for i in range(EXAMPLES)], "values": values, "labels": labels}
        body["metrics"]["validation"] = {"accuracy": score if validation is None else validation}
    return body


def _drawn(text: str) -> np.random.Generator:
    return np.random.default_rng(list(text.encode()))


def roles_runs(scores: dict[str, float], seeds: int = 3, own: bool = False, **changes: Any) -> list[dict[str, Any]]:
    """Every choice of roles with its score; with `own`, each errs on examples of its own."""
    return [
        trained("lora", {"roles": roles, "rank": lora_roles.PAPER[roles][0]}, score, seed,
                errors=f"{roles}{seed}" if own else None, **changes)
        for roles, score in scores.items()
        for seed in range(seeds)
    ]  # fmt: skip


def flat(score: float) -> dict[str, float]:
    return dict.fromkeys(lora_roles.PAPER, score)


def reproduced(figure: Any, root: Path, bodies: list[dict[str, Any]], folder: str | None = None) -> Reproduction:
    write_all(root / (folder or figure.folders[0]), bodies)
    return figure.reproduce(Results(root))


def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the figures read their claims once, so that a few synthetic seeds decide them."""
    for figure in (lora_plus_rates, lora_rank, lora_roles, prefix_length):
        monkeypatch.setattr(figure, "LOOKS", ())


def read(root: Path, bodies: list[dict[str, Any]]) -> list[Any]:
    """The runs of these bodies, as a figure reads them."""
    write_all(root / "x", bodies)
    return Results(root).runs("x")
