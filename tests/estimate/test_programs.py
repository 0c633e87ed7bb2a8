"""The simulated step of another program is that program's own, to the byte: real tensors on the CPU, peft's layers."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import real_programs
from peft import LoraConfig
from simulated_programs import check_equal, simulated
from transformers import DebertaV2Config, Gemma2Config

from peftbench.errors import UserError
from peftbench.estimate.card import gpu_memory
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.program import programs
from peftbench.estimate.simulate import fake_tensors
from peftbench.estimate.step_estimate import Setting, estimate, simulate_step
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import find, make

LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
PARTS: list[dict[str, str]] = [
    {},
    {"weights": "fp32"},
    {"weights": "fp32", "autocast": "yes"},
    {"autocast": "yes"},
    {"trained": "bf16"},
    {"checkpointing": "yes"},
    {"update": "fused"},
    {"update": "loop"},
    {"optimizer": "sgd"},
    {"gradients": "kept"},
    {"gradients": "until_forward"},
    {"gradients": "in_backward"},
    {"outputs": "freed"},
    {"outputs": "until_replaced"},
    {"loss": "chunked", "chunk": "16"},
    {"float_outputs": "yes"},
    {"cache": "yes"},
    {"cache": "yes", "outputs": "until_replaced"},
    {"clip": "yes"},
    {"attention": "eager"},
    {"attention": "math"},
    {"mask": "always"},
    {"mask": "never"},
]
QUICK = ({}, {"weights": "fp32", "autocast": "yes"}, {"checkpointing": "yes"}, {"outputs": "until_replaced"})


@pytest.fixture(autouse=True)
def _as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a GPU adds: blocks of 512 bytes, workspaces, dropout's masks of one byte."""
    monkeypatch.setattr(gpu_memory, "on_gpu", lambda timeline: timeline)
    monkeypatch.setattr(fake_tensors, "dropout_of_a_gpu", nullcontext)


KINDS = [(architecture, method) for architecture in ("llama", "qwen2") for method in ("lora", "full")]


def cases() -> list[Any]:
    """Every part once, each on the next kind of network and method, and the quick ones on Llama with LoRA as well."""
    made = []
    for kind, (number, parts) in itertools.product(KINDS, enumerate(PARTS)):
        quick = kind == KINDS[0] and parts in QUICK
        tried = quick or kind == KINDS[number % len(KINDS)]
        marks = [] if quick else [pytest.mark.slow] if tried else [pytest.mark.slow, pytest.mark.full]
        name = "-".join([*kind, *("=".join(part) for part in parts.items() or [("own",)])])
        made.append(pytest.param(*kind, parts, id=name, marks=marks))
    return made


@pytest.mark.parametrize(("architecture", "method", "parts"), cases())
def test_a_loop_of_ones_own_takes_what_is_simulated(
    architecture: str, method: str, parts: dict[str, str], tmp_path: Path
) -> None:
    own = programs.program("plain", parts)
    assert own is not None
    config = real_programs.saved_config(tmp_path, architecture)
    net = real_programs.network(config, own, LoraConfig(**LORA) if method == "lora" else None)
    check_equal(real_programs.measured(net, own, True), simulated(tmp_path, method, {}, own, True))


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_texts_of_one_length_have_no_mask(padded: bool, tmp_path: Path) -> None:
    own = programs.program("plain", {"checkpointing": "yes", "trained": "bf16"})
    assert own is not None
    config = real_programs.saved_config(tmp_path, "llama")
    real = real_programs.measured(real_programs.network(config, own, LoraConfig(**LORA)), own, padded)
    check_equal(real, simulated(tmp_path, "lora", {}, own, padded))


@pytest.mark.slow
@pytest.mark.parametrize("update", ["fused", "foreach", "loop"])
def test_a_deep_network_with_a_small_vocabulary_peaks_elsewhere(update: str, tmp_path: Path) -> None:
    """The peak is then in the update, not in the loss."""
    own = programs.program("plain", {"update": update, "checkpointing": "yes", "outputs": "freed"})
    assert own is not None
    config = real_programs.saved_config(tmp_path, "llama", num_hidden_layers=4, intermediate_size=1_024)
    real = real_programs.measured(real_programs.network(config, own, None), own, True)
    check_equal(real, simulated(tmp_path, "full", {}, own, True))
    assert update != "foreach" or real.record()["peak_phase"] == "optimizer"


def test_devices_that_share_the_base_take_a_batch_each() -> None:
    own = programs.program("plain", {"clip": "yes"})
    lora = make(find("lora"), Catalogue().hyper("lora", {}))
    alone, shared = (
        simulate_step(ModelQuery("tiny-decoder"), lora, Setting(2, 16, program=own, shards=n)) for n in (1, 2)
    )
    assert shared.flops == alone.flops
    assert shared.held["weights"] < alone.held["weights"]


@pytest.mark.parametrize("parts", [{}, {"loss": "fused"}])
def test_a_loss_by_parts_of_a_head_in_shards_is_refused(parts: dict[str, str]) -> None:
    own = programs.program("litgpt", parts)
    with pytest.raises(UserError, match=r"--shards 2 with loss=.* give --part loss=whole"):
        Setting(1, 8, shards=2, program=own)
    assert Setting(1, 8, shards=2, program=programs.program("litgpt", {"loss": "whole"})).shards == 2


@pytest.mark.parametrize("model", ["tiny-encoder", "tiny-t5"])
@pytest.mark.parametrize("loss", ["fused", "chunked"])
def test_a_loss_by_parts_is_refused_without_a_causal_head(model: str, loss: str) -> None:
    setting = Setting(1, 8, program=programs.program("plain", {"loss": loss}))
    with pytest.raises(UserError, match=f"--part loss={loss}: .* network"):
        simulate_step(ModelQuery(model), make(find("lora"), {}), setting)


@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-t5"])
def test_a_programs_own_loss_is_whole_where_the_network_has_no_causal_head_and_says_so(name: str) -> None:
    told = estimate(ModelQuery(name), "lora", {}, Setting(1, 8, program=programs.program("litgpt")))
    assert "loss=whole" in told.assumed["program"]
    assert "loss=chunked" not in told.assumed["program"]
    assert told.assumed["network"].startswith("loss=whole")
    decoder = estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(1, 8, program=programs.program("litgpt")))
    assert "loss=chunked" in decoder.assumed["program"]
    assert "network" not in decoder.assumed


@pytest.fixture
def capped(tmp_path: Path) -> ModelQuery:
    """A network that caps its scores, which only its own attention does."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    config = Gemma2Config(vocab_size=100, num_attention_heads=2, num_key_value_heads=2, **sizes)
    config.architectures = ["Gemma2ForCausalLM"]
    config.save_pretrained(tmp_path)
    return ModelQuery(str(tmp_path))


@pytest.mark.parametrize("kernel", ["math", "flash", "efficient"])
def test_a_kernel_that_is_given_is_refused_where_the_network_computes_its_attention(
    capped: ModelQuery, kernel: str
) -> None:
    own = programs.program("plain", {"attention": kernel})
    with pytest.raises(
        UserError, match=f"--part attention={kernel}: this gemma2 network .* give --part attention=eager"
    ):
        estimate(capped, "lora", {}, Setting(1, 8, program=own))


def test_a_programs_own_kernel_gives_way_to_the_networks_attention_and_says_so(capped: ModelQuery) -> None:
    told = estimate(capped, "lora", {}, Setting(1, 8, program=programs.program("plain")))
    assert "attention=eager" in told.assumed["program"]
    assert told.assumed["network"].startswith("attention=eager is the network's own")
    eager = Setting(1, 8, program=programs.program("plain", {"attention": "eager"}))
    asked = estimate(capped, "lora", {}, eager)
    assert asked.peak_bytes == told.peak_bytes
    assert "network" not in asked.assumed


def test_what_is_offloaded_is_not_reserved() -> None:
    own = programs.program("plain")
    on, off = (
        estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(1, 8, program=own, shards=2, offload=offload))
        for offload in (False, True)
    )
    assert off.shards is not None
    assert on.reserved_bytes - off.reserved_bytes == on.peak_bytes - off.peak_bytes == off.shards["offloadable"]


def test_a_classifier_that_gathers_its_labels_is_simulated(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    config = DebertaV2Config(vocab_size=100, relative_attention=True, pos_att_type="p2c|c2p", **sizes)
    config.architectures = ["DebertaV2ForSequenceClassification"]
    config.save_pretrained(tmp_path)
    lora = make(find("lora"), Catalogue().hyper("lora", {}))
    own = simulate_step(ModelQuery(str(tmp_path)), lora, Setting(1, 8))
    assert (
        simulate_step(ModelQuery(str(tmp_path)), lora, Setting(1, 8, program=programs.program("plain"))).flops
        == own.flops
    )


def test_gradients_that_are_freed_in_backward_cannot_be_clipped() -> None:
    with pytest.raises(UserError, match="clip=false"):
        programs.program("hf-trainer", {"gradients": "in_backward"})
    assert programs.program("hf-trainer", {"gradients": "in_backward", "clip": "false"}) is not None
