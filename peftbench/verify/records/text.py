"""What `verify` found, for a terminal and for other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftbench.verify.records.differences import Difference
from peftbench.verify.records.repeat import DIFFERS, IDENTICAL, Outcome, Verified
from peftbench.verify.records.rounding import SCORE_ULPS

SHOWN = 5  # differences of one record


def text(found: Verified, results_dir: Path) -> str:
    """The whole answer: the audit, each repeat, what was not repeated and why, the verdict."""
    return "\n".join([*_audit(found, results_dir), *_repeats(found), *_left(found), "", _verdict(found)])


def rows(found: Verified) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "verified": found.code == 0,
        "records": len(found.records),
        "findings": [{"path": str(f.path), "field": f.place, "said": f.said} for f in found.findings],
        "other_version": dict(found.old),
        "repeatable": found.repeatable,
        "repeats": [_row(o) for o in found.outcomes],
    }


def _row(o: Outcome) -> dict[str, Any]:
    return {
        "path": str(o.record.path),
        "spec_id": o.record.spec_id,
        "method": o.record.spec.method.label,
        "task": o.record.spec.task.name,
        "seed": o.record.spec.seed,
        "trial": o.record.spec.trial,
        "status": o.status,
        "said": o.said or None,
        "differences": [_pair(d) | {"within": d.within} for d in o.differences],
        "environment": [_pair(d) for d in o.environment],
        "not_recorded": {d.field: d.repeated for d in o.unrecorded},
    }


def _pair(d: Difference) -> dict[str, Any]:
    return {"field": d.field, "recorded": d.recorded, "repeated": d.repeated}


def _audit(found: Verified, results_dir: Path) -> Iterator[str]:
    kinds = Counter(r.kind if r.is_finished else "failed" for r in found.records)
    names = {"run": "finished runs", "profile": "profile passes", "failed": "failed attempts"}
    counted = ", ".join(f"{kinds[k]} {name}" for k, name in names.items() if kinds[k])
    yield f"{results_dir}: {len(found.records)} records ({counted})"
    if not found.findings:
        yield "checked in each: checksum, ids, name; scores from predictions, sums of bytes, examples: all agree"
    for f in found.findings:
        yield f"{f.path.name}\n    {f.place}: {f.said}"


def _repeats(found: Verified) -> Iterator[str]:
    if not found.outcomes:
        return
    yield f"\nrepeated {len(found.outcomes)} of {found.repeatable} runs that can be repeated:"
    for o in found.outcomes:
        spec, trial = o.record.spec, o.record.spec.trial
        number = f"seed {spec.seed}" if trial is None else f"trial {trial}"
        yield f"  {o.status:<16}  {spec.method.label:<20}  {spec.task.name:<28}  {number}"
        if o.said:
            yield f"      {o.said}"
        if o.status == IDENTICAL and o.rounding:
            yield f"      {_but_for(o.rounding)}"
        if o.status == DIFFERS:
            yield from _fields([d for d in o.differences if not d.within])
        if o.status == DIFFERS and o.differences:
            yield f"      in {o.record.path.name}"
    for line in dict.fromkeys(line for o in found.outcomes for line in map(str, o.environment)):
        yield f"  not the same here: {line}"
    here = dict.fromkeys(f"{d.field} (here {d.repeated})" for o in found.outcomes for d in o.unrecorded)
    if here:
        yield f"  not recorded, so not compared: {', '.join(here)}"


def _but_for(ulps: float) -> str:
    return f"but for the last digits of scores (at most {ulps:.2g} ulp apart; {SCORE_ULPS} allowed)"


def _fields(differences: Sequence[Difference]) -> Iterator[str]:
    for d in differences[:SHOWN]:
        yield f"      {d}"
    if len(differences) > SHOWN:
        parts = Counter(d.field.partition("[")[0] for d in differences[SHOWN:])
        yield f"      and {len(differences) - SHOWN} more: {', '.join(f'{n} in {p}' for p, n in parts.items())}"


def _left(found: Verified) -> Iterator[str]:
    for said, number in sorted(found.old.items()):
        yield f"  other version: {number} of {said}: not repeated, as its results have changed since"


def _verdict(found: Verified) -> str:
    stood = Counter(o.status for o in found.outcomes)
    counted = ", ".join(f"{n} {status}" for status, n in stood.items())
    if found.interrupted:
        return f"interrupted; until then: {counted or 'nothing repeated'}"
    if found.code == 0:
        apart = max(o.rounding for o in found.outcomes)
        bits = f"bit for bit {_but_for(apart)}" if apart else "bit for bit"
        if set(stood) != {IDENTICAL}:
            bits = "within the tolerance for another machine or version"
        return f"verified, {bits} ({counted})"
    if not found.outcomes and not found.findings:
        return "NOT verified: there was nothing that could be repeated"
    wrong = len({f.path for f in found.findings})
    said = "1 record does not agree with itself" if wrong == 1 else f"{wrong} records do not agree with themselves"
    named = [said] if wrong else []
    return f"NOT verified: {'; '.join([*named, *([counted] if counted else [])])}"
