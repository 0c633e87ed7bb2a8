"""Prompt vectors at the embeddings: a slot in the token embedding, and placeholders for it in a batch.

With V tokens in the table, the ids V, V + 1, ... stand for the prompt's vectors: `PromptSlot` looks them up in what a
method swapped in, and all other ids in the frozen table. A batch with placeholders is an ordinary, longer batch, so
pooling, positions, masks and caches need to know nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from peftbench.backbones.losses import IGNORED
from peftbench.errors import UserError


class PromptSlot(nn.Module):
    """In the token embedding, empty: a method swaps it for a module whose call gives the vectors to be looked up.

    ``forward() -> (length, width)`` with the embedding's own width, or None for no prompt.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.__dict__["_table"] = table  # a reference, not a child: the slot is the table's child
        self.tokens, self.width = table.num_embeddings, table.embedding_dim

    def forward(self) -> Tensor | None:
        return None

    @property
    def is_meta(self) -> bool:
        """Whether the network has sizes only."""
        weight = self.__dict__["_table"].weight
        return weight.is_meta or isinstance(weight, FakeTensor)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:  # (length) -> (length, width)
        """What the network embeds these tokens as: rows of the table, scaled where the architecture scales them."""
        table = self.__dict__["_table"]
        return table(ids.to(table.weight.device)).detach()

    def connect(self) -> list[Any]:
        """Look placeholders up in the module at this place; returns the hooks' handles, to be removed by the caller."""
        table, asked = self.__dict__["_table"], list[Tensor]()

        def hide(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            (ids,) = args
            asked[:] = [ids]
            return (ids.masked_fill(ids >= self.tokens, 0),)

        def show(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            ids, stand_in = asked.pop(), table.prompt_slot
            stand_in.__dict__["was_called"] = True
            vectors = nn.functional.embedding((ids - self.tokens).clamp(min=0), stand_in())  # (..., width)
            return torch.where((ids >= self.tokens).unsqueeze(-1), vectors.to(out.dtype), out)

        return [table.register_forward_pre_hook(hide), table.register_forward_hook(show)]


def insert(batch: Mapping[str, Tensor], length: int, first: int, config: Any) -> dict[str, Tensor]:
    """`batch` with the `length` placeholders ``first, first + 1, ...`` in each row, as the network is to be called.

    They stand after the first token of an encoder, whose pooling reads that one, and in front of the first token of any
    other network, padded on whichever side. input_ids, attention_mask, token_type_ids, position_ids and a causal
    model's labels (B, L) -> (B, L + length); anything else stays. Raises `UserError` where the
    network has too few positions.
    """
    if not length:
        return dict(batch)
    ids = batch["input_ids"]
    check_room(ids.shape[1], length, config)
    mask = batch.get("attention_mask", torch.ones_like(ids))
    at = mask.argmax(1, keepdim=True) + is_encoder(config)  # (B, 1), of the first placeholder
    column = torch.arange(ids.shape[1] + length, device=ids.device)
    inside = (column >= at) & (column < at + length)  # (B, L + length)
    source = torch.where(column < at, column, column - length).clamp(min=0)

    def widened(old: Tensor, fill: Tensor | int) -> Tensor:
        return torch.where(inside, fill, old.gather(1, source))

    made = {**batch, "input_ids": widened(ids, first + column - at), "attention_mask": widened(mask, 1)}
    if "token_type_ids" in batch:
        made["token_type_ids"] = widened(batch["token_type_ids"], 0)
    if "position_ids" in batch:
        made["position_ids"] = (made["attention_mask"].cumsum(1) - 1).clamp(min=0)
    if "labels" in batch and batch["labels"].ndim == 2 and not getattr(config, "is_encoder_decoder", False):
        made["labels"] = widened(batch["labels"], IGNORED)
    return made


def remove(logits: Tensor, inputs: Mapping[str, Tensor], first: int) -> Tensor:
    """A network's answer to `inputs`, made by `insert`, without the placeholders: (B, L + length, ...) -> (B, L, ...).

    A classifier's answer (B, classes), and that of a decoder which reads texts of its own, have none.
    """
    if logits.ndim == 2 or "decoder_input_ids" in inputs:
        return logits
    ids = inputs["input_ids"]
    return logits[ids < first].unflatten(0, (len(ids), -1))


def is_encoder(config: Any) -> bool:
    """Whether every token sees every other, so that the first one can stand for the text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as encoders

    other = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    return config.model_type in encoders and not other


def check_room(longest: int, length: int, config: Any) -> None:
    """Raises `UserError` where texts of `longest` tokens and a prompt need more positions than the network has."""
    room = getattr(config, "max_position_embeddings", None)
    if room is None or not length:
        return
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions are counted from the padding id
        room -= config.pad_token_id + 1
    if longest + length > room:
        raise UserError(
            f"a prompt of {length} vectors and a text of {longest} tokens do not fit into the {room} positions of this "
            f"{config.model_type} network; make the prompt's length or the budget's max_length smaller: together they "
            f"may have {room}"
        )
