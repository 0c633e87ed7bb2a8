"""Jobs and claims in one folder of a shared file system: which job is free, who has it, and how it ended.

Several processes on several machines take jobs from one list. File locks are of no use there, as some file systems
lack them and others lose them with a client. So nothing is ever locked or changed: each step creates one file under a
name that only one process can create.

    jobs.json               the jobs, written by the driver alone
    claims/KEY.2.json       a process has claimed the job KEY, for the second time
    claims/KEY.2.over.json  that claim is over: the job has ended, or is free again
    tasks/TASK.json         the last sign of life of a task
    ask.ARRAY.json          the tasks of an array are to stop

A claim gets the next number only after the one before is over. A number is used once, so whoever acts late, on what it
read some time ago, cannot take a job from a process that has claimed it since.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.run.jobs import Job
from peftbench.run.shared_files import create, read, replace

_NAME = re.compile(r"(?P<key>[^.]+)\.(?P<number>\d+)(?P<over>\.over)?\.json")


@dataclass(frozen=True)
class Claim:
    """The `number`-th claim of a job, from 1. `key` is the id of the job's spec."""

    key: str
    number: int


@dataclass(frozen=True)
class State:
    """Where a job stands.

    Attributes:
        number: of its newest claim; 0 where it has none.
        over: what ended that claim; None while it holds.
    """

    number: int = 0
    over: Mapping[str, Any] | None = None

    def next_claim(self, first: int) -> int | None:
        """The number under which the job may be claimed; None if it is taken or has ended.

        Args:
            first: the lowest number that counts; claims below are of an earlier command.
        """
        if self.number < first:
            return first
        return self.number + 1 if self.over is not None and self.over.get("again") else None

    def is_held(self, first: int) -> bool:
        """Whether a process has the job now."""
        return self.number >= first and self.over is None

    def has_ended(self, first: int) -> bool:
        """Whether the job is over for good."""
        return self.number >= first and self.over is not None and not self.over.get("again")


@dataclass(frozen=True)
class Entry:
    """A job in the list, and the number of its first claim that counts."""

    job: Job
    first: int = 1


class Ledger:
    """The folder of jobs and claims.

    Args:
        folder: on a file system that all processes share; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.claims, self.tasks = folder, folder / "claims", folder / "tasks"
        self._over: dict[Claim, dict[str, Any]] = {}
        self._read: tuple[tuple[int, int, int], dict[str, Entry]] | None = None
        self._make()

    def publish(self, entries: Mapping[str, Entry]) -> None:
        """Replace the list of jobs. Only the driver may."""
        replace(self.folder / "jobs.json", [{"job": e.job.to_json(), "first": e.first} for e in entries.values()])

    def jobs(self) -> dict[str, Entry]:
        """The list of jobs, by key, in the plan's order."""
        path = self.folder / "jobs.json"
        try:
            facts = path.stat()
        except OSError:
            return {}
        version = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if self._read is None or self._read[0] != version:
            entries = [Entry(Job.from_json(d["job"]), d["first"]) for d in read(path) or []]
            self._read = version, {e.job.spec.id: e for e in entries}
        return self._read[1]

    def states(self) -> dict[str, State]:
        """Where each job stands that was ever claimed."""
        newest: dict[str, tuple[int, bool]] = {}
        for name in os.listdir(self.claims):
            if named := _NAME.fullmatch(name):
                seen = int(named["number"]), bool(named["over"])
                newest[named["key"]] = max(newest.get(named["key"], (0, False)), seen)
        return {key: State(n, self._ending(Claim(key, n)) if over else None) for key, (n, over) in newest.items()}

    def claim(self, key: str, number: int, facts: Mapping[str, Any]) -> Claim | None:
        """Claim a job under a number; None if another process has that number.

        Args:
            key: the job.
            number: as `State.next_claim` gives it.
            facts: who claims it, for `facts_of`.
        """
        claim = Claim(key, number)
        return claim if create(self._path(claim), facts) else None

    def close(self, claim: Claim, facts: Mapping[str, Any]) -> bool:
        """End a claim; False if somebody else has ended it before.

        Args:
            claim: the claim.
            facts: how it ended. With "again", the job is free; else it is over for good.
        """
        return create(self._path(claim, ".over"), facts)

    def is_over(self, claim: Claim) -> bool:
        """Whether a claim has been ended, by whomever."""
        return self._path(claim, ".over").exists()

    def facts_of(self, claim: Claim) -> dict[str, Any]:
        """What was said when the claim was made."""
        return read(self._path(claim)) or {}

    def losses(self, key: str) -> int:
        """How many claims of a job were lost with their task."""
        paths = self.claims.glob(f"{key}.*.over.json")
        return sum(bool((read(path) or {}).get("lost")) for path in paths)

    def ask(self, array: str, what: str, reason: str) -> None:
        """Ask the tasks of an array to "stop" between two steps, or to "kill" their runs. Only the driver may."""
        replace(self.folder / f"ask.{array}.json", {"what": what, "reason": reason})

    def asked(self, array: str) -> tuple[str, str] | None:
        """What the tasks of an array are asked to do, and why; None for nothing."""
        facts = read(self.folder / f"ask.{array}.json")
        return (facts["what"], facts["reason"]) if facts else None

    def signs(self) -> dict[str, dict[str, Any]]:
        """The last sign of life of each task that has started."""
        paths = sorted(self.tasks.glob("*.json"))
        return {path.stem: facts for path in paths if not path.name.startswith(".") and (facts := read(path))}

    def refresh(self) -> None:
        """Make a client of a network file system look again: it may keep the content of folders for a minute."""
        for path in (self.folder, self.claims, self.tasks):
            with contextlib.suppress(OSError):
                path.chmod(path.stat().st_mode)

    def remove(self) -> None:
        """Remove the folder, and the one around it if nothing else is there. No task may be alive."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def clear(self) -> None:
        """Forget all jobs and claims. No task may be alive."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._over, self._read = {}, None
        self._make()

    def _make(self) -> None:
        for path in (self.claims, self.tasks):
            path.mkdir(parents=True, exist_ok=True)

    def _ending(self, claim: Claim) -> dict[str, Any] | None:
        """What ended a claim; None where it cannot be read yet."""
        if claim not in self._over and (facts := read(self._path(claim, ".over"))):
            self._over[claim] = facts
        return self._over.get(claim)

    def _path(self, claim: Claim, suffix: str = "") -> Path:
        return self.claims / f"{claim.key}.{claim.number}{suffix}.json"
