"""Tasks by name: GLUE, the embedded six, E2E, a user's own files, and synthetic ones for tests.

Nothing heavy is imported here (no torch, transformers, datasets): planning reads task facts through this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.errors import unknown
from peftbench.tasks import e2e, embedded, glue, local, synthetic
from peftbench.tasks.dataset import Dataset, Example, Opener, TaskCard, TaskUnavailable, facts

__all__ = ["VERSION", "Dataset", "Example", "TaskCard", "TaskUnavailable", "card", "facts", "names", "open_task"]

_TASKS: dict[str, tuple[TaskCard, Opener]] = {
    **{c.name: (c, glue.open_glue) for c in glue.CARDS},
    **{c.name: (c, embedded.open_embedded) for c in embedded.CARDS},
    e2e.CARD.name: (e2e.CARD, e2e.open_e2e),
    local.CARD.name: (local.CARD, local.open_local),
    **{c.name: (c, synthetic.open_synthetic) for c in synthetic.CARDS},
}
VERSION: Mapping[str, int] = {name: c.version for name, (c, _) in _TASKS.items()}  # of each task's preparation


def names() -> list[str]:
    """All task names, in the order in which they are listed to users."""
    return list(_TASKS)


def card(name: str) -> TaskCard:
    """What is known of a task without opening it; "local/NAME" has the card of "local"."""
    return _TASKS[_known(name)][0]


def open_task(name: str, options: Mapping[str, Any] | None = None, data_dir: Path | None = None) -> Dataset:
    """The prepared task, the same on every call and machine.

    options: limit_train, limit_validation, limit_test (rows), and what the task adds; see its module.
    Raises TaskUnavailable where its data cannot be had here, UserError for anything else that is wrong with it.
    """
    base = _known(name)
    given = dict(options or {})
    if base == "local" and name != base:
        given.setdefault("name", name.split("/", 1)[1])
    described, opener = _TASKS[base]
    return opener(described, given, data_dir)


def _known(name: str) -> str:
    base = "local" if name.startswith("local/") and len(name) > len("local/") else name
    if base not in _TASKS:
        raise unknown("task", name, _TASKS)
    return base
