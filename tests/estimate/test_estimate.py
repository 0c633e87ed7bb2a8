"""A predicted step equals the real one to the byte; deep networks are told from shallow ones exactly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import pairs
from torch import Tensor

from peftbench.backbones.configuration import natural_kind
from peftbench.backbones.load import load, load_on_meta
from peftbench.errors import UserError
from peftbench.estimate.count import ModelQuery, origin
from peftbench.estimate.memory_fit import fit, parsed_size
from peftbench.estimate.program.optimizer_state import AllocatedAdamW
from peftbench.estimate.simulate import fake_tensors, simulated_step
from peftbench.estimate.simulate.extrapolation import extrapolate, peak_of
from peftbench.estimate.step_estimate import Setting, StepEstimate, estimate, simulate_step
from peftbench.method.catalogue import Catalogue
from peftbench.method.registry import discover, find, make

MODELS = ("tiny-encoder", "tiny-decoder", "tiny-t5")
NAMES = sorted(discover())
SITES = ("full", "lora", "adapter", "prefix")  # all weights; linear layers, blocks, slots of the attention


def _method(name: str) -> Any:
    return make(find(name), Catalogue().hyper(name, {}))


def _measured(model: str, name: str, setting: Setting) -> dict[str, Any]:
    """What the tracker says of the real second step."""
    kind = natural_kind(origin(model))
    backbone = load(model, kind, 2, dtype=setting.dtype, gradient_checkpointing=setting.checkpointing)
    with fake_tensors.attention(setting.attention):
        trainer = simulated_step.trainer_of(backbone, _method(name), setting.dtype, setting.optimizer)
        batch = simulated_step.batch_of(backbone, setting.batch, setting.seq, setting.with_mask)
        backbone.net.train()
        trainer.step(batch, 1 / simulated_step.STEPS)
        return trainer.tracked_step(batch, 2 / simulated_step.STEPS)[1]


def _agree(model: str, name: str, setting: Setting) -> None:
    try:
        predicted = estimate(ModelQuery(model), name, {}, setting)
    except UserError as refusal:
        with pytest.raises(UserError, match=re.escape(str(refusal))):
            _measured(model, name, setting)
        return
    real_record = _measured(model, name, setting)
    assert predicted.peak_bytes == real_record["peak_bytes"]
    assert predicted.at_peak == real_record["at_peak"]
    assert predicted.peak_phase == real_record["peak_phase"]


@pytest.mark.parametrize(
    ("name", "model"),
    pairs(NAMES, MODELS, every_method_on=["tiny-decoder"], on_every_network=SITES),
)
def test_the_prediction_is_what_the_tracker_measures(name: str, model: str) -> None:
    _agree(model, name, Setting(3, 24))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bf16"},
        {"checkpointing": True},
        {"attention": "math"},
        {"optimizer": "sgd"},
        {"padded": False},
        {"batch": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "model"),
    pairs(["full", "lora", "qlora"], MODELS, every_method_on=["tiny-decoder"], on_every_network=[], fast=MODELS),
)
def test_it_is_so_in_every_setting(name: str, change: dict[str, Any], model: str) -> None:
    _agree(model, name, Setting(**{"batch": 2, "seq": 20, **change}))


@pytest.mark.parametrize(
    ("name", "model"),
    pairs(NAMES, ["bert-base", "llama-2-7b"], every_method_on=[], on_every_network=["lora"]),
)
def test_three_small_depths_tell_a_larger_one(name: str, model: str) -> None:
    """Eight layers in full, and from two, three and four of them, or from three, four and five."""
    try:
        courses = {n: simulate_step(ModelQuery(model), _method(name), Setting(2, 16), True, n) for n in (2, 3, 4, 5)}
    except UserError:
        pytest.skip("this network cannot take the method")
    whole = peak_of(simulate_step(ModelQuery(model), _method(name), Setting(2, 16), True, 8))
    found = [extrapolate([courses[n + i] for i in range(3)], 8 - n, n) for n in (2, 3)]
    if found == [None, None]:  # then the network is simulated in full
        pytest.skip("its course is not regular enough to be told")
    for told in found:
        if told is not None:
            assert told.bytes == whole.bytes
            assert {k: v for k, v in told.parts.items() if v} == {k: v for k, v in whole.parts.items() if v}
            assert told.phase == whole.phase


@pytest.mark.slow
def test_layers_that_differ_are_not_told_from_three_depths() -> None:
    courses = [simulate_step(ModelQuery("bert-base"), _method("lora"), Setting(1, 8), False, n) for n in (3, 4, 6)]
    assert extrapolate(courses, 9, 3) is None


def test_a_size_that_only_numbers_tell_is_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "picky.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from peftbench.method import Method, register\n"
        "from peftbench.methods.lora import LoRALinear\n\n\n"
        "@register\n@dataclass(frozen=True)\n"
        "class Picky(Method):\n"
        "    name, paper, lr = 'picky', 'arXiv:0000.00000', 1e-3\n\n"
        "    def attach(self, edit):\n"
        "        edit.swap('q', lambda base: LoRALinear(base, int(base.dense_weight().argmax()) % 7 + 1, 1.0))\n\n"
        "    def parameters(self, sites):\n"
        "        return sum(4 * sum(site.size) for site in sites.linear('q'))\n"
    )
    with pytest.raises(UserError, match="picky cannot be estimated: the size of one of its tensors depends on numbers"):
        estimate(ModelQuery("tiny-encoder"), "picky", {}, Setting(2, 8), [plugin])


def test_roles_add_up_to_the_peak() -> None:
    found = estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(2, 16), by_role=True)
    assert found.by_role is not None
    assert sum(sum(parts.values()) for parts in found.by_role.values()) == found.peak_bytes
    assert found.by_role["q"]["adapter"] > 0


@pytest.mark.slow
def test_four_bit_weights_count_as_they_are_stored() -> None:
    found = estimate(ModelQuery("tiny-decoder"), "qlora", {}, Setting(2, 16))
    weights = 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64)  # of the linear layers
    assert found.held["4-bit codes"] == weights // 2
    assert found.held["4-bit absmax"] == weights // 64
    assert found.held["4-bit pairs"] == 14 * 256 * 8


def test_fused_attention_keeps_no_scores() -> None:
    kept = {
        how: estimate(ModelQuery("tiny-encoder"), "lora", {}, Setting(2, 64, attention=how)).peak_bytes
        for how in ("math", "flash")
    }
    assert kept["math"] - kept["flash"] > 2 * 2 * 64 * 64 * 4  # more than one layer's scores: batch, heads, L, L


@pytest.mark.slow
@pytest.mark.parametrize("how", ["math", "flash"])
def test_attention_is_of_the_same_kind_where_checkpointing_computes_it_again(how: str) -> None:
    kept, again = (
        estimate(ModelQuery("tiny-encoder"), "lora", {}, Setting(2, 64, attention=how, checkpointing=c)).peak_bytes
        for c in (False, True)
    )
    assert again < kept


def test_eight_bit_state_is_what_bitsandbytes_holds() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    shapes = [(64, 64), (100, 50), (4095,), (7, 3)]

    def held(optimizer: torch.optim.Optimizer) -> dict[str, int]:
        tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return {
            "bytes": sum({t.data_ptr(): t.nbytes for t in tensors}.values()),
            "tensors": len({t.data_ptr() for t in tensors}),
        }

    def parameters() -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        for p in made:
            p.grad = torch.ones_like(p)
        return made

    theirs = bnb.optim.AdamW8bit(parameters(), lr=1e-3)
    for gindex, group in enumerate(theirs.param_groups):
        theirs.initialized = True
        for pindex, p in enumerate(group["params"]):
            theirs.init_state(group, p, gindex, pindex)
    ours = AllocatedAdamW(parameters(), lr=1e-3)
    ours.step()
    assert held(ours) == held(theirs)


@pytest.mark.full
@pytest.mark.slow
def test_the_eight_bit_state_takes_a_quarter() -> None:
    at = {
        name: estimate(ModelQuery("bert-base"), "full", {}, Setting(1, 8, optimizer=name)).at_peak["optimizer"]
        for name in ("adamw", "adamw8bit", "sgd")
    }
    assert at["adamw8bit"] < at["adamw"] / 3.8
    assert at["sgd"] == 0


def test_a_methods_own_optimiser_is_not_exchanged() -> None:
    with pytest.raises(UserError, match="galore has an optimiser of its own, GaLoreAdamW"):
        estimate(ModelQuery("tiny-encoder"), "galore", {}, Setting(2, 8, optimizer="sgd"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch": 0}, "--batch 0"),
        ({"seq": 0}, "--seq 0"),
        ({"dtype": "float8"}, "float8"),
        ({"optimizer": "lion"}, "lion"),
        ({"attention": "eager"}, "eager"),
    ],
)
def test_a_wrong_setting_is_the_users_mistake(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Setting(**{"batch": 1, "seq": 8, **wrong})


def test_a_text_longer_than_the_network_is_refused() -> None:
    with pytest.raises(UserError, match="--seq 129: this bert network has 128 positions"):
        estimate(ModelQuery("tiny-encoder"), "lora", {}, Setting(1, 129))


@pytest.mark.full
@pytest.mark.slow
def test_the_largest_batch_fits_and_the_next_does_not() -> None:
    asked: list[int] = []

    def ask(setting: Setting) -> StepEstimate:
        asked.append(setting.batch)
        return estimate(ModelQuery("tiny-decoder"), "lora", {}, setting)

    limit = estimate(ModelQuery("tiny-decoder"), "lora", {}, Setting(5, 16)).peak_bytes
    found = fit(limit, "batch", Setting(1, 16), ask)
    assert found.largest == 5
    assert found.fits is not None
    assert found.next_larger is not None
    assert found.fits.peak_bytes == limit < found.next_larger.peak_bytes
    assert len(asked) == len(set(asked))  # every estimate once
    assert fit(10, "batch", Setting(1, 16), ask).largest == 0


@pytest.mark.full
@pytest.mark.slow
def test_the_longest_text_ends_at_the_networks_positions() -> None:
    found = fit(10**12, "seq", Setting(1, 1), lambda setting: estimate(ModelQuery("tiny-encoder"), "lora", {}, setting))
    assert found.largest == 128
    assert found.next_larger is None


def test_sizes_are_read_in_both_systems() -> None:
    assert parsed_size("24GB") == 24 * 10**9
    assert parsed_size("1.5 GiB") == 3 * 2**29
    for wrong in ("24XB", "24", "GB", "0GB", "-1GB"):
        with pytest.raises(UserError, match="24 x 10\\^9"):
            parsed_size(wrong)


def test_blank_networks_hold_the_dtypes_of_loaded_ones() -> None:
    for model in MODELS:
        loaded = load(model, natural_kind(origin(model)), 2, dtype="bfloat16").net
        empty = load_on_meta(origin(model), natural_kind(origin(model)), 2, dtype="bfloat16").net
        assert {n: (t.shape, t.dtype) for n, t in [*loaded.named_parameters(), *loaded.named_buffers()]} == {
            n: (t.shape, t.dtype) for n, t in [*empty.named_parameters(), *empty.named_buffers()]
        }
