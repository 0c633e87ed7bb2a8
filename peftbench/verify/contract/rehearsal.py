"""Rehearse a GPU on the meta device: does a step wait for the device, or compute on the CPU, where it need not?

Tensors on the meta device have shapes and no values. An operation on a tensor that is not there is a *stray*: on a GPU
it is a copy between the devices. A value or a size that Python reads from the device is a *wait*: on a GPU it stops the
queue of kernels until all are done. Neither changes a result, so that no other test on a CPU sees them.
"""

from __future__ import annotations

import importlib
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from peftbench.backbones import experts
from peftbench.backbones.devices import on_device
from peftbench.backbones.generation import no_settings
from peftbench.backbones.load import Backbone
from peftbench.method.edit import Edit
from peftbench.records.spec import TrainSpec
from peftbench.run.train import Trainer
from peftbench.verify.contract.case import Batch, Case, batch, network

aten = torch.ops.aten
META = torch.device("meta")
DONE = (0.05, 0.5, 1.0)  # shares of the training after each rehearsed step: a method may change its size on the way
TOKENS = 3  # that generation writes
DECOMPOSITIONS = {aten._linalg_svd.default, aten._linalg_eigh.default, aten.linalg_qr.default}  # they check for failure
SIZED_BY_VALUES = {
    *(aten.nonzero.default, aten.masked_select.default, aten.equal.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
}
EXPECTED = {  # what stays: what the place names, and why
    "generation/": "transformers' generate: its checks at the start, and after each token whether all texts have ended",
    "methods/galore.py": "a decomposition checks that it converged, and all gradients at once that they are finite; "
    "every `update_gap` steps",
    "transformers/cache_utils.py": "transformers counts the tokens of a sliding window's cache on the CPU",
    "backbones/experts.py": "adapted experts are computed one after another, each with its tokens; how many these are "
    "is read once a layer",
    "t5/modeling_t5.py": "transformers finds the end of each text by its values",
}
PARTS = ("first step", "step", "step without padding", "evaluation", "evaluation without padding", "generation")


@dataclass
class Rehearsal:
    """What happened in each part of a rehearsal.

    Attributes:
        strays: by part, the operations on tensors that are not on the device, by operation and place in the source.
        waits: by part, the readings of a value or a size from the device, by operation and place in the source.
    """

    strays: dict[str, Counter[str]] = field(default_factory=dict)
    waits: dict[str, Counter[str]] = field(default_factory=dict)


def rehearse(case: Case) -> Rehearsal:
    """Take training steps, evaluate and generate on the meta device.

    The method's attaching is not part of it: first values are drawn on the CPU, the same for every device.

    Args:
        case: A method that accepts the network.
    """
    backbone, out = _on_meta(network(case)), Rehearsal()
    edit = Edit(backbone)
    case.made.attach(edit)
    trainer = Trainer.start(edit, case.made, TrainSpec(1e-3, len(DONE), 1, 1), "float32")
    padded = batch(case)
    full = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}

    def take(part: str, inputs: Batch, done: float) -> None:
        there = _moved(inputs)
        backbone.net.train()
        with _watched(out, part):
            trainer.step(there, done)

    with _fused_optimizers(trainer):
        take("first step", padded, DONE[0])
        take("step", padded, DONE[1])
        take("step without padding", full, DONE[2])
    case.made.finish(edit)
    backbone.net.eval()
    for part, inputs in (("evaluation", padded), ("evaluation without padding", full)):
        there = backbone.inputs(_moved({k: v for k, v in inputs.items() if k != "labels"}))
        with _watched(out, part), torch.no_grad(), backbone.computing("float32"):
            backbone.net(**there)
    if case.kind == "generation":
        _generate(backbone, padded, out)
    return out


def unexpected(rehearsal: Rehearsal) -> list[str]:
    """Return what a step or an evaluation should not do on a GPU, as lines; empty if all is well."""
    kinds = {"not on the device": rehearsal.strays, "waits for the device": rehearsal.waits}
    return [
        f"{part}: {n} x {what}: {meaning}"
        for meaning, kind in kinds.items()
        for part, counted in kind.items()
        for what, n in counted.items()
        if not any(words in what for words in EXPECTED)
    ]


def _generate(backbone: Backbone, inputs: Batch, out: Rehearsal) -> None:
    """Write `TOKENS` tokens as `run.evaluate.generate` does."""
    prompts = {k: inputs[k].flip(1).to(META) for k in ("input_ids", "attention_mask")}
    there = backbone.inputs(prompts)
    start = {} if backbone.decoder_start is None else {"decoder_start_token_id": backbone.decoder_start}
    with _watched(out, "generation"), torch.no_grad(), backbone.computing("float32"), no_settings(backbone.net):
        backbone.net.generate(
            **there,
            max_new_tokens=TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=0,
            eos_token_id=1,
            **start,
        )


def _on_meta(backbone: Backbone) -> Backbone:
    backbone.net.to(META)
    backbone.parameters = dict(backbone.net.named_parameters())
    return backbone


def _moved(inputs: Batch) -> Batch:
    """Move a batch as a run does: it leaves out a mask that hides nothing."""
    return on_device(inputs, META)


@contextmanager
def _fused_optimizers(trainer: Trainer) -> Iterator[None]:
    """Let torch's AdamW be fused, as on CUDA; torch refuses it on the meta device, although its shapes are known."""
    adam: Any = importlib.import_module("torch.optim.adam")
    usual = adam._device_dtype_check_for_fused
    if isinstance(trainer.optimizer, torch.optim.AdamW):
        for group in trainer.optimizer.param_groups:
            group["fused"] = True
    adam._device_dtype_check_for_fused = lambda p, cuda_unsupported=False: None
    try:
        yield
    finally:
        adam._device_dtype_check_for_fused = usual


@contextmanager
def _watched(out: Rehearsal, part: str) -> Iterator[None]:
    watch, usual = DeviceWatch(), experts.tokens_of_each

    def read(chosen: Tensor, number: int) -> list[int]:  # without values it reads nothing
        watch.waits[_place("sizes")] += 1
        return usual(chosen, number)

    with watch, patch.object(experts, "tokens_of_each", read):
        yield
    out.strays.setdefault(part, Counter()).update(watch.strays)
    out.waits.setdefault(part, Counter()).update(watch.waits)


class DeviceWatch(TorchDispatchMode):
    """Dispatch mode that counts strays and waits on the meta device, and answers what is read from it.

    A check of one value is false, until it was made `TOKENS` times: texts end. A number is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strays, self.waits = Counter[str](), Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first: Any = args[0] if args else None
        if func is aten._local_scalar_dense.default and first.is_meta:
            place = _place("value")
            self.waits[place] += 1
            if first.dtype == torch.bool:
                return self.waits[place] >= TOKENS
            return 1.0 if first.is_floating_point() else 1
        if func is aten._to_copy.default and first.is_meta and torch.device(kwargs.get("device", META)).type == "cpu":
            self.waits[_place("copy to the CPU")] += 1
            return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if func in DECOMPOSITIONS:
            self.waits[_place(_name(func))] += 1
        if func in SIZED_BY_VALUES and first.is_meta:
            self.waits[_place(_name(func))] += 1
            return _of_unknown_size(func, first)
        if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.waits[_place("choice by a mask")] += 1
            return func(first, [part for i in args[1] for part in _numbered(i)])
        out = _grouped(*args, **kwargs) if func is aten._grouped_mm.default else func(*args, **kwargs)
        if any(isinstance(t, Tensor) and not t.is_meta for t in tree_leaves((args, kwargs, out))):
            self.strays[_place(_name(func))] += 1
        return out


def _name(func: Any) -> str:
    return str(func.overloadpacket).partition(".")[2].lstrip("_")


def _of_unknown_size(func: Any, t: Tensor) -> Any:
    """Return what an operation gives whose result depends on values, at its largest size."""
    if func is aten.equal.default:
        return False
    if func is aten.nonzero.default:
        return torch.empty(t.numel(), t.ndim, dtype=torch.long, device=META)
    if func is aten.masked_select.default:
        return t.new_empty(t.numel())
    one = t.new_empty(1)  # all are equal: what transformers requires of the number of ends of its texts
    return one, one.long(), one.long()


def _numbered(index: Tensor | None) -> list[Tensor | None]:
    """Return an index as numbers in place of a mask, one tensor for each of the mask's dimensions."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.ndim)]


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Return the shape of a grouped product, which the meta device refuses in float32 and the other devices do not."""
    assert offs is not None
    if a.ndim == b.ndim == 2:  # groups along the inner dimension
        return a.new_empty(len(offs), a.shape[0], b.shape[1])
    return a.new_empty(a.shape[-2], b.shape[-1])


def _place(what: str) -> str:
    """Return what happened and where: the innermost line of this project, a method or transformers."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path != Path(__file__) and "torch" not in path.parts:
            return f"{what}, {path.parent.name}/{path.name} {frame.name}"
    return what
