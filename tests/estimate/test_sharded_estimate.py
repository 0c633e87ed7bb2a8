"""The estimate of one device of several that share a base's weights."""

from __future__ import annotations

import pytest

from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate

pytestmark = pytest.mark.slow


def of(method: str, model: str = "tiny-decoder", **setting: object) -> StepEstimate:
    return estimate(ModelQuery(model), method, {}, Setting(batch=1, seq=16, **setting))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_device_holds_its_part_of_the_base_and_all_of_the_adapter(method: str) -> None:
    one, two, four = (of(method, shards=n) for n in (1, 2, 4))
    held = [
        sum(size for name, size in e.held.items() if name in ("weights", "4-bit codes", "4-bit absmax"))
        for e in (one, two, four)
    ]
    assert held[1] == pytest.approx(held[0] / 2, rel=0.03)
    assert held[2] == pytest.approx(held[0] / 4, rel=0.06)
    assert one.held["adapter"] == two.held["adapter"] == four.held["adapter"]
    assert one.trainable == two.trainable


@pytest.mark.full
def test_layers_that_are_alike_are_told_from_three_depths_of_shards_too() -> None:
    told, whole = of("qlora", "smollm2-135m", shards=2), of("qlora", "smollm2-135m", shards=2, every_layer=True)
    assert told.layers_simulated.startswith("2, 3, 4 of 30")
    assert (told.peak_bytes, told.at_peak, told.held) == (whole.peak_bytes, whole.at_peak, whole.held)


def test_what_is_offloaded_is_not_on_the_device() -> None:
    there, away = of("lora", shards=2), of("lora", shards=2, offload=True)
    assert there.shards == away.shards
    assert away.shards is not None
    assert there.peak_bytes - away.peak_bytes == away.shards["offloadable"]
    assert away.at_peak["weights"] == there.at_peak["weights"] - away.shards["offloadable"]
    assert sum(away.at_peak.values()) == away.peak_bytes
    trained = of("full", shards=2, offload=True)
    assert sum(trained.at_peak.values()) == trained.peak_bytes
    assert trained.at_peak["optimizer"] >= 0


def test_the_gathered_block_and_the_rest_are_the_whole_weights_of_these() -> None:
    e = of("lora", "smollm2-135m", shards=2)
    assert e.shards is not None
    layer = 4 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536 + 2 * 576)  # float32: q o, k v, the FFN, two norms
    assert e.shards["block"] == layer
    assert e.shards["rest"] == 4 * (49152 * 576 + 576)  # tied embeddings, the last norm


@pytest.mark.parametrize(
    ("setting", "said"), [({"shards": 0}, "--shards 0"), ({"offload": True}, "--offload goes with")]
)
def test_what_makes_no_sense_is_refused(setting: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Setting(batch=1, seq=16, **setting)  # type: ignore[arg-type]


def test_a_device_holds_the_8_bit_moments_of_its_own_shard_with_their_scales() -> None:
    one, four = (of("full", "smollm2-135m", optimizer="adamw8bit", shards=n) for n in (1, 4))
    assert four.at_peak["optimizer"] == pytest.approx(one.at_peak["optimizer"] / 4, rel=0.01)
