"""fit(): the only training loop, readable top to bottom. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftbench.backbones.devices import on_device, synchronise
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted, loss_sum
from peftbench.backbones.sharded import local
from peftbench.errors import UserError
from peftbench.measure import module_roles
from peftbench.measure.memory import LiveTensors
from peftbench.measure.timing import Phased
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.records.spec import TrainSpec
from peftbench.run.evaluate import NotFinite
from peftbench.run.parallel.ranks import ONE, Ranks
from peftbench.run.schedule import rate, rate_at

if TYPE_CHECKING:
    from peftbench.run.checkpoint import RunCheckpoint

WARM_UP = 2  # first steps of a process, whose times do not count
Batch = Mapping[str, Tensor]


class Diverged(Exception):
    """The loss, a trained weight or an output is no longer a number.

    Attributes:
        body: what the failed run's record keeps: the curve so far.
    """

    def __init__(self, step: int, what: str, fitted: Fitted) -> None:
        super().__init__(f"{what} at step {step}")
        self.body = {"curve": {"loss": fitted.losses, "validation": fitted.validation}, "stopped_at": step}

    @classmethod
    def of(cls, message: str, body: dict[str, Any]) -> Diverged:
        """The exception that another process raised."""
        made = cls.__new__(cls)
        Exception.__init__(made, message)
        made.body = body
        return made


class Abandoned(Exception):
    """The run stopped between two steps because `stop` returned True."""


@dataclass
class Best:
    """The best weights so far, on the CPU, so that they take no device memory. Empty where the last ones count.

    Attributes:
        scores: {"step": n, metric: value} on the validation split.
        state: the tensors of the edit by name.
        head: the parameters of the task head.
    """

    scores: dict[str, Any]
    state: dict[str, Tensor] = field(default_factory=dict)
    head: list[Tensor] = field(default_factory=list)


@dataclass
class Fitted:
    """What training produces in addition to the weights. Times leave out the tracked step."""

    losses: list[float] = field(default_factory=list)  # one for each optimiser step
    validation: list[dict[str, Any]] = field(default_factory=list)  # {"step": n, metric: value}
    step_seconds: list[float] = field(default_factory=list)  # of each step but a process's first, if steps are timed
    seconds: float = 0.0  # of all steps, if they are timed or limited
    stopped_at: int = 0  # the number of steps
    is_over: bool = False  # all steps are done, or patience has run out
    checkpoint_step: int = 0  # the number of steps after which the weights were as they are now
    memory: dict[str, Any] | None = None  # the record of the tracked step
    best: Best | None = None  # by the validation split
    resumed: list[dict[str, Any]] = field(default_factory=list)  # {"step": n, "env_id": ...} of each earlier attempt


@dataclass(frozen=True)
class Trainer:
    """One network with one method attached, its optimiser, and what a training step is."""

    backbone: Backbone
    edit: Edit
    method: Method
    spec: TrainSpec
    dtype: str
    optimizer: torch.optim.Optimizer
    ranks: Ranks = ONE

    @classmethod
    def start(cls, edit: Edit, method: Method, spec: TrainSpec, dtype: str, ranks: Ranks = ONE) -> Trainer:
        """Make the method's optimiser over what it trains, with one group for the head that all methods share.

        Args:
            edit: the network with the method attached.
            method: the method.
            spec: learning rates, weight decay, accumulation, clipping, schedule.
            dtype: "float32", or "bfloat16" for autocast.
            ranks: the processes that share the run.
        """
        backbone = edit.backbone
        head = backbone.head_parameters()
        for p in head:  # a training before this one left them trainable; they have a group of their own
            p.requires_grad_(False)
        if ranks.shards > 1:
            from peftbench.run.parallel import shards

            shards.shard(edit, ranks)
            head = backbone.head_parameters()
        optimizer = method.optimizer(backbone.net, spec.lr, spec.weight_decay)
        for p in head:
            p.requires_grad_(True)
        if head:
            head_lr = spec.lr if spec.head_lr is None else spec.head_lr
            optimizer.add_param_group({"params": head, "lr": head_lr, "weight_decay": spec.weight_decay})
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        ranks.check_optimizer(backbone.net, optimizer, method.name)
        return cls(backbone, edit, method, spec, dtype, optimizer, ranks)

    def step(self, batch: Batch, done: float, live: Phased | None = None) -> Tensor:
        """One optimiser step, in micro-batches.

        Args:
            batch: input_ids, attention_mask and labels, each (batch, ...).
            done: the share of training that is over after this step, for the method's `after_step`.
            live: an instrument; it is notified of the phases "forward", "backward" and "optimizer".

        Returns:
            The mean loss, a scalar that is still on the device.

        Raises:
            UserError: The first step reaches none of the adapters at some kind of layer.
        """
        kind, device = self.backbone.kind, self.backbone.device
        batch = self.backbone.inputs(batch)
        total = counted(kind, batch["labels"])
        parts = [self.ranks.share(part) for part in _micro_batches(batch, self.spec.accumulation)]
        exact = torch.promote_types(torch.float32, next(self.backbone.net.parameters()).dtype)  # float64 in tests
        mean = torch.zeros((), device=device, dtype=exact)
        for part in parts:
            _phase(live, "forward")
            with self.backbone.computing(self.dtype):
                logits = self.backbone.net(**{k: v for k, v in part.items() if k != "labels"}).logits
            loss = loss_sum(kind, logits, part["labels"]) / total
            extra = self.method.extra_loss(self.backbone.net)
            objective = loss if extra is None else loss + extra / (len(parts) * self.ranks.size)
            _phase(live, "backward")
            if objective.requires_grad:
                objective.backward()
            else:
                self._check_reached()
            mean += loss.detach()
            if extra is not None:  # the loss of the task alone is recorded; 0 times what is not finite is NaN
                mean += 0 * (extra.detach().sum() if isinstance(extra, Tensor) else extra)
            del logits, loss, objective, extra
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.ranks.sum_gradients(trained)
        self.ranks.check_gradient(trained)
        self.edit.check_reached()
        _phase(live, "optimizer")
        if self.spec.clip is not None:
            self.ranks.clip(trained, self.spec.clip)
        self.optimizer.step()
        self.method.after_step(self.backbone.net, done)
        self.optimizer.zero_grad(set_to_none=True)
        return self.ranks.sum(mean)

    def _check_reached(self) -> None:
        """Raise `UserError` if a loss depends on nothing that trains, unless chance drops layers in each step."""
        if any(getattr(module, "layerdrop", 0) for module in self.backbone.net.modules()):
            return
        self.edit.check_used()
        raise UserError(
            f"nothing that {self.method.name} trains takes part in the output of this "
            f"{self.backbone.net.config.model_type} network; name other roles in the method, or use another method"
        )

    def tracked_step(self, batch: Batch, done: float, by_role: bool = False) -> tuple[Tensor, dict[str, Any]]:
        """`step` under the memory tracker; uncompiled, as a compiled graph hides its tensors.

        Returns:
            The mean loss, and the memory record in bytes; `by_role` splits its parts by module role, too.
        """
        net, (group, *_) = self.backbone.net, self.optimizer.param_groups
        compiled, net._compiled_call_impl = net._compiled_call_impl, None
        try:
            where = module_roles.of(self.backbone) if by_role else None
            with LiveTensors(self.groups(), self.optimizer, roles=where) as live:
                loss = self.step(batch, done, live)
        finally:
            net._compiled_call_impl = compiled
        variant = next((v for v in ("fused", "foreach") if group.get(v)), "loop")
        return loss, {
            **(measured := live.record()),
            **({"ranks": self.ranks.gather(measured["peak_bytes"])} if self.ranks.size > 1 else {}),
            "batch": list(batch["input_ids"].shape),
            "attention": net.config._attn_implementation,
            "optimizer": f"{type(self.optimizer).__name__}, {variant}",
            "source": "live tensors of one training step, the one with the largest batch",
        }

    def schedule(self, done: int, share: float | None = None) -> None:
        """Set every group's learning rate for the step after `done` steps, or at a `share` of the seconds."""
        share = rate(done, self.spec) if share is None else rate_at(share, self.spec)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share

    def replicated(self) -> dict[str, Tensor]:
        """What trains and is whole on each rank, by name."""
        return {name: p.detach() for name, p in self.backbone.net.named_parameters() if p.requires_grad}

    def groups(self) -> dict[str, list[Tensor]]:
        """The tensors that exist before a step, by the part of memory that they count for."""
        net = self.backbone.net
        head: list[Tensor] = [*self.backbone.head_parameters()]
        adapter: list[Tensor] = [*self.edit.own()]
        placed = {id(t) for t in [*adapter, *head]}
        rest = [t for t in [*net.parameters(), *net.buffers()] if id(t) not in placed]
        return {"weights": rest, "adapter": adapter, "head": head}


def fit(
    trainer: Trainer,
    batches: Iterable[Callable[[], Batch]],
    evaluate: Callable[[int], dict[str, float | None]],
    better: Callable[[Mapping[str, Any], Mapping[str, Any]], bool],
    *,
    tracked: int | None = None,
    timed: bool = False,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint: RunCheckpoint | None = None,
) -> Fitted:
    """Train for ``spec.steps`` steps, or for ``spec.seconds`` of steps; leave the chosen checkpoint in place.

    Args:
        trainer: the network, its method and its optimiser.
        batches: a function that makes the batch, for each step. Evaluation and the tracked step use up no seconds.
        evaluate: the validation metrics after so many steps.
        better: whether the validation metrics `a` beat `b`.
        tracked: the index of the step that runs under the memory tracker.
        timed: whether to keep the seconds of each step; the device is synchronised between steps.
        on_progress: called with the phase, the step and the loss.
        stop: called between two steps; True abandons the run.
        checkpoint: where training goes on from, and what is written on the way; None for neither.

    Raises:
        Diverged: the loss or a trained weight is no longer a number.
        Abandoned: `stop` returned True.
    """
    spec, pending = trainer.spec, list[Tensor]()
    out = (checkpoint and checkpoint.restore(trainer)) or Fitted()
    device = trainer.backbone.device
    trainer.backbone.net.train()
    limited = spec.seconds is not None
    first, ranks = out.stopped_at, trainer.ranks

    def keep() -> None:
        if checkpoint and out.stopped_at:
            _read_losses(pending, out)
            checkpoint.save(trainer, out)

    def validate() -> bool:
        """Evaluate, and keep the best weights; return whether patience has run out."""
        try:
            now = {"step": out.stopped_at, **ranks.from_first(evaluate(out.stopped_at))}
        except NotFinite as error:
            raise Diverged(out.stopped_at, str(error), out) from error
        except Abandoned:
            keep()  # the next attempt begins with this evaluation
            raise
        out.validation.append(now)
        ranks.check_same(trainer.replicated())
        trainer.backbone.net.train()
        if out.best is None or better(now, out.best.scores):
            out.best = Best(now, *_copy(trainer)) if spec.checkpoint == "best" else Best(now)
            return False
        return spec.patience is not None and _evaluations_since(out.validation, out.best.scores) >= spec.patience

    if first and not out.is_over and _is_due(out, spec) and first not in [v["step"] for v in out.validation]:
        out.is_over = validate() or _is_last(out, spec)
    for i, make in enumerate(islice(batches, first, 0 if out.is_over else None), first):
        if ranks.any(stop()):
            keep()
            kept = "; the next attempt goes on from there" if checkpoint and i else ""
            raise Abandoned(f"stopped on request after {i}{'' if limited else f' of {spec.steps}'} steps{kept}")
        batch = on_device(make(), device)
        done = _share(out, spec)
        trainer.schedule(i, done if limited else None)
        started = _now(device, timed or limited)
        if i == tracked:
            loss, out.memory = trainer.tracked_step(batch, done)
            pending.append(loss)
        else:
            pending.append(trainer.step(batch, done))
        if (timed or limited) and i != tracked:
            took = _now(device, True) - started
            out.step_seconds += [took] * (timed and i - first >= WARM_UP)
            out.seconds += took
        out.stopped_at = i + 1
        if i == first:
            trainer.edit.check_used()
            ranks.check_same(trainer.replicated())
        due = _is_due(out, spec)
        if due or device.type == "cpu" or len(pending) >= 20:  # elsewhere, reading a loss would wait for the device
            _read_losses(pending, out)
            on_progress({"phase": "train", **_position(out, spec), "loss": out.losses[-1]})
        out.is_over = (due and validate()) or _is_last(out, spec)
        if checkpoint and (out.is_over or checkpoint.is_due(out.stopped_at)):  # the test is to come, and may be stopped
            keep()
        if out.is_over:
            break
    if ranks.any(not _all_finite([local(p) for p in trainer.backbone.net.parameters() if p.requires_grad])):
        raise Diverged(out.stopped_at, "a trained weight became infinite or NaN", out)
    out.checkpoint_step = out.stopped_at
    if spec.checkpoint == "best" and out.best is not None:
        _restore(trainer, out.best.state, out.best.head)
        out.checkpoint_step = out.best.scores["step"]
    return out


def _is_last(out: Fitted, spec: TrainSpec) -> bool:
    """Whether all steps, or all seconds, are over."""
    return out.stopped_at == spec.steps if spec.seconds is None else out.seconds >= spec.seconds


def _is_due(out: Fitted, spec: TrainSpec) -> bool:
    """Whether there is an evaluation after this step."""
    return _is_last(out, spec) or (spec.eval_every is not None and out.stopped_at % spec.eval_every == 0)


def _share(out: Fitted, spec: TrainSpec) -> float:
    """The share of training that is over after the next step, if that lasts as long as the mean step so far."""
    if spec.seconds is None:
        return (out.stopped_at + 1) / spec.steps
    return min(1.0, out.seconds * (1 + 1 / max(1, out.stopped_at)) / spec.seconds)


def _position(out: Fitted, spec: TrainSpec) -> dict[str, float]:
    """How far training is: of its steps, or of its seconds."""
    if spec.seconds is None:
        return {"step": out.stopped_at, "steps": spec.steps}
    return {"step": round(out.seconds, 1), "steps": spec.seconds}


def _micro_batches(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    chunks = {k: v.chunk(count) for k, v in batch.items()}
    return [{k: v[i] for k, v in chunks.items()} for i in range(len(chunks["labels"]))]


def _phase(live: Phased | None, name: str) -> None:
    if live is not None:
        live.phase(name)


def _now(device: torch.device, timed: bool) -> float:
    if timed:
        synchronise(device)
    return time.perf_counter()


def _read_losses(pending: list[Tensor], out: Fitted) -> None:
    for loss in torch.stack(pending).tolist() if pending else ():
        out.losses.append(loss)
        if not math.isfinite(loss):
            raise Diverged(len(out.losses), f"the loss became {loss}", out)
    pending.clear()


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether every number is finite; read from the device once."""
    return not tensors or bool(torch.stack([torch.isfinite(t).all() for t in tensors]).all())


def _evaluations_since(validation: list[dict[str, Any]], best: Mapping[str, Any]) -> int:
    """How many evaluations came after the best one."""
    return sum(v["step"] > best["step"] for v in validation)


def _copy(trainer: Trainer) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The trained tensors on the CPU, so that a checkpoint takes no device memory."""
    state = {name: t.cpu().clone() for name, t in trainer.edit.state().items()}
    return state, [p.detach().cpu().clone() for p in trainer.backbone.head_parameters()]


def _restore(trainer: Trainer, state: dict[str, Tensor], head: list[Tensor]) -> None:
    trainer.edit.load(state)
    with torch.no_grad():
        for p, kept in zip(trainer.backbone.head_parameters(), head, strict=True):
            p.copy_(kept)
