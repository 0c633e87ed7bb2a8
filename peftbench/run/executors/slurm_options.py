"""The options of the executor `slurm`: what `--set slurm.NAME=VALUE` may say, and what sbatch is told of it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from peftbench.errors import UserError, shown, unknown

OPTIONS = {
    "cluster": "where tasks run: slurm, local (processes) or debug (a thread); the last two ignore what is for sbatch",
    "partition": "the partition of the tasks",
    "account": "the account that pays for the tasks",
    "qos": "the quality of service of the tasks",
    "time": "the time limit of a task, such as 04:00:00 or 1-12:00:00; then it is queued again; default: 04:00:00",
    "gpus": "the GPUs of a task, such as 1 or a100:1",
    "cpus": "the cores of a task",
    "memory": "the memory of a task, such as 32G",
    "constraint": "the features that a node must have, such as a100",
    "nodes": "the nodes of each element of the array; each node carries out runs of its own; default: 1",
    "array_parallelism": "how many elements the array has at most; default: 32",
    "setup": "shell commands before a task starts, such as 'module load cuda'",
    "profile_constraint": "the kind of node of the profile pass; default: that of constraint",
    "additional.*": "any other parameter of sbatch by its long name, such as additional.reservation=mine",
}
CLUSTERS = ("slurm", "local", "debug")
SIGNAL_SECONDS = 120  # before its time limit a task is told of it
LOCAL_SIGNAL_SECONDS = 30  # the same by submitit's executor `local`, which cannot be told another
INSTALL = "pip install 'peftbench[slurm]'"
MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
GPUS = re.compile(r"([\w.-]+:)?[1-9]\d*")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
OWN = ("array", "chdir", "error", "job-name", "open-mode", "output", "signal")  # what submitit relies on


@dataclass(frozen=True)
class Options:
    """The options, checked. None leaves a parameter to the cluster; `OPTIONS` says what each is."""

    cluster: str = "slurm"
    minutes: int = 240
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    memory: str | None = None
    constraint: str | None = None
    nodes: int = 1
    array_parallelism: int = 32
    setup: str | None = None
    profile_constraint: str | None = None
    additional: Mapping[str, str | bool] = field(default_factory=dict)

    @property
    def has_whole_nodes(self) -> bool:
        """Whether no other job of the cluster may be on a task's node."""
        return "exclusive" in self.additional

    @property
    def signal_seconds(self) -> int:
        """How long before its time limit a task is told of it."""
        return min(SIGNAL_SECONDS, self.minutes * 60 // 4) if self.cluster == "slurm" else LOCAL_SIGNAL_SECONDS

    def parameters(self, name: str, exclusive: bool = False, after: Iterable[str] = ()) -> dict[str, Any]:
        """The parameters of submitit's `AutoExecutor`.

        Args:
            name: of the jobs in the queue.
            exclusive: whether the task has its node to itself, which is of the kind of the profile pass.
            after: ids of jobs that must have ended before.
        """
        nodes = 1 if exclusive else self.nodes
        shared = {"name": name, "timeout_min": self.minutes, "nodes": nodes, "cpus_per_task": self.cpus}
        if self.cluster != "slurm":
            gpus = int(self.gpus.rpartition(":")[2]) if self.gpus else None
            return _given(shared | {"gpus_per_node": gpus})
        additional = dict(self.additional)
        if before := [*([str(d)] if (d := additional.pop("dependency", None)) else []), *_dependency(after)]:
            additional["dependency"] = ",".join(before)
        constraint = (self.profile_constraint if exclusive else None) or self.constraint
        slurm = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "gpus_per_node": self.gpus,
            "mem": self.memory,
            "constraint": constraint,
            "ntasks_per_node": 1 if nodes > 1 else None,
            "exclusive": True if exclusive else None,
            "setup": [self.setup] if self.setup else None,
            "array_parallelism": self.array_parallelism,
            "signal_delay_s": self.signal_seconds,
            "srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else None,  # not inherited since SLURM 22.05
            "additional_parameters": additional or None,
        }
        return _given(shared | {f"slurm_{key}": value for key, value in slurm.items()})


def read(given: Mapping[str, str]) -> Options:
    """The options that were given as text.

    Raises:
        UserError: a value is not valid.
    """
    texts = {k: v for k, v in given.items() if not k.startswith("additional.")}
    for name, text in texts.items():
        if not text or "\n" in text or "\0" in text:
            raise _wrong(name, text, "must be a text of one line")
    values: dict[str, Any] = dict(texts)
    if "cluster" in texts and texts["cluster"] not in CLUSTERS:
        raise unknown("slurm.cluster", texts["cluster"], CLUSTERS)
    if "time" in texts:
        values["minutes"] = _minutes(values.pop("time"))
    for name in ("cpus", "nodes", "array_parallelism"):
        if name in texts:
            values[name] = _count(name, texts[name])
    if "memory" in texts and not MEMORY.fullmatch(texts["memory"]):
        raise _wrong("memory", texts["memory"], "must be a size such as 32G")
    if "gpus" in texts and not GPUS.fullmatch(texts["gpus"]):
        raise _wrong("gpus", texts["gpus"], "must be a number, or a type and a number, such as 1 or a100:1")
    options = Options(**values, additional=_additional(given))
    if options.cluster != "slurm" and options.nodes > 1:
        raise _wrong("nodes", str(options.nodes), f"must be 1 with slurm.cluster={options.cluster}, on one machine")
    return options


def check(given: Mapping[str, str]) -> None:
    """Raise UserError if a value is not valid, or what the cluster needs is not here."""
    options = read(given)
    if find_spec("submitit") is None:
        raise UserError(f"the executor 'slurm' needs submitit: {INSTALL}")
    if options.cluster == "slurm":
        missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
        if missing:
            raise UserError(
                f"the executor 'slurm' finds no {missing[0]} here; run on a login node of the cluster, or with "
                "--set slurm.cluster=local on this machine"
            )


def _minutes(text: str) -> int:
    """The minutes of a time limit as sbatch writes them, rounded up."""
    match = TIME.fullmatch(text)
    parts = [int(p) for p in match["parts"].split(":")] if match else []
    seconds = 0
    if match and match["days"] is not None:  # days-hours:minutes:seconds
        hours, minutes, rest = [*parts, 0, 0][:3]
        seconds = int(match["days"]) * 86_400 + hours * 3600 + minutes * 60 + rest
    elif match:  # minutes, minutes:seconds or hours:minutes:seconds
        hours, minutes, rest = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
        seconds = hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise _wrong("time", text, "must be a time such as 04:00:00 or 1-12:00:00")
    return -(-seconds // 60)


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 100_000):
        raise _wrong(name, text, "must be a whole number from 1")
    return int(text)


def _additional(given: Mapping[str, str]) -> dict[str, str | bool]:
    """Other parameters of sbatch by name; those without a value are "true"."""
    found: dict[str, str | bool] = {}
    for option, text in given.items():
        prefix, _, name = option.partition(".")
        if prefix != "additional":
            continue
        name = name.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in text:
            raise UserError(f"slurm.{option}: must be the long name of a parameter of sbatch, and a text of one line")
        if name in OWN:
            raise UserError(f"slurm.{option}: submitit sets this parameter of sbatch itself; leave it out")
        found[name] = True if text in ("", "true") else text
    return found


def _dependency(after: Iterable[str]) -> list[str]:
    ids = sorted({element.partition("_")[0] for element in after})
    return [f"afterany:{':'.join(ids)}"] if ids else []


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _wrong(name: str, text: str, valid: str) -> UserError:
    return UserError(f"slurm.{name}: given {shown(text)}; {valid}")
