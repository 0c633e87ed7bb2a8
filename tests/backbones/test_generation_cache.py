"""Generation with a key-value cache equals generation without, for every registered method on every causal model.

Nothing here names a method. A method is left out of a network only where it refuses it with a UserError.
"""

from __future__ import annotations

import pytest
import torch
from architectures import DECODERS, Zoo, batch
from pairs import pairs
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.errors import UserError
from peftbench.method.base import Method
from peftbench.method.edit import Edit
from peftbench.method.registry import discover, make

PROMPTS = (11, 4, 8)  # tokens; all but the longest are padded on the left, as the engine generates
NEW_TOKENS = 8  # the longest row passes mistral's window of 6 tokens
ROUNDING = 1e-5  # over the largest logit
METHODS = discover()
INPUTS = ("lora", "prefix", "prompt")  # weights, slots of the attention, vectors before the text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"),
    pairs(METHODS, DECODERS, every_method_on=["llama", "gpt2"], on_every_network=INPUTS, fast=["llama"]),
)
def test_a_cache_changes_neither_tokens_nor_logits(zoo: Zoo, name: str, architecture: str) -> None:
    backbone = zoo[architecture].load()
    untouched = greedy(backbone, cached=True)
    _adapted(backbone, METHODS[name])
    with_cache, without = greedy(backbone, cached=True), greedy(backbone, cached=False)
    assert not torch.equal(with_cache[1], untouched[1]), f"{name} on {architecture}: generation passes it by"
    off = float((with_cache[1] - without[1]).abs().max() / without[1].abs().max())
    assert off <= ROUNDING, f"{name} on {architecture}: a cache changes the logits by {off:.1e} of their size"
    assert torch.equal(with_cache[0], without[0]), f"{name} on {architecture}: with a cache other tokens are generated"


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_mistake_in_the_cached_pass_would_show(zoo: Zoo, architecture: str) -> None:
    """A network that adds something to passes of one token only is found by the same comparison."""
    backbone = zoo[architecture].load()

    def only_single_tokens(_: object, __: object, out: Tensor) -> Tensor:
        # not the same in each dimension: a norm would take that out
        return out + torch.linspace(-0.01, 0.01, out.shape[2]) if out.shape[1] == 1 else out

    backbone.net.get_input_embeddings().register_forward_hook(only_single_tokens)
    with_cache, without = greedy(backbone, cached=True), greedy(backbone, cached=False)
    assert float((with_cache[1] - without[1]).abs().max() / without[1].abs().max()) > 10 * ROUNDING


def greedy(backbone: Backbone, cached: bool) -> tuple[Tensor, Tensor]:
    """Tokens (rows, new) and the logits of each step (rows, new, vocabulary), from prompts padded on the left.

    The one place that builds a generation batch here: the same call as `evaluate.generate` makes.
    """
    inputs = backbone.inputs(batch(PROMPTS, left=True))
    backbone.net.eval()
    with torch.inference_mode():
        out = backbone.net.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=cached,
            pad_token_id=backbone.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = torch.stack(out.logits, dim=1)
    assert logits.shape[1] == NEW_TOKENS
    return out.sequences[:, -NEW_TOKENS:], logits


def _adapted(backbone: Backbone, method: type[Method]) -> None:
    """The method attached, all that it trains moved away from its start, and finished as after training."""
    edit, made = Edit(backbone), make(method, {})
    torch.manual_seed(1)
    try:
        made.attach(edit)
    except UserError as refusal:
        pytest.skip(str(refusal))
    moved = {k: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t for k, t in edit.state().items()}
    assert moved, "nothing trains: the test would say nothing"
    edit.load(moved)
    made.finish(edit)
