"""What a record says, as types: the body of a run, of a tuning trial, of a profile pass.

A field without a default is in every record of today's format; upgrades.py fills it in for older ones. check.py
compares a body with its type. A field's comment is its description in the published JSON Schema (schema.py).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from msgspec import Struct

from peftbench.records.costs import BaseLatency, Conditions, Memory, Parameters, ProfileRow, Seconds, StepTime
from peftbench.records.spec import ProfileSpec, RunSpec

Status = Literal["finished", "diverged", "oom", "error", "killed", "abandoned"]

Score = float | None  # null: the metric has no value, as a correlation with a constant prediction


class Code(Struct, frozen=True, kw_only=True):
    """The code that ran."""

    version: str | None  # of the package peftbench
    source: str  # 16 hex digits of the hash of its Python files
    commit: str | None  # the last one that touched these files; null outside a checkout
    dirty: bool | None = None  # whether that commit lacks some of what was hashed; null where nobody can tell
    plugins: dict[str, str] = {}  # hashes of the methods' files that were given with --plugin, by file name


class Processor(Struct, frozen=True, kw_only=True):
    """The CPU."""

    model: str | None  # the name that its maker gives it
    capability: str | None  # the vector instructions that torch uses: "AVX2", "AVX512"


class Gpu(Struct, frozen=True, kw_only=True):
    """The CUDA device that ran it."""

    name: str  # the name that its maker gives it
    capability: str  # compute capability: "9.0"
    cuda: str | None  # version of CUDA that torch was built with


class Environment(Struct, frozen=True, kw_only=True):
    """What ran it; `env_id` is the hash of these facts as the file has them."""

    code: Code  # of peftbench and its methods
    python: str  # version
    packages: dict[str, str | None]  # versions of the libraries that decide the last bits; null: not installed
    platform: str  # operating system and kind of processor: "Linux x86_64"
    device: str  # that computed: "cpu", "cuda:0", "mps"
    cpu: Processor  # of the machine, where a GPU computed too
    gpu: Gpu | None  # null where none computed
    blas: dict[str, str] = {}  # loaded BLAS libraries and their kernels, by package; older records lack it
    threads: int | None  # inside one operation; null where nothing limits them

    @property
    def machine(self) -> str:
        """The name of the GPU or processor that computed."""
        return (self.gpu.name if self.gpu else self.cpu.model) or self.device


class Attempt(Struct, frozen=True, kw_only=True):
    """What every record says, whatever was attempted."""

    kind: str  # "run" or "profile"
    spec_id: str  # 16 hex digits of the hash of what was asked, defaults left out
    env_id: str  # 16 hex digits of the hash of `env`
    slug: str  # what was asked in a few readable words; the file is named after it
    attempt: int  # from 1, counted for each spec and environment
    status: Status  # how it ended; "killed" and "abandoned" attempts are repeated by running again
    reason: str | None  # why it did not finish; null where it did
    traceback: str | None  # of the exception that ended it, or the last lines of a process that was killed
    started: str  # ISO 8601, with the time zone
    ended: str  # ISO 8601, with the time zone
    seconds: Seconds  # how long it took
    experiment: str  # name in the experiment's file
    reference: str  # label of the method that the experiment compares scores and costs with
    overrides: list[str] = []  # values that stood in place of the file's, as `--set` takes them
    env: Environment  # what ran it

    FINISHED: ClassVar[tuple[str, ...]] = ()  # what a finished attempt must have

    def __post_init__(self) -> None:
        if self.status == "finished" and (missing := [n for n in self.FINISHED if getattr(self, n) is None]):
            raise ValueError(f"a finished {self.kind} must have {', '.join(missing)}")


class Curve(Struct, frozen=True, kw_only=True):
    """Training as it went."""

    loss: list[float | None]  # one an optimiser step; null where it was not finite
    validation: list[dict[str, int | float | None]]  # {"step": n, metric: score}, each time that it was evaluated


class Amount(Struct, frozen=True, kw_only=True):
    """How much was trained."""

    tokens: int  # that the network saw, padding left out
    seconds: float | None  # of training steps; null where these did not limit the run
    repeatable: bool  # whether the spec decides on the number of steps


class ValidationMetrics(Struct, frozen=True, kw_only=True):
    """Scores of the checkpoint that was kept, on the split that choices are made by."""

    validation: dict[str, Score]  # by metric
    primary: str  # the metric that decides
    direction: Literal["max", "min"]  # which end of that metric is better


class Metrics(ValidationMetrics, frozen=True, kw_only=True):
    """Scores of a final run. The test split was read once, after every choice was made."""

    test: dict[str, Score]  # by metric
    majority: float | None  # the primary metric of the best constant answer; null where there is none


class Probe(Struct, frozen=True, kw_only=True):
    """What a probe measured of the trained network."""

    version: int  # of the probe's code
    paper: str  # where the measure is from
    definition: str  # what is measured, in a sentence
    points: list[dict[str, Any]]  # {"step": n, ...}; the last is of the tested weights


class Sample(Struct, frozen=True, kw_only=True):
    """A text that the trained network wrote."""

    prompt: str  # what it was given
    prediction: str  # what it wrote
    reference: str  # the first of the answers that are right


class Predictions(Struct, frozen=True, kw_only=True):
    """Of the test split, one entry an example; decoded only when asked for."""

    ids: list[str]  # hashes of the examples
    values: list[int | float | str | None]  # class, number or text that was predicted
    labels: list[int | float | str | list[str]]  # right class or number, or the texts that are right


class TrainingBody(Attempt, frozen=True, kw_only=True):
    """An attempt at training, a final run or a trial; a failed one has what it got to."""

    kind: Literal["run"]  # a tuning trial is one too, with a number in `spec.trial`
    spec: RunSpec  # what was asked
    hyper: dict[str, Any] | None = None  # every hyperparameter of the method, defaults and solved sizes included
    parameters: Parameters | None = None  # sizes
    memory: Memory | None = None  # of one training step
    time: StepTime | None = None  # of its steps
    curve: Curve | None = None  # losses and validation scores
    stopped_at: int | None = None  # number of optimiser steps that were taken
    trained: Amount | None = None  # tokens and seconds; older records lack it
    checkpoint_step: int | None = None  # the step after which the tested weights were kept
    probes: dict[str, Probe] = {}  # by name, where the spec asks for some

    FINISHED: ClassVar[tuple[str, ...]] = ("parameters", "curve", "metrics")


class RunBody(TrainingBody, frozen=True, kw_only=True):
    """A final run: trained and tested."""

    metrics: Metrics | None = None  # scores
    samples: list[Sample] = []  # the first few texts that it wrote, where the task has it write


class TrialBody(TrainingBody, frozen=True, kw_only=True):
    """A tuning trial: trained, and scored on the validation split alone."""

    metrics: ValidationMetrics | None = None  # scores


class ProfileBody(Attempt, frozen=True, kw_only=True):
    """A profile pass: step time and latency of every configuration on one task, interleaved."""

    kind: Literal["profile"]  # in contrast to runs
    spec: ProfileSpec  # what was asked
    rows: list[ProfileRow] | None = None  # one a configuration; null where the pass did not finish
    base: BaseLatency | None = None  # the network that they change
    time: Conditions | None = None  # of the machine meanwhile
    sources: dict[str, str] = {}  # how each figure was measured

    FINISHED: ClassVar[tuple[str, ...]] = ("rows",)


Body = RunBody | TrialBody | ProfileBody
