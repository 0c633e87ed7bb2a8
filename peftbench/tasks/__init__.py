"""Tasks by name: GLUE, six embedded tasks, E2E, a user's own files, and synthetic tasks for tests.

Planning reads task facts through this module, so that it imports no torch, transformers or datasets.
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
VERSION: Mapping[str, int] = {name: c.version for name, (c, _) in _TASKS.items()}  # version of each task's preparation


def names() -> list[str]:
    """Return all task names, in the order of `peftbench tasks`."""
    return list(_TASKS)


def card(name: str) -> TaskCard:
    """Return the card of a task, without opening its data. "local/NAME" has the card of "local".

    Raises:
        UserError: there is no task of that name.
    """
    return _TASKS[_base_name(name)][0]


def open_task(name: str, options: Mapping[str, Any] | None = None, data_dir: Path | None = None) -> Dataset:
    """Prepare a task. The result is the same on every call and machine.

    Args:
        name: a task name, or "local/NAME".
        options: row limits (limit_train, limit_validation, limit_test) and the task's own options; see its card.
        data_dir: the folder with data sets.

    Raises:
        TaskUnavailable: the task's data is not available on this machine.
        UserError: the name, an option or the data is not valid.
    """
    base = _base_name(name)
    chosen = dict(options or {})
    if base == "local" and name != base:
        chosen.setdefault("name", name.split("/", 1)[1])
    card, opener = _TASKS[base]
    return opener(card, chosen, data_dir)


def _base_name(name: str) -> str:
    base = "local" if name.startswith("local/") and len(name) > len("local/") else name
    if base not in _TASKS:
        raise unknown("task", name, _TASKS)
    return base
