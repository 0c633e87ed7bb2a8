"""The types of a record's body: `RunBody`, `TrialBody` and `ProfileBody`, with their parts.

Every record of the current format has the fields without a default; upgrades.py fills them in for older formats.
check.py checks that a body fits its type. A field's comment is its description in the published JSON Schema.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from peftbench.records.costs import BaseLatency, Conditions, Memory, Parameters, Part, ProfileRow, Seconds, StepTime
from peftbench.records.data_summary import DataSummary
from peftbench.records.design import Design
from peftbench.records.ranges import Count, Name, NotNegative, Positive, Real, Whole
from peftbench.records.spec import ProfileSpec, RunSpec

Status = Literal["finished", "diverged", "oom", "error", "timeout", "killed", "interrupted", "abandoned"]

Score = Real | None  # null: undefined, such as a correlation with a constant prediction


class Code(Part, frozen=True):
    """The code that ran the attempt."""

    version: str | None  # of the package peftbench
    source: str  # 16 hex digits of the hash of its Python files
    commit: str | None  # the last one that touched these files; null outside a checkout
    dirty: bool | None = None  # whether the hashed files differ from that commit; null if unknown
    plugins: dict[str, str] = {}  # hashes of the files given with --plugin, by file name


class Processor(Part, frozen=True):
    """The processor of the machine."""

    model: str | None  # the manufacturer's name
    capability: str | None  # the vector instructions that torch uses: "AVX2", "AVX512"


class Gpu(Part, frozen=True):
    """The CUDA device that ran the attempt."""

    name: str  # the manufacturer's name
    capability: str  # compute capability: "9.0"
    cuda: str | None  # version of CUDA that torch was built with


class Environment(Part, frozen=True):
    """The code and machine that ran the attempt. `env_id` is the hash of this mapping in the file."""

    code: Code  # of peftbench and its methods
    python: str  # version
    packages: dict[str, str | None]  # versions of the libraries that affect results; null: not installed
    platform: str  # operating system and kind of processor: "Linux x86_64"
    device: str  # the kind of device of the run: "cpu", "cuda", "mps"
    cpu: Processor  # of the machine, also for a run on a GPU
    gpu: Gpu | None  # null for a run on another device
    threads: Positive | None  # CPU threads of one operation; null if not limited
    deterministic: bool = False  # whether only kernels ran that give the same bits each time; absent if not
    blas: dict[str, str] = {}  # loaded BLAS libraries and their kernels, by package; older records lack it

    @property
    def machine(self) -> str:
        """The name of the GPU or processor that the attempt ran on."""
        return (self.gpu.name if self.gpu else self.cpu.model) or self.device


class TimeLimit(Part, frozen=True):
    """A time limit that an attempt passed."""

    of: Literal["run", "step"]  # the whole attempt, or one step of it
    seconds: NotNegative  # the limit


class Attempt(Part, frozen=True, kw_only=True):
    """The fields that all records have."""

    kind: str  # "run" or "profile"
    spec_id: str  # 16 hex digits of the spec's hash, without fields at their defaults
    env_id: str  # 16 hex digits of the hash of `env`
    slug: Name  # readable name of the spec; the file's name starts with it
    attempt: Positive  # counts the attempts at this spec in this environment, from 1
    status: Status  # how it ended; "killed", "interrupted" and "abandoned" are repeated by running again
    reason: str | None  # why it did not finish; null if it finished
    traceback: str | None  # of the exception, or the last lines on stderr of a killed process
    started: str  # ISO 8601, with the time zone
    ended: str  # ISO 8601, with the time zone
    seconds: Seconds  # duration
    experiment: Name  # the experiment's name in its file
    reference: Name  # label of the method that scores and costs are compared with
    time_limit: TimeLimit | None = None  # the limit that a "timeout" passed; null for other statuses
    overrides: list[str] = []  # values in place of the file's, in the form of `--set`
    design: Design | None = None  # what the experiment asks of its comparison; null: nothing
    env: Environment  # code and machine

    FINISHED: ClassVar[tuple[str, ...]] = ()  # what a finished attempt must have

    def __post_init__(self) -> None:
        if self.status == "finished" and (missing := [n for n in self.FINISHED if getattr(self, n) is None]):
            raise ValueError(f"a finished {self.kind} must have {', '.join(missing)}")


class Curve(Part, frozen=True):
    """The losses and validation scores during training."""

    loss: list[Real | None]  # one for each optimiser step; null if not finite
    validation: list[dict[str, Whole | Real | None]]  # {"step": n, metric: score} for each evaluation


class Amount(Part, frozen=True):
    """The amount of training."""

    tokens: Count  # tokens in all training batches, without padding
    seconds: NotNegative | None  # in training steps; null unless the budget is a time
    repeatable: bool  # whether the spec determines the number of steps


class ValidationMetrics(Part, frozen=True):
    """Validation scores of the checkpoint that was kept. Choices are made by them."""

    validation: dict[str, Score]  # by metric
    primary: str  # the metric that choices are made by
    direction: Literal["max", "min"]  # whether a larger or a smaller value of it is better


class Metrics(ValidationMetrics, frozen=True):
    """Scores of a final run. It reads the test split once, after all choices."""

    test: dict[str, Score]  # by metric
    majority: Real | None  # the primary metric of the best constant answer; null if there is none


class Probe(Part, frozen=True):
    """The measurements of one probe of the trained network."""

    version: Count  # of the probe's code
    paper: str  # the source of the measure
    definition: str  # the measure in one sentence
    points: list[dict[str, Any]]  # {"step": n, ...}; the last one is for the tested weights


class Sample(Part, frozen=True):
    """A text that the trained network generated."""

    prompt: str  # the input
    prediction: str  # the generated text
    reference: Name  # the first reference answer


class Predictions(Part, frozen=True):
    """Predictions on the test split, with one entry for each example. They are decoded on first use."""

    ids: list[str]  # hashes of the examples
    values: list[Whole | Real | str | None]  # predicted class, number or text
    labels: list[Whole | Real | str | list[str]]  # correct class or number, or the reference texts


class Resumed(Part, frozen=True):
    """A checkpoint of an earlier attempt that this one went on from. Times are those of this attempt alone."""

    step: Count  # number of optimiser steps that it had
    env_id: str  # of the attempt that wrote it


class TrainingBody(Attempt, frozen=True, kw_only=True):
    """An attempt at training: a final run or a trial. A failed one has the fields that it reached."""

    kind: Literal["run"]  # also for a tuning trial, which has a number in `spec.trial`
    spec: RunSpec  # specification of the run
    data: DataSummary | None = None  # what was done to the task's data; older records lack it
    hyper: dict[str, Any] | None = None  # all hyperparameters of the method, with defaults and solved sizes
    parameters: Parameters | None = None  # counts of parameters
    memory: Memory | None = None  # memory of one training step
    time: StepTime | None = None  # times of the training steps
    curve: Curve | None = None  # losses and validation scores
    stopped_at: Count | None = None  # number of optimiser steps taken
    trained: Amount | None = None  # tokens and seconds; missing in older records
    checkpoint_step: Count | None = None  # the step whose weights were tested
    probes: dict[str, Probe] = {}  # by name, if the spec lists any
    resumed: list[Resumed] = []  # where earlier attempts had ended that this one went on from
    checkpoint_left: str | None = None  # why it did not go on from a checkpoint, or could not write its last one

    FINISHED: ClassVar[tuple[str, ...]] = ("parameters", "curve", "metrics")


class RunBody(TrainingBody, frozen=True, kw_only=True):
    """A final run: trained and tested."""

    metrics: Metrics | None = None  # scores
    samples: list[Sample] = []  # the first few generated texts of a generation task


class TrialBody(TrainingBody, frozen=True, kw_only=True):
    """A tuning trial: trained, and scored on the validation split only."""

    metrics: ValidationMetrics | None = None  # scores
    bounds: dict[str, dict[str, Real]] = {}  # numeric hyperparameter of the space -> limits, as JSON Schema names them


class ProfileBody(Attempt, frozen=True, kw_only=True):
    """A profile pass: step time and latency of every configuration on one task, interleaved."""

    kind: Literal["profile"]  # always "profile"
    spec: ProfileSpec  # specification of the pass
    rows: list[ProfileRow] | None = None  # one for each configuration; null if the pass did not finish
    base: BaseLatency | None = None  # the base network
    time: Conditions | None = None  # load of the machine during the pass
    sources: dict[str, str] = {}  # how each figure was measured

    FINISHED: ClassVar[tuple[str, ...]] = ("rows",)


Body = RunBody | TrialBody | ProfileBody
