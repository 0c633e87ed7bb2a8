"""YAML -> `Experiment`: the only place that knows the file format of an experiment.

Every mistake in a file is reported with the file, the place (`methods[2].lora.rank`), the line, what was given and what
is valid; all mistakes that can be told apart at once come in one `UserError`. What a method's hyperparameters are is
asked of the methods' facts (configurations.py), so that nothing here imports torch or a method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import WithJsonSchema

from peftbench.errors import UserError
from peftbench.measure.probes import CARDS
from peftbench.measure.probes import known as known_probes
from peftbench.plan.strict_yaml import Document, Place
from peftbench.plan.units import parsed_size

RESERVED = ("label", "lr", "first_seed", "search_space", "exempt")  # keys of a method's mapping, not hyperparameters


Count = Annotated[int, Field(ge=1)]


Length = Annotated[int, Field(ge=2)]


Positive = Annotated[float, Field(gt=0)]


Reason = Annotated[str, Field(min_length=1, description="why; printed in every table")]


Exempt = Mapping[str, Reason]  # of `EXEMPT`, each with the reason


EXEMPT = ("trainable_params", "memory", "trials")  # budgets that a method or a task may be exempt from


LENGTHS = ("steps", "tokens", "seconds")  # what limits a run: a budget has exactly one of them


class Part(BaseModel):
    """A mapping of the file: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Task(Part):
    """A task, and what of the budget is different for it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    task: str = Field(min_length=1, description="a name that `peftbench tasks` lists, or local for your own files")
    stand_in: str | None = Field(None, description="the task that runs where this one cannot be had")
    steps: Count | None = Field(None, description="optimiser steps on this task")
    tokens: Count | None = Field(None, description="training tokens on this task")
    seconds: Positive | None = Field(None, description="seconds of training steps on this task")
    batch_size: Count | None = Field(None, description="examples a step on this task")
    max_length: int | None = Field(None, ge=2, description="tokens kept of an example of this task")
    eval_every: Count | None = Field(None, description="steps between evaluations on this task's validation split")
    exempt: Exempt = Field({}, description="budgets that do not hold on this task, each with the reason")

    @property
    def options(self) -> dict[str, Any]:
        """Everything else in the mapping: row limits, and the files and columns of a local task."""
        return dict(self.model_extra or {})


class Budget(Part):
    """What every method gets the same of."""

    trainable_params: Count | None = Field(None, description="trainable parameters outside the head; null: not matched")
    tolerance: float = Field(0.05, ge=0, lt=1, description="largest deviation that counts as matched")
    strict: bool = Field(False, description="refuse methods with no size within the tolerance")
    steps: Count = Field(200, description="optimiser steps")
    tokens: Count | None = Field(None, description="training tokens in all, in place of steps, which follow from them")
    seconds: Positive | None = Field(None, description="seconds of training steps, in place of a number of steps")
    memory: str | None = Field(None, description="of a step, e.g. 2GiB: batches are computed in parts that fit")
    batch_size: Count = Field(16, description="examples in an optimiser step")
    accumulation: Count = Field(1, description="parts that a batch is computed in, to save memory")
    max_length: int = Field(128, ge=2, description="tokens kept of an example")
    seeds: Count = Field(3, description="repetitions of each run")
    trials: Count | None = Field(None, description="tuning trials of every configuration; null: rates as given")
    tuning_steps: Count | None = Field(None, description="optimiser steps of a trial; null: as long as a final run")

    @property
    def length(self) -> str:
        """Which of `LENGTHS` limits a run."""
        return next((name for name in LENGTHS[1:] if getattr(self, name) is not None), LENGTHS[0])

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parsed_size(self.memory)

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, given: str | None) -> str | None:
        try:
            return given if given is None or parsed_size(given) else None
        except UserError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _has_parts(self) -> Budget:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation: {self.accumulation} parts of a batch of {self.batch_size} examples; give at most that"
            )
        if self.memory is not None and "accumulation" in self.model_fields_set:
            raise ValueError("memory decides in how many parts a batch is computed; leave out accumulation")
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> Budget:
        given = [n for n in LENGTHS if n in self.model_fields_set and getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"given {' and '.join(given)}; a budget has exactly one of {', '.join(LENGTHS)}")
        if self.tuning_steps is not None and self.trials is None:
            raise ValueError("tuning_steps is the length of trials, and there are none; set trials, e.g. trials: 4")
        return self


class Backbone(Part):
    """The base model: an embedded preset, a directory or a hub id."""

    model: str = Field(min_length=1, description="minilm-l6, smollm2-135m, a directory, or a hub id (roberta-base)")
    revision: str | None = Field(None, description="commit or tag on the hub")
    roles: dict[str, Any] | None = Field(None, description="where the roles are, for an architecture that is not known")


class Train(Part):
    """The schedule, equal for all methods; learning rates stand with the methods."""

    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, on matrices only")
    clip: Positive | None = Field(1.0, description="largest norm of the whole gradient; null: no clipping")
    head_lr: Positive | None = Field(None, description="the task head's rate for every method; null: the method's own")
    eval_every: Count | None = Field(None, description="steps between evaluations on validation; null: only at the end")
    patience: Count | None = Field(None, description="evaluations without improvement before a run stops early")
    checkpoint: Literal["last", "best"] = Field("last", description="the weights that are tested; best by validation")

    @model_validator(mode="after")
    def _evaluates_when_it_must(self) -> Train:
        for key, given in (("patience", self.patience is not None), ("checkpoint: best", self.checkpoint == "best")):
            if given and self.eval_every is None:
                raise ValueError(f"{key} needs evaluations to choose from; set eval_every, e.g. eval_every: 50")
        return self


class Latency(Part):
    """At which shapes inference is timed, with adapters and without."""

    batches: tuple[Count, ...] = Field((1, 8, 32), strict=False, min_length=1, description="examples in a batch")
    lengths: tuple[Length, ...] = Field((), strict=False, description="tokens, beside the task's median length")
    rounds: Count | None = Field(None, description="timed rounds; 20 and more have a p95; null: as for the steps")
    tokens: Count = Field(8, description="tokens written after each prompt, where the network generates")


class Profile(Part):
    """The pass that measures times, after the runs and with none beside it."""

    processes: Count = Field(5, description="that take it one after another; the ratios' intervals are over them")
    rounds: Count = Field(5, description="timed rounds through all methods, in each process")
    warmup: int = Field(2, ge=0, description="rounds before them that are not timed, in each process")
    latency: Latency = Latency()


@dataclass(frozen=True)
class MethodEntry:
    """One item of `methods:` as written: lists in `lr` and `hyper` are grids, not yet expanded."""

    name: str
    place: Place
    label: Any = None
    lr: Any = None
    first_seed: Any = 0  # its repetitions have this seed and the following ones
    hyper: Mapping[str, Any] = field(default_factory=dict)
    search_space: Any = None  # in place of the method's own
    exempt: Any = None


class Experiment(Part):
    """A whole file, checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", description="names the results directory")
    description: str = Field("", description="one line for people")
    backbone: Backbone
    tasks: tuple[Task, ...] = Field(min_length=1)
    budget: Budget = Budget()
    train: Train = Train()
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the weights that do not train")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    compile: bool = Field(False, description="compile the training step with torch.compile")
    backbone_dropout: float | None = Field(None, ge=0, lt=1, description="replaces the base model's own; null: its own")
    probes: Annotated[
        tuple[str, ...], WithJsonSchema({"type": "array", "items": {"enum": sorted(CARDS)}, "uniqueItems": True})
    ] = Field((), strict=False, description="what each run measures of the trained network itself, beside its scores")
    save_adapters: bool = Field(False, description="keep each run's trained adapter under the results directory")
    jobs: Count = Field(1, description="worker processes; several share the machine")
    reference: str = Field("full", description="the label that ratios are taken to")
    profile: Profile | None = Field(Profile(), description="false: measure no times")
    methods: Annotated[
        tuple[InstanceOf[MethodEntry], ...], Field(min_length=1), WithJsonSchema({"type": "array", "minItems": 1})
    ]
    _document: Document = PrivateAttr()
    _added: tuple[str, ...] = PrivateAttr(())
    _overrides: tuple[str, ...] = PrivateAttr(())

    @field_validator("probes")
    @classmethod
    def _probes_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return known_probes(names)
        except UserError as error:
            raise ValueError(str(error)) from error

    @property
    def file(self) -> Path:
        return self._document.path

    @property
    def added(self) -> tuple[str, ...]:
        """Methods behind those of the file, as `--method` takes them."""
        return self._added

    @property
    def overrides(self) -> tuple[str, ...]:
        """What stood in place of the file's values, as `--set` takes it."""
        return self._overrides

    def where(self, place: Place) -> str:
        """A place in this experiment's file, to begin a message with."""
        return self._document.where(place)

    def profile_of(self, rounds: int | None = None, processes: int | None = None) -> Profile:
        """The profile pass as the file has it, or the defaults; what is given stands in place of its own.

        Given `rounds`, latencies are timed in as many.
        """
        asked = self.profile or Profile()
        if processes is not None:
            asked = asked.model_copy(update={"processes": processes})
        if rounds is None:
            return asked
        return asked.model_copy(update={"rounds": rounds, "latency": asked.latency.model_copy(update={"rounds": None})})

    def error(self, place: Place, said: str) -> UserError:
        """A mistake at a place in this experiment's file."""
        return self._document.error(place, said)
