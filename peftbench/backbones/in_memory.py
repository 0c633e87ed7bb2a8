"""Networks that the user already has in memory: used in place, or saved once for other processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftbench import cache
from peftbench.backbones import quantised
from peftbench.backbones.configuration import check_one_network
from peftbench.backbones.load import Backbone
from peftbench.backbones.networks import head_of
from peftbench.backbones.normalise import normalise
from peftbench.errors import UserError
from peftbench.records.spec import digest


def wrap(net: Any, tokenizer: Any = None, roles: Mapping[str, Any] | None = None) -> Backbone:
    """Make a `Backbone` of a network, normalised in place. Weights and dtype stay unchanged.

    Args:
        net: A sequence-classification, causal or encoder-decoder model of transformers.
        tokenizer: Its tokenizer; None if the network is only given token ids.
        roles: Role table for an architecture that is not known.

    Raises:
        UserError: `net` is not such a network, is quantised, or its roles are unknown.
    """
    kind = kind_of(net)
    quantised.check_network(net)
    check_one_network(type(net).__name__, net.config)
    head = head_of(net, kind)
    net.requires_grad_(False)
    backbone = Backbone(net, normalise(net, head, roles), head, kind, tokenizer, fingerprint="")
    backbone.parameters = dict(net.named_parameters())
    return backbone


class Structure:
    """A snapshot of a network's modules: their classes, children, parameters, modes and gradient flags.

    The weights' values are not copied; `Edit.undo` restores those.
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules = [
            (m, type(m), dict(m._modules), dict(m._parameters), dict(m._buffers), m.training) for m in net.modules()
        ]
        self._trains = [(p, p.requires_grad) for p in net.parameters()]

    def restore(self) -> None:
        """Restore every module to the state of the snapshot."""
        for module, kind, modules, parameters, buffers, training in self._modules:
            module.__class__, module.training = kind, training
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for p, trains in self._trains:
            p.requires_grad_(trains)


def kind_of(net: Any) -> str:
    """Return "classification", "regression" or "generation", from the network's class and its number of outputs.

    Raises:
        UserError: `net` is not a transformers model for one of these.
    """
    name = type(net).__name__
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise UserError(f"given a {name}; give a transformers model, such as AutoModelForCausalLM.from_pretrained(...)")
    config: Any = net.config
    if name.endswith("ForSequenceClassification"):
        return "classification" if config.num_labels > 1 else "regression"
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return "generation"
    raise UserError(
        f"a {name} has no task that peftbench knows; load the model with AutoModelForSequenceClassification, "
        "AutoModelForCausalLM or AutoModelForSeq2SeqLM"
    )


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 (64 hex digits) of the names, dtypes, shapes and bytes of the weights."""
    total = hashlib.sha256()
    for name, t in weights.items():
        total.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        total.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return total.hexdigest()


_SET_BY_SAVING = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def saved(net: Any, tokenizer: Any) -> Path:
    """Return the cache directory that holds the network and its tokenizer; the same weights are written once.

    Raises:
        UserError: `net` is not a supported network or is quantised, the tokenizer is missing, or the cache cannot be
            written.
    """
    kind_of(net)
    quantised.check_network(net)
    if tokenizer is None:
        raise UserError("a model in memory needs its tokenizer; give tokenizer=... too")
    shape = {k: v for k, v in net.config.to_dict().items() if k not in _SET_BY_SAVING}
    key = digest([fingerprint_of(net.state_dict()), json.loads(json.dumps(shape, default=str))])[:24]

    def write(folder: Path) -> None:
        net.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cache.directory(cache.root() / "models" / f"{type(net).__name__}-{key}", write)
