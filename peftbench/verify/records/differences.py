"""Compare two records of one spec field by field, bit for bit.

The comparison covers everything that the spec and seed decide: losses, scores, predictions, parameters, bytes. It
leaves out times, and the fields that state who ran it and when.

On the machine and versions that a record names, a repeat is equal in every bit. The only exception are the last digits
of scores (rounding.py). Another processor, device, thread count or library version sums in another order, and training
amplifies the rounding; tolerance.py states what must agree then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftbench.verify.records import rounding

REQUEST = ("spec", "experiment", "reference", "overrides", "design")
PROVENANCE = ("env", "env_id", "attempt", "started", "ended", "schema", "checksum")
TIMES_AND_ERRORS = ("seconds", "time", "reason", "traceback")
PROCESS_MEMORY = ("memory.resident_bytes", "memory.allocated_bytes", "memory.reserved_bytes")
WORDS = ("data.notes",)  # remarks of the data's preparation, which a release may word otherwise
NOT_COMPARED = frozenset((*REQUEST, *PROVENANCE, *TIMES_AND_ERRORS, *PROCESS_MEMORY, *WORDS))
EXTENDED = ("", "memory")  # mappings in which newer code writes fields that older records lack
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class FieldDifference:
    """A field in which two records differ.

    Attributes:
        field: the path of the field: "curve.loss[3]".
        recorded: its value in the record.
        repeated: its value in the repeat.
        within: whether rounding or another machine explains the difference.
    """

    field: str
    recorded: Any
    repeated: Any
    within: bool = False

    @property
    def is_rounding(self) -> bool:
        """Whether the field is a score that is equal up to rounding, which is accepted on every machine."""
        return rounding.is_score(self.field) and rounding.is_same(self.recorded, self.repeated)

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.recorded)} recorded, {_short(self.repeated)} repeated"


def compare(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[FieldDifference]:
    """Compare the bodies of a record and its repeat.

    Args:
        recorded: the record's body with its predictions, as `Record.raw` returns it.
        repeated: the repeat's body.

    Returns:
        Every field that differs, in the order of the record. `within` is set for rounding only.
    """
    return [replace(d, within=d.is_rounding) for d in _walk("", recorded, repeated)]


def environments(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> tuple[list[FieldDifference], bool]:
    """Compare the environments of a record and its repeat.

    Args:
        recorded: the record's `env`.
        repeated: the repeat's `env`.

    Returns:
        The fields that differ, and whether these may change the last bits. Other code may not: a change that alters
        results raises the version of the method or task, which the spec contains.
    """
    found = [d for d in _walk("", _flat(recorded), _flat(repeated)) if d.field not in ("code.commit", "code.dirty")]
    return found, any(not d.field.startswith("code.") for d in found)


def unrecorded(recorded: Mapping[str, Any], repeated: Mapping[str, Any]) -> list[FieldDifference]:
    """Return the facts of the repeat's environment that the record lacks because it is older.

    They are no differences, and they explain none.
    """
    known = _flat(recorded)
    return [
        FieldDifference(field, None, value)
        for field, value in _flat(repeated).items()
        if not field.startswith("code.") and not any(field == k or field.startswith(f"{k}.") for k in known)
    ]


def _walk(place: str, a: Any, b: Any) -> Iterator[FieldDifference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a and place not in EXTENDED)]:
            inner = f"{place}.{key}" if place else str(key)
            if inner not in NOT_COMPARED:
                yield from _walk(inner, a.get(key), b.get(key))
    elif _is_list(a) and _is_list(b) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _walk(f"{place}[{i}]", x, y)
    elif _is_list(a) and _is_list(b):
        yield FieldDifference(place, f"{len(a)} values", f"{len(b)} values")
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield FieldDifference(place, a, b)


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
