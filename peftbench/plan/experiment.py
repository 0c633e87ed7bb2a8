"""The sections of an experiment file, as types that check their values.

`read.py` turns a file into an `Experiment`. Nothing here imports torch or a method: `configurations.py` checks the
methods' hyperparameters against the catalogue of methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from peftbench.errors import UserError
from peftbench.measure.probes import CARDS
from peftbench.measure.probes import known as known_probes
from peftbench.plan import limits
from peftbench.plan.axes import AxesSection
from peftbench.plan.memory_size import parsed_size
from peftbench.plan.strict_yaml import Document, Place
from peftbench.records.retries import TimeLimits
from peftbench.report.stats.spending import looks

RESERVED = ("label", "lr", "first_seed", "search_space", "exempt")  # keys of a method's mapping, not hyperparameters
EXEMPTIBLE = ("trainable_params", "memory", "trials")  # budgets that a method or a task may be exempt from
LENGTH_UNITS = ("steps", "tokens", "seconds")  # a budget limits the length of a run in exactly one of them

Steps = Annotated[int, Field(ge=1, le=limits.STEPS)]
Tokens = Annotated[int, Field(ge=1, le=limits.TOKENS)]
Seconds = Annotated[float, Field(gt=0, le=limits.SECONDS)]
BatchSize = Annotated[int, Field(ge=1, le=limits.BATCH_SIZE)]
Length = Annotated[int, Field(ge=2, le=limits.LENGTH)]
Rounds = Annotated[int, Field(ge=1, le=limits.ROUNDS)]
Positive = Annotated[float, Field(gt=0)]
Reason = Annotated[str, Field(min_length=1, description="why; printed in every table")]
Exemptions = Mapping[str, Reason]  # keys: see EXEMPTIBLE


class Section(BaseModel):
    """A mapping in the file. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TaskSection(Section):
    """A task, and the parts of the budget and the schedule that differ for it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    task: str = Field(min_length=1, description="a name that `peftbench tasks` lists, or local for your own files")
    stand_in: str | None = Field(None, description="the task to run if this one's data is not available")
    steps: Steps | None = Field(None, description="optimiser steps on this task")
    tokens: Tokens | None = Field(None, description="training tokens on this task")
    seconds: Seconds | None = Field(None, description="seconds of training steps on this task")
    batch_size: BatchSize | None = Field(None, description="examples in an optimiser step on this task")
    max_length: Length | None = Field(None, description="tokens kept of an example of this task")
    eval_every: Steps | None = Field(None, description="steps between evaluations on this task's validation split")
    exempt: Exemptions = Field({}, description="budgets that do not hold on this task, each with the reason")

    @property
    def options(self) -> dict[str, Any]:
        """The other keys of the mapping: row limits, and the files and columns of a local task."""
        return dict(self.model_extra or {})


class SeedsSection(Section):
    """Seeds until decided: how many repetitions there are at the least, and at the most."""

    least: int = Field(3, ge=2, le=limits.SEEDS, description="seeds of every row before the first look")
    most: int = Field(30, ge=2, le=limits.SEEDS, description="seeds at which even an undecided row stops")
    until: Literal["decided"] = Field("decided", description="a row stops when its verdicts are sure")
    looks: tuple[Annotated[int, Field(ge=2, le=limits.SEEDS)], ...] | None = Field(
        None,
        strict=False,
        min_length=1,
        max_length=limits.LOOKS,
        description="numbers of seeds at which verdicts are computed; null: from least to most, each about 1.6 times "
        "the one before",
    )
    spending: Literal["obrien_fleming", "pocock"] = Field(
        "obrien_fleming",
        description="how the error is spent over the looks: late, so that few seeds decide nothing, or evenly, so that "
        "clear rows stop early, at a stricter last look and a level that is kept less exactly",
    )

    @model_validator(mode="after")
    def _grows(self) -> SeedsSection:
        if self.least > self.most:
            raise ValueError(f"least: {self.least} is above most: {self.most}")
        if self.looks is not None and (self.looks[0], self.looks[-1]) != (self.least, self.most):
            raise ValueError(f"looks begin with least, {self.least}, and end with most, {self.most}")
        if self.looks is not None and any(a >= b for a, b in itertools.pairwise(self.looks)):
            raise ValueError("looks must ascend, such as looks: [3, 5, 8]")
        return self

    @property
    def planned_looks(self) -> tuple[int, ...]:
        """The numbers of seeds at which verdicts are computed."""
        return self.looks or looks(self.least, self.most)


class ClaimSection(Section):
    """A question that is asked before the runs; 5 % is divided by the number of questions, not of rows."""

    method: str = Field(min_length=1, description="label of the method that it is about")
    against: str | None = Field(None, description="label of the other method; null: the reference")
    relation: Literal["better", "worse", "equal", "not_worse"] | None = Field(
        None,
        alias="is",
        description="what is claimed; equal: within the margin, not_worse: by more than the margin; null: only asked",
    )
    task: str | None = Field(None, description="the task that it is asked on; null: each task")


def _form(seeds: Any) -> str:
    return "until decided" if isinstance(seeds, dict | SeedsSection) else "fixed"


Seeds = Annotated[
    Annotated[int, Field(ge=1, le=limits.SEEDS), Tag("fixed")] | Annotated[SeedsSection, Tag("until decided")],
    Discriminator(_form),
]
FORMS = ("fixed", "until decided")  # of `seeds`; pydantic names them in the places of mistakes


class BudgetSection(Section):
    """The budget that every method gets."""

    trainable_params: int | None = Field(
        None, ge=1, le=limits.PARAMETERS, description="trainable parameters outside the head; null: not matched"
    )
    tolerance: float = Field(0.05, ge=0, lt=1, description="largest relative deviation that counts as matched")
    strict: bool = Field(False, description="refuse methods with no size within the tolerance")
    steps: Steps = Field(200, description="optimiser steps")
    tokens: Tokens | None = Field(None, description="training tokens in all; the number of steps follows from them")
    seconds: Seconds | None = Field(None, description="seconds of training steps, in place of a number of steps")
    memory: str | None = Field(None, description="peak of a training step, e.g. 2GiB: batches are split until they fit")
    batch_size: BatchSize = Field(16, description="examples in an optimiser step")
    accumulation: BatchSize = Field(1, description="parts that a batch is computed in, to save memory")
    max_length: Length = Field(128, description="tokens kept of an example")
    seeds: Seeds = Field(
        3, description="repetitions of each run; or least and most, to repeat a run until its verdicts are sure"
    )
    trials: int | None = Field(
        None, ge=1, le=limits.TRIALS, description="tuning trials of each configuration; null: no tuning"
    )
    tuning_steps: Steps | None = Field(None, description="optimiser steps of a trial; null: as long as a final run")
    extensions: int = Field(
        3,
        ge=0,
        le=limits.EXTENSIONS,
        description="how often trials go on beyond an edge of the search space if the best value lies there",
    )

    @property
    def length_unit(self) -> str:
        """The one of `LENGTH_UNITS` that limits a run."""
        return next((name for name in LENGTH_UNITS[1:] if getattr(self, name) is not None), LENGTH_UNITS[0])

    @property
    def most_seeds(self) -> int:
        """The largest number of repetitions."""
        return self.seeds if isinstance(self.seeds, int) else self.seeds.most

    @property
    def memory_bytes(self) -> int | None:
        """The budget of memory in bytes; None if there is none."""
        return None if self.memory is None else parsed_size(self.memory)

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, memory: str | None) -> str | None:
        try:
            return memory if memory is None or parsed_size(memory) else None
        except UserError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _has_parts(self) -> BudgetSection:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation: {self.accumulation} parts of a batch of {self.batch_size} examples; give at most that"
            )
        if self.memory is not None and "accumulation" in self.model_fields_set:
            raise ValueError("memory decides in how many parts a batch is computed; leave out accumulation")
        return self

    @model_validator(mode="after")
    def _has_one_length(self) -> BudgetSection:
        units = [n for n in LENGTH_UNITS if n in self.model_fields_set and getattr(self, n) is not None]
        if len(units) > 1:
            raise ValueError(f"given {' and '.join(units)}; a budget has exactly one of {', '.join(LENGTH_UNITS)}")
        if self.tuning_steps is not None and self.trials is None:
            raise ValueError("tuning_steps is the length of trials, and there are none; set trials, e.g. trials: 4")
        if self.trials is None and self.extensions and "extensions" in self.model_fields_set:
            raise ValueError("extensions are of trials, and there are none; set trials, e.g. trials: 4")
        return self


class BackboneSection(Section):
    """The base model: an embedded preset, a directory or a hub id."""

    model: str = Field(
        min_length=1, description="minilm-l6, smollm2-135m, a directory (from the file's folder), or a hub id"
    )
    revision: str | None = Field(None, description="commit or tag on the hub")
    roles: dict[str, Any] | None = Field(None, description="module paths by role, for an unknown architecture")


class TrainSection(Section):
    """The training schedule, the same for all methods. Learning rates belong to the methods."""

    warmup: float = Field(0.06, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    decay: Literal["linear", "cosine", "constant"] = Field("linear", description="how the rate falls after the warm-up")
    weight_decay: float = Field(0.0, ge=0, le=limits.RATE, description="weight decay of AdamW, on matrices only")
    clip: Positive | None = Field(1.0, description="largest norm of the whole gradient; null: no clipping")
    head_lr: float | None = Field(
        None, gt=0, le=limits.RATE, description="learning rate of the task head; null: the method's own rate"
    )
    eval_every: Steps | None = Field(None, description="steps between evaluations on validation; null: only at the end")
    patience: Steps | None = Field(None, description="evaluations without improvement before a run stops early")
    checkpoint: Literal["last", "best"] = Field("last", description="the weights to test; best: by validation score")

    @model_validator(mode="after")
    def _evaluates_when_it_must(self) -> TrainSection:
        for key, is_set in (("patience", self.patience is not None), ("checkpoint: best", self.checkpoint == "best")):
            if is_set and self.eval_every is None:
                raise ValueError(f"{key} needs evaluations to choose from; set eval_every, e.g. eval_every: 50")
        return self


class ParallelSection(Section):
    """One run on several devices, by as many processes. Each takes its part of every batch."""

    data: int | None = Field(None, ge=2, le=limits.RANKS, description="processes that each hold the whole network")
    shards: int | None = Field(
        None, ge=2, le=limits.RANKS, description="processes that share the base's weights, by FSDP2"
    )

    @model_validator(mode="after")
    def _is_one_kind(self) -> ParallelSection:
        if (self.data is None) == (self.shards is None):
            raise ValueError("give data or shards, e.g. shards: 2")
        return self

    @property
    def ranks(self) -> int:
        """How many processes share a run."""
        return (self.data or 1) * (self.shards or 1)


class LatencySection(Section):
    """The shapes at which the profile pass times inference."""

    batches: tuple[BatchSize, ...] = Field(
        (1, 8, 32), strict=False, min_length=1, max_length=limits.SHAPES, description="examples in a batch"
    )
    lengths: tuple[Length, ...] = Field(
        (), strict=False, max_length=limits.SHAPES, description="tokens, besides the task's median length"
    )
    rounds: Rounds | None = Field(None, description="timed rounds; a p95 needs 20; null: as many as for the steps")
    tokens: int = Field(
        8, ge=1, le=limits.LENGTH, description="tokens to generate after each prompt, where the network generates"
    )


class ProfileSection(Section):
    """The profile pass. It measures times after all runs, while nothing else runs."""

    processes: int = Field(
        5, ge=1, le=limits.PROCESSES, description="processes that repeat the pass one after another, for the intervals"
    )
    rounds: Rounds = Field(5, description="timed rounds through all methods, in each process")
    warmup: int = Field(2, ge=0, le=limits.ROUNDS, description="untimed rounds before the timed ones, in each process")
    latency: LatencySection = LatencySection()


class TimeoutSection(Section):
    """When a run is ended. It says nothing of what runs, so it is no part of a specification."""

    run: Positive | None = Field(None, description="seconds of a whole run: loading, training and tests")
    step: Positive | None = Field(None, description="seconds of a training step, or of a batch of an evaluation")

    def limits(self, run: float | None = None) -> TimeLimits:
        """Return the limits, with other seconds for a whole run if given."""
        return TimeLimits(self.run if run is None else run, self.step)


@dataclass(frozen=True)
class MethodEntry:
    """One item of `methods:` as written. Lists in `lr` and `hyper` are grids that are not yet expanded.

    Attributes:
        name: the method's name.
        place: where the entry is in the file.
        label: one label, or a list with one label for each point of the grid.
        lr: a learning rate or a list of them; None: the method's default.
        first_seed: the seed of the first repetition; the others follow it.
        hyper: hyperparameters by name.
        search_space: the values that trials draw from, in place of the method's own.
        exempt: reasons by the name of the budget that does not hold for this method.
    """

    name: str
    place: Place
    label: Any = None
    lr: Any = None
    first_seed: Any = 0
    hyper: Mapping[str, Any] = field(default_factory=dict)
    search_space: Any = None
    exempt: Any = None


class Experiment(Section):
    """A whole experiment file, checked."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", description="names the results directory")
    description: str = Field("", description="one line for people")
    backbone: BackboneSection
    tasks: tuple[TaskSection, ...] = Field(min_length=1)
    budget: BudgetSection = BudgetSection()
    axes: AxesSection = AxesSection()
    train: TrainSection = TrainSection()
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="dtype of the weights that do not train")
    deterministic: bool = Field(False, description="only kernels that give the same bits each time; slower on a GPU")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass: less memory")
    compile: bool = Field(False, description="compile the training step with torch.compile")
    backbone_dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the base model; null: its default")
    dropout_version: Literal[1, 2] | None = Field(
        None, description="whose masks the base model's dropout has on a CPU: 1, torch's; 2, its own; null: the newest"
    )
    probes: Annotated[
        tuple[str, ...], WithJsonSchema({"type": "array", "items": {"enum": sorted(CARDS)}, "uniqueItems": True})
    ] = Field((), strict=False, description="what each run measures of the trained network besides its scores")
    save_adapters: bool = Field(False, description="keep each run's trained adapter under the results directory")
    checkpoint_every: Steps | None = Field(
        None, description="steps after which an unfinished run is saved, to go on from there; null: it begins again"
    )
    parallel: ParallelSection | None = Field(None, description="one run on several devices: {data: N} or {shards: N}")
    jobs: int | None = Field(
        None, ge=1, le=limits.JOBS, description="worker processes, which share the machine; null: 1, or 1 for each GPU"
    )
    timeout: TimeoutSection = TimeoutSection()
    reference: str = Field("full", description="the label of the method that ratios are relative to")
    margin: float | None = Field(
        None,
        ge=limits.LEAST_MARGIN,
        le=limits.MARGIN,
        description="largest difference that does not matter; null: 2 points, or 2 %",
    )
    prefer: Literal["memory", "parameters", "time"] = Field(
        "memory", description="the cost that decides among methods within the margin of the best"
    )
    claims: tuple[ClaimSection, ...] = Field(
        (), strict=False, max_length=limits.CLAIMS, description="questions planned before the runs"
    )
    profile: ProfileSection | None = Field(ProfileSection(), description="false: measure no times")
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
        """The path of the experiment file."""
        return self._document.path

    @property
    def added(self) -> tuple[str, ...]:
        """The methods that `--method` added to those of the file, as written there."""
        return self._added

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `KEY=VALUE` texts of `--set` that replaced values of the file."""
        return self._overrides

    def is_from_option(self, place: Place) -> bool:
        """Whether an option of the command line set the value at a place, not the file."""
        return any(place[:n] in self._document.origins for n in range(1, len(place) + 1))

    def where(self, place: Place) -> str:
        """Describe a place in this experiment's file, to begin a message with."""
        return self._document.where(place)

    def error(self, place: Place, message: str) -> UserError:
        """Return the error for the value at a place in this experiment's file."""
        return self._document.error(place, message)

    def profile_of(self, rounds: int | None = None, processes: int | None = None) -> ProfileSection:
        """Return the file's profile section with some values replaced; the defaults if the file has `profile: false`.

        Args:
            rounds: timed rounds of steps and of latencies, in place of the file's.
            processes: processes, in place of the file's.
        """
        section = self.profile or ProfileSection()
        if processes is not None:
            section = section.model_copy(update={"processes": processes})
        if rounds is None:
            return section
        latency = section.latency.model_copy(update={"rounds": None})
        return section.model_copy(update={"rounds": rounds, "latency": latency})
