"""Load a base model with its task head and tokenizer, normalised, as a `Backbone`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from peftbench import cache
from peftbench.backbones import prompt, source, t5, tiny
from peftbench.backbones.attention import configurations
from peftbench.backbones.configuration import decoder_start, load_config
from peftbench.backbones.devices import has_no_data
from peftbench.backbones.normalise import normalise
from peftbench.backbones.sites import Sites
from peftbench.backbones.tokenizers import load_tokenizer, share_padding_token
from peftbench.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `batch` as the network's forward takes it: with placeholders if a method has inserted a prompt."""
        return prompt.insert(
            batch, self.virtual_tokens, self.net.get_input_embeddings().num_embeddings, self.net.config
        )

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
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(suffix=".safetensors", dir=folder)
        os.close(handle)
        try:
            save_file({n: p.detach().cpu().contiguous() for n, p in self.parameters.items()}, path)
            self._snapshot = safe_open(path, framework="pt")
        except OSError as error:
            raise UserError(
                f"cannot keep the base weights in {folder}: {error}; free space or set PEFTBENCH_CACHE"
            ) from error
        finally:
            os.unlink(path)

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
    gradient_checkpointing: bool = False,
    device: torch.device | str = "cpu",
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
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        device: Device of the network.

    Raises:
        UserError: The model cannot be loaded, does not suit `kind`, or its roles are unknown.
    """
    origin = source.origin(model, revision)
    config = load_config(origin, labels, kind, dropout)
    net, missing = _build(origin, kind, config, dtype)
    head = head_of(net, kind)
    fresh = sorted({key.rpartition(".")[0] for key in missing if _within(key, head)})
    net.requires_grad_(False)
    sites = normalise(net, head, roles)
    net.to(device)
    _prepare(net, gradient_checkpointing)
    tokenizer = load_tokenizer(origin)
    share_padding_token(net, tokenizer, model)
    backbone = Backbone(net, sites, head, kind, tokenizer, source.fingerprint(model, revision), fresh)
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
    with torch.device("meta"):
        net = _random(kind, config, DTYPES[dtype]).requires_grad_(False)
    if origin.model in tiny.TINY:
        net.to(DTYPES[dtype])  # buffers too, as `_build` does
    head = head_of(net, kind)
    backbone = Backbone(net, normalise(net, head, roles), head, kind, None, "")
    _prepare(net, gradient_checkpointing)
    backbone.parameters = dict(net.named_parameters())
    return backbone


def head_of(net: Any, kind: str) -> list[str]:
    """Return the paths of the task head's modules: all outside the base model, and its pooler.

    Causal models have none.
    """
    if kind == "generation":
        return []
    base = net.base_model_prefix
    names = [name for name, child in net.named_children() if name != base and list(child.parameters())]
    if getattr(getattr(net, base), "pooler", None) is not None:
        names.insert(0, f"{base}.pooler")
    return names


def _prepare(net: Any, gradient_checkpointing: bool) -> None:
    if gradient_checkpointing:
        enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # transformers makes the embeddings' output require a gradient, which only reentrant checkpointing needs. With
        # it, backward would recompute every frozen layer below the first adapter for nothing.
        net.disable_input_require_grads()
    for own in configurations(net):
        own.use_cache = False


def _auto(kind: str, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    if kind != "generation":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _random(kind: str, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Make a randomly initialised network from its configuration."""
    net = _auto(kind, config).from_config(config, dtype=dtype)
    if config.model_type == "t5":
        t5.untie(net)
    return net


def _build(origin: source.Origin, kind: str, config: Any, dtype: str) -> tuple[Any, list[str]]:
    """Load or make the network; return it with the names of the parameters that no checkpoint provides."""
    if not origin.place:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tiny.SEED)
            net = _random(kind, config).to(DTYPES[dtype])
        return net, [name for name, _ in net.named_parameters() if not name.startswith(net.base_model_prefix)]
    try:
        net, info = _auto(kind, config).from_pretrained(
            origin.place,
            config=config,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            use_safetensors=True,  # nothing is ever unpickled
            ignore_mismatched_sizes=True,  # for a head with other labels; other mismatches are refused below
            **origin.options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise origin.load_error(_broken(origin), error) from error
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    head = head_of(net, kind)
    lost = [key for key in missing if not _within(key, head)]
    if lost:
        raise UserError(
            f"the checkpoint of {origin.model!r} lacks {len(lost)} tensors of {type(net).__name__}, or has them in "
            f"another shape, e.g. {lost[0]}; it is not a checkpoint of this architecture"
        )
    return net, missing


def _broken(origin: source.Origin) -> str:
    """Return the name of the weight file that cannot be read, which the library's own message omits."""
    for file in sorted(Path(origin.place).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return file.name
    return "weights"


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
