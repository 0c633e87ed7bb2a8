"""What a network can read: token ids, segment numbers and positions that it has a row for, and end tokens it counts.

Works on the meta device too, and imports torch only where there is a network. Positions that are computed (rotary,
relative, ALiBi) have no table, and no limit here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_TABLE = re.compile(r"(?!rel)(.*_)?(wpe|pos|position|positions)(_.*)?")  # the names of position tables


@dataclass(frozen=True)
class Limits:
    """What a network can read.

    Attributes:
        architecture: Its `model_type`.
        tokens: Rows of the token embedding.
        types: Rows of the segment embedding; None if it has none.
        positions: Tokens that its position table has room for; None without a table. Of the encoder, if there is one.
        decoder_positions: The same of the decoder behind an encoder; None without one.
        declared_positions: What its configuration declares, table or not; a prompt and a text may not have more.
        counted_token: Token that every text must hold equally often; None for none. Classifiers with encoder and
            decoder read the state at the last one.
    """

    architecture: str
    tokens: int
    types: int | None = None
    positions: int | None = None
    decoder_positions: int | None = None
    declared_positions: int | None = None
    counted_token: int | None = None


def of(net: Any, kind: str) -> Limits:
    """Return the limits of a transformers network.

    Args:
        net: The network.
        kind: Kind of task.
    """
    from peftbench.backbones.prompt import positions

    config, embedding = net.config, net.get_input_embeddings()
    both = bool(config.is_encoder_decoder)
    return Limits(
        architecture=config.model_type,
        tokens=len(embedding.weight),
        types=getattr(config, "type_vocab_size", None) or None,
        positions=_room(net.get_encoder() if both else net),
        declared_positions=positions(config),
        decoder_positions=_room(net.get_decoder()) if both else None,
        counted_token=config.eos_token_id if both and kind != "generation" else None,
    )


def _room(stack: Any) -> int | None:
    """Return the number of tokens that the smallest position table of a stack has room for."""
    tables = list(_tables(stack))
    config = getattr(stack, "config", None)
    declared = getattr(config, "max_position_embeddings", None)  # a table may have rows that no position uses
    return min([*tables, *([declared] if isinstance(declared, int) else [])]) if tables else None


def _tables(stack: nn.Module) -> Iterator[int]:
    for name, module in stack.named_modules():
        grows = hasattr(module, "make_weight") or hasattr(module, "make_weights")
        is_table = "Embedding" in type(module).__name__ and getattr(module, "weight", None) is not None
        if is_table and not grows and _TABLE.fullmatch(name.rpartition(".")[2]):
            first = getattr(module, "padding_idx", None)  # RoBERTa and its descendants count from the padding token
            yield len(module.weight) - (0 if first is None else first + 1) - getattr(module, "offset", 0)
    config: Any = getattr(stack, "config", None)
    if getattr(config, "model_type", None) == "mpt":
        yield config.max_seq_len  # MPT makes its ALiBi biases for so many tokens
    for name, buffer in stack.named_buffers():
        if buffer.ndim == 2 and name.rpartition(".")[2] == "embed_positions":  # sines of GPT-J and CodeGen
            yield len(buffer)
