"""The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou and Constant 2021, arXiv:2104.08691).

Section 2:  the frozen network reads [P; X], with P (length, width) trained and X the embedded text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from peftbench.method import Adapter, Edit, Method, PromptSlot, Sites, UserError, register

COMMON = 5_000  # section 3.2


class Prompt(Adapter):
    """The prompt's vectors: the trained tensor itself."""

    def __init__(self, base: PromptSlot, P: Tensor) -> None:
        super().__init__(base)
        self.P = nn.Parameter(P)  # (length, embedding width)

    def forward(self) -> Tensor:
        return self.P


@register
@dataclass(frozen=True)
class PromptTuning(Method):
    """Trained vectors among the embedded tokens: before the text, or after an encoder's first token.

    Not the identity at the start, never merged; every text grows by the prompt's length, in each layer. The paper's
    networks are encoder-decoders. An encoder whose first token pools (BERT's [CLS]) keeps it first here.
    """

    name = "prompt"
    paper = "arXiv:2104.08691"
    formula = "network([P; X]), P (length, embedding width)"
    lr = 1e-2
    lr_source = (
        "not the paper's, which has 0.3 for Adafactor without parameter scaling (section 3); AdamW is used at 1e-3 in "
        "peft's method comparison (four times the accuracy of 1e-4) and at 3e-2 elsewhere: sweep it"
    )
    size_knob = "length"
    size_formula = "length * embedding width"
    search_space = {"lr": (3e-3, 3e-1)}
    starts_as_identity = False
    caveats = (
        "far below full fine-tuning on small networks, level with it only from about 10 billion parameters (figure 1); "
        "converges slowly (the paper trains 30,000 steps) and depends on rate and first vectors: in peft's method "
        "comparison on Llama-3.2-3B, accuracy on GSM8K goes from 0.057 at 1e-4 to 0.234 at 1e-3, and to 0.343 from "
        "vocabulary rows"
    )

    length: Annotated[
        int, Field(ge=1, description="vectors; the paper's is 100, and gains little beyond 20 (section 3.2, figure 3a)")
    ] = 20
    init: Annotated[
        Literal["vocabulary", "random"],
        Field(description="first vectors: rows of common tokens, or uniform in [-0.5, 0.5] (section 3.2)"),
    ] = "vocabulary"

    def attach(self, edit: Edit) -> None:
        edit.swap(
            "prompt", lambda slot: Prompt(slot, self._first(slot, edit.backbone.tokenizer).to(edit.backbone.device))
        )

    def _first(self, slot: PromptSlot, tokenizer: Any) -> Tensor:  # (length, embedding width)
        if self.init == "random" or slot.is_meta:  # on the meta device there are no rows to copy
            return torch.rand(self.length, slot.width) - 0.5
        tokens = torch.tensor(common(tokenizer, slot.tokens))
        rounds = [torch.randperm(len(tokens)) for _ in range(-(-self.length // len(tokens)))]
        return slot.embed(tokens[torch.cat(rounds)[: self.length]]).float()  # repeats only after every token was used

    def parameters(self, sites: Sites) -> int:
        (slot,) = sites.of("prompt")
        return self.length * slot.size[0]


def common(tokenizer: Any, rows: int) -> list[int]:
    """Return the ids of the 5,000 most common tokens, by their order in the vocabulary, as in the paper.

    T5's vocabulary is ordered by likelihood (section 3.2). Other vocabularies are in the order in which they were
    learned, which follows frequency too: merges of byte pairs, or words of WordPiece. Special and added tokens and
    unused entries ([unused7] in BERT's) are left out.

    Args:
        tokenizer: The network's tokenizer.
        rows: Rows of the embedding table; higher ids are left out.

    Raises:
        UserError: The tokenizer has only special tokens.
    """
    no_text = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    words = {i: token for token, i in tokenizer.get_vocab().items() if i < rows and token not in no_text}
    ids = [i for i in sorted(words) if not re.fullmatch(r"[\[<]unused_?\d+[\]>]", words[i])][:COMMON]
    if not ids:
        raise UserError("the tokenizer has no token but special ones; use init: random")
    return ids
