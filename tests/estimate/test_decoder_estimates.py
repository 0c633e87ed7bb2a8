"""A predicted step equals the real one to the byte on decoders of every known architecture."""

from __future__ import annotations

import pytest
from architectures import DECODERS, EXPERTS, Zoo
from pairs import pairs

from peftbench.backbones import experts
from peftbench.backbones.load import load
from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery, count
from peftbench.estimate.program import programs
from peftbench.estimate.simulate import simulated_step
from peftbench.estimate.step_estimate import Setting, estimate
from peftbench.method.registry import find, make

EVERYWHERE = {"lora": {"roles": "q k v o gate up down"}, "full": {}, "adapter": {}}
NEW = ["phi3", "gemma2", "gemma3", "falcon", "qwen3-moe", "gpt-oss"]


def hyper(method: str, name: str, sites: set[str]) -> dict[str, str]:
    roles = EVERYWHERE[method].get("roles")
    return {} if roles is None else {"roles": " ".join(role for role in roles.split() if role in sites)}


@pytest.mark.parametrize(
    ("method", "name"),
    pairs(EVERYWHERE, DECODERS, every_method_on=["gemma2", "gpt-oss"], on_every_network=["lora"], fast=NEW),
)
def test_the_prediction_is_what_the_tracker_measures(
    zoo: Zoo, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The router sends the equal tokens of this batch to the same experts; a prediction shares tokens out evenly.
    monkeypatch.setattr(experts, "has_no_data", lambda tensor: True)
    setting = Setting(2, 8)
    backbone = load(str(zoo[name].folder), "generation")
    values = hyper(method, name, set(backbone.sites.roles))
    made = make(find(method), values)
    predicted = estimate(ModelQuery(str(zoo[name].folder)), method, values, setting)
    trainer = simulated_step.trainer_of(backbone, made, setting.dtype)
    batch = simulated_step.batch_of(backbone, 2, 8, True)
    backbone.net.train()
    trainer.step(batch, 1 / simulated_step.STEPS)
    measured = trainer.tracked_step(batch, 2 / simulated_step.STEPS)[1]
    assert predicted.peak_bytes == measured["peak_bytes"]
    assert predicted.at_peak == measured["at_peak"]


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_a_fused_kernel_is_refused_where_no_kernel_computes_the_attention(zoo: Zoo, name: str) -> None:
    with pytest.raises(UserError, match=r"--attention flash: this .* network computes its attention itself"):
        estimate(ModelQuery(str(zoo[name].folder)), "lora", {}, Setting(1, 8, attention="flash"))


@pytest.mark.parametrize("name", EXPERTS)
def test_adapters_of_experts_are_counted_for_each_expert(zoo: Zoo, name: str) -> None:
    query = ModelQuery(str(zoo[name].folder))
    config = zoo[name].backbone.net.config
    inner = getattr(config, "moe_intermediate_size", config.intermediate_size)
    number = config.num_hidden_layers * getattr(config, "num_local_experts", getattr(config, "num_experts", 0))
    counted = count(query, "lora", {"rank": 2, "roles": "gate up down"})
    assert counted.trainable == number * 3 * 2 * (config.hidden_size + inner)
    assert counted.attached


@pytest.mark.slow
def test_adapters_of_experts_cost_their_own_bytes_and_no_copy_of_the_weights() -> None:
    query, setting = ModelQuery("mixtral-8x7b"), Setting(1, 512, dtype="bfloat16", checkpointing=True)
    with_experts = estimate(query, "lora", {"roles": "q v gate up down"}, setting)
    without = estimate(query, "lora", {"roles": "q v"}, setting)
    added = 4 * (with_experts.trainable - without.trainable)
    assert added == 4 * 32 * 8 * 3 * 8 * (4096 + 14336)  # layers, experts, roles, rank, sizes
    assert with_experts.held["adapter"] - without.held["adapter"] == added
    whole = 2 * 8 * 3 * 4096 * 14336  # of a layer's experts: what writing weights plus updates out would take
    assert 3 * added < with_experts.peak_bytes - without.peak_bytes < 4 * added < whole  # gradients and two moments
    assert "each with as many tokens" in with_experts.assumed["experts"]
    assert "experts" not in without.assumed
    other = Setting(1, 16, program=programs.program("hf-trainer"))
    with pytest.raises(UserError, match="--program hf-trainer: how this program adapts or quantises experts"):
        estimate(query, "lora", {"roles": "q down"}, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "model"),
    [
        ("bfloat16", "gpt-oss-20b"),
        pytest.param("float32", "gpt-oss-20b", marks=pytest.mark.full),
        pytest.param("float32", "mixtral-8x7b", marks=pytest.mark.full),
        pytest.param("bfloat16", "mixtral-8x7b", marks=pytest.mark.full),
    ],
)
def test_experts_are_estimated_in_every_dtype(model: str, dtype: str) -> None:
    found = estimate(ModelQuery(model), "lora", {}, Setting(1, 16, dtype=dtype))
    assert found.held["weights"] > 2e10
