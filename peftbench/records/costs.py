"""What a record says of sizes, memory and time, as types. Null says that something was not measured."""

from __future__ import annotations

from msgspec import Struct


class Quartiles(Struct, frozen=True, kw_only=True):
    """Figures of one kind, one a round of a profile pass or one a training step, summarised."""

    median: float  # the middle one
    iqr: float | None  # third quartile less the first; null for a single figure
    n: int  # how many there are


class SampledSeconds(Quartiles, frozen=True, kw_only=True):
    """Seconds, with each sample."""

    samples: list[float]  # seconds, in the order of the rounds


class Ratio(Quartiles, frozen=True, kw_only=True):
    """Ratios of two figures of the same round."""

    low: float | None  # lower bound of the median's 95 % bootstrap interval; null for a single round
    high: float | None  # upper bound of that interval


class PassSeconds(SampledSeconds, frozen=True, kw_only=True):
    """Seconds of one pass in inference mode."""

    p95: float | None  # seconds, the 95th percentile; null with fewer than 20 samples
    ratio: Ratio | None  # to the same pass of the base network; null for the base network itself


class Seconds(Struct, frozen=True, kw_only=True):
    """Wall-clock seconds of an attempt; the parts are null where other runs shared the machine."""

    total: float  # from the start of the attempt to its end
    load: float | None = None  # data, tokens, base weights
    train: float | None = None  # all training steps, with what stands between them
    evaluate: float | None = None  # validation, test and probes


class Parameters(Struct, frozen=True, kw_only=True):
    """How many numbers a network has, and the size of an adapter file."""

    trainable: int  # trained by the method; the task head is not among them
    head: int  # of the task head, which every method trains alike
    added: int  # by the method to the base network
    total: int  # of the network with all of them
    stored_bytes: int  # of the adapter file


class PeakParts(Struct, frozen=True, kw_only=True):
    """Bytes of live tensors at the moment of the peak, by what they are for."""

    weights: int  # the base network's parameters and buffers
    adapter: int  # what the method added
    head: int  # the task head
    gradients: int  # of all that trains
    optimizer: int  # its state
    activations: int  # made in a forward pass and alive when its backward pass starts; the batch too
    temporaries: int  # all others


class Memory(Struct, frozen=True, kw_only=True):
    """Memory of one training step, the one with the largest batch."""

    peak_bytes: int  # largest sum of live tensors, counted by a dispatch mode
    at_peak: PeakParts  # what that sum consists of
    peak_phase: str  # "forward", "backward" or "optimizer"
    resident_bytes: int | None  # largest resident set of the process during the step; null where it cannot be had
    allocated_bytes: int | None  # largest sum of the CUDA allocator; null on other devices
    reserved_bytes: int | None  # largest reservation of the CUDA allocator; null on other devices
    batch: list[int]  # (rows, tokens) of the step's batch
    attention: str  # the kernel that transformers was asked for: "sdpa", "eager"
    optimizer: str  # class and variant of the optimizer: "AdamW, foreach"
    source: str  # how these figures were measured


class StepTime(Struct, frozen=True, kw_only=True):
    """The run's own steps, timed where no other run shared the machine. Tables show the profile pass's times."""

    step_seconds: SampledSeconds  # without the first two steps
    source: str  # which steps these are


class SplitSeconds(Struct, frozen=True, kw_only=True):
    """Where the time of a training step goes."""

    forward: SampledSeconds  # of all parts of the batch
    backward: SampledSeconds  # of all parts of the batch
    optimizer: SampledSeconds  # clipping, the step, and the method's own work after it
    rounds: str  # whose rounds these are: "the step's", or "of their own" where clocks inside would slow a step


class StepFlops(Struct, frozen=True, kw_only=True):
    """Floating-point operations of one step: products, attention, convolutions; nothing element by element."""

    forward: int  # of the forward passes
    backward: int  # of the backward passes
    optimizer: int  # of the optimizer's step
    total: int  # of the whole step


class LatencyAt(Struct, frozen=True, kw_only=True):
    """Inference at one shape, in one phase."""

    phase: str  # "forward"; of networks that generate "prefill" (the prompt) and "decode" (each token after it)
    batch: int  # texts
    length: int | None  # tokens of each text; null in the first records, which did not keep it
    typical: bool  # whether this is the task's median length, not one that the experiment names
    unmerged: PassSeconds  # with the adapters as they stand
    merged: PassSeconds | None  # with the adapters folded into the weights; null where they do not fold


class BaseLatency(Struct, frozen=True, kw_only=True):
    """The base network without adapters, timed in the same rounds."""

    latency: list[LatencyAt]  # at every shape


class ProfileRow(Struct, frozen=True, kw_only=True):
    """One configuration, timed in turn with the others; null for what was not measured."""

    label: str  # unique in the experiment's tables
    method: str  # name
    task: str  # name of the data that ran
    step_seconds: SampledSeconds  # of a whole training step
    ratio: Ratio | None  # of step_seconds to the reference's; null in a pass without the reference
    tokens: int | None  # of the batch, padding left out
    tokens_per_second: Quartiles | None  # over step_seconds
    flops: StepFlops | None  # of one step
    flops_per_second: Quartiles | None  # over step_seconds
    product_share: Ratio | None  # of flops_per_second to the rate of a large matrix product in the same round
    shape: list[int] | None  # (rows, tokens) of the batch
    split_seconds: SplitSeconds | None  # where the step's time goes
    latency: list[LatencyAt]  # of inference, at every shape
    merge_max_change: float | None  # largest change of a logit by folding the adapters; null where they do not fold
    merge_seconds: SampledSeconds | None  # of folding every adapter, and putting the layers in place and out again
    switch_seconds: SampledSeconds | None  # of putting another adapter's tensors and head in place


class MatrixProduct(Struct, frozen=True, kw_only=True):
    """A large matrix product, timed in the rounds of the pass: what the machine can do."""

    width: int  # of the square matrices
    products: int  # in a row
    dtype: str  # of the training steps
    flops: int  # of all of them
    seconds: SampledSeconds  # of all of them
    flops_per_second: Quartiles  # flops over seconds


class Conditions(Struct, frozen=True, kw_only=True):
    """What the times of a pass were measured under."""

    background_cpu_share: float | None  # of the cores' time that other programs used, 0 to 1; null where not known
    product: MatrixProduct | None  # null in the first records
