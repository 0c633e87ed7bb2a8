"""The memory and the work of a training step of any model with any method, without its weights.

`estimate` simulates the runner's own step (simulate.py). It is exact for what it assumes, and says what that is: the
same step under the same tracker has the same peak to the byte (docs/estimate.md). Deep networks of equal layers are
simulated at three small depths (depth.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from peftbench.backbones.configuration import load_config, natural_kind
from peftbench.backbones.load import Backbone, load_on_meta
from peftbench.backbones.networks import DTYPES
from peftbench.errors import UserError, unknown
from peftbench.estimate import depth, simulate
from peftbench.estimate.count import Question, count, network, origin
from peftbench.method.base import Method
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import find, make

SHORT = {"fp32": "float32", "bf16": "bfloat16"}
OPTIMIZERS = ("adamw", "sgd", "adamw8bit")
ATTENTION = ("math", "flash")
DEEP = 8  # layers from which on three small depths are simulated instead
NUMBERS_NEEDED = (
    torch._subclasses.fake_tensor.UnsupportedFakeTensorException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.DataDependentOutputException,
)
UNVERIFIED = "predicted with the CPU's kernels; not verified on a GPU"


@dataclass(frozen=True)
class Setting:
    """How the step is taken."""

    batch: int
    seq: int  # tokens of every text; of the answer too, where there is a decoder behind an encoder
    dtype: str = "float32"  # of what never trains, and of the computation (by autocast); what trains is float32
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: str | None = None  # None: as torch chooses on this machine
    padded: bool | None = None  # whether texts differ in length, so that there is a mask; None: unless batch is 1
    every_layer: bool = False  # simulate the network in full, whatever its depth

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT.get(self.dtype, self.dtype))
        for name in ("batch", "seq"):
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
        return self.batch > 1 if self.padded is None else self.padded


@dataclass(frozen=True)
class Estimate:
    """One step, predicted. Bytes throughout; None is what cannot be told."""

    model: str
    task: str
    method: str
    hyper: Mapping[str, Any]
    setting: Setting
    peak_bytes: int
    peak_phase: str
    at_peak: Mapping[str, int]
    by_role: Mapping[str, Mapping[str, int]] | None
    held: Mapping[str, int]  # before a step: dense weights, 4-bit tensors by name, adapter, head
    flops: int
    trainable: int
    stored_bytes: int | None
    layers_simulated: str
    assumed: Mapping[str, str]


def estimate(
    question: Question,
    name: str,
    hyper: Mapping[str, Any] | None,
    setting: Setting,
    plugins: Iterable[Path | str] = (),
    by_role: bool = False,
) -> Estimate:
    """Peak memory, its parts and the operations of one step of method `name` on a model.

    Raises `UserError` for what does not exist or fit, and for a method whose sizes depend on the weights' numbers.
    """
    files = tuple(Path(p).expanduser().resolve() for p in plugins)
    counted = count(question, name, hyper, files)
    method = make(find(name, files), Catalogue(files).hyper(name, hyper or {}))
    layers = None if setting.every_layer else _equal_layers(question)
    peak, courses, how, more = simulated(lambda n: course(question, method, setting, by_role, n), layers)
    held = {key: _told(c.held[key] for c in courses)(more) for key in courses[0].held}
    flops = _told(c.flops for c in courses)(more)
    parts: dict[str, int] = {}
    roles: dict[str, dict[str, int]] = {}
    for (role, kind), size in peak.parts.items():
        parts[kind] = parts.get(kind, 0) + size
        if size:
            roles.setdefault(role, {})[kind] = size
    kinds = ("weights", "adapter", "head", "gradients", "optimizer", "activations", "temporaries")
    return Estimate(
        question.model,
        counted.task,
        name,
        asdict(method),
        setting,
        peak.bytes,
        peak.phase,
        {kind: parts.get(kind, 0) for kind in kinds},
        roles if by_role else None,
        held,
        flops,
        counted.trainable,
        counted.stored_bytes,
        how,
        _assumed(setting, courses[0]),
    )


def count_network(question: Question) -> None:
    """Raises `UserError` for a model that does not exist."""
    network(question)


def course(
    question: Question, method: Method, setting: Setting, by_role: bool = False, layers: int | None = None
) -> simulate.Course:
    """The simulated step of a network of `layers` layers (None: its own)."""
    place = origin(question.model)
    kind = question.task or natural_kind(place)
    network = load_on_meta(
        place,
        kind,
        question.labels,
        question.roles,
        dtype=setting.dtype,
        gradient_checkpointing=setting.checkpointing,
        layers=layers,
    )
    _check_length(network, setting)
    with simulate.numberless(setting.with_mask), simulate.attention(setting.attention):
        try:
            trainer = simulate.trainer_of(
                simulate.fill(network, simulate.fake), method, setting.dtype, setting.optimizer
            )
            batch = simulate.batch_of(network, setting.batch, setting.seq, setting.with_mask)
            return simulate.tracked(trainer, batch, by_role)
        except NUMBERS_NEEDED as error:
            raise not_estimable(method, error) from error


def simulated(
    course: Callable[[int | None], simulate.Course], layers: int | None
) -> tuple[depth.Peak, list[simulate.Course], str, int]:
    """The peak, the courses it comes from, how many layers they have, and how many more the network has.

    `course` simulates a network of as many layers (None: its own); the network has `layers` equal ones (None: unknown).
    """
    if layers is not None and layers >= DEEP:
        depths = [depth.SHALLOW + i for i in range(3)]
        courses = [course(n) for n in depths]
        more = layers - depth.SHALLOW
        found = depth.deeper(courses, more)
        sizes = [[c.flops for c in courses], *([c.held[key] for c in courses] for key in courses[0].held)]
        if found is not None and all(depth.affine(values, more) is not None for values in sizes):
            return found, courses, f"{', '.join(map(str, depths))} of {layers}, and told from them exactly", more
    whole = course(None)
    return depth.peak(whole), [whole], "all", 0


def _equal_layers(question: Question) -> int | None:
    """How many layers the network has; None where they are not known to be alike."""
    place = origin(question.model)
    return equal_layers(load_config(place, question.labels, question.task or natural_kind(place)))


def equal_layers(config: Any) -> int | None:
    """How many layers a network of this configuration has; None where they are not known to be alike."""
    kinds = set(getattr(config, "layer_types", None) or ["one"])
    alike = len(kinds) == 1 and not config.is_encoder_decoder and getattr(config, "num_hidden_layers", None)
    return int(config.num_hidden_layers) if alike else None


def _told(values: Iterable[int]) -> Any:
    """The value with more layers, from that of one course or of three."""
    known = list(values)
    return lambda more: known[0] if len(known) == 1 else depth.affine(known, more)


def _check_length(network: Backbone, setting: Setting) -> None:
    room = getattr(network.net.config, "max_position_embeddings", None)
    if network.net.config.model_type in ("roberta", "xlm-roberta", "camembert"):  # counted from the padding id
        room -= network.net.config.pad_token_id + 1
    if room is not None and setting.seq > room:
        raise UserError(f"--seq {setting.seq}: this {network.net.config.model_type} network has {room} positions")


def not_estimable(method: Method, error: Exception) -> UserError:
    return UserError(
        f"{method.name} cannot be estimated: the size of one of its tensors depends on numbers that only weights and "
        f"data have ({type(error).__name__}: {error})"
    )


def _assumed(setting: Setting, course: simulate.Course) -> dict[str, str]:
    own = {None: "as torch chooses on this machine's CPU", "math": "softmax(Q K^T) V, scores kept", "flash": "fused"}
    number = "float32" if setting.dtype == "float32" else "frozen weights bfloat16, autocast, what trains float32"
    return {
        "attention": f"{course.attention}: {own[setting.attention]}",
        "optimizer": course.optimizer,
        "mask": "texts differ in length: an explicit mask" if setting.with_mask else "texts of one length: no mask",
        "dtype": number,
        "step": f"the second of {simulate.STEPS}, gradients clipped to norm 1, every token a label",
        "device": UNVERIFIED,
    }
