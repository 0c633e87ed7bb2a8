"""Audit records without training: is each record consistent with itself and with the other records of its task?

A checksum catches an edit by somebody who did not recompute it. The audit catches other edits, because records are
redundant: the id and the name are hashes of the spec, scores follow from predictions, and the peak of memory is the sum
of its parts. All records of one task hold the same examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peftbench.errors import UserError
from peftbench.records import consistency, files, merging, packs, record
from peftbench.records.bodies import Predictions
from peftbench.records.record import Record, RunRecord, TrainingRecord, TrialRecord
from peftbench.records.spec import as_dict, digest
from peftbench.tasks import metrics
from peftbench.verify.records import rounding


@dataclass(frozen=True)
class AuditFinding:
    """An inconsistency in a record file.

    Attributes:
        path: the record's file.
        field: the field at fault ("metrics.test.accuracy"), "file" or "file name".
        message: the value in the record, and the value that it should have.
    """

    path: Path
    field: str
    message: str


def audit(results_dir: Path) -> tuple[list[Record], list[AuditFinding]]:
    """Read and check every record file under a results directory.

    Args:
        results_dir: the results directory; a missing one has no records.

    Returns:
        The records that can be read, and the findings of all files.
    """
    records, findings = [], []
    for path in record.paths(results_dir):
        try:
            records.append(record.read(path, consistent=False))
        except UserError as e:
            findings.append(
                AuditFinding(path, "file", str(e).removeprefix(f"{packs.shown(path)}: ").removeprefix(f"{path}: "))
            )
    for r in records:
        findings += [AuditFinding(r.path, field, message) for field, message in _inconsistencies(r)]
    return records, findings + list(_examples(records))


def _inconsistencies(r: Record) -> Iterator[tuple[str, str]]:
    """Yield (field, message) for each inconsistency within one record."""
    raw = r.raw()
    yield from consistency.contradictions(r.body, raw["env"])
    name = record.file_name(raw)
    if r.path.name not in (name, merging.second_name(name, files.checksum(packs.read_bytes(r.path)))):
        yield "file name", f"a record with this content is named {name}"
    if isinstance(r, TrainingRecord) and r.is_finished:
        if isinstance(r, TrialRecord):
            yield from _trial_is_untested(r)
        if isinstance(r, RunRecord):
            yield from _scores(r)
        yield from _validated(r)


def _trial_is_untested(r: TrialRecord) -> Iterator[tuple[str, str]]:
    """Check that a tuning trial did not read the test split."""
    raw = r.raw()
    if "test" in raw["metrics"] or raw.get("predictions") is not None:
        yield "metrics.test", "a tuning trial has neither test scores nor predictions"


def _scores(r: RunRecord) -> Iterator[tuple[str, str]]:
    """Check that the test scores follow from the predictions, up to rounding (rounding.py)."""
    try:
        predictions = r.predictions
    except UserError as e:
        yield "predictions", str(e).removeprefix(f"{r.path}: predictions")
        return
    if predictions is None:
        yield "predictions", "there are none, and a finished run has them"
        return
    values, labels, ids = predictions.values, predictions.labels, predictions.ids
    if not len(values) == len(labels) == len(ids) or len(set(ids)) != len(ids) or not ids:
        yield "predictions", f"{len(values)} values, {len(labels)} labels, {len(set(ids))} different ids of {len(ids)}"
        return
    for name, score in r.metrics.test.items():
        if name in rounding.NOT_FROM_PREDICTIONS:
            continue
        try:
            again = metrics.score(name, values, labels)
        except Exception as e:  # values of any kind, which each metric refuses in its own way
            yield "predictions.values", f"no {name} can be computed from them ({e})"
            continue
        if not rounding.is_same(score, again):
            yield f"metrics.test.{name}", f"{score} in the record, but its predictions give {again}"


def _validated(r: TrainingRecord) -> Iterator[tuple[str, str]]:
    """Check that the validation scores are those in the curve."""
    stated, step = r.metrics, r.body.checkpoint_step
    chosen = [v for v in r.curve.validation if v.get("step") == step]
    if chosen and {"step": step, **stated.validation} != chosen[-1]:
        yield "metrics.validation", f"not the scores that curve.validation has at step {step}"


def _predictions(r: RunRecord) -> Predictions | None:
    """Return the predictions; None where they are no list of them, which `_scores` has found."""
    try:
        return r.predictions
    except UserError:
        return None


def _examples(records: Iterable[Record]) -> Iterator[AuditFinding]:
    """Check that records of the same data hold the same ids and labels; yield those that differ from the majority."""
    by_task: dict[str, list[tuple[RunRecord, str]]] = defaultdict(list)
    for r in records:
        if isinstance(r, RunRecord) and r.is_finished and (predictions := _predictions(r)):
            by_task[digest(as_dict(r.spec.task))].append((r, digest([predictions.ids, predictions.labels])))
    for group in by_task.values():
        common, number = Counter(examples for _, examples in group).most_common(1)[0]
        for r, examples in group:
            if examples != common:
                message = f"not those of {number} other records of {r.spec.task.name}"
                yield AuditFinding(r.path, "predictions.ids, predictions.labels", message)
