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
from torch._subclasses.fake_tensor import FakeTensor

from peftbench import cache
from peftbench.backbones import architectures, prompt, source, t5, tiny
from peftbench.backbones.attention import configurations
from peftbench.backbones.normalise import normalise
from peftbench.backbones.sites import Sites
from peftbench.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Backbone:
    """A normalised network, its sites, head and tokenizer. One `Edit` at a time may change it."""

    net: Any  # a transformers network; its attributes are no module's that mypy knows
    sites: Sites
    head: list[str]  # paths of the modules of the task head
    kind: str  # "classification" | "regression" | "generation"
    tokenizer: Any
    fingerprint: str
    fresh: list[str] = field(default_factory=list)  # head modules that no checkpoint gave: seeded for each run
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)  # as loaded, by name; objects never change
    virtual_tokens: int = 0  # vectors of the prompt that an edit has put in
    _snapshot: Any = None

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    @property
    def decoder_start(self) -> int | None:
        """The token that a decoder behind an encoder begins with, where the network generates; else None."""
        return _decoder_start(self.net.config, self.kind)

    def head_parameters(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(p for name in self.head for p in self.net.get_submodule(name).parameters()))

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`batch` as the network is called with it: with placeholders where a method has put a prompt in."""
        return prompt.insert(
            batch, self.virtual_tokens, self.net.get_input_embeddings().num_embeddings, self.net.config
        )

    def keep(self) -> None:
        """Write the pristine weights to a file, once, so that no second copy sits on the device.

        Call before the first change of a weight; `pristine` reads from it. The file has no name any more once it is
        open, so it goes with the process, however that ends.
        """
        if self._snapshot is not None or numberless(next(iter(self.parameters.values()))):
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
        """The tensor `name` as it was loaded, on the CPU; a copy, since the file's own tensors alias its memory map."""
        if self._snapshot is None:  # sizes without numbers
            return self.parameters[name].detach().clone()
        return self._snapshot.get_tensor(name).clone()

    def reset_head(self) -> None:
        """The head as at the start of a run: pretrained parts restored, fresh parts drawn from the current seed."""
        self.keep()
        owned = {id(p) for p in self.head_parameters()}
        with torch.no_grad():
            for name, p in self.parameters.items():
                if id(p) in owned:
                    p.data = self.pristine(name).to(self.device, torch.float32)  # what trains is float32
            for path in self.fresh:
                module = self.net.get_submodule(path).cpu()  # a draw on the CPU is the same for every device
                for p in module.parameters():
                    p._is_hf_initialized = False  # transformers skips what it believes to be loaded
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
    """The base model `model` for tasks of `kind`, with `labels` outputs (1 for regression).

    `dropout` replaces every dropout probability of the network. Weights that never train stay in `dtype`; a method's
    own are float32. Raises `UserError` when the model cannot be had or its roles are unknown.
    """
    origin = source.origin(model, revision)
    config = _config(origin, labels, kind, dropout)
    net, missing = _build(origin, kind, config, dtype)
    head = head_of(net, kind)
    fresh = sorted({key.rpartition(".")[0] for key in missing if _within(key, head)})
    net.requires_grad_(False)
    sites = normalise(net, head, roles)
    net.to(device)
    _prepare(net, gradient_checkpointing)
    tokenizer = load_tokenizer(origin)
    _agree_on_padding(net, tokenizer, model)
    backbone = Backbone(net, sites, head, kind, tokenizer, source.fingerprint(model, revision), fresh)
    backbone.parameters = dict(net.named_parameters())
    return backbone


def skeleton(
    model: str, kind: str, labels: int = 2, revision: str | None = None, roles: Mapping[str, Any] | None = None
) -> Sites:
    """The sites alone, from the configuration, on the meta device: no weights are read."""
    return blank(source.origin(model, revision), kind, labels, roles).sites


def blank(
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
    """The backbone as `load` makes it, on the meta device: sizes without numbers, without tokenizer or fingerprint.

    `layers` stands in for the configuration's number of layers.
    """
    config = _config(origin, labels, kind, dropout)
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


def tokenizer_and_start(model: str, kind: str, revision: str | None = None) -> tuple[Any, int | None]:
    """The tokenizer of `model` and its `Backbone.decoder_start`, without its network.

    Raises `UserError` when the model cannot be had or is not for tasks of `kind`.
    """
    origin = source.origin(model, revision)
    return load_tokenizer(origin), _decoder_start(_config(origin, 1, kind, None), kind)


def _decoder_start(config: Any, kind: str) -> int | None:
    return config.decoder_start_token_id if kind == "generation" and config.is_encoder_decoder else None


def numberless(tensor: Tensor) -> bool:
    """Whether it has a size but no numbers."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def natural_kind(origin: source.Origin) -> str:
    """What a model of this architecture is by nature: "generation" for decoders, "classification" for the others."""
    try:
        _config(origin, 1, "generation", None)
    except UserError:  # told again, about classification, where this is no encoder either
        return "classification"
    return "generation"


def head_of(net: Any, kind: str) -> list[str]:
    """The task head's modules: everything outside the base model, and its pooler; none for causal models."""
    if kind == "generation":
        return []
    base = net.base_model_prefix
    names = [name for name, child in net.named_children() if name != base and list(child.parameters())]
    if getattr(getattr(net, base), "pooler", None) is not None:
        names.insert(0, f"{base}.pooler")
    return names


def load_tokenizer(origin: source.Origin) -> Any:
    """The model's tokenizer, with a padding token."""
    from transformers import AutoTokenizer

    if not origin.place:
        return tiny.tokenizer(origin.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(origin.place, **origin.options)
    except Exception as error:  # tokenizers raises bare Exceptions, and ImportError where a package is missing
        raise origin.failed("tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # without its files, transformers makes up an empty one
        raise UserError(
            f"the tokenizer of backbone {origin.model!r} has no vocabulary; save it beside the weights: "
            f"tokenizer.save_pretrained({origin.place!r})"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _agree_on_padding(net: Any, tokenizer: Any, model: str) -> None:
    """A causal classifier finds each row's last token by the configuration's padding id: make it the tokenizer's."""
    rows = net.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        raise UserError(
            f"the tokenizer of backbone {model!r} pads with token {tokenizer.pad_token_id}, and the network has "
            f"{rows} tokens; set a pad_token that the network knows in tokenizer_config.json"
        )
    net.config.pad_token_id = tokenizer.pad_token_id


def _prepare(net: Any, gradient_checkpointing: bool) -> None:
    if gradient_checkpointing:
        enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # transformers makes the embeddings' output require a gradient, as only the reentrant kind needs: every frozen
        # layer below the first adapter would be computed again in backward for nothing
        net.disable_input_require_grads()
    for own in configurations(net):
        own.use_cache = False


def _auto(kind: str, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    if kind != "generation":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _random(kind: str, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A network from its configuration alone."""
    net = _auto(kind, config).from_config(config, dtype=dtype)
    if config.model_type == "t5":
        t5.untie(net)
    return net


def _config(origin: source.Origin, labels: int, kind: str, dropout: float | None) -> Any:
    from transformers import AutoConfig

    if origin.place:
        try:
            config = AutoConfig.from_pretrained(origin.place, **origin.options)
        except (OSError, ValueError, KeyError) as error:
            raise origin.failed("config.json", error) from error
    else:
        config = (tiny if origin.model in tiny.TINY else architectures).config(origin.model)
    _check_kind(origin, config, kind)
    if kind != "generation":
        config.num_labels = labels
    if dropout is not None:
        for key in list(config.to_dict()):
            if ("dropout" in key or key.endswith("pdrop")) and isinstance(getattr(config, key, None), (int, float)):
                setattr(config, key, dropout)
    return config


def _check_kind(origin: source.Origin, config: Any, kind: str) -> None:
    """Encoders are refused for generation, though some have a class for it: they see the answers they predict."""
    from transformers.models.auto import modeling_auto as known

    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise UserError(
            f"backbone {origin.model!r} ({config.model_type}) has an encoder and a decoder, and its config.json does "
            "not say which token the decoder begins with; set decoder_start_token_id there (T5: 0, its padding)"
        )
    both = config.is_encoder_decoder and config.model_type in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    encoder = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    causal = config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not encoder
    if kind == "generation" and not (both or causal):
        raise UserError(
            f"a generation task needs a causal model or an encoder with a decoder, and backbone {origin.model!r} "
            f"({config.model_type}) is neither; use a decoder, like smollm2-135m"
        )
    if kind != "generation" and config.model_type not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(
            f"transformers has no sequence classifier for backbone {origin.model!r} ({config.model_type}); use another"
        )


def _build(origin: source.Origin, kind: str, config: Any, dtype: str) -> tuple[Any, list[str]]:
    """The network and the names of the parameters that no checkpoint gave."""
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
            ignore_mismatched_sizes=True,  # a head for other labels; anything else is refused below
            **origin.options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise origin.failed(_broken(origin), error) from error
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
    """The weight file that cannot be read, which the library's own message does not name."""
    for file in sorted(Path(origin.place).glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError:
            return file.name
    return "weights"


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
