"""What can be checked in records without training anything: do they say the same thing everywhere they say it?

A checksum catches an edit by somebody who did not recompute it. These checks catch others: a record says twice much of
what it says (its spec is hashed into its id and name, its scores follow from its predictions, its peak is the sum of
its parts), and two records of one task hold the same examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import astuple

from peftbench.errors import UserError
from peftbench.records import record
from peftbench.records.record import Record, RunRecord, TrainingRecord, TrialRecord
from peftbench.records.spec import as_dict, digest
from peftbench.tasks import metrics
from peftbench.verify.records import rounding


@dataclass(frozen=True)
class Finding:
    """What is wrong with a record: the place in it ("metrics.test.accuracy"), and what was found there."""

    path: Path
    place: str
    said: str


def audit(results_dir: Path) -> tuple[list[Record], list[Finding]]:
    """Every record that can be read under `results_dir`, and what is wrong with any file there."""
    records, findings = [], []
    folder = results_dir / record.FOLDER
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            records.append(record.read(path))
        except UserError as e:
            findings.append(Finding(path, "file", str(e).removeprefix(f"{path}: ")))
    for r in records:
        findings += [Finding(r.path, place, said) for place, said in _of(r)]
    return records, findings + list(_examples(records))


def _of(r: Record) -> Iterator[tuple[str, str]]:
    yield from _identity(r)
    if isinstance(r, TrainingRecord) and r.is_finished:
        yield from _length(r)
        yield from _sums(r)
        if isinstance(r, TrialRecord):
            yield from _never_tested(r)
        if isinstance(r, RunRecord):
            yield from _scores(r)
        yield from _validated(r)


def _identity(r: Record) -> Iterator[tuple[str, str]]:
    """The ids are hashes of what they identify, and the name holds them."""
    if r.spec.id != r.spec_id:
        yield "spec_id", f"{r.spec_id} in the record, but its spec hashes to {r.spec.id}"
    if r.spec.slug != r.body.slug:
        yield "slug", f"{r.body.slug} in the record, but its spec is named {r.spec.slug}"
    raw = r.raw()
    if (env := record.env_id(raw["env"])) != r.env_id:
        yield "env_id", f"{r.env_id} in the record, but its env hashes to {env}"
    name = record.file_name(raw)
    if r.path.name != name:
        yield "file name", f"a record with this content is named {name}"


def _length(r: TrainingRecord) -> Iterator[tuple[str, str]]:
    losses, stopped = r.curve.loss, r.body.stopped_at
    if stopped is not None and len(losses) != stopped:
        yield "curve.loss", f"{len(losses)} losses of {stopped} steps"
    hyper = r.body.hyper or {}
    for key, asked in r.spec.method.hyper.items():
        if key in hyper and hyper[key] != asked:
            yield f"hyper.{key}", f"{hyper[key]!r}, but the spec asks for {asked!r}"


def _sums(r: TrainingRecord) -> Iterator[tuple[str, str]]:
    if memory := r.body.memory:
        total = sum(astuple(memory.at_peak))
        if total != memory.peak_bytes:
            yield "memory.peak_bytes", f"{memory.peak_bytes}, but its parts add up to {total}"


def _never_tested(r: TrialRecord) -> Iterator[tuple[str, str]]:
    raw = r.raw()
    if "test" in raw["metrics"] or raw.get("predictions") is not None:
        yield "metrics.test", "a tuning trial has neither test scores nor predictions"


def _scores(r: RunRecord) -> Iterator[tuple[str, str]]:
    """The test scores follow from the predictions, but for the last digits (rounding.py)."""
    predictions = r.predictions
    assert predictions is not None  # a finished run has them
    values, labels, ids = predictions.values, predictions.labels, predictions.ids
    if not len(values) == len(labels) == len(ids) or len(set(ids)) != len(ids) or not ids:
        yield "predictions", f"{len(values)} values, {len(labels)} labels, {len(set(ids))} different ids of {len(ids)}"
        return
    for name, score in r.metrics.test.items():
        if name in rounding.NOT_FROM_PREDICTIONS:
            continue
        try:
            again = metrics.score(name, values, labels)
        except (TypeError, ValueError) as e:
            yield "predictions.values", f"no {name} can be computed from them ({e})"
            continue
        if not rounding.is_same(score, again):
            yield f"metrics.test.{name}", f"{score} in the record, but its predictions give {again}"


def _validated(r: TrainingRecord) -> Iterator[tuple[str, str]]:
    """The validation scores stand in the curve, and the primary metric has its direction."""
    stated, step = r.metrics, r.body.checkpoint_step
    primary = stated.primary
    if primary in metrics.METRICS and stated.direction != metrics.direction(primary):
        yield "metrics.direction", f"{stated.direction!r}, but {primary} is {metrics.direction(primary)!r}"
    chosen = [v for v in r.curve.validation if v.get("step") == step]
    if chosen and {"step": step, **stated.validation} != chosen[-1]:
        yield "metrics.validation", f"not the scores that curve.validation has at step {step}"


def _examples(records: Iterable[Record]) -> Iterator[Finding]:
    """Records of the same data hold the same ids and labels; where they do not, the odd ones out are named."""
    by_task: dict[str, list[tuple[RunRecord, str]]] = defaultdict(list)
    for r in records:
        if isinstance(r, RunRecord) and r.is_finished and (told := r.predictions):
            by_task[digest(as_dict(r.spec.task))].append((r, digest([told.ids, told.labels])))
    for found in by_task.values():
        common, number = Counter(examples for _, examples in found).most_common(1)[0]
        for r, examples in found:
            if examples != common:
                said = f"not those of {number} other records of {r.spec.task.name}"
                yield Finding(r.path, "predictions.ids, predictions.labels", said)
