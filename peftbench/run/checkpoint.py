"""Checkpoints of a run that is under way: an attempt that ends early goes on from there in the next one, bit for bit.

A checkpoint has all that the coming steps depend on: the tensors that training changes, the optimiser's state, what the
method's modules keep besides tensors (AdaLoRA's count of steps and its averages), every random stream, the curve so far
and the best weights so far. The batches need no state of their own: their order is a function of the seed. The adapters
are attached anew before a checkpoint is read, as they were at the start, so frozen weights, quantised ones too, are not
in the file.

A checkpoint belongs to a specification and to the code that wrote it. Under other code or other versions of libraries
it is left alone, and the record says so. On another kind of machine the run goes on, no longer bit for bit; the record
names the environments.
"""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.backbones.sharded import fill, is_sharded, whole
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.records import record, scratch
from peftbench.records.consistency import env_id
from peftbench.run.train import Best, Fitted, Trainer

FORMAT = 1
PLAIN = (bool, int, float, str, bytes, type(None))
OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_site"}
SAVED = ("losses", "validation", "seconds", "stopped_at", "memory", "resumed", "is_over")  # of `Fitted`


@dataclass
class Checkpoints:
    """Where the runs of a session keep their checkpoints, and how often.

    Attributes:
        folder: the directory of the files.
        every: steps between two checkpoints.
        env: the environment of this process, as records have it.
    """

    folder: Path
    every: int
    env: Mapping[str, Any]

    def of(self, spec_id: str, probes: Mapping[str, list[Any]]) -> RunCheckpoint:
        """The checkpoint of a run; `probes` are its measurements so far, by probe, and are changed in place."""
        return RunCheckpoint(self.path(spec_id), self.every, spec_id, self.env, probes)

    def path(self, spec_id: str) -> Path:
        return self.folder / f"{spec_id}.pt"

    def discard(self, spec_id: str) -> None:
        """Remove the checkpoint of a run that needs it no more."""
        with suppress(OSError):
            self.path(spec_id).unlink(missing_ok=True)


@dataclass
class RunCheckpoint:
    """The checkpoint of one run: read once before its first step, then written every so many steps.

    Attributes:
        path: the file.
        every: steps between two checkpoints.
        spec_id: of the run.
        env: the environment of this process.
        probes: the measurements of the run's probes, by probe.
        left: why a checkpoint that is there was not used; None if none was, or it was used.
        unwritten: why the newest checkpoint could not be written; None if it could.
    """

    path: Path
    every: int
    spec_id: str
    env: Mapping[str, Any]
    probes: Mapping[str, list[Any]] = field(default_factory=dict)
    left: str | None = None
    unwritten: str | None = None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after so many steps."""
        return step % self.every == 0

    def save(self, trainer: Trainer, fitted: Fitted) -> None:
        """Write the state between two steps. The file is replaced at once; a crash leaves the one before."""
        content = {
            "format": FORMAT,
            "spec_id": self.spec_id,
            "env_id": env_id(self.env),
            "code": _code(self.env),
            "fitted": {name: getattr(fitted, name) for name in SAVED},
            "best": fitted.best and vars(fitted.best),
            "state": state(trainer),
            "probes": dict(self.probes),
        }
        if not trainer.ranks.is_first:
            return
        try:
            self._write(content)
            self.unwritten = None
        except (OSError, RuntimeError) as error:  # a full disk: training can go on, and its record says so
            self.unwritten = f"it could not be written after step {fitted.stopped_at}: {record.short(error)}"

    def _write(self, content: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = scratch.beside(self.path)
        try:
            with part.open("wb") as f:
                torch.save(content, f)
                f.flush()
                os.fsync(f.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def restore(self, trainer: Trainer) -> Fitted | None:
        """Put the state of the checkpoint in place; return what training had produced, or None without a checkpoint."""
        content = self._read(trainer)
        if content is None:
            return None
        load_state(trainer, content["state"])
        fitted = Fitted(**content["fitted"])
        fitted.best = content["best"] and Best(**content["best"])
        fitted.resumed.append({"step": fitted.stopped_at, "env_id": content["env_id"]})
        for name, points in self.probes.items():
            points[:] = content["probes"][name]
        return fitted

    def _read(self, trainer: Trainer) -> dict[str, Any] | None:
        """The content of the file if it fits; what is wrong with it becomes `left` before anything has changed."""
        if not self.path.exists():
            return None
        device = trainer.backbone.device

        def place(storage: Any, location: str) -> Any:  # what lay on the GPU goes to this run's GPU
            return storage if location == "cpu" else torch.serialization.default_restore_location(storage, str(device))

        try:
            with zipfile.ZipFile(self.path) as file:
                if damaged := file.testzip():  # torch does not look at the checksums
                    raise ValueError(f"{damaged} is damaged")
            content = dict(torch.load(self.path, map_location=place, weights_only=True))
            if content["format"] != FORMAT or content["spec_id"] != self.spec_id:
                raise ValueError("it is of another format or run")
            differing = [name for name, value in _code(self.env).items() if content["code"].get(name) != value]
            if differing:
                self.left = f"it was written by another version of {', '.join(differing)}"
                return None
            _check(trainer, content["state"])
            Fitted(**content["fitted"])
            if content["probes"].keys() != self.probes.keys():
                raise ValueError("it has other probes")
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            self.left = f"the file cannot be read: {record.short(error)}"
            return None
        return content


def state(trainer: Trainer) -> dict[str, Any]:
    """All that the next step depends on, as tensors, numbers, texts and containers of these.

    What is one object for two owners, such as averages that the method's modules share with the optimiser, is one in
    the result. What is in shards is gathered, so that any number of ranks can go on: every rank must call this.
    """
    return {
        "tensors": _tensors(trainer),
        "attributes": {path: _attributes(module) for path, module in _modules(trainer.edit)},
        "optimizer": _optimizer_state(trainer),
        "random": trainer.ranks.gather(_random_state(trainer.backbone.device)),
    }


def load_state(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Put what `state` returned in place.

    Args:
        trainer: of the same method on the same network, before its first step.
        saved: the result of `state`.

    Raises:
        ValueError: it is of another method or network.
    """
    _check(trainer, saved)
    own = _tensors(trainer)
    of_edit = trainer.edit.state().keys()
    trainer.edit.load({name: saved["tensors"][name] for name in of_edit})
    for name in own.keys() - of_edit:
        fill(own[name], saved["tensors"][name])
    for path, module in _modules(trainer.edit):
        vars(module).update(saved["attributes"].get(path, {}))
    _load_optimizer_state(trainer, saved["optimizer"])
    if trainer.ranks.rank < len(saved["random"]):  # a further rank keeps the stream that it began with
        _load_random_state(trainer.backbone.device, saved["random"][trainer.ranks.rank])


def _check(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Raise ValueError if a state is of another method or network."""
    own = _tensors(trainer)
    if own.keys() != saved["tensors"].keys():
        raise ValueError(f"it has other tensors: {sorted(own.keys() ^ saved['tensors'].keys())[:3]}")
    if wrong := [name for name, t in own.items() if t.shape != saved["tensors"][name].shape]:
        raise ValueError(f"{wrong[0]} has another shape")
    if unknown := saved["optimizer"]["state"].keys() - dict(_owners(trainer)).keys():
        raise ValueError(f"its optimiser has a state for {min(unknown)}")
    for part in ("attributes", "random"):
        saved[part]


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """The tensors that training may change, by name: adapters with their buffers, thawed weights and the head."""
    found = trainer.edit.state()
    for path, module in _modules(trainer.edit):
        found.update({f"{path}.{name}": t for name, t in module.named_buffers(recurse=False)})
    head = trainer.backbone.head_parameters()
    return found | {f"head.{i}": p.detach() for i, p in enumerate(head)}


def _modules(edit: Edit) -> Iterator[tuple[str, nn.Module]]:
    """The modules of adapters with their paths, without the layers below them, which the base or attaching made."""
    for site, adapter in edit.placed():
        for name, module in adapter.named_modules():
            if name.split(".")[0] != "base":
                yield f"{site.path}.{name}" if name else site.path, module


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps besides parameters, buffers and modules, as far as it is plain data."""
    return {k: v for k, v in vars(module).items() if k not in OF_EVERY_MODULE and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, texts, tensors and containers of these; parameters live elsewhere."""
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    if isinstance(value, Mapping):
        return type(value) is dict and all(map(_is_plain, [*value.keys(), *value.values()]))
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return type(value) in PLAIN


def _optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """The optimiser's state by the number of the parameter, or by the path of the module that it is kept for."""
    optimizer, names = trainer.optimizer, {id(owner): name for name, owner in _owners(trainer)}
    kept = {}
    for owner, value in optimizer.state.items():
        if id(owner) not in names:
            raise UserError(
                f"{trainer.method.name}: its optimiser keeps a state for {type(owner).__name__}, which is neither a "
                "parameter that it steps nor a module of the network; a checkpoint cannot have it. Set "
                "checkpoint_every: null"
            )
        kept[names[id(owner)]] = _gathered(value) if isinstance(owner, Tensor) else value
    groups = [{k: v for k, v in g.items() if k != "params" and _is_plain(v)} for g in optimizer.param_groups]
    return {"state": kept, "groups": groups}


def _load_optimizer_state(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    optimizer, owners = trainer.optimizer, dict(_owners(trainer))
    optimizer.state.clear()
    for name, value in saved["state"].items():
        owner = owners[name]
        optimizer.state[owner] = _divided(value, owner) if isinstance(owner, Tensor) else value
    if len(optimizer.param_groups) == len(saved["groups"]):  # shards may have groups of their own
        for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
            group.update(values)


def _gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: whole(v) if isinstance(v, Tensor) else v for k, v in state.items()}


def _divided(state: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
    """A parameter's state, in shards where the parameter is."""

    def placed(value: Any) -> Any:
        if not (isinstance(value, Tensor) and is_sharded(parameter) and value.shape == parameter.shape):
            return value
        mine = torch.empty_like(parameter)
        fill(mine, value)
        return mine

    return {k: placed(v) for k, v in state.items()}


def _owners(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    """What an optimiser may keep a state for, by name: the network's parameters and modules."""
    yield from trainer.backbone.net.named_modules(prefix="module")
    yield from ((f"parameter {name}", p) for name, p in trainer.backbone.net.named_parameters())


def _random_state(device: torch.device) -> dict[str, Any]:
    """The random streams of torch, Python and numpy. numpy's array becomes a list, which a checkpoint can hold."""
    name, keys, *rest = (*np.random.get_state(),)
    return {
        "torch": torch.get_rng_state(),
        "device": _device_module(device).get_rng_state() if device.type in ("cuda", "mps") else None,
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
    }


def _load_random_state(device: torch.device, saved: Mapping[str, Any]) -> None:
    torch.set_rng_state(saved["torch"].cpu())
    if saved["device"] is not None and device.type in ("cuda", "mps"):
        _device_module(device).set_rng_state(saved["device"].cpu())
    random.setstate(saved["python"])
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _device_module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _code(env: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on: the sources and the libraries that compute."""
    packages = env["packages"]
    return {
        "peftbench": [env["code"]["source"], env["code"].get("plugins")],
        **{name: packages.get(name) for name in ("torch", "transformers", "bitsandbytes")},
    }
