"""Whether two runs may be compared, and if not, what differs: one rule for tables, papers' figures and `--against`.

Two runs are comparable if their backbone, task and training are the same: every field of these parts of their specs is
equal. A field that is added to a spec counts automatically. These fields do not count:

- `lr`: the learning rate belongs to the method, as do its hyperparameters and its size.
- The seed, because a comparison consists of repetitions. The probes, because they change nothing.
- `accumulation` under a memory budget: the budget is equal, and each method splits its batches to meet it. Without that
  budget it counts, because it changes dropout masks and the memory peak.
- The name and the options of a task that is a user's own files: its fingerprint covers their content, in splits that
  depend on nothing else. Files of version 1 were split by their name, so that theirs count.
- `eval_every`, unless `patience` is set or the best checkpoint is tested: evaluations draw no random numbers, so losses
  and predictions are the same bit for bit. `patience` and `checkpoint` always count.

Some fields count although they rarely change a number. `model` seeds the streams of random numbers. `tokens` is the
budget that a table states for all its rows, even if another budget gives the same steps. `compile` and
`gradient_checkpointing` change times, memory and the last digits.

The experiment's name, the method's version and the environment do not count: a figure may join several experiments,
and reports name different versions and environments in notes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

from peftbench.records.bodies import Environment
from peftbench.records.spec import ProfileSpec, RunSpec, TrainSpec, digest

NAMES = {  # what messages and experiment files call the fields
    "backbone.model": "model",
    "backbone.fingerprint": "model fingerprint",
    "backbone.revision": "revision",
    "backbone.roles": "roles",
    "backbone.dtype": "dtype",
    "backbone.dropout": "backbone_dropout",
    "backbone.dropout_version": "dropout_version",
    "backbone.gradient_checkpointing": "gradient_checkpointing",
    "backbone.compile": "compile",
    "task.name": "task",
    "task.fingerprint": "data fingerprint",
    "task.version": "version of the task's code",
    "task.stand_in_for": "stand-in for",
    "task.options": "task options",
    "train.steps": "steps",
    "train.batch_size": "batch size",
    "train.max_length": "max_length",
    "train.accumulation": "accumulation",
    "train.head_lr": "head_lr",
    "train.warmup": "warmup",
    "train.decay": "decay",
    "train.weight_decay": "weight_decay",
    "train.clip": "clip",
    "train.eval_every": "eval_every",
    "train.patience": "patience",
    "train.checkpoint": "checkpoint",
    "train.tokens": "tokens",
    "train.seconds": "seconds",
    "train.memory": "memory",
    "train.data_parallel": "parallel.data",
    "train.shards": "parallel.shards",
}


class Difference(NamedTuple):
    """A field in which two runs differ, so that they are not comparable.

    Attributes:
        name: the field's name in messages.
        here: the value in the first run, as text.
        there: the value in the second run, as text.
    """

    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name}: {self.there} there, {self.here} here"

    @property
    def either(self) -> str:
        """The difference for a reader who sees both runs from outside."""
        return f"{self.name}: {self.here} or {self.there}"


def setting(spec: RunSpec) -> dict[str, Any]:
    """Return the fields that must be equal for two runs to be comparable, by path: "train.steps" -> 40."""
    parts: tuple[tuple[str, Any], ...] = (("backbone", spec.backbone), ("task", spec.task), ("train", spec.train))
    whole = {f"{name}.{f.name}": getattr(part, f.name) for name, part in parts for f in fields(part)}
    not_counted = {*_not_counted(spec.train), *(f"task.{name}" for name in spec.task.display)}
    return {place: value for place, value in whole.items() if place not in not_counted}


def _not_counted(train: TrainSpec) -> set[str]:
    """Return the paths of the training fields that do not count."""
    decides = train.patience is not None or train.checkpoint != "last"
    optional = {"train.accumulation": train.memory is not None, "train.eval_every": not decides}
    return {"train.lr", *(place for place, is_free in optional.items() if is_free)}


def key(spec: RunSpec) -> str:
    """Return 64 hex digits that are equal for two runs if and only if they are comparable."""
    return digest(setting(spec))


def differences(here: RunSpec, there: RunSpec) -> list[Difference]:
    """List what makes two runs incomparable.

    Args:
        here: the specification of the first run.
        there: that of the second run.

    Returns:
        The fields that count and differ; empty if the runs are comparable.
    """
    mine, other = setting(here), setting(there)
    # A field may count for one run only; then memory, patience or checkpoint differs too, and is the one to name.
    return [_difference(k, v, other[k]) for k, v in mine.items() if k in other and v != other[k]]


def _difference(place: str, here: Any, there: Any) -> Difference:
    return Difference(NAMES.get(place, place), _brief(here), _brief(there))


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text  # a fingerprint


def times_apply(profile: ProfileSpec, run: RunSpec) -> bool:
    """Whether the step times of a profile pass apply to a run: same backbone, task, batch size, length, accumulation.

    A pass has no schedule, so schedules do not count.
    """
    train = replace(
        run.train,
        batch_size=profile.batch_size,
        max_length=profile.max_length,
        accumulation=profile.accumulation,
    )
    return not differences(run, replace(run, backbone=profile.backbone, task=profile.task, train=train))


def machine_kind(env: Environment) -> str:
    """Name the kind of machine of an environment. Times are compared only where the name is the same.

    It has the GPU, or on a CPU the number of threads; the processor; and the system. Versions of code and packages do
    not count: reports name different environments in notes.
    """
    processor = env.cpu.model or "unknown processor"
    if env.gpu is not None:
        return f"{env.gpu.name} ({processor}, {env.platform})"
    threads = "" if env.threads is None else f", {env.threads} thread{'s' if env.threads > 1 else ''}"
    where = "" if env.device == "cpu" else f"{env.device} of "
    return f"{where}{processor}{threads} ({env.platform})"
