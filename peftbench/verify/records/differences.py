"""Two records of one spec compared: field by field, bit for bit, and, for two machines, within a stated tolerance.

Compared is all that a run's seed and spec decide: losses, scores, predictions, parameters, bytes. Not compared are the
times, and what says who ran it and when.

On the machine and versions that a record names, a repeat is equal in every bit, and so one that is not is a difference.
The last digits of scores are the exception on every machine: rounding.py says how many, and why.
Another processor, device, number of threads or version of a library adds in another order: the first losses agree to
rounding, and training then carries the rounding away. What is asked for there, tolerance.py says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftbench.verify.records import rounding

ASKED = ("spec", "experiment", "reference", "overrides")
WHO = ("env", "env_id", "attempt", "started", "ended", "schema", "checksum")
WHAT_ELSE = ("seconds", "time", "reason", "traceback")
OF_THE_PROCESS = ("memory.resident_bytes", "memory.allocated_bytes", "memory.reserved_bytes")
FREE = frozenset((*ASKED, *WHO, *WHAT_ELSE, *OF_THE_PROCESS))  # not compared
GROWN = ("", "memory")  # where newer code writes fields that older records lack
SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Difference:
    """One field that is not equal; `within`: no more than rounding or another machine explains."""

    field: str
    recorded: Any
    repeated: Any
    within: bool = False

    @property
    def is_rounding(self) -> bool:
        """Whether it is a score that is equal but for its last digits, which no machine has to explain."""
        return rounding.is_score(self.field) and rounding.is_same(self.recorded, self.repeated)

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.recorded)} recorded, {_short(self.repeated)} repeated"


def compare(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[Difference]:
    """Every field in which two bodies with their predictions differ, in the order of the record."""
    return [replace(d, within=d.is_rounding) for d in _walk("", recorded, repeated)]


def environments(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> tuple[list[Difference], bool]:
    """What ran the two, where it is not the same; and whether that may change the last bits.

    Other code may not: a change that alters results raises the version of the method or task, which is in the spec.
    """
    found = [d for d in _walk("", _flat(recorded), _flat(repeated)) if d.field not in ("code.commit", "code.dirty")]
    return found, any(not d.field.startswith("code.") for d in found)


def unrecorded(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[Difference]:
    """What ran the repeat, where an older record does not say it: no reason for a difference, and no difference."""
    known = _flat(recorded)
    return [
        Difference(field, None, value)
        for field, value in _flat(repeated).items()
        if not field.startswith("code.") and not any(field == k or field.startswith(f"{k}.") for k in known)
    ]


def _walk(place: str, a: Any, b: Any) -> Iterator[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a and place not in GROWN)]:
            inner = f"{place}.{key}" if place else str(key)
            if inner not in FREE:
                yield from _walk(inner, a.get(key), b.get(key))
    elif _is_list(a) and _is_list(b) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _walk(f"{place}[{i}]", x, y)
    elif _is_list(a) and _is_list(b):
        yield Difference(place, f"{len(a)} values", f"{len(b)} values")
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield Difference(place, a, b)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _flat(env: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in env.items():
        inner = f"{place}.{key}" if place else key
        out |= _flat(value, inner) if isinstance(value, Mapping) else {inner: value}
    return out


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
