"""One training step without numbers: the runner's own step on fake tensors, under the memory tracker.

Fake tensors are CPU tensors that have sizes and no storage (autograd on fake CUDA tensors aborts the process). What
runs is `Trainer.step`; the step that is tracked is the second, so that the optimizer's state is there.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.estimate.eight_bit import AdamW8bit
from peftbench.measure import module_roles
from peftbench.measure.flops import Flops
from peftbench.measure.memory import LiveTensors
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer

STEPS = 100  # of the training whose second step is simulated; AdaLoRA's budget asks
FOUR_BIT = ("codes", "absmax", "scales", "offset", "pairs", "dynamic")


@dataclass
class Course:
    """What one step did to memory: the sum of live bytes after every event, and every storage's life."""

    levels: list[int]
    marks: list[int]  # events at which a part of the step begins; the parts are the same at any depth
    phases: list[tuple[int, str]]
    lives: list[Any]
    flops: int
    held: dict[str, int] = field(default_factory=dict)  # bytes before the step, by group; 4-bit tensors by name
    optimizer: str = ""
    attention: str = ""

    @property
    def peak(self) -> int:
        """The event of the (first) peak."""
        return max(range(len(self.levels)), key=self.levels.__getitem__)

    def parts(self, moment: int) -> dict[tuple[str, str], int]:
        """Live bytes by (role, kind) after event `moment`."""
        found: dict[tuple[str, str], int] = {}
        for life in self.lives:
            if life.born <= moment and (life.died is None or life.died > moment):
                key = (life.role, life.kind)
                found[key] = found.get(key, 0) + life.bytes
        return found

    def phase(self, moment: int) -> str:
        return next(name for start, name in reversed(self.phases) if start <= max(moment, 1))


class Timeline(LiveTensors):
    """The tracker, which also keeps the whole course."""

    marks: list[int]
    levels: list[int]
    lives: list[Any]

    def mark(self, *_: Any) -> None:
        """Say that another part of the step begins; takes and ignores what hooks pass."""
        self.marks.append(len(self._changes))

    def phase(self, name: str) -> None:
        super().phase(name)
        self.__dict__.setdefault("marks", []).append(len(self._changes))

    @property
    def phases(self) -> list[tuple[int, str]]:
        return self._phases

    def _summary(self) -> dict[str, Any]:
        level, self.levels = 0, []
        for change in self._changes:
            level += change
            self.levels.append(level)
        self.lives = [*self._dead, *self._lives.values()]
        return super()._summary()


_SEARCHED = "_peftbench_searched"  # on the answer of a search


class Answers(TorchDispatchMode):
    """Answers where code asks a fake tensor for its number: a check holds, a search finds nothing, a factor is one.

    A search is what ends in `any`: torch draws again while any number lies outside of its bounds. An integer could be
    a size, and no size is made up: that raises, as fake tensors do.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not args[0].is_complex():
            if args[0].dtype == torch.bool:
                return not hasattr(args[0], _SEARCHED)
            if args[0].is_floating_point():
                return 1.0
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.any.default:
            setattr(out, _SEARCHED, True)
        return out


@contextmanager
def fused() -> Iterator[None]:
    """Attention that keeps its output and the log-sum-exp of its scores only, with dropout too.

    Put in the function's place, not around it: what checkpointing computes again in backward has to find it as well.
    """
    usual = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1:  # attn_mask, dropout_p, ...
            args = (args[0], 0.0, *args[2:])
        else:
            kwargs["dropout_p"] = 0.0  # a fused kernel draws its mask again in backward: nothing is kept for it
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return usual(query, key, value, *args, **kwargs)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = usual


def attention(name: str | None) -> Any:
    """The context in which attention runs as `name`; None: as torch chooses on this machine."""
    if name == "math":
        return sdpa_kernel(SDPBackend.MATH)
    return fused() if name == "flash" else nullcontext()


def fill(backbone: Backbone, make: Callable[[Tensor], Tensor]) -> Backbone:
    """Put ``make(t)`` in the place of every tensor of a network on the meta device; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    old: list[Tensor] = []  # kept until the end, so that no id is used twice

    def new(t: Tensor) -> Tensor:
        if id(t) not in made:
            old.append(t)
            filled = make(t)
            made[id(t)] = nn.Parameter(filled, requires_grad=False) if isinstance(t, nn.Parameter) else filled
        return made[id(t)]

    for module in backbone.net.modules():
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                if t is not None:
                    table[name] = new(t)
    backbone.parameters = {name: made[id(p)] for name, p in backbone.parameters.items()}  # type: ignore[misc]
    return backbone


def batch_of(backbone: Backbone, size: int, length: int, padded: bool) -> dict[str, Tensor]:
    """A batch as the tasks make them, of zeros; where it is `padded`, the first text is one token shorter."""
    config = backbone.net.config
    ids = torch.zeros(size, length, dtype=torch.long)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -1] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if config.model_type == "bert":
        batch["token_type_ids"] = torch.zeros_like(ids)
    if backbone.kind != "generation":
        return {**batch, "labels": torch.zeros(size, dtype=torch.long)}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.zeros_like(ids)
    return {**batch, "labels": torch.ones_like(ids)}


def trainer_of(backbone: Backbone, method: Method, dtype: str, optimizer: str = "adamw") -> Trainer:
    """The method on the network, and the optimiser: its own, or plain SGD or 8-bit AdamW over the same groups."""
    edit = Edit(backbone)
    method.attach(edit)
    backbone.reset_head()
    trainer = Trainer.start(edit, method, TrainSpec(method.lr, STEPS, 1, 1), dtype)
    if optimizer == "adamw":
        return trainer
    own = trainer.optimizer
    if type(own) is not torch.optim.AdamW:
        raise UserError(f"{method.name} has an optimiser of its own, {type(own).__name__}; leave --optimizer out")
    groups = [{k: g[k] for k in ("params", "lr", "weight_decay", "peak_lr")} for g in own.param_groups]
    other: Any = (torch.optim.SGD if optimizer == "sgd" else AdamW8bit)(groups, lr=method.lr)
    for owner, state in own.state.items():  # what a method keeps beside the moments
        other.state[owner] = state
    return replace(trainer, optimizer=other)


def tracked(trainer: Trainer, batch: Mapping[str, Tensor], by_role: bool = False) -> Course:
    """The second step's course; the first is taken before."""
    trainer.backbone.net.train()
    trainer.step(batch, 1 / STEPS)
    trainer.edit.check_used()
    gc.collect()
    net, optimizer = trainer.backbone.net, trainer.optimizer
    live = Timeline(trainer.groups(), optimizer, roles=module_roles.of(trainer.backbone) if by_role else None)

    def answered(module: nn.Module, args: Any, out: Any) -> None:
        live.mark()
        out.logits.register_hook(live.mark)

    hooks = [
        net.register_forward_hook(answered),
        optimizer.register_step_pre_hook(live.mark),
        optimizer.register_step_post_hook(live.mark),
    ]
    try:
        with Flops() as flops, live:
            trainer.step(batch, 2 / STEPS, live)
    finally:
        for hook in hooks:
            hook.remove()
    group = optimizer.param_groups[0]
    variant = next((v for v in ("fused", "foreach") if group.get(v)), "loop")
    course = Course(live.levels, live.marks, live.phases, live.lives, flops.total, _held(trainer))
    course.optimizer = f"{type(optimizer).__name__}, {variant}"
    course.attention = net.config._attn_implementation
    return course


@contextmanager
def numberless(padded: bool) -> Iterator[None]:
    """Fake tensors, and transformers behaving as it does with numbers: no mask is built for texts of one length."""
    from transformers.utils import import_utils

    usual = import_utils.is_fake_tensor
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(Answers())
        try:
            if not padded:  # it then asks whether all of the mask is set, and is answered
                import_utils.is_fake_tensor = lambda x: False
            yield
        finally:
            import_utils.is_fake_tensor = usual


def fake(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)


def _held(trainer: Trainer) -> dict[str, int]:
    """Bytes of what is there before a step: storages of each group once, and of 4-bit layers by tensor."""
    seen: set[int] = set()
    held: dict[str, int] = {}

    def add(name: str, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            held[name] = held.get(name, 0) + storage.nbytes()

    for module in trainer.backbone.net.modules():
        if isinstance(module, NF4Linear):
            for name in FOUR_BIT:
                if getattr(module, name) is not None:
                    add(f"4-bit {name}", getattr(module, name))
    for name, tensors in trainer.groups().items():
        held.setdefault(name, 0)
        for t in tensors:
            add(name, t)
    return held
