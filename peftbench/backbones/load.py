"""Load a base model with its task head and tokenizer, normalised, as a `Backbone`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from peftbench import cache
from peftbench.backbones import attention, prompt, source, tiny
from peftbench.backbones.configuration import check_layers_stay, decoder_start, load_config
from peftbench.backbones.devices import autocast, has_no_data
from peftbench.backbones.networks import (
    DTYPES,
    build_network,
    head_of,
    prepare_for_training,
    random_network,
    within,
)
from peftbench.backbones.normalise import normalise
from peftbench.backbones.sites import Sites
from peftbench.backbones.tokenizers import load_tokenizer, share_padding_token
from peftbench.errors import UserError
from peftbench.records import scratch


@dataclass
class Backbone:
    """A normalised network with its sites, task head and tokenizer. Only one `Edit` at a time may change it.

    Attributes:
        net: The transformers network.
        sites: Its sites.
        head: Paths of the modules of the task head; empty for causal models.
        kind: "classification", "regression" or "generation".
        tokenizer: Its tokenizer; None if unknown.
        fingerprint: Identity of the weights.
        newly_initialized: Paths of the head modules that the checkpoint lacks. Each run draws their weights anew.
        parameters: The parameters by name, as loaded. An edit may change their values, but not these objects.
        virtual_tokens: Number of prompt vectors that an edit has inserted.
        shares_weights: Whether weights outside the head belong to other networks too; an edit trains copies of them.
    """

    net: Any  # mypy knows no class with the attributes of a transformers network
    sites: Sites
    head: list[str]
    kind: str
    tokenizer: Any
    fingerprint: str
    newly_initialized: list[str] = field(default_factory=list)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    virtual_tokens: int = 0
    shares_weights: bool = False
    _snapshot: Any = None

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(iter(self.parameters.values())).device

    @property
    def decoder_start(self) -> int | None:
        """The decoder's first token id if an encoder-decoder generates; else None."""
        return decoder_start(self.net.config, self.kind)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the task head."""
        return list(dict.fromkeys(p for name in self.head for p in self.net.get_submodule(name).parameters()))

    @property
    def bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(p.nbytes for p in self.parameters.values())

    def twin(self) -> Backbone:
        """Return another network with the same weights; outside the head both share them, once, on the device."""
        self.save_snapshot()
        self.shares_weights = True
        head = {id(p) for p in self.head_parameters()}
        shared = {id(p): nn.Parameter(p.data, False) for p in self.parameters.values() if id(p) not in head}
        net = copy.deepcopy(self.net, shared)
        return replace(self, net=net, parameters=dict(net.named_parameters()))

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `batch` as the network's forward takes it: with placeholders if a method has inserted a prompt."""
        return prompt.insert(
            batch, self.virtual_tokens, self.net.get_input_embeddings().num_embeddings, self.net.config
        )

    @contextmanager
    def computing(self, dtype: str) -> Iterator[None]:
        """Enter the context of each forward pass: autocast, and one text in each row of a batch.

        Args:
            dtype: "float32", or "bfloat16" for autocast.
        """
        with autocast(self.device, dtype), attention.one_text_in_a_row():
            yield

    def save_snapshot(self) -> None:
        """Write the original weights to a file, once, so that no second copy occupies the device.

        Call it before the first change of a weight; `pristine` reads from the file. The open file is unlinked at once,
        so it disappears with the process, however that ends.

        Raises:
            UserError: The file cannot be written.
        """
        if self._snapshot is not None or has_no_data(next(iter(self.parameters.values()))):
            return
        folder = cache.root() / "snapshots"
        path = scratch.beside(folder / "weights")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scratch.sweep(folder)
            save_file({n: p.detach().cpu().contiguous() for n, p in self.parameters.items()}, path)
            self._snapshot = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot keep the base weights in {folder}: {error}; free space or set PEFTBENCH_CACHE"
            ) from error
        finally:
            path.unlink(missing_ok=True)

    def share_snapshot(self, other: Backbone) -> None:
        """Restore from the file of another network that was loaded from the same weights; write none of one's own."""
        other.save_snapshot()
        self._snapshot = other._snapshot

    def pristine(self, name: str) -> Tensor:
        """Return tensor `name` as it was loaded, on the CPU.

        The result is a copy, because the file's tensors alias its memory map.
        """
        if self._snapshot is None:  # a network without values has no snapshot
            return self.parameters[name].detach().clone()
        return self._snapshot.get_tensor(name).clone()

    def reset_head(self) -> None:
        """Reset the head to its state at the start of a run.

        Pretrained parts are restored; other parts are drawn from the current seed. The head becomes float32.
        """
        self.save_snapshot()
        owned = {id(p) for p in self.head_parameters()}
        with torch.no_grad():
            for name, p in self.parameters.items():
                if id(p) in owned:
                    p.data = self.pristine(name).to(self.device, torch.float32)  # trainable parameters are float32
            for path in self.newly_initialized:
                module = self.net.get_submodule(path).cpu()  # drawn on the CPU: the same numbers for every device
                for p in module.parameters():
                    p._is_hf_initialized = False  # transformers does not initialise what it marks as loaded
                self.net._init_weights(module)
                module.to(self.device)


def load(
    model: str,
    kind: str,
    labels: int = 1,
    *,
    revision: str | None = None,
    roles: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    dropout: float | None = None,
    dropout_version: int = 1,
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
    tokenizer: Any = None,
) -> Backbone:
    """Load a base model for a kind of task.

    Args:
        model: Preset, directory or hub id.
        kind: "classification", "regression" or "generation".
        labels: Number of outputs of the task head; 1 for regression, unused for generation.
        revision: Commit, branch or tag of a hub model.
        roles: Role table for an architecture that is not known; format in `roles.py`.
        dtype: "float32" or "bfloat16", for weights that never train; a method's own parameters are float32.
        dropout: Value for every dropout probability of the network; None to keep the model's own.
        dropout_version: Of the masks on a CPU: 1 for torch's, 2 for those of `dropout.py`. GPUs keep torch's.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        device: Device of the network.
        tokenizer: The model's tokenizer, where it was loaded before.

    Raises:
        UserError: The model cannot be loaded, does not suit `kind`, skips layers, or its roles are unknown.
    """
    origin = source.origin(model, revision)
    source.download_weights(origin)
    config = load_config(origin, labels, kind, dropout)
    check_layers_stay(origin, config)
    net, missing = build_network(origin, kind, config, dtype)
    head = head_of(net, kind)
    newly_initialized = sorted({key.rpartition(".")[0] for key in missing if within(key, head)})
    net.requires_grad_(False)
    if dropout_version > 1 and torch.device(device).type == "cpu":
        attention.replace_dropout(net)
    sites = normalise(net, head, roles)
    net.to(device)
    prepare_for_training(net, gradient_checkpointing)
    tokenizer = load_tokenizer(origin) if tokenizer is None else tokenizer
    share_padding_token(net, tokenizer, model)
    backbone = Backbone(net, sites, head, kind, tokenizer, source.fingerprint(model, revision), newly_initialized)
    backbone.parameters = dict(net.named_parameters())
    return backbone


def load_sites(
    model: str, kind: str, labels: int = 2, revision: str | None = None, roles: Mapping[str, Any] | None = None
) -> Sites:
    """Return the sites of a model from its configuration alone; no weights are read.

    Args:
        model: Preset, directory or hub id.
        kind: Kind of task.
        labels: Number of outputs of the task head.
        revision: Commit, branch or tag of a hub model.
        roles: Role table for an architecture that is not known.

    Raises:
        UserError: The model cannot be found, does not suit `kind`, or its roles are unknown.
    """
    return load_on_meta(source.origin(model, revision), kind, labels, roles).sites


def load_on_meta(
    origin: source.Origin,
    kind: str,
    labels: int,
    roles: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    dropout: float | None = None,
    dropout_version: int = 1,
    gradient_checkpointing: bool = False,
    layers: int | None = None,
) -> Backbone:
    """Make the backbone of `load` on the meta device: shapes without values, no tokenizer and no fingerprint.

    Args:
        origin: Where the configuration comes from.
        kind: Kind of task.
        labels: Number of outputs of the task head.
        roles: Role table for an architecture that is not known.
        dtype: As in `load`.
        dropout: As in `load`.
        dropout_version: As in `load`, for a network on the CPU.
        gradient_checkpointing: As in `load`.
        layers: Number of layers in place of the configuration's own.

    Raises:
        UserError: The configuration does not load or suit `kind`, or the roles are unknown.
    """
    config = load_config(origin, labels, kind, dropout)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
    try:
        with torch.device("meta"):
            net = random_network(kind, config, DTYPES[dtype]).requires_grad_(False)
    except MemoryError:
        raise
    except Exception as error:  # each architecture fails in its own way on values that do not fit together
        raise origin.load_error("network that config.json describes", error) from error
    if origin.model in tiny.TINY:
        net.to(DTYPES[dtype])  # buffers too, as `build_network` does
    if dropout_version > 1:
        attention.replace_dropout(net)
    head = head_of(net, kind)
    backbone = Backbone(net, normalise(net, head, roles), head, kind, None, "")
    prepare_for_training(net, gradient_checkpointing)
    backbone.parameters = dict(net.named_parameters())
    return backbone
