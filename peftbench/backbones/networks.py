"""Make transformers networks for a kind of task, from a checkpoint or from a configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from peftbench.backbones import pretrained, source, t5, tiny
from peftbench.backbones.attention import configurations
from peftbench.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def head_of(net: Any, kind: str) -> list[str]:
    """Return the paths of the task head's modules.

    Args:
        net: A transformers network.
        kind: Kind of task.

    Returns:
        All modules outside the base model that have parameters, and its pooler; none for generation.
    """
    if kind == "generation":
        return []
    base = net.base_model_prefix
    names = [name for name, child in net.named_children() if name != base and list(child.parameters())]
    if getattr(getattr(net, base), "pooler", None) is not None:
        names.insert(0, f"{base}.pooler")
    return names


def prepare_for_training(net: Any, gradient_checkpointing: bool) -> None:
    """Turn the key-value cache off and, if asked for, gradient checkpointing on."""
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


def random_network(kind: str, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Make a randomly initialised network.

    Args:
        kind: Kind of task.
        config: The configuration.
        dtype: Dtype of the weights.
    """
    net = pretrained.from_config(_auto(kind, config), config, dtype=dtype)
    if config.model_type == "t5":
        t5.untie(net)
    return net


def build_network(origin: source.Origin, kind: str, config: Any, dtype: str) -> tuple[Any, list[str]]:
    """Make a network from its checkpoint, or, for a tiny preset, from its seed.

    Args:
        origin: Where the model comes from.
        kind: Kind of task.
        config: The configuration.
        dtype: Key of `DTYPES`.

    Returns:
        The network, and the names of the parameters that no checkpoint provides.

    Raises:
        UserError: The checkpoint cannot be read, or does not fit the architecture.
    """
    if not origin.place:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tiny.SEED)
            net = random_network(kind, config).to(DTYPES[dtype])
        return net, [name for name, _ in net.named_parameters() if not name.startswith(net.base_model_prefix)]
    try:
        net, info = pretrained.from_pretrained(
            _auto(kind, config),
            origin.place,
            config=config,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            use_safetensors=True,  # nothing is ever unpickled
            ignore_mismatched_sizes=True,  # for a head with other labels; other mismatches are refused below
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise origin.load_error(_broken(origin), error) from error
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    head = head_of(net, kind)
    lost = [key for key in missing if not within(key, head)]
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


def within(name: str, modules: list[str]) -> bool:
    """Whether parameter `name` belongs to one of the modules at these paths."""
    return any(name.startswith(f"{module}.") for module in modules)
