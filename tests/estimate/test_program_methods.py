"""With peft's layers for each method, and with the programs' own loops, the simulated step is theirs to the byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import real_programs
import real_trainer
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, VeraConfig
from simulated_programs import check_equal, simulated

from peftbench.estimate.card import gpu_memory
from peftbench.estimate.program import programs
from peftbench.estimate.program.programs import Program
from peftbench.estimate.simulate import fake_tensors

QV = ["q_proj", "v_proj"]
ALL = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CAUSAL = "CAUSAL_LM"
SAME: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "lora on all layers": (
        lambda: LoraConfig(r=8, lora_alpha=16, target_modules=ALL),
        "lora",
        {"roles": "q k v o gate up down"},
    ),
    "lora with dropout": (
        lambda: LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=QV),
        "lora",
        {"dropout": 0.1},
    ),
    "dora": (
        lambda: LoraConfig(r=8, lora_alpha=16, target_modules=ALL, use_dora=True),
        "dora",
        {"roles": "q k v o gate up down"},
    ),
    "dora with dropout": (
        lambda: LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=ALL, use_dora=True),
        "dora",
        {"roles": "q k v o gate up down", "dropout": 0.1},
    ),
    "vera": (lambda: VeraConfig(r=64, target_modules=QV), "vera", {"rank": 64, "roles": "q v"}),
    "ia3": (
        lambda: IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "ia3",
        {},
    ),
}
WIDE = {"hidden_size": 256, "intermediate_size": 1_024}  # what is as large as a weight then decides the peak
PARTS: list[dict[str, str]] = [
    {},
    {"trained": "bf16"},
    {"checkpointing": "yes"},
    {"autocast": "yes"},
    {"weights": "fp32", "autocast": "yes"},
]


@pytest.fixture(autouse=True)
def _as_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what only a GPU adds: blocks of 512 bytes, workspaces, dropout's masks of one byte."""
    monkeypatch.setattr(gpu_memory, "on_gpu", lambda timeline: timeline)
    monkeypatch.setattr(fake_tensors, "dropout_of_a_gpu", nullcontext)


def the(name: str, parts: dict[str, str] | None = None) -> Program:
    own = programs.program(name, parts)
    assert own is not None
    return own


def cases() -> list[Any]:
    """Every method as the program is by itself, and every other part with the method that keeps most."""
    made = []
    for parts, name in itertools.product(PARTS, SAME):
        marks = [pytest.mark.slow] if parts else []
        if parts and name != "dora with dropout":
            marks.append(pytest.mark.full)
        made.append(pytest.param(parts, name, id=f"{parts}-{name}", marks=marks))
    return made


@pytest.mark.parametrize(("parts", "name"), cases())
def test_layers_keep_what_pefts_keep(name: str, parts: dict[str, str], tmp_path: Path) -> None:
    adapter, method, hyper = SAME[name]
    own = the("plain", parts)
    config = real_programs.saved_config(tmp_path, "qwen2", **WIDE)
    real = real_programs.measured(real_programs.network(config, own, adapter()), own, True)
    check_equal(real, simulated(tmp_path, method, hyper, own, True))


OTHER = {  # how much peft holds beyond the simulation at the peak: what it does otherwise, in docs/estimate-programs.md
    "adalora": (
        lambda: AdaLoraConfig(init_r=8, target_r=4, total_step=100, target_modules=QV),
        "adalora",
        {"rank": 4, "initial_rank": 8, "roles": "q v"},
        -0.006,
    ),
    "prefix": (
        lambda: PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=8),
        "prefix",
        {"length": 8},
        0.0343,
    ),
    "prompt": (
        lambda: PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=8),
        "prompt",
        {"length": 8},
        -0.0014,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_other_methods_differ_from_peft_by_what_is_documented(name: str, tmp_path: Path) -> None:
    adapter, method, hyper, more = OTHER[name]
    own = the("plain")
    config = real_programs.saved_config(tmp_path, "llama")
    real = real_programs.measured(real_programs.network(config, own, adapter()), own, True)
    predicted = simulated(tmp_path, method, hyper, own, True)
    measured = real.record()["peak_bytes"]
    assert (measured - predicted.levels[predicted.peak]) / measured == pytest.approx(more, abs=0.0005)


TRAINER_SCALARS = 16  # the number of tokens in the batch, int64; the running loss and the last norm, float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("full", {}),
        ("lora", {"checkpointing": "yes"}),
        pytest.param("lora", {}, marks=pytest.mark.full),
        pytest.param("full", {"checkpointing": "yes"}, marks=pytest.mark.full),
        *(pytest.param(method, {"weights": "fp32"}, marks=pytest.mark.full) for method in ("lora", "full")),
    ],
    ids=str,
)
def test_transformers_trainer_takes_what_is_simulated(method: str, parts: dict[str, str], tmp_path: Path) -> None:
    own = the("hf-trainer", parts)
    config = real_programs.saved_config(tmp_path, "llama")
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=QV) if method == "lora" else None
    real = real_trainer.measured(real_programs.network(config, own, adapter), own, True, tmp_path / "out")
    predicted = simulated(tmp_path, method, {}, own, True)
    course = real_programs.course
    measured, told = course(real.levels, real.phases), course(predicted.levels, predicted.phases)
    assert measured.keys() == told.keys()
    for phase, size in measured.items():
        assert 0 <= size - told[phase] <= TRAINER_SCALARS, phase


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loop_of_pefts_comparison_takes_what_is_simulated(method: str, tmp_path: Path) -> None:
    own = the("peft-comparison")
    config = real_programs.saved_config(tmp_path, "llama")
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=QV) if method == "lora" else None
    net = real_programs.network(config, own, adapter)
    real = real_programs.measured(net, own, True, loop=real_programs.Comparison(net, own))
    predicted = simulated(tmp_path, method, {}, own, True)
    course = real_programs.course
    measured, told = course(real.levels, real.phases), course(predicted.levels, predicted.phases)
    assert {phase: size - told[phase] for phase, size in measured.items()} == {
        "forward": 4,  # the sum of the losses, before it is divided by the number of tokens
        "backward": 0,
        "optimizer": 0,
        "after": 0,
    }
