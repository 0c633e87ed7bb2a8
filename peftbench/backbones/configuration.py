"""Configurations of base models, checked and adapted for a kind of task. Reads no weights."""

from __future__ import annotations

import re
from typing import Any

from peftbench.backbones import architectures, pretrained, quantised, source, tiny
from peftbench.errors import UserError
from peftbench.records.spec import BackboneSpec

MOST_PARTS = 10_000  # layers, heads or experts
LAYERDROP = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # probabilities that a step skips a layer


def load_config(origin: source.Origin, labels: int, kind: str, dropout: float | None = None) -> Any:
    """Load the transformers configuration of a model for tasks of `kind`.

    Args:
        origin: Where the model comes from.
        labels: Number of outputs of the task head; unused for generation.
        kind: "classification", "regression" or "generation".
        dropout: Value for every dropout probability; None to keep the model's own. If given, no layer is skipped.

    Raises:
        UserError: The configuration does not load, the model does not suit `kind`, or its weights are quantised.
    """
    from transformers import AutoConfig

    if origin.place:
        try:
            config = pretrained.from_pretrained(AutoConfig, origin.place)
        except Exception as error:  # each architecture checks its values in its own way
            raise pretrained.load_error(origin, "config.json", "config.json", error) from error
    else:
        config = (tiny if origin.model in tiny.TINY else architectures).config(origin.model)
    if getattr(config, "quantization_config", None) == {}:  # left behind where weights were made plain again
        del config.quantization_config
    check_plain(origin, config)
    quantised.check(origin, config)
    check_one_network(origin.model, config)
    _check_kind(origin, config, kind)
    if kind != "generation":
        config.num_labels = labels
    if dropout is not None:
        for key in dropouts(config):
            setattr(config, key, dropout)
        for key in LAYERDROP:
            if getattr(config, key, None):
                setattr(config, key, 0.0)
    return config


def check_plain(origin: source.Origin, config: Any) -> None:
    """Check that a configuration neither fetches code from the hub nor describes a network that cannot be built.

    Raises:
        UserError: It names an implementation of the hub, or has more parts of one kind than MOST_PARTS.
    """
    for key in ("_attn_implementation", "_experts_implementation"):
        named = getattr(config, key, None)
        if named is not None and (not isinstance(named, str) or not named.replace("_", "").isalnum()):
            raise UserError(
                f"backbone {origin.model!r} asks for code from elsewhere: config.json names {str(named)[:80]!r} as "
                f"{key.strip('_')}, and code that a model's directory names never runs; remove that key there"
            )
    for key, value in config.to_dict().items():
        if isinstance(value, int) and value > MOST_PARTS and re.search(r"(layer|expert|head|block)s?$", key):
            raise UserError(
                f"backbone {origin.model!r} has {key} = {str(value)[:40]} in its config.json, and a network has at "
                f"most {MOST_PARTS:,}; save the model there again"
            )


def dropouts(config: Any) -> dict[str, float]:
    """Return every dropout probability of a configuration, by its key."""
    values = {k: getattr(config, k, None) for k in config.to_dict() if "dropout" in k or k.endswith("pdrop")}
    return {key: value for key, value in values.items() if isinstance(value, (int, float))}


def dropouts_of(spec: BackboneSpec) -> dict[str, float]:
    """Return every dropout probability of a run's network, by its key.

    Raises:
        UserError: The model is not available.
    """
    origin = source.origin(spec.model, spec.pinned_revision)
    return dropouts(load_config(origin, 2, natural_kind(origin), spec.dropout))


def check_layers_stay(origin: source.Origin, config: Any) -> None:
    """Raise UserError for a network that skips layers in training.

    A step that skips layers leaves their adapters without a gradient, and costs another time and memory than the next.
    """
    for key in LAYERDROP:
        if rate := getattr(config, key, None):
            raise UserError(
                f"backbone {origin.model!r} skips whole layers at random in training ({key} = {rate} in its "
                "config.json), so that a step does not reach every layer that a method adapts; give backbone_dropout, "
                "such as 0.1 or 0, which also turns this off"
            )


def natural_kind(origin: source.Origin) -> str:
    """Return the kind of task of the architecture itself: "generation" for decoders, else "classification"."""
    try:
        load_config(origin, 1, "generation")
    except UserError:  # if it is no encoder either, loading it for classification raises again
        return "classification"
    return "generation"


def decoder_start(config: Any, kind: str) -> int | None:
    """Return the decoder's first token id if an encoder-decoder generates; else None."""
    return config.decoder_start_token_id if kind == "generation" and config.is_encoder_decoder else None


def check_one_network(name: str, config: Any) -> None:
    """Check that a network is one language model, not several of which it would be a part.

    Args:
        name: What the message calls the network.
        config: Its configuration.

    Raises:
        UserError: The configuration holds others, such as a `text_config`.
    """
    try:
        whole = config.get_text_config() is config
    except ValueError:  # transformers finds several
        whole = False
    if not whole:
        kinds = ", ".join(sorted({v.model_type for v in vars(config).values() if hasattr(v, "model_type")}))
        raise UserError(
            f"backbone {name!r} ({config.model_type}) consists of several networks ({kinds}), and methods act on one "
            "language model; save that one by itself, with save_pretrained, and give its directory"
        )


def _check_kind(origin: source.Origin, config: Any, kind: str) -> None:
    """Raise `UserError` if the architecture does not suit `kind`.

    Encoders are refused for generation, although transformers has causal classes for some: they attend to the answers
    that they predict.
    """
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
