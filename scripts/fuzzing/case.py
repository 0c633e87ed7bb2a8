"""One odd input: a command line and the folder that it runs in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One odd input.

    A family is a module with `cases(rng: random.Random, count: int, folder: Path) -> Iterator[Case]`. It draws at most
    `count` cases, each in a new folder under `folder`, and the same `rng` draws the same cases.

    Attributes:
        name: what was changed, short.
        arguments: the command line after `peftbench`.
        folder: the working directory. It belongs to this case; the command may write inside it only.
        environment: variables that are set for the command.
        codes: exit codes that are right.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    codes: tuple[int, ...] = (0, 1, 2)
