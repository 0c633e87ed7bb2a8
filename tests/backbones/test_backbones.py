"""A normalised network computes what transformers' own computes, and its sites are all there."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from architectures import (
    ALL,
    DECODERS,
    EXPERTS,
    HEADS,
    INNER,
    LABELS,
    LAYERS,
    T5,
    WIDTH,
    WITH_PREFIX,
    Zoo,
    batch,
    logits,
)
from torch import nn

from peftbench.backbones.load import load_sites
from peftbench.backbones.networks import head_of
from peftbench.backbones.sites import LINEAR
from peftbench.method.edit import Edit
from peftbench.methods.lora import LoRALinear

LLAMAS = ("llama", "mistral", "qwen2", "qwen2-classifier", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "smollm3")
STABLE = ("stablelm", "stablelm-parallel")
NARROW = {*LLAMAS, *STABLE, *EXPERTS, "phi", "falcon-40b"}  # fewer key-value heads
GATED = {*LLAMAS, *STABLE, *EXPERTS, "t5-gated"}
WIDE = {"mistral", "qwen3", "gemma", "gemma2", "gemma3", "qwen3-moe", "gpt-oss", "t5-gated"}  # heads of 32
FUSED = dict.fromkeys(["gpt2", "gpt-neox", "gpt-neox-serial", "falcon", "falcon-40b", "falcon-serial"], "q")
FUSED["phi3"] = "q gate"  # the first role of each fused layer


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_logits_equal_the_untouched_network(zoo: Zoo, name: str) -> None:
    model, inputs = zoo[name], batch()
    backbone, untouched = model.backbone, model.untouched
    backbone.net.eval()
    torch.testing.assert_close(logits(backbone.net, inputs), logits(untouched, inputs), rtol=1e-5, atol=1e-5)
    if name in EXPERTS:  # torch has no product over experts in float64
        return
    backbone.net.double()
    untouched.double()
    try:
        torch.testing.assert_close(logits(backbone.net, inputs), logits(untouched, inputs), rtol=0, atol=1e-6)
    finally:
        backbone.net.float()
        untouched.float()


@pytest.mark.parametrize("name", ALL)
def test_every_linear_role_is_found_in_every_layer(zoo: Zoo, name: str) -> None:
    sites = zoo[name].backbone.sites
    expected = set(LINEAR) - (set() if name in GATED else {"gate"})
    attention, ffn = (3 * LAYERS, 2 * LAYERS) if name in T5 else (LAYERS, LAYERS)  # T5: two stacks, and across
    each = 4 * ffn if name in EXPERTS else ffn
    assert Counter(s.role for s in sites.linear()) == {r: attention if r in "qkvo" else each for r in expected}
    assert Counter(s.role for s in sites if s.role in ("attn", "ffn")) == {"attn": attention, "ffn": ffn}
    assert len(sites.of("prefix")) == attention if "prefix" in sites.roles else name not in WITH_PREFIX
    inner = {"gpt2-classifier": 4 * WIDTH, "qwen3-moe": 64}.get(name, INNER)  # of one expert
    wide = HEADS * (32 if name in WIDE else WIDTH // HEADS)
    narrow = wide // 2 if name in NARROW else wide // HEADS if name == "falcon" else wide
    sizes = {"q": (WIDTH, wide), "k": (WIDTH, narrow), "v": (WIDTH, narrow), "o": (wide, WIDTH)}
    sizes |= {"gate": (WIDTH, inner), "up": (WIDTH, inner), "down": (inner, WIDTH)}
    assert all(s.size == sizes[s.role] for s in sites.linear())


@pytest.mark.parametrize("name", ALL)
def test_no_linear_layer_of_a_block_is_without_a_role(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    layers = {s.path for s in backbone.sites.linear()}
    aside = (
        "pos_key_proj",
        "pos_query_proj",
        "embeddings_project",
        "project_in",
        "project_out",
        "lm_head",
        "embed_out",
    )
    head = tuple(backbone.head)
    for path, module in backbone.net.named_modules():
        if isinstance(module, nn.Linear) and not path.startswith(head or ("-",)) and not path.endswith(aside):
            assert path in layers


@pytest.mark.parametrize("name", ALL)
def test_every_norm_of_the_base_is_a_norm_site(zoo: Zoo, name: str) -> None:
    backbone = zoo[name].backbone
    head = tuple(backbone.head) or ("-",)
    norms = {
        path
        for path, module in backbone.net.named_modules()
        if "norm" in type(module).__name__.lower() and not path.startswith(head)
    }
    assert norms == {s.path for s in backbone.sites.of("norm")}


@pytest.mark.parametrize("name", ALL)
def test_base_and_head_parameters_add_up_to_the_untouched_network(zoo: Zoo, name: str) -> None:
    model = zoo[name]
    untouched, sites = model.untouched, model.backbone.sites
    head = {p for path in head_of(untouched, model.kind) for p in untouched.get_submodule(path).parameters()}
    assert sites.head == sum(p.numel() for p in head)
    assert sites.base + sites.head == sum(p.numel() for p in untouched.parameters())
    assert (sites.head == 0) == (name in DECODERS + T5)
    at_sites = sum(s.parameters for s in sites.linear())
    assert 0 < at_sites < sites.base


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "deberta-v3", "gpt2-classifier"])
def test_the_head_is_everything_outside_the_encoder_and_its_pooler(zoo: Zoo, name: str) -> None:
    parts = {
        "bert": ["bert.pooler", "classifier"],
        "roberta": ["classifier"],
        "electra": ["classifier"],
        "distilbert": ["pre_classifier", "classifier"],
        "deberta-v3": ["pooler", "classifier"],
        "gpt2-classifier": ["score"],
    }
    assert zoo[name].backbone.head == parts[name]


@pytest.mark.parametrize("name", ALL)
def test_the_skeleton_on_the_meta_device_has_the_same_sites(zoo: Zoo, name: str) -> None:
    model = zoo[name]
    found = load_sites(str(model.folder), model.kind, LABELS)
    assert found == model.backbone.sites


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_layer_is_split_exactly(zoo: Zoo, name: str) -> None:
    backbone, untouched = zoo[name].backbone, zoo[name].untouched
    x = torch.randn(2, 5, WIDTH)
    for first in FUSED[name].split():
        for site in backbone.sites.of(first):
            path = site.path.removesuffix(f".{first}")
            torch.testing.assert_close(
                backbone.net.get_submodule(path)(x), untouched.get_submodule(path)(x), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("name", [name for name in FUSED if name in WITH_PREFIX])
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_a_change_of_one_role_changes_only_that_role(zoo: Zoo, name: str, role: str) -> None:
    """Queries, keys and values as the attention function gets them, before and after a LoRA on one of them."""
    backbone = zoo[name].backbone
    before = _attention_arguments(backbone.net, batch())
    edit = Edit(backbone)

    def make(old: nn.Module) -> LoRALinear:
        new = LoRALinear(old, 2, 2.0)
        nn.init.normal_(new.B)
        return new

    edit.swap(role, make)
    after = _attention_arguments(backbone.net, batch())
    edit.undo()
    changed = [r for r, a, b in zip("qkv", before, after, strict=True) if not torch.equal(a, b)]
    assert changed == [role]


def _attention_arguments(net: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Query, key, value of the first layer's attention function."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen: list[torch.Tensor] = []

    def spy(module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: object, **kwargs: object):
        if not seen:
            seen.extend(t.clone() for t in (q, k, v))
        return sdpa_attention_forward(module, q, k, v, *args, **kwargs)

    usual = AttentionInterface._global_mapping["sdpa"]
    AttentionInterface._global_mapping["sdpa"] = spy
    try:
        logits(net.eval(), inputs)
    finally:
        AttentionInterface._global_mapping["sdpa"] = usual
    return seen
