"""A report of numbers that no honest run has: refused where they cannot be, drawn and written where they could."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import factories
import pytest

from peftbench import api
from peftbench.records import files, ranges, record

Body = dict[str, Any]


def with_losses(*values: float | None) -> list[Body]:
    bodies = factories.grid(["full", "lora"])
    for body in bodies:
        of = cycle(values)
        body["curve"]["loss"] = [next(of) for _ in body["curve"]["loss"]]
    return bodies


def with_scores(*values: float, metric: str = "rmse") -> list[Body]:
    """Runs of two tasks, for an average, and trials."""
    of, tasks = cycle(values), dict.fromkeys(("a", "b"))
    bodies = factories.grid(["full", "lora"], tasks=tasks, metric=metric, direction="min", majority=next(of))
    for body in bodies:
        body["metrics"]["test"] = {metric: next(of)}
    return [*bodies, *(factories.as_trial(body, 1) for body in bodies if body["spec"]["seed"] == 0)]


def with_times(*values: float) -> list[Body]:
    body, of = factories.profile(["full", "lora"], work=True), cycle(values)
    body["rows"] = [{**row, "flops": row["flops"], **_replaced(_without(row, "flops"), of)} for row in body["rows"]]
    return [*factories.grid(["full", "lora"]), body]


def _without(row: Body, key: str) -> Body:
    return {k: v for k, v in row.items() if k != key}


def _replaced(value: Any, of: Iterator[float], key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _replaced(v, of, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_replaced(v, of) for v in value]
    return next(of) if isinstance(value, float) else value


def with_sizes(*values: int) -> list[Body]:
    bodies, of = factories.grid(["full", "lora"]), cycle(values)
    for body in bodies:
        body["memory"] = factories.memory(next(of))
        body["parameters"] |= {"trainable": next(of), "head": 0, "total": ranges.LARGEST, "stored_bytes": next(of)}
    return bodies


MOST, LEAST, TINY = ranges.MOST, ranges.LEAST, 5e-324
CASES: dict[str, Callable[[], list[Body]]] = {
    "losses": lambda: with_losses(MOST, -MOST, 0.0, TINY),
    "losses until none": lambda: with_losses(MOST, -MOST, None),
    "errors": lambda: with_scores(MOST, 1.0, 0.0, 1e30),
    "errors that square to nothing": lambda: with_scores(TINY, 1e-310),
    "errors at the bound": lambda: with_scores(LEAST, MOST),
    "perplexities": lambda: with_scores(MOST, 1.0, metric="perplexity"),
    "a plugin's score": lambda: with_scores(-MOST, MOST, metric="mine"),
    "times": lambda: with_times(MOST, TINY, 0.0),
    "sizes": lambda: with_sizes(ranges.LARGEST - 1, 64, 10**6),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_a_record_may_say_is_drawn_and_written(tmp_path: Path, case: str) -> None:
    factories.write_all(tmp_path, CASES[case]())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = api.report(tmp_path)
        assert report.write().is_file()
    assert report.table()
    assert report.rows()


BEYOND: dict[str, Callable[[Body], object]] = {
    "curve.loss[1]": lambda b: b["curve"]["loss"].__setitem__(slice(0, 3), [1.0, -1e308, None]),
    "metrics.test.rmse": lambda b: b["metrics"].__setitem__("test", {"rmse": 1e308}),
    "metrics.majority": lambda b: b["metrics"].__setitem__("majority", 1e40),
    "curve.validation[0].rmse": lambda b: b["curve"].__setitem__("validation", [{"step": 1, "rmse": -1e300}]),
    "seconds.total": lambda b: b["seconds"].__setitem__("total", 1e308),
}


@pytest.mark.parametrize("field", BEYOND)
def test_a_number_beyond_what_networks_compute_with_is_refused_by_name(tmp_path: Path, field: str) -> None:
    body = factories.run("lora", 0, 1.0, metric="rmse", direction="min")
    path = record.write(tmp_path, body)
    body = {**record.files.decode(path.read_bytes(), path, predictions=True), "schema": record.upgrades.FORMAT}
    body.pop("checksum", None)
    BEYOND[field](body)
    path.write_bytes(files.encode(body))
    with pytest.raises(record.UserError, match=field.replace("[", r"\[")):
        record.read(path)


def test_a_label_that_looks_like_a_number_is_a_label(tmp_path: Path) -> None:
    labels = ("1,000", "1,000.5", "-1,234", "1e5", "nan", "007")
    factories.write_all(tmp_path, [factories.run(label, 0) for label in labels])
    assert set(labels) <= set(api.report(tmp_path).table().replace("−", "-").split())
