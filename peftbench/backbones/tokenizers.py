"""Tokenizers of base models, and the padding token that tokenizer and network share."""

from __future__ import annotations

from typing import Any

from peftbench.backbones import configuration, pretrained, source, tiny
from peftbench.errors import UserError, shown

MOST_TOKENS = 10_000_000  # the largest vocabularies have a million; a table is as long as the largest id


def load_tokenizer(origin: source.Origin) -> Any:
    """Load a model's tokenizer and give it a padding token.

    Raises:
        UserError: The tokenizer does not load, or has no vocabulary.
    """
    from transformers import AutoTokenizer

    if not origin.place:
        return tiny.tokenizer(origin.model)
    try:
        tokenizer = pretrained.from_pretrained(AutoTokenizer, origin.place)
    except Exception as error:  # tokenizers raises bare Exceptions, and ImportError where a package is missing
        raise pretrained.load_error(origin, "tokenizer", "tokenizer_config.json", error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # without its files, transformers makes up an empty one
        where = "that directory" if origin.snapshot is not None else repr(origin.place)
        raise UserError(
            f"the tokenizer of backbone {origin.model!r} has no vocabulary"
            + ("; save model and tokenizer in a directory, and give that" if origin.snapshot is not None else "")
            + f"; save it beside the weights: tokenizer.save_pretrained({where})"
        )
    _check_numbers(tokenizer, origin)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _check_numbers(tokenizer: Any, origin: source.Origin) -> None:
    """Check what transformers takes from a tokenizer's files as it is: its longest input, and the ids of its tokens."""
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest >= 1:
        raise UserError(
            f"the tokenizer of backbone {origin.model!r} has model_max_length {shown(longest)} in "
            "tokenizer_config.json; make it the largest number of tokens that the network reads, or leave it out"
        )
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest > MOST_TOKENS:
        raise UserError(
            f"the tokenizer of backbone {origin.model!r} has the id {largest:,} for the token {shown(token)}, and ids "
            f"go to {MOST_TOKENS:,}; save the tokenizer there again with save_pretrained"
        )


def share_padding_token(net: Any, tokenizer: Any, model: str) -> None:
    """Set the padding id of the network's configuration to the tokenizer's.

    A causal classifier finds the last token of each row by the configuration's padding id.

    Args:
        net: The network.
        tokenizer: Its tokenizer.
        model: Name of the model, for the message.

    Raises:
        UserError: The network does not know the tokenizer's padding token.
    """
    rows = net.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        raise UserError(
            f"the tokenizer of backbone {model!r} pads with token {tokenizer.pad_token_id}, and the network has "
            f"{rows} tokens; set a pad_token that the network knows in tokenizer_config.json"
        )
    net.config.pad_token_id = tokenizer.pad_token_id


def tokenizer_and_start(model: str, kind: str, revision: str | None = None) -> tuple[Any, int | None]:
    """Load the tokenizer of `model` and the decoder's first token id, without the network.

    Args:
        model: Preset, directory or hub id.
        kind: Kind of task.
        revision: Commit, branch or tag of a hub model.

    Returns:
        The tokenizer, and `Backbone.decoder_start`.

    Raises:
        UserError: The model cannot be loaded, or does not suit `kind`.
    """
    origin = source.origin(model, revision)
    config = configuration.load_config(origin, 1, kind)
    return load_tokenizer(origin), configuration.decoder_start(config, kind)
