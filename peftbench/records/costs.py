"""The types of the costs in a record: parameters, memory, time. Null means that a value was not measured."""

from __future__ import annotations

from msgspec import Struct

from peftbench.records.ranges import Count, Name, NotNegative, Positive


class Part(Struct, frozen=True, gc=False):
    """A part of a record's body. The garbage collector skips it, because it holds no cycle."""


class Quartiles(Part, frozen=True):
    """A summary of several measurements, one for each round of a profile pass or each training step."""

    median: NotNegative  # the median
    iqr: NotNegative | None  # third quartile - first quartile; null for a single measurement
    n: Positive  # number of measurements


class SampledSeconds(Quartiles, frozen=True):
    """A summary of times, with every sample."""

    samples: list[NotNegative]  # seconds, in the order of the rounds


class Ratio(Quartiles, frozen=True):
    """A summary of ratios of two measurements in the same round."""

    low: NotNegative | None  # lower bound of the median's 95 % bootstrap interval; null for a single round
    high: NotNegative | None  # upper bound of that interval


class PassSeconds(SampledSeconds, frozen=True):
    """Times of one inference pass."""

    p95: NotNegative | None  # seconds, the 95th percentile; null with fewer than 20 samples
    ratio: Ratio | None  # to the same pass of the base network; null for the base network itself


class Seconds(Part, frozen=True):
    """Wall-clock seconds of an attempt. The parts are null if other runs shared the machine."""

    total: NotNegative  # from the start of the attempt to its end
    load: NotNegative | None = None  # data, tokens, base weights
    train: NotNegative | None = None  # all training steps and the time between them
    evaluate: NotNegative | None = None  # validation, test and probes


class Parameters(Part, frozen=True):
    """Counts of parameters, and the size of the adapter file."""

    trainable: Count  # trained by the method, without the task head
    head: Count  # of the task head, which every method trains
    added: Count  # by the method to the base network
    total: Count  # of the network, with head and added parameters
    stored_bytes: Count  # of the adapter file


class PeakParts(Part, frozen=True):
    """Bytes of live tensors at the memory peak, by purpose."""

    weights: Count  # the base network's parameters and buffers
    adapter: Count  # what the method added
    head: Count  # the task head
    gradients: Count  # of all trained parameters
    optimizer: Count  # the optimizer's state
    activations: Count  # created in a forward pass and alive when its backward pass starts; includes the batch
    temporaries: Count  # all others


class Memory(Part, frozen=True):
    """Memory of the training step with the largest batch."""

    peak_bytes: Count  # largest sum of live tensors, counted by a torch dispatch mode
    at_peak: PeakParts  # the parts of that sum
    peak_phase: str  # "forward", "backward" or "optimizer"
    resident_bytes: Count | None  # largest resident set of the process during the step; null if not available
    allocated_bytes: Count | None  # largest sum of the CUDA allocator; null on other devices
    reserved_bytes: Count | None  # largest reservation of the CUDA allocator; null on other devices
    batch: list[Count]  # (rows, tokens) of the step's batch
    attention: str  # the attention implementation of transformers: "sdpa", "eager"
    optimizer: str  # class and variant of the optimizer: "AdamW, foreach"
    source: str  # how these figures were measured
    ranks: list[Count] = []  # the peak of each process of a run on several devices; the other figures are the first's


class StepTime(Part, frozen=True):
    """Times of the run's own steps, if no other run shared the machine. Tables show times of the profile pass."""

    step_seconds: SampledSeconds  # without the first two steps
    source: str  # which steps these are


class SplitSeconds(Part, frozen=True):
    """The time of a training step by its parts."""

    forward: SampledSeconds  # of all parts of the batch
    backward: SampledSeconds  # of all parts of the batch
    optimizer: SampledSeconds  # clipping, the optimizer step, and the method's `after_step`
    rounds: str  # "the step's", or "of their own" if timing the parts would slow the step


class StepFlops(Part, frozen=True):
    """Floating-point operations of one step: matrix products, attention, convolutions; no element-wise ones."""

    forward: Count  # of the forward passes
    backward: Count  # of the backward passes
    optimizer: Count  # of the optimizer's step
    total: Count  # of the whole step


class LatencyAt(Part, frozen=True):
    """Latency of inference at one shape, in one phase."""

    phase: str  # "forward"; for generation "prefill" (the prompt) or "decode" (one further token)
    batch: Positive  # number of texts
    length: Positive | None  # tokens of each text; null in the oldest records
    typical: bool  # whether this is the task's median length, not a length from the experiment
    unmerged: PassSeconds  # with separate adapters
    merged: PassSeconds | None  # with the adapters merged into the weights; null if not mergeable


class BaseLatency(Part, frozen=True):
    """Latency of the base network without adapters, in the same rounds."""

    latency: list[LatencyAt]  # at every shape


class ProfileRow(Part, frozen=True):
    """The measurements of one configuration, timed in turn with the others."""

    label: Name  # unique in the experiment's tables
    method: Name  # the method's name
    task: Name  # name of the task that ran
    step_seconds: SampledSeconds  # of a whole training step
    ratio: Ratio | None  # of step_seconds to the reference's; null in a pass without the reference
    tokens: Count | None  # in the batch, without padding
    tokens_per_second: Quartiles | None  # over step_seconds
    flops: StepFlops | None  # of one step
    flops_per_second: Quartiles | None  # over step_seconds
    product_share: Ratio | None  # flops_per_second / the rate of a large matrix product in the same round
    shape: list[Count] | None  # (rows, tokens) of the batch
    split_seconds: SplitSeconds | None  # the step's time by its parts
    latency: list[LatencyAt]  # of inference, at every shape
    merge_max_change: NotNegative | None  # largest change of a logit by merging; null if not mergeable
    merge_seconds: SampledSeconds | None  # of merging all adapters and undoing it
    switch_seconds: SampledSeconds | None  # of loading another adapter's tensors and head


class MatrixProduct(Part, frozen=True):
    """The rate of a large matrix product, timed in the rounds of the pass, as a measure of the machine."""

    width: Count  # of the square matrices
    products: Count  # number of products in a row
    dtype: str  # of the training steps
    flops: Count  # of all products
    seconds: SampledSeconds  # of all products
    flops_per_second: Quartiles  # flops / seconds


class Conditions(Part, frozen=True):
    """The conditions of the machine during a profile pass."""

    background_cpu_share: NotNegative | None  # share of CPU time that other programs used, 0 to 1; null if unknown
    product: MatrixProduct | None  # null in the oldest records
