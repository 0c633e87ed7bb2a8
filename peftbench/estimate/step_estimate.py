"""Estimate the memory and the operations of a training step of any model with any method, without its weights.

`estimate` simulates the runner's own step (simulated_step.py). It is exact for what it assumes, and it states what that
is: the same step under the same tracker has the same peak to the byte (docs/estimate.md). Deep networks of equal rounds
of layers are extrapolated from three small depths (extrapolation.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftbench.backbones.configuration import load_config, natural_kind
from peftbench.backbones.experts import owner_of
from peftbench.backbones.load import Backbone, load_on_meta
from peftbench.backbones.networks import DTYPES
from peftbench.errors import UserError, unknown
from peftbench.estimate.card import gpu_memory, traffic
from peftbench.estimate.card.traffic import Traffic
from peftbench.estimate.count import ModelQuery, ParameterCount, count, network, origin
from peftbench.estimate.program import program_step, programs
from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate import fake_tensors, simulated_step
from peftbench.estimate.simulate.extrapolation import Rounds, at_full_depth, rounds_of, simulate_depths
from peftbench.estimate.simulate.fake_tensors import VALUES_NEEDED, not_estimable
from peftbench.estimate.simulate.simulated_ranks import simulated_ranks
from peftbench.estimate.simulate.simulated_step import Watch
from peftbench.estimate.simulate.timeline import StepTimeline
from peftbench.method.base import Method
from peftbench.method.catalogue import Catalogue
from peftbench.method.edit import Edit
from peftbench.method.layers.nf4_quantization import by_shape_alone
from peftbench.method.layers.pieces import alike_pieces_once
from peftbench.method.registry import find, make
from peftbench.records import user_file

SHORT = {"fp32": "float32", "bf16": "bfloat16"}
OPTIMIZERS = ("adamw", "sgd", "adamw8bit")
ATTENTION = ("math", "flash")
KINDS = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")
SHARDS = 1_024  # devices at most
EXPERTS = "adapted ones one after another, each with as many tokens as the others"
UNVERIFIED = "predicted with the CPU's kernels; not verified on a GPU"


@dataclass(frozen=True)
class Setting:
    """How the step runs.

    Attributes:
        batch: Number of texts.
        seq: Tokens of every text, and of the answer behind an encoder.
        dtype: Dtype of weights that never train, and of the computation by autocast; trainable weights are float32.
        optimizer: One of `OPTIMIZERS`.
        checkpointing: Whether to use gradient checkpointing.
        attention: One of `ATTENTION`; None for torch's choice on this machine.
        padded: Whether texts differ in length, so that there is a mask; None for yes unless `batch` is 1.
        every_layer: Whether to simulate all layers, whatever the depth.
        shards: Processes with a device each that share the base's weights; sizes are those of one, and `batch` too.
        offload: Whether what is in shards lies in the host's memory, and comes to the device block by block.
        program: Whose step; None for peftbench's own. It decides dtype, optimizer, checkpointing and attention.

    Raises:
        UserError: A value is invalid.
    """

    batch: int
    seq: int
    dtype: str = "float32"
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: str | None = None
    padded: bool | None = None
    every_layer: bool = False
    shards: int = 1
    offload: bool = False
    program: Program | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT.get(self.dtype, self.dtype))
        if self.program is not None:
            for name, value in (
                ("dtype", self.program.weights),
                ("checkpointing", self.program.checkpointing),
                ("optimizer", "adamw"),
                ("attention", None),
            ):
                object.__setattr__(self, name, value)
        if self.shards > 1 and self.program is not None and self.program.loss != "whole":
            raise UserError(
                f"--shards {self.shards} with loss={self.program.loss} of --program {self.program.name}: a head in "
                "shards is simulated with the whole loss alone; give --part loss=whole"
            )
        if self.offload and self.shards == 1:
            raise UserError("--offload goes with --shards: what is in shards is offloaded; give --shards 2 or more")
        if self.shards > SHARDS:
            raise UserError(f"--shards {self.shards}: at most {SHARDS:,} devices")
        for name in ("batch", "seq", "shards"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give a whole number from 1")
        for name, value, valid in (
            ("dtype", self.dtype, (*DTYPES, *SHORT)),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("attention", self.attention or ATTENTION[0], ATTENTION),
        ):
            if value not in valid:
                raise unknown(name, value, valid, where=f"--{name}")

    @property
    def with_mask(self) -> bool:
        """Whether the batch has an attention mask."""
        if self.program is not None and self.program.mask != "padding":
            return self.program.mask == "always"
        return self.batch > 1 if self.padded is None else self.padded


@dataclass(frozen=True)
class StepEstimate:
    """The prediction for one training step. Sizes are in bytes; None is unknown.

    Attributes:
        model: The model.
        task: Kind of task.
        method: Name of the method.
        hyper: Its hyperparameters.
        setting: How the step runs.
        peak_bytes: Peak of live tensors.
        peak_phase: Phase of the peak.
        at_peak: Parts of the peak by kind.
        by_role: Parts of the peak by module role and kind, if requested.
        held: Bytes before a step: dense weights, 4-bit tensors by name, adapter, head.
        flops: Floating-point operations of matrix products.
        trainable: Parameters that the method trains, without the head.
        stored_bytes: Bytes of the adapter's file.
        layers_simulated: Which depths were simulated.
        assumed: What the estimate assumes.
        shards: With shards: bytes of a gathered block ("block"), of what stays gathered ("rest"), and of what is or
            could be offloaded to the host ("offloadable"). `peak_bytes` is without the latter if it is.
        after_bytes: Live bytes after the step, with what the program leaves alive.
        reserved_bytes: What CUDA's allocator holds of the device, with a program; 0 for a CPU.
        traffic: The kernels of the step; None if their number is not affine in the depth.
    """

    model: str
    task: str
    method: str
    hyper: Mapping[str, Any]
    setting: Setting
    peak_bytes: int
    peak_phase: str
    at_peak: Mapping[str, int]
    by_role: Mapping[str, Mapping[str, int]] | None
    held: Mapping[str, int]
    flops: int
    trainable: int
    stored_bytes: int | None
    layers_simulated: str
    assumed: Mapping[str, str]
    shards: Mapping[str, int] | None = None
    after_bytes: int = 0
    reserved_bytes: int = 0
    traffic: Traffic | None = None


def estimate(
    query: ModelQuery,
    name: str,
    hyper: Mapping[str, Any] | None,
    setting: Setting,
    plugins: Iterable[Path | str] = (),
    by_role: bool = False,
    counted: ParameterCount | None = None,
) -> StepEstimate:
    """Estimate peak memory, its parts and the operations of one training step.

    Args:
        query: The model.
        name: Name of the method.
        hyper: Its hyperparameters; the others have their defaults.
        setting: How the step runs.
        plugins: Python files that register further methods.
        by_role: Whether to split the peak by module role.
        counted: The method's parameters on the model, where they are known.

    Raises:
        UserError: The model, method or a hyperparameter is unknown, the network does not take the method or the text
            length, or the method's sizes depend on the weights' values.
    """
    files = tuple(user_file.resolved(Path(p)) for p in plugins)
    counted = counted or count(query, name, hyper, files)
    method = make(find(name, files), Catalogue(files).hyper(name, hyper or {}))
    rounds = None if setting.every_layer else _rounds(query)
    peak, timelines, how, more = simulate_depths(lambda n: simulate_step(query, method, setting, by_role, n), rounds)
    parts: dict[str, int] = {}
    roles: dict[str, dict[str, int]] = {}
    for (role, kind), size in peak.parts.items():
        parts[kind] = parts.get(kind, 0) + size
        if size:
            roles.setdefault(role, {})[kind] = size
    sharded = {key: at_full_depth([t.shards[key] for t in timelines], more) for key in timelines[0].shards}
    moved = sharded["offloadable"] if setting.offload else 0
    for kind in ("weights", "optimizer"):
        parts[kind] = parts.get(kind, 0)
    if moved:
        from_weights = min(moved, parts["weights"])
        parts["weights"] -= from_weights
        parts["optimizer"] -= moved - from_weights
    return StepEstimate(
        query.model,
        counted.task,
        name,
        asdict(method),
        setting,
        peak.bytes - moved,
        peak.phase,
        {kind: parts.get(kind, 0) for kind in KINDS},
        roles if by_role else None,
        {key: at_full_depth([t.held[key] for t in timelines], more) for key in timelines[0].held},
        at_full_depth([t.flops for t in timelines], more),
        counted.trainable,
        counted.stored_bytes,
        how,
        _assumptions(setting, timelines[0]),
        sharded or None,
        at_full_depth([t.levels[-1] for t in timelines], more),
        max(peak.bytes, _along([t.reserved for t in timelines], more)) - moved if setting.program else 0,
        traffic.at_full_depth([t.traffic for t in timelines if t.traffic], more),
    )


def _along(values: Sequence[int], more: int) -> int:
    """Return a value at full depth that grows with the layers, but not exactly: segments have sizes of their own."""
    return values[0] if len(values) == 1 else values[0] + round(more * (values[-1] - values[0]) / (len(values) - 1))


def positions_of(query: ModelQuery) -> int | None:
    """Return the tokens of the longest text that a model takes; None for any."""
    place = origin(query.model)
    return positions(load_config(place, query.labels, query.task or natural_kind(place)))


def check_model(query: ModelQuery) -> None:
    """Raise `UserError` if the model does not exist."""
    network(query)


def simulate_step(
    query: ModelQuery, method: Method, setting: Setting, by_role: bool = False, layers: int | None = None
) -> StepTimeline:
    """Simulate the step of a network, as `requested_step`; another program's with what a GPU's allocator adds."""
    timeline = requested_step(query, method, setting, by_role, layers)
    return timeline if setting.program is None else gpu_memory.on_gpu(timeline)


def requested_step(
    query: ModelQuery,
    method: Method,
    setting: Setting,
    by_role: bool = False,
    layers: int | None = None,
    watch: Watch | None = None,
) -> StepTimeline:
    """Simulate the step of a network with the bytes that its tensors request.

    Args:
        query: The model.
        method: The method.
        setting: How the step runs.
        by_role: Whether to record the role of every storage.
        layers: Number of layers in place of the model's own.
        watch: What a recording of the step replaces; None for nothing.

    Raises:
        UserError: The network does not take the method, the text length or a part that is given, or a size depends on
            the weights' values.
    """
    watch = watch or Watch()
    place = origin(query.model)
    backbone = load_on_meta(
        place,
        query.task or natural_kind(place),
        query.labels,
        query.roles,
        dtype=setting.dtype,
        gradient_checkpointing=setting.checkpointing,
        layers=layers,
    )
    _check_length(backbone, setting)
    _check_attention(backbone, setting)
    own = None if setting.program is None else program_step.on_network(setting.program, backbone.net)
    with (
        simulated_ranks(shards=setting.shards, kind=watch.rank) as ranks,
        fake_tensors.fake_mode(setting.with_mask),
        fake_tensors.attention(setting.attention) if own is None else program_step.context(own),
    ):
        fake = fake_tensors.replace_tensors(backbone, fake_tensors.fake_like)
        try:
            with by_shape_alone(), alike_pieces_once():  # what attaching a method takes is not part of the step
                if own is None:
                    trainer = simulated_step.trainer_of(fake, method, setting.dtype, setting.optimizer, ranks)
                else:
                    trainer = program_step.trainer_of(fake, method, own, ranks)
                    _check_experts(trainer.edit, own)
            watch.made(trainer)
            batch = simulated_step.batch_of(backbone, setting.batch * ranks.size, setting.seq, setting.with_mask)
            timeline = simulated_step.tracked(trainer, batch, by_role, watch.counter)
        except VALUES_NEEDED as error:
            raise not_estimable(method, error) from error
    if setting.program is not None and own is not None:
        timeline.left_out = programs.differing(setting.program, own)
    return timeline


def _rounds(query: ModelQuery) -> Rounds | None:
    """Return the layers, or None if they may differ in a way that does not repeat."""
    place = origin(query.model)
    return rounds_of(load_config(place, query.labels, query.task or natural_kind(place)))


def positions(config: Any) -> int | None:
    """Return the tokens of the longest text that a network takes, from its configuration; None for any."""
    room: int | None = getattr(config, "max_position_embeddings", None)
    if room is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):  # counted from the padding id
        room -= config.pad_token_id + 1
    return room


def _check_attention(backbone: Backbone, setting: Setting) -> None:
    if setting.attention == "flash" and backbone.net.config._attn_implementation == "eager":
        raise UserError(
            f"--attention flash: this {backbone.net.config.model_type} network computes its attention itself, and no "
            "fused kernel of torch does (soft-capping, sinks or disentangled attention); leave --attention out"
        )


def _check_experts(edit: Edit, own: Program) -> None:
    if any(owner_of(site.path) for site, _ in edit.placed()):
        raise UserError(
            f"--program {own.name}: how this program adapts or quantises experts is not known here; leave --program "
            "out, or adapt the attention alone: roles='q k v o'"
        )


def _check_length(backbone: Backbone, setting: Setting) -> None:
    room = positions(backbone.net.config)
    if room is not None and setting.seq > room:
        raise UserError(f"--seq {setting.seq}: this {backbone.net.config.model_type} network has {room} positions")


def _assumptions(setting: Setting, timeline: StepTimeline) -> dict[str, str]:
    if setting.program is not None:
        simulated = replace(setting.program, **timeline.left_out)
        kept = ", ".join(f"{part}={value}" for part, value in timeline.left_out.items())
        return {
            "program": f"{simulated.name}: {programs.as_text(simulated)}",
            **({"network": f"{kept} is the network's own, whatever the program's"} if kept else {}),
            "mask": "texts differ in length: an explicit mask" if setting.with_mask else "texts of one length: no mask",
            "step": "the second, every token a label",
            "device": gpu_memory.ASSUMED,
            **(_sharding(setting) if setting.shards > 1 else {}),
        }
    own = {None: "as torch chooses on this machine's CPU", "math": "softmax(Q K^T) V, scores kept", "flash": "fused"}
    number = "float32" if setting.dtype == "float32" else "frozen weights bfloat16, autocast, what trains float32"
    return {
        "attention": f"{timeline.attention}: {own[setting.attention]}",
        "optimizer": timeline.optimizer,
        "mask": "texts differ in length: an explicit mask" if setting.with_mask else "texts of one length: no mask",
        "dtype": number,
        "step": f"the second of {simulated_step.STEPS}, gradients clipped to norm 1, every token a label",
        **({"experts": EXPERTS} if timeline.experts else {}),
        "device": UNVERIFIED,
        **(_sharding(setting) if setting.shards > 1 else {}),
    }


def _sharding(setting: Setting) -> dict[str, str]:
    n, where = setting.shards, "on it"
    if setting.offload:
        where = "in the host's memory, with the optimiser's state of what trains there"
    base = f"one of {n} devices, {setting.batch} texts each; 1/{n} of the base {where}"
    whole = "what the method adds and the head whole on each"
    return {"shards": f"{base}; {whole}; each block gathered for its forward and its backward"}
