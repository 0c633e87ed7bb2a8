"""fit(): the only training loop, readable top to bottom. It knows no method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.devices import autocast, on_device, synchronise
from peftbench.backbones.load import Backbone
from peftbench.backbones.losses import counted, loss_sum
from peftbench.measure import module_roles
from peftbench.measure.memory import LiveTensors
from peftbench.measure.timing import Phased
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.records.spec import TrainSpec

Batch = Mapping[str, Tensor]


class Diverged(Exception):
    """The loss or a trained weight is no longer a number. `body` is what the failed run's record keeps."""

    def __init__(self, step: int, what: str, fitted: Fitted) -> None:
        super().__init__(f"{what} at step {step}")
        self.body = {"curve": {"loss": fitted.losses, "validation": fitted.validation}, "stopped_at": step}


class Abandoned(Exception):
    """The run was asked to stop between two steps."""


@dataclass
class Fitted:
    """What training leaves behind beside the weights."""

    losses: list[float] = field(default_factory=list)  # one an optimiser step
    validation: list[dict[str, Any]] = field(default_factory=list)  # {"step": n, metric: value}
    step_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of all steps, but for the tracked one; only with a limit
    stopped_at: int = 0
    checkpoint_step: int = 0
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trainer:
    """One network with one method attached, and how it is stepped."""

    backbone: Backbone
    edit: Edit
    method: Method
    spec: TrainSpec
    dtype: str
    optimizer: torch.optim.Optimizer

    @classmethod
    def start(cls, edit: Edit, method: Method, spec: TrainSpec, dtype: str) -> Trainer:
        """The method's optimiser over what it trains, and one group for the head, the same for every method."""
        backbone = edit.backbone
        head = backbone.head_parameters()
        optimizer = method.optimizer(backbone.net, spec.lr, spec.weight_decay)
        for p in head:
            p.requires_grad_(True)
        if head:
            head_lr = spec.lr if spec.head_lr is None else spec.head_lr
            optimizer.add_param_group({"params": head, "lr": head_lr, "weight_decay": spec.weight_decay})
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        return cls(backbone, edit, method, spec, dtype, optimizer)

    def step(self, batch: Batch, done: float, live: Phased | None = None) -> Tensor:
        """One optimiser step on `batch`, in micro-batches; returns the mean loss, still on the device.

        `done` is the share of training behind us once this step is: what the method's `after_step` is told. `live` is
        told the phases.
        """
        kind, device = self.backbone.kind, self.backbone.device
        batch = self.backbone.inputs(batch)
        total = counted(kind, batch["labels"])
        parts = _parts(batch, self.spec.accumulation)
        mean = torch.zeros((), device=device)
        for part in parts:
            _phase(live, "forward")
            with autocast(device, self.dtype):
                logits = self.backbone.net(**{k: v for k, v in part.items() if k != "labels"}).logits
            loss = loss_sum(kind, logits, part["labels"]) / total
            extra = self.method.extra_loss(self.backbone.net)
            objective = loss if extra is None else loss + extra / len(parts)
            _phase(live, "backward")
            objective.backward()
            mean += loss.detach()
            del logits, loss, objective, extra
        _phase(live, "optimizer")
        if self.spec.clip is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self.spec.clip)
        self.optimizer.step()
        self.method.after_step(self.backbone.net, done)
        self.optimizer.zero_grad(set_to_none=True)
        return mean

    def tracked_step(self, batch: Batch, done: float, by_role: bool = False) -> tuple[Tensor, dict[str, Any]]:
        """The same step under the memory tracker; uncompiled, since a compiled graph hides its tensors.

        With `by_role` the record splits its parts by module role too (measure/roles.py).
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
            **live.record(),
            "batch": list(batch["input_ids"].shape),
            "attention": net.config._attn_implementation,
            "optimizer": f"{type(self.optimizer).__name__}, {variant}",
            "source": "live tensors of one training step, the one with the largest batch",
        }

    def schedule(self, done: int, share: float | None = None) -> None:
        """Set every group's rate for the step after `done` steps, or at a share of the seconds there are."""
        share = rate(done, self.spec) if share is None else rate_at(share, self.spec)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share

    def groups(self) -> dict[str, list[Tensor]]:
        """The tensors that memory is split into before a step."""
        net = self.backbone.net
        head: list[Tensor] = [*self.backbone.head_parameters()]
        base = {id(p) for p in self.backbone.parameters.values()}
        adapter: list[Tensor] = [t for m in self.edit.adapters() for t in m.parameters() if id(t) not in base]
        placed = {id(t) for t in [*adapter, *head]}
        rest = [t for t in [*net.parameters(), *net.buffers()] if id(t) not in placed]
        return {"weights": rest, "adapter": adapter, "head": head}


def rate(done: int, spec: TrainSpec) -> float:
    """The share of the peak rate after `done` steps: linear warm-up, then linear, cosine or no decay to zero."""
    warmup = round(spec.warmup * spec.steps)
    if done < warmup:
        return (done + 1) / warmup
    return _decayed((done - warmup) / max(1, spec.steps - warmup), spec.decay)


def rate_at(share: float, spec: TrainSpec) -> float:
    """The share of the peak rate once this share of the training time will be over."""
    if share < spec.warmup:
        return share / spec.warmup
    return _decayed(min(1.0, (share - spec.warmup) / (1 - spec.warmup)), spec.decay)


def _decayed(progress: float, decay: str) -> float:
    if decay == "constant":
        return 1.0
    return 1.0 - progress if decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


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
) -> Fitted:
    """Train for ``spec.steps`` steps, or the first step after ``spec.seconds``; leaves the chosen checkpoint in it.

    `batches` has one for each step. Of the seconds only steps take any: neither evaluation nor the tracker's step.
    `evaluate` gives the validation metrics after so many steps; `better(a, b)` says whether a beats b. The step at
    index `tracked` runs under the memory tracker. With `timed`, each step's seconds are kept (the device is
    synchronised between steps). Raises `Diverged` or `Abandoned`.
    """
    spec, out, pending = trainer.spec, Fitted(), list[Tensor]()
    best: tuple[dict[str, Any], dict[str, Tensor], list[Tensor]] | None = None
    device = trainer.backbone.device
    trainer.backbone.net.train()
    limited = spec.seconds is not None
    for i, make in enumerate(batches):
        if stop():
            raise Abandoned(f"asked to stop after {i}{'' if limited else f' of {spec.steps}'} steps")
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
            out.step_seconds += [took] * timed
            out.seconds += took
        out.stopped_at = i + 1
        if i == 0:
            trainer.edit.check_used()
        last = out.stopped_at == spec.steps if spec.seconds is None else out.seconds >= spec.seconds
        due = last or (spec.eval_every is not None and out.stopped_at % spec.eval_every == 0)
        if due or device.type == "cpu" or len(pending) >= 20:  # elsewhere, reading a loss would wait for the device
            _read(pending, out)
            on_progress({"phase": "train", **_position(out, spec), "loss": out.losses[-1]})
        if due:
            now = {"step": out.stopped_at, **evaluate(out.stopped_at)}
            out.validation.append(now)
            trainer.backbone.net.train()
            if best is None or better(now, best[0]):
                best = (now, *_copy(trainer)) if spec.checkpoint == "best" else (now, {}, [])
            elif spec.patience is not None and _stale(out.validation, best[0]) >= spec.patience:
                break
        if last:
            break
    if not all(bool(torch.isfinite(p).all()) for p in trainer.backbone.net.parameters() if p.requires_grad):
        raise Diverged(out.stopped_at, "a trained weight became infinite or NaN", out)
    out.checkpoint_step = out.stopped_at
    if spec.checkpoint == "best" and best is not None:
        _restore(trainer, best[1], best[2])
        out.checkpoint_step = best[0]["step"]
    return out


def _share(out: Fitted, spec: TrainSpec) -> float:
    """The share of training behind us after the next step, which is taken to last as long as the mean one so far."""
    if spec.seconds is None:
        return (out.stopped_at + 1) / spec.steps
    return min(1.0, out.seconds * (1 + 1 / max(1, out.stopped_at)) / spec.seconds)


def _position(out: Fitted, spec: TrainSpec) -> dict[str, float]:
    """How far it is: steps of steps, or seconds of seconds."""
    if spec.seconds is None:
        return {"step": out.stopped_at, "steps": spec.steps}
    return {"step": round(out.seconds, 1), "steps": spec.seconds}


def _parts(batch: Batch, count: int) -> list[Batch]:
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


def _read(pending: list[Tensor], out: Fitted) -> None:
    for loss in torch.stack(pending).tolist():
        out.losses.append(loss)
        if not math.isfinite(loss):
            raise Diverged(len(out.losses), f"the loss became {loss}", out)
    pending.clear()


def _stale(validation: list[dict[str, Any]], best: Mapping[str, Any]) -> int:
    """Evaluations since the best one."""
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
