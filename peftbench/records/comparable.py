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

from collections.abc import Mapping
from typing import Any, NamedTuple

from peftbench.records.spec import completed, digest

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
SHAPE = ("batch_size", "max_length", "accumulation")  # of a step; a profile pass has them at the top of its spec


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


def setting(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for two runs to be comparable.

    Args:
        spec: a run's spec as plain values, as records have it and `as_dict` makes it.

    Returns:
        The fields that count, by place: "train.steps" -> 40.
    """
    whole = completed("run", spec)
    train = {key: value for key, value in whole["train"].items() if key not in _not_counted(whole["train"])}
    parts = {"backbone": whole["backbone"], "task": whole["task"], "train": train}
    return {f"{part}.{key}": value for part, fields in parts.items() for key, value in fields.items()}


def _not_counted(train: Mapping[str, Any]) -> set[str]:
    decides = train["patience"] is not None or train["checkpoint"] != "last"
    optional = {"accumulation": train["memory"] is not None, "eval_every": not decides}
    return {"lr", *(key for key, is_free in optional.items() if is_free)}


def key(spec: Mapping[str, Any]) -> str:
    """64 hex digits, the same for two runs exactly where they are comparable."""
    return digest(setting(spec))


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """What keeps two runs from being compared; empty where they may be.

    Args:
        here: the spec of one run, as `setting` takes it.
        there: that of the other.
    """
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


def times_apply(profile: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a profile pass measured steps such as the run's: on the same backbone and task, in the same shape.

    Args:
        profile: the spec of the pass, which has no schedule of its own.
        run: the spec of the run.
    """
    shape = {name: profile.get(name, 1) for name in SHAPE}
    measured = {**run, "backbone": profile["backbone"], "task": profile["task"], "train": {**run["train"], **shape}}
    return not differences(run, measured)
