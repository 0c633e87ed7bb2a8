"""Prompt vectors: a slot in the token embedding, and placeholder tokens for it in a batch.

With V tokens in the table, the ids V, V + 1, ... stand for the prompt's vectors. `PromptSlot` looks these up in the
module that a method swapped in, and all other ids in the frozen table. A batch with placeholders is an ordinary, longer
batch, so pooling, positions, masks and caches need no knowledge of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.devices import has_no_data
from peftbench.backbones.losses import IGNORED
from peftbench.errors import UserError


class PromptSlot(nn.Module):
    """The empty prompt slot of a token embedding. A method swaps it for a module that returns the prompt's vectors.

    The replacement has ``forward() -> Tensor (length, width)`` with the embedding's own width.

    Attributes:
        tokens: Number of tokens in the embedding table.
        width: Width of the embedding.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.__dict__["_table"] = table  # a reference, not a child: the slot is the table's child
        self.tokens, self.width = table.num_embeddings, table.embedding_dim

    def forward(self) -> Tensor | None:
        """Return the prompt's vectors (length, width); None for no prompt."""
        return None

    @property
    def is_meta(self) -> bool:
        """Whether the network has shapes only, without values."""
        return has_no_data(self.__dict__["_table"].weight)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:  # (length) -> (length, width)
        """Return the network's embedding of token ids, scaled where the architecture scales it."""
        table = self.__dict__["_table"]
        return table(ids.to(table.weight.device)).detach()

    def connect(self) -> list[Any]:
        """Install hooks that look placeholders up in the module now in the slot.

        Returns:
            The hooks' handles, which the caller removes.
        """
        table, pending = self.__dict__["_table"], list[Tensor]()

        def hide(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            (ids,) = args
            pending[:] = [ids]
            return (ids.masked_fill(ids >= self.tokens, 0),)

        def show(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            ids, stand_in = pending.pop(), table.prompt_slot
            stand_in.__dict__["was_called"] = True
            vectors = nn.functional.embedding((ids - self.tokens).clamp(min=0), stand_in())  # (..., width)
            return torch.where((ids >= self.tokens).unsqueeze(-1), vectors.to(out.dtype), out)

        return [table.register_forward_pre_hook(hide), table.register_forward_hook(show)]


def insert(batch: Mapping[str, Tensor], length: int, first: int, config: Any) -> dict[str, Tensor]:
    """Insert prompt placeholders into each row of a batch.

    An encoder's placeholders follow its first token, because its pooling reads that token. Other networks' placeholders
    precede the first token of the text, whichever side is padded.

    Args:
        batch: The batch. input_ids, attention_mask, token_type_ids, position_ids and a causal model's labels, all
            (B, L), are extended; other tensors stay.
        length: Number of placeholders.
        first: Id of the first placeholder; the others follow it.
        config: The network's configuration.

    Returns:
        The batch with tensors of shape (B, L + length).

    Raises:
        UserError: The network has too few positions.
    """
    if not length:
        return dict(batch)
    ids = batch["input_ids"]
    check_positions(ids.shape[1], length, config)
    mask = batch.get("attention_mask", torch.ones_like(ids))
    at = mask.argmax(1, keepdim=True) + is_encoder(config)  # (B, 1), of the first placeholder
    column = torch.arange(ids.shape[1] + length, device=ids.device)
    inside = (column >= at) & (column < at + length)  # (B, L + length)
    source = torch.where(column < at, column, column - length).clamp(min=0)

    def widened(old: Tensor, fill: Tensor | int) -> Tensor:
        return torch.where(inside, fill, old.gather(1, source))

    shown = widened(mask, 1)
    made = {**batch, "input_ids": widened(ids, first + column - at)}
    if "attention_mask" in batch:  # without padding there is none, and attention has a faster kernel
        made["attention_mask"] = shown
    if "token_type_ids" in batch:
        made["token_type_ids"] = widened(batch["token_type_ids"], 0)
    if "position_ids" in batch:
        made["position_ids"] = (shown.cumsum(1) - 1).clamp(min=0)
    if "labels" in batch and batch["labels"].ndim == 2 and not getattr(config, "is_encoder_decoder", False):
        made["labels"] = widened(batch["labels"], IGNORED)
    return made


def remove(logits: Tensor, inputs: Mapping[str, Tensor], first: int) -> Tensor:
    """Drop the placeholder positions from a network's logits.

    Args:
        logits: (B, L + length, ...). A classifier's logits (B, classes) have no placeholders and stay, as do those of
            a decoder behind an encoder.
        inputs: The inputs of the network, from `insert`.
        first: Id of the first placeholder.

    Returns:
        Logits (B, L, ...).
    """
    if logits.ndim == 2 or "decoder_input_ids" in inputs:
        return logits
    ids = inputs["input_ids"]
    return logits[ids < first].unflatten(0, (len(ids), -1))


def is_encoder(config: Any) -> bool:
    """Whether every token attends to every other one, so that the first token can represent the text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as encoders

    other = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    return config.model_type in encoders and not other


def check_positions(longest: int, length: int, config: Any) -> None:
    """Check that a network has enough positions for a prompt and the longest text.

    Args:
        longest: Tokens of the longest text.
        length: Vectors of the prompt.
        config: The network's configuration.

    Raises:
        UserError: They exceed the network's positions.
    """
    room = positions(config)
    if room is None or not length:
        return
    if longest + length > room:
        raise UserError(
            f"a prompt of {length} vectors and a text of {longest} tokens do not fit into the {room} positions of this "
            f"{config.model_type} network; make the prompt's length or the budget's max_length smaller: together they "
            f"may have {room}"
        )


def positions(config: Any) -> int | None:
    """Return the number of positions that a configuration declares; None for none."""
    room = getattr(config, "max_position_embeddings", None)
    if room is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):  # counted from the padding id
        room -= config.pad_token_id + 1
    return room
