"""Facts about a task that planning needs. They are kept by the content of the task's files, so that it is read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench import cache, tasks
from peftbench.cache import Stores
from peftbench.records.spec import digest
from peftbench.tasks.dataset import SPLITS


def facts(stores: Stores, name: str, options: Mapping[str, Any], data_dir: Path | None = None) -> dict[str, Any]:
    """Return `tasks.facts` of a task.

    Args:
        stores: the stores of cached answers.
        name: the task's name.
        options: its options.
        data_dir: the folder with data sets.

    Raises:
        TaskUnavailable: the task's data is not available on this machine.
        UserError: the name, an option or the data is not valid.
    """
    files = tasks.files(name, options, data_dir)
    hashes = cache.file_hashes(files)
    if not files or len(hashes) < len(set(files)):  # data without files, or a file is missing: opening says which
        return tasks.facts(tasks.open_task(name, options, data_dir))
    base = "local" if name.startswith("local/") else name
    splits = [split for split in SPLITS if options.get(split) is not None]
    chosen = {key: value for key, value in options.items() if base != "local" or key not in (*SPLITS, "name")}
    content = [[path.name, hashes[path.as_posix()]] for path in files]  # notes have the file's name
    question = digest([base, splits, json.dumps(chosen, sort_keys=True, default=repr), content])
    key = {"code": cache.code_key("tasks"), "packages": cache.versions("pyarrow")}
    known = stores.open("tasks", digest(key)).get(
        question, lambda: tasks.facts(tasks.open_task(name, options, data_dir))
    )
    return {**known, "name": tasks.name_of(name, options)}
