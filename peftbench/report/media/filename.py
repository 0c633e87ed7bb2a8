"""Names of files made of names from users: readable, and safe on every file system.

A name of letters, digits, dots, dashes, underscores and slashes is kept, with an underscore for a slash. Of any other,
the file's name ends in a digest of the exact name, so that `age<30` and `age>30` are two files.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

LONGEST = 120  # characters, so that an ending such as `--differences.md` leaves it below the 255 of file systems
PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names of devices on Windows
ENDINGS = (
    "average",
    "by-train-size",
    "by-steps",
    "crossings",
    "differences",
    "latency",
    "step",
    "tuning",
    "expected-best",
)  # what reports add to a name


def stem(*parts: str, variant: str = "", ending: str = "") -> str:
    """The name of a file, without its extension: the parts and the ending, joined by `--`.

    Args:
        parts: names from users, such as those of the experiment and the task.
        variant: what tells tables of one task apart, in words of ours; empty for none.
        ending: what the file holds, one of ENDINGS; empty for the table of scores.

    >>> stem("quickstart", "embedded/question_type", ending="tuning"), stem("mine", "age<30")
    ('quickstart--embedded_question_type--tuning', 'mine--age_30-73547d7a')
    """
    readable = "--".join(re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parts)
    name = re.sub(r"^[.-]", "_", readable)
    if RESERVED.match(name):
        name = f"_{name}"
    if name != readable or len(name) > LONGEST or not all(map(_is_plain, parts)):
        name = f"{name[:LONGEST]}-{_digest(parts)}"
    return "--".join(filter(None, (name, re.sub(r"\W+", "-", variant).strip("-"), ending)))


def apart(stems: Mapping[T, tuple[str, str]]) -> dict[T, str]:
    """Tell names apart that are one on a file system that ignores case: each gets a digest of what it stands for.

    Args:
        stems: for each table, the name of its files and the exact names that it stands for.

    Returns:
        The names of the files, all different.

    >>> apart({1: ("x--Tom", "x Tom"), 2: ("x--tom", "x tom"), 3: ("x--ann", "x ann")})
    {1: 'x--Tom-4ddc79e0', 2: 'x--tom-d255cd52', 3: 'x--ann'}
    """
    times = Counter(name.casefold() for name, _ in stems.values())
    return {
        key: f"{name}-{_digest([exact])}" if times[name.casefold()] > 1 else name
        for key, (name, exact) in stems.items()
    }


def _is_plain(part: str) -> bool:
    return PLAIN.fullmatch(part) is not None and "--" not in part and part not in ENDINGS


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:8]
