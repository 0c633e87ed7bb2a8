"""The parts of an experiment file that say what every method gets the same of: tasks and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from peftbench.errors import UserError
from peftbench.units import parsed_size

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
