"""What a record says twice must agree: ids with what they are hashes of, lists with their lengths, parts with sums.

A checksum catches an edit by somebody who did not recompute it. These rules catch others. Those that need predictions,
other records or the code of metrics are in `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from msgspec.structs import astuple

from peftbench.records import ranges
from peftbench.records.bodies import Body, ProfileBody, RunBody, TrainingBody, TrialBody, ValidationMetrics
from peftbench.records.costs import SampledSeconds
from peftbench.records.spec import digest

YEARS = range(1970, 2200)  # a clock that was never set begins at 1970


class Contradiction(NamedTuple):
    """A value that cannot be true beside the others.

    Attributes:
        field: its place, such as "curve.loss".
        message: the value, and what it should be.
    """

    field: str
    message: str


def contradictions(body: Body, env: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Yield what contradicts itself in a record.

    Args:
        body: the record's body.
        env: its environment as the file has it, of which `env_id` is the hash.
    """
    yield from _identity(body, env)
    yield from _times(body)
    if isinstance(body, ProfileBody):
        yield from _rows(body)
    elif body.status == "finished":
        yield from _length(body)
        yield from _sums(body)
    if isinstance(body, TrainingBody):
        yield from _scores(body)


def env_id(env: Mapping[str, Any]) -> str:
    """Return 16 hex digits of the hash of an environment: code, packages, device and threads."""
    return digest(env)[:16]


def _identity(body: Body, env: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Check that the ids are the hashes of their contents."""
    if body.spec.id != body.spec_id:
        yield Contradiction("spec_id", f"{body.spec_id} in the record, but its spec hashes to {body.spec.id}")
    if body.spec.slug != body.slug:
        yield Contradiction("slug", f"{body.slug} in the record, but its spec is named {body.spec.slug}")
    if env_id(env) != body.env_id:
        yield Contradiction("env_id", f"{body.env_id} in the record, but its env hashes to {env_id(env)}")


def _times(body: Body) -> Iterator[Contradiction]:
    """Check that the attempt ended after it started."""
    read: dict[str, datetime] = {}
    for name in ("started", "ended"):
        text = getattr(body, name)
        try:
            read[name] = datetime.fromisoformat(text)
        except ValueError:
            yield Contradiction(name, f"{text!r} is no time of ISO 8601, such as 2026-01-31T12:00:00+00:00")
            return
        if read[name].tzinfo is None or read[name].year not in YEARS:
            yield Contradiction(name, f"{text!r} has no time zone, or another year than {YEARS[0]} to {YEARS[-1]}")
            return
    if read["ended"] < read["started"]:
        yield Contradiction("ended", f"{body.ended}, before it started at {body.started}")


def _length(body: RunBody | TrialBody) -> Iterator[Contradiction]:
    """Check that there is one loss for each step, and that the hyperparameters are those of the spec."""
    losses, stopped = body.curve.loss if body.curve else [], body.stopped_at
    if stopped is not None and len(losses) != stopped:
        yield Contradiction("curve.loss", f"{len(losses)} losses of {stopped} steps")
    hyper = body.hyper or {}
    for key, specified in body.spec.method.hyper.items():
        if key in hyper and hyper[key] != specified:
            yield Contradiction(f"hyper.{key}", f"{hyper[key]!r}, but the spec asks for {specified!r}")


def _sums(body: RunBody | TrialBody) -> Iterator[Contradiction]:
    """Check that the parts of the memory peak add up to it, and that no part of the network is larger than it."""
    if memory := body.memory:
        total = sum(astuple(memory.at_peak))
        if total != memory.peak_bytes:
            yield Contradiction("memory.peak_bytes", f"{memory.peak_bytes}, but its parts add up to {total}")
    if (sizes := body.parameters) and sizes.trainable + sizes.head > sizes.total:
        held = f"{sizes.trainable} trainable and {sizes.head} of the head"
        yield Contradiction("parameters.total", f"{sizes.total}, but it has {held}")


def _scores(body: RunBody | TrialBody) -> Iterator[Contradiction]:
    """Check that every score is one that its metric can give."""
    stated: ValidationMetrics | None = body.metrics
    if stated is not None:
        for split, scores in (("validation", stated.validation), ("test", getattr(stated, "test", {}))):
            for metric, score in scores.items():
                yield from _score(f"metrics.{split}.{metric}", metric, score)
        yield from _score("metrics.majority", stated.primary, getattr(stated, "majority", None))
        known = ranges.SCORES.get(stated.primary)
        if known and stated.direction != known.direction:
            message = f"{stated.direction!r}, but {stated.primary} is {known.direction!r}"
            yield Contradiction("metrics.direction", message)
        of = body.metrics.test if isinstance(body, RunBody) and body.metrics else stated.validation
        if (of and stated.primary not in of) or (isinstance(body, RunBody) and not of):
            yield Contradiction("metrics.primary", f"{stated.primary!r} is not among the scores")
    for i, scores in enumerate(body.curve.validation if body.curve else []):
        for metric, score in scores.items():
            yield from _score(f"curve.validation[{i}].{metric}", metric, score)


def _score(field: str, metric: str, score: float | None) -> Iterator[Contradiction]:
    if ranges.beyond(metric, score):
        known = ranges.SCORES[metric]
        yield Contradiction(field, f"{score}, and {metric} is from {known.low:g} to {known.high:g}")


def _rows(body: ProfileBody) -> Iterator[Contradiction]:
    """Check that a pass has a rate for each method, a row for no other, and samples as many as it says."""
    spec = body.spec
    for name, values in (("lrs", spec.lrs), ("accumulations", spec.accumulations or spec.methods)):
        if len(values) != len(spec.methods):
            yield Contradiction(f"spec.{name}", f"{len(values)} of {len(spec.methods)} methods")
    rows, labels = body.rows or [], {m.label for m in spec.methods}
    if len({row.label for row in rows}) != len(rows):
        yield Contradiction("rows", "two rows have one label")
    for i, row in enumerate(rows):
        if row.label not in labels:
            yield Contradiction(f"rows[{i}].label", f"{row.label!r}, which is no method of the pass")
        if _disagrees(row.step_seconds):
            yield Contradiction(f"rows[{i}].step_seconds", "its number, median and samples do not agree")


def _disagrees(times: SampledSeconds) -> bool:
    """Whether a summary has another number of samples than it says, or a median outside them."""
    if not times.samples:
        return False
    return len(times.samples) != times.n or not min(times.samples) <= times.median <= max(times.samples)
