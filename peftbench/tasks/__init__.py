"""Tasks by name: GLUE, six embedded tasks, E2E, a user's own files, and synthetic tasks for tests.

Planning reads task facts through this module, so that it imports no torch, transformers or datasets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench.errors import unknown
from peftbench.tasks import e2e, embedded, glue, local, synthetic
from peftbench.tasks.dataset import Dataset, Example, Opener, Options, TaskCard, TaskUnavailable, facts

__all__ = [
    "VERSION",
    "Dataset",
    "Example",
    "TaskCard",
    "TaskUnavailable",
    "card",
    "facts",
    "files",
    "name_of",
    "names",
    "open_task",
]

_TASKS: dict[str, tuple[TaskCard, Opener]] = {
    **{c.name: (c, glue.open_glue) for c in glue.CARDS},
    **{c.name: (c, embedded.open_embedded) for c in embedded.CARDS},
    e2e.CARD.name: (e2e.CARD, e2e.open_e2e),
    local.CARD.name: (local.CARD, local.open_local),
    **{c.name: (c, synthetic.open_synthetic) for c in synthetic.CARDS},
}
_FILES: dict[str, Callable[[TaskCard, Options, Path | None], Sequence[Path]]] = {
    **{c.name: glue.files_of for c in glue.CARDS},
    **{c.name: embedded.files_of for c in embedded.CARDS},
    e2e.CARD.name: e2e.files_of,
    local.CARD.name: local.files_of,
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
    base, chosen = _named(name, options)
    card, opener = _TASKS[base]
    if base not in _FILES:
        return opener(card, chosen, data_dir)
    found = [(str(p), p.stat()) for p in files(name, options, data_dir) if p.is_file()]
    stats = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found]
    named = {**chosen, "name": name_of(name, options)}  # the same data set, whether the name is said or left out
    key = json.dumps([base, named, str(data_dir), stats], sort_keys=True, default=repr)
    if key not in _LAST:
        opened = opener(card, chosen, data_dir)
        _LAST.clear()
        _LAST[key] = opened
    return _LAST[key]


_LAST: dict[str, Dataset] = {}  # one data set at most: planning asks twice for what takes seconds to read


def files(name: str, options: Mapping[str, Any] | None = None, data_dir: Path | None = None) -> Sequence[Path]:
    """Return the files on this machine that decide a task's data together with its options; none if there are none.

    The arguments and errors are those of `open_task`, which may find more mistakes.
    """
    base, chosen = _named(name, options)
    return _FILES[base](card(base), chosen, data_dir) if base in _FILES else ()


def name_of(name: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the name of the dataset that `open_task` makes of the same arguments.

    Raises:
        UserError: there is no task of that name, or a local one lacks its train file.
    """
    base, chosen = _named(name, options)
    return local.name_of(chosen) if base == local.CARD.name else base


def _named(name: str, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return the registered name of a task, and its options with the name that follows "local/"."""
    base, chosen = _base_name(name), dict(options or {})
    if base == "local" and name != base:
        chosen.setdefault("name", name.split("/", 1)[1])
    return base, chosen


def _base_name(name: str) -> str:
    base = "local" if name.startswith("local/") and len(name) > len("local/") else name
    if base not in _TASKS:
        raise unknown("task", name, _TASKS)
    return base
