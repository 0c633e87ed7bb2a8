"""The summary of a verification, as text for a terminal and as JSON values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftbench.records.record import short
from peftbench.verify.records.differences import FieldDifference
from peftbench.verify.records.repeat import (
    DIFFERS,
    DOES_NOT_APPLY,
    IDENTICAL,
    NOT_REPEATED,
    RepeatOutcome,
    Verification,
)
from peftbench.verify.records.rounding import SCORE_ULPS

FINDINGS = 5  # largest number of findings shown
SHOWN = 5  # largest number of differences shown for one record


def as_text(result: Verification, results_dir: Path) -> str:
    """Return the summary as text: the audit, each repeat, the runs that were not repeated, the verdict.

    Args:
        result: the result of `repeat.verify`.
        results_dir: the directory that was verified, for the first line.
    """
    return "\n".join([*_audit(result, results_dir), *_repeats(result), *_not_repeated(result), "", _verdict(result)])


def as_dict(result: Verification) -> dict[str, Any]:
    """Return the summary as JSON values, with one entry for each finding and each repeat."""
    return {
        "verified": result.code == 0,
        "records": len(result.records),
        "findings": [{"path": str(f.path), "field": f.field, "said": f.message} for f in result.findings],
        "other_version": dict(result.other_version),
        "repeatable": result.repeatable,
        "repeats": [_row(o) for o in result.outcomes],
    }


def _row(o: RepeatOutcome) -> dict[str, Any]:
    return {
        "path": str(o.record.path),
        "spec_id": o.record.spec_id,
        "method": o.record.spec.method.label,
        "task": o.record.spec.task.name,
        "seed": o.record.spec.seed,
        "trial": o.record.spec.trial,
        "status": o.status,
        "said": o.message or None,
        "differences": [_pair(d) | {"within": d.within} for d in o.differences],
        "environment": [_pair(d) for d in o.environment],
        "not_recorded": {d.field: d.repeated for d in o.unrecorded},
    }


def _pair(d: FieldDifference) -> dict[str, Any]:
    return {"field": d.field, "recorded": d.recorded, "repeated": d.repeated}


def _audit(result: Verification, results_dir: Path) -> Iterator[str]:
    kinds = Counter(r.kind if r.is_finished else "failed" for r in result.records)
    names = {"run": "finished runs", "profile": "profile passes", "failed": "failed attempts"}
    counted = ", ".join(f"{kinds[k]} {name}" for k, name in names.items() if kinds[k])
    yield f"{results_dir}: {len(result.records)} records ({counted})"
    if not result.findings:
        yield "checked in each: checksum, ids, name; scores from predictions, sums of bytes, examples: all agree"
    for f in result.findings[:FINDINGS]:
        yield f"{short(f.path.name, 100)}\n    {short(f'{f.field}: {f.message}', 220)}"
    if len(result.findings) > FINDINGS:
        yield f"... and {len(result.findings) - FINDINGS} more; --json lists all"


def _repeats(result: Verification) -> Iterator[str]:
    if not result.outcomes:
        return
    done = sum(o.status not in (NOT_REPEATED, DOES_NOT_APPLY) for o in result.outcomes)
    yield f"\nrepeated {done} of {result.repeatable} runs that this version can repeat:"
    for o in result.outcomes:
        spec, trial = o.record.spec, o.record.spec.trial
        number = f"seed {spec.seed}" if trial is None else f"trial {trial}"
        yield f"  {o.status:<16}  {spec.method.label:<20}  {spec.task.name:<28}  {number}"
        if o.message:
            yield f"      {short(o.message)}"
        if o.status == IDENTICAL and o.rounding:
            yield f"      {_rounding(o.rounding)}"
        if o.status == DIFFERS:
            yield from _fields([d for d in o.differences if not d.within])
        if o.status == DIFFERS and o.differences:
            yield f"      in {o.record.path.name}"
    for line in dict.fromkeys(line for o in result.outcomes for line in map(str, o.environment)):
        yield f"  not the same here: {line}"
    here = dict.fromkeys(f"{d.field} (here {d.repeated})" for o in result.outcomes for d in o.unrecorded)
    if here:
        yield f"  not recorded, so not compared: {', '.join(here)}"


def _rounding(ulps: float) -> str:
    return f"but for the last digits of scores (at most {ulps:.2g} ulp apart; {SCORE_ULPS} allowed)"


def _fields(differences: Sequence[FieldDifference]) -> Iterator[str]:
    for d in differences[:SHOWN]:
        yield f"      {d}"
    if len(differences) > SHOWN:
        parts = Counter(d.field.partition("[")[0] for d in differences[SHOWN:])
        yield f"      and {len(differences) - SHOWN} more: {', '.join(f'{n} in {p}' for p, n in parts.items())}"


def _not_repeated(result: Verification) -> Iterator[str]:
    for version, number in sorted(result.other_version.items()):
        yield f"  other version: {number} of {version}: not repeated, as its results have changed since"


def _verdict(result: Verification) -> str:
    statuses = Counter(o.status for o in result.outcomes)
    counted = ", ".join(f"{n} {status}" for status, n in statuses.items())
    if result.interrupted:
        return f"interrupted; until then: {counted or 'nothing repeated'}"
    if result.code == 0:
        apart = max(o.rounding for o in result.outcomes)
        bits = f"bit for bit {_rounding(apart)}" if apart else "bit for bit"
        if set(statuses) - {DOES_NOT_APPLY} != {IDENTICAL}:
            bits = "within the tolerance for another machine or version"
        return f"verified, {bits} ({counted})"
    if not result.outcomes and not result.findings:
        return "NOT verified: there was nothing that could be repeated"
    if set(statuses) == {DOES_NOT_APPLY} and not result.findings:
        return "NOT verified: on this device no repeat can be compared; repeat on the device of the records"
    wrong = len({f.path for f in result.findings})
    reason = "1 record does not agree with itself" if wrong == 1 else f"{wrong} records do not agree with themselves"
    reasons = [reason] if wrong else []
    return f"NOT verified: {'; '.join([*reasons, *([counted] if counted else [])])}"
