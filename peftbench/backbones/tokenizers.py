"""Tokenizers of base models, and the padding token that tokenizer and network share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftbench.backbones import configuration, panics, pretrained, source, tiny, tokenizer_files
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
    _check_files(origin)
    try:
        with panics.caught():
            options = tokenizer_files.overrides(Path(origin.place))
            tokenizer = pretrained.from_pretrained(AutoTokenizer, origin.place, **options)
    except Exception as error:  # tokenizers raises bare Exceptions, and ImportError where a package is missing
        raise pretrained.load_error(origin, "tokenizer", "tokenizer_config.json", error) from error
    if not _is_tokenizer(type(tokenizer)):
        raise _no_tokenizer(origin, "tokenizer_config.json", type(tokenizer).__name__)
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


def _check_files(origin: source.Origin) -> None:
    """Check what a tokenizer's files ask for before transformers loads anything by them."""
    import transformers

    folder = Path(origin.place)
    for file, named in tokenizer_files.classes(folder):
        # transformers loads any class of its own that is named here: a network, from pickles, as well
        base = named.removesuffix("Fast") if isinstance(named, str) else None
        known = [getattr(transformers, name, None) for name in (base, f"{base}Fast")] if base else [named]
        if any(k is not None and not _is_tokenizer(k) for k in known):
            raise _no_tokenizer(origin, file, named)
    if tokenizer_files.multiplies(folder):
        raise UserError(
            f"the tokenizer of backbone {origin.model!r} may make texts more than {tokenizer_files.MOST_GROWTH:,} "
            f"times as long by the replacements in {tokenizer_files.TOKENIZER}; remove them, or give another model"
        )


def _is_tokenizer(found: Any) -> bool:
    """Whether something is a class of one tokenizer; classes of several, with folders of their own, are not."""
    from transformers import PreTrainedTokenizerBase

    missing = getattr(found, "is_dummy", False)  # its package is not installed, and transformers says which
    return isinstance(found, type) and (missing or issubclass(found, PreTrainedTokenizerBase))


def _no_tokenizer(origin: source.Origin, file: str, named: Any) -> UserError:
    return UserError(
        f"backbone {origin.model!r} names {shown(named)} as its tokenizer_class in {file}, which is not the class of "
        "one tokenizer; name one such as PreTrainedTokenizerFast, or save the tokenizer again with save_pretrained"
    )


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
