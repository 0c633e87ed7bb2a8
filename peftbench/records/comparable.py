"""May two runs be compared, and if not, what differs? One rule for tables, for papers' figures and for `--against`.

Two runs are comparable if they were asked for the same backbone, the same task and the same training: every field of
these parts of their specs is equal. A field that is added to a spec counts from then on. Four fields do not count:

- `lr`: the rate belongs to the method, as do its hyperparameters and its size.
- The seed: repetitions are what a comparison consists of. The probes: they look at a network and change nothing.
- `accumulation` under a budget of memory: the budget is what is equal, and each method splits a batch as it must.
  Without that budget it counts: dropout draws other masks for other parts, and the peak of memory is another one.
- `eval_every` where no evaluation decides anything (no `patience`, and the last checkpoint is tested): evaluations
  draw no random numbers and train nothing, so losses and predictions are the same bit for bit. Where one decides, it
  counts, and `patience` and `checkpoint` always do.

Some fields count although they rarely change a number. `model` seeds the streams of random numbers. `tokens` is the
budget that a table states for all its rows, even where the same steps follow from another one. `compile` and
`gradient_checkpointing` change times, memory and the last digits.

The experiment's name, the method's version and the environment are no part of the rule: a figure may join several
experiments, and reports name the other two in notes.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

from peftbench.records.spec import ProfileSpec, RunSpec, TrainSpec, digest

NAMES = {  # fields of a setting, as people and experiment files call them
    "backbone.model": "model",
    "backbone.fingerprint": "model fingerprint",
    "backbone.revision": "revision",
    "backbone.roles": "roles",
    "backbone.dtype": "dtype",
    "backbone.dropout": "backbone_dropout",
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
}


class Difference(NamedTuple):
    """A field that keeps two runs apart, by the name that people know, with both values as text."""

    name: str
    here: str
    there: str

    def __str__(self) -> str:
        return f"{self.name}: {self.there} there, {self.here} here"

    @property
    def either(self) -> str:
        """For a reader to whom neither side is "here"."""
        return f"{self.name}: {self.here} or {self.there}"


def setting(spec: RunSpec) -> dict[str, Any]:
    """What must be equal for two runs to be comparable: the fields that count, by place: "train.steps" -> 40."""
    parts: tuple[tuple[str, Any], ...] = (("backbone", spec.backbone), ("task", spec.task), ("train", spec.train))
    whole = {f"{name}.{f.name}": getattr(part, f.name) for name, part in parts for f in fields(part)}
    not_counted = _not_counted(spec.train)
    return {place: value for place, value in whole.items() if place not in not_counted}


def _not_counted(train: TrainSpec) -> set[str]:
    decides = train.patience is not None or train.checkpoint != "last"
    optional = {"train.accumulation": train.memory is not None, "train.eval_every": not decides}
    return {"train.lr", *(place for place, is_free in optional.items() if is_free)}


def key(spec: RunSpec) -> str:
    """64 hex digits, the same for two runs exactly where they are comparable."""
    return digest(setting(spec))


def differences(here: RunSpec, there: RunSpec) -> list[Difference]:
    """What keeps two runs from being compared; empty where they may be."""
    mine, other = setting(here), setting(there)
    # A field that counts on one side only is not to blame: memory, patience or checkpoint differs as well.
    return [_difference(k, v, other[k]) for k, v in mine.items() if k in other and v != other[k]]


def _difference(place: str, here: Any, there: Any) -> Difference:
    return Difference(NAMES.get(place, place), _brief(here), _brief(there))


def _brief(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text  # a fingerprint


def times_apply(profile: ProfileSpec, run: RunSpec) -> bool:
    """Whether a profile pass measured steps such as the run's: on the same backbone and task, in the same shape.

    A pass has no schedule of its own.
    """
    train = replace(
        run.train,
        batch_size=profile.batch_size,
        max_length=profile.max_length,
        accumulation=profile.accumulation,
    )
    return not differences(run, replace(run, backbone=profile.backbone, task=profile.task, train=train))
