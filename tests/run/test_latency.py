"""Inference latency: what is timed against what, by a counted clock, and that both ways to an answer agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from architectures import DECODERS, T5, Zoo
from pairs import pairs
from torch import Tensor, nn

from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.measure import timing
from peftbench.method.edit import Adapter, Edit
from peftbench.method.registry import discover, find, make
from peftbench.records.spec import BackboneSpec, LatencySpec, ProfileSpec, TaskSpec
from peftbench.run.profile import decoding, inputs, latency
from peftbench.tasks.tokens import Encoded

METHODS = discover()
ROUNDING = 1e-5  # over the largest logit
PLAIN, ADAPTED, COLD = 2.0, 3.0, 100.0  # seconds a token: without adapters, with some, and in warm-up rounds


class World:
    """A clock that networks move: by so many seconds for each token that one reads, more with adapters in it."""

    def __init__(self) -> None:
        self.now, self.cold = 0.0, False

    def clock(self) -> float:
        return self.now

    def watch(self, backbone: Backbone) -> None:
        backbone.net.register_forward_pre_hook(self._pass, with_kwargs=True)
        backbone.net.eval()

    def rounds(self, phase: str, actions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """One warm-up round, in which all is slow, and two that count."""
        self.cold = True
        for action in actions.values():
            action()
        self.cold = False
        return timing.interleaved(actions, 2, 0, lambda: None, self.clock) if actions else {}

    def _pass(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Tensor]) -> None:
        adapted = any(isinstance(m, Adapter) for m in net.modules())
        self.now += kwargs["input_ids"].shape[1] * (COLD if self.cold else ADAPTED if adapted else PLAIN)


def texts(generation: bool) -> Encoded:
    """Five texts of 8 tokens; of a generation task, the answer is the last three tokens of each."""
    ids = [np.arange(5 + i, 13 + i, dtype=np.int32) for i in range(5)]
    lengths = np.full(5, 8)
    labels, starts = (None, lengths - 3) if generation else (np.zeros(5, dtype=np.int64), None)
    return Encoded(ids, None, labels, starts, lengths)


def measured(model: str, kind: str, methods: tuple[str, ...], **asked: Any) -> tuple[dict[str, Any], list[Any]]:
    world, edits = World(), {}
    base = load(model, kind, 2)
    world.watch(base)
    for name in methods:
        edits[name] = Edit(load(model, kind, 2))
        make(find(name), {}).attach(edits[name])
        world.watch(edits[name].backbone)
    spec = ProfileSpec(BackboneSpec(model, "f"), TaskSpec("t", "f"), (), (), 4, 32, latency=LatencySpec(**asked))
    return latency.measure(latency.Pass(spec, base, edits, world.rounds, world.clock), texts(kind == "generation"))


def shapes(cells: list[dict[str, Any]]) -> list[tuple[str, int, int, bool]]:
    return [(c["phase"], c["batch"], c["length"], c["typical"]) for c in cells]


@pytest.mark.full
@pytest.mark.slow
def test_an_encoder_is_timed_at_the_usual_length_and_at_those_asked_for_beside_the_untouched_base() -> None:
    rows, base = measured("tiny-encoder", "classification", ("lora", "adapter"), batches=(1, 3), lengths=(16,))
    wanted = [("forward", b, length, typical) for b in (1, 3) for length, typical in ((8, True), (16, False))]
    assert shapes(rows["lora"]["latency"]) == shapes(rows["adapter"]["latency"]) == shapes(base) == wanted
    long = rows["lora"]["latency"][-1]
    assert long["unmerged"]["samples"] == [16 * ADAPTED] * 2
    assert (long["unmerged"]["ratio"]["median"], long["merged"]["ratio"]["median"]) == (ADAPTED / PLAIN, 1.0)
    assert (long["merged"]["median"], base[-1]["unmerged"]["median"]) == (16 * PLAIN, 16 * PLAIN)
    assert base[-1]["unmerged"]["ratio"] is None
    assert all(c["merged"] is None for c in (*rows["adapter"]["latency"], *base))
    assert rows["lora"]["merge_max_change"] < 1e-5
    assert rows["lora"]["merge_seconds"]["n"] == rows["adapter"]["switch_seconds"]["n"] == 2
    assert (rows["adapter"]["merge_seconds"], rows["adapter"]["merge_max_change"]) == (None, None)


@pytest.mark.slow
def test_a_causal_network_has_the_prompt_and_each_token_after_it_apart_without_the_warm_up() -> None:
    rows, base = measured("tiny-decoder", "generation", ("lora",), batches=(2,), lengths=(16,), tokens=4)
    assert shapes(base) == [
        ("prefill", 2, 5, True), ("decode", 2, 5, True), ("prefill", 2, 16, False), ("decode", 2, 16, False)
    ]  # fmt: skip
    prefill, decode = rows["lora"]["latency"][-2:]
    assert prefill["unmerged"]["samples"] == [16 * ADAPTED] * 2
    assert decode["unmerged"]["samples"] == [ADAPTED] * 2
    assert decode["merged"]["samples"] == base[-1]["unmerged"]["samples"] == [PLAIN] * 2
    assert (decode["unmerged"]["ratio"]["median"], decode["merged"]["ratio"]["median"]) == (ADAPTED / PLAIN, 1.0)


def test_no_configuration_begins_a_round_and_each_is_still_timed_once_in_it() -> None:
    log: list[str] = []
    actions = {name: lambda name=name: log.append(name) for name in "ab"}

    def rounds(phase: str, actions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        return timing.interleaved(actions, 2, 1, lambda: None, lambda: float(len(log)))

    samples = latency._warm_samples(rounds, "phase", actions, settle=lambda: log.append("first"))
    assert log == ["first", "b", "a", "first", "a", "b", "first", "b", "a"]
    assert samples == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_a_tail_is_given_only_where_enough_samples_reach_it() -> None:
    few, enough = [1.0] * (latency.TAIL - 1), [float(i) for i in range(latency.TAIL)]
    assert latency._statistics({"a": few, latency.BASE: few}, "a")["p95"] is None
    assert latency._statistics({"a": enough, latency.BASE: [*few, 1.0]}, "a")["p95"] == pytest.approx(18.05)


def test_switching_leaves_the_network_as_it_was_and_moves_the_head_too() -> None:
    edit = Edit(load("tiny-encoder", "classification", 2))
    make(find("lora"), {}).attach(edit)
    before = {n: p.clone() for n, p in edit.net.named_parameters()}
    world = World()
    spec = ProfileSpec(BackboneSpec("m", "f"), TaskSpec("t", "f"), (), (), 4, 32)

    def rounds(phase: str, actions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        with torch.no_grad():
            for p in edit.net.parameters():
                p.add_(1.0)  # another adapter is in place now, and the base is changed
        actions["=lora"]()
        return {key: [0.5] for key in actions}

    assert latency._switching(latency.Pass(spec, edit.backbone, {"lora": edit}, rounds, world.clock)) == {"lora": [0.5]}
    put_back = {n for n, p in edit.net.named_parameters() if torch.equal(p, before[n])}
    heads = {id(p) for p in edit.backbone.head_parameters()}
    trains = {n for n, p in edit.net.named_parameters() if p.requires_grad or id(p) in heads}
    assert put_back == trains


def test_the_untouched_copy_shares_nothing_with_what_a_method_changes() -> None:
    backbone = load("tiny-encoder", "classification", 2)
    base = latency.untouched(backbone)
    batch = inputs.exact(texts(False), 2, 8, backbone)
    with torch.no_grad():
        before = base.net.eval()(**batch).logits
        edit = Edit(backbone)
        make(find("prompt"), {}).attach(edit)
        make(find("full"), {}).attach(edit)
        for p in backbone.net.parameters():
            p.add_(0.5)
        assert torch.equal(base.net(**base.inputs(batch)).logits, before)
        assert not torch.equal(backbone.net.eval()(**backbone.inputs(batch)).logits, before)


def test_rows_of_an_exact_length_hold_the_datas_own_tokens_and_no_padding() -> None:
    backbone = load("tiny-encoder", "classification", 2)
    batch = inputs.exact(texts(False), 2, 12, backbone)
    assert batch["input_ids"].tolist() == [[*range(5, 13), *range(6, 10)], [*range(10, 14), *range(7, 15)]]
    assert batch["attention_mask"].all()
    with pytest.raises(UserError, match="at 129 tokens cannot be measured: this bert network has 128 positions"):
        inputs.exact(texts(False), 2, 129, backbone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture"),
    pairs(METHODS, [*DECODERS, *T5], every_method_on=["llama", "t5"], on_every_network=["lora", "prefix", "prompt"]),
)
def test_decoding_by_the_cache_gives_the_logits_of_the_whole_text(zoo: Zoo, name: str, architecture: str) -> None:
    backbone = zoo[architecture].load()
    _moved(backbone, name, 0.1)
    batch = inputs.exact(texts(True), 2, 11, backbone)  # past mistral's window of 6 tokens
    with torch.inference_mode():
        begun, tokens = decoding.prefill(backbone, batch), []
        for _ in range(4):
            tokens.append(decoding.greedy(begun))
            begun = decoding.decode(backbone, begun, tokens[-1])
        whole = _whole(backbone, batch, torch.cat(tokens, dim=1))
    off = float((begun.logits - whole).abs().max() / whole.abs().max())
    assert off <= ROUNDING, f"{name} on {architecture}: the cache changes the logits by {off:.1e} of their size"


def _whole(backbone: Backbone, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of the token after `tokens`, from one pass without a cache."""
    if backbone.decoder_start is None:
        ids = torch.cat([batch["input_ids"], tokens], dim=1)
        given = backbone.inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    else:
        start = torch.full_like(tokens[:, :1], backbone.decoder_start)
        given = backbone.inputs({**batch, "decoder_input_ids": torch.cat([start, tokens], dim=1)})
    logits: Tensor = backbone.net(**given, use_cache=False).logits[:, -1]
    return logits


@pytest.mark.parametrize("name", METHODS)
def test_merged_passes_give_the_unmerged_answers(zoo: Zoo, name: str) -> None:
    backbone = zoo["gpt2"].load()
    edit = _moved(backbone, name, 0.02)
    batch = inputs.exact(texts(True), 2, 11, backbone)

    def answer() -> Tensor:
        with torch.inference_mode():
            begun = decoding.prefill(backbone, batch)
            return decoding.decode(backbone, begun, torch.tensor([[7], [9]])).logits

    plain = answer()
    if not edit.adapters():
        pytest.skip("nothing to fold: the network is plain already")
    try:
        with edit.merged():
            merged = answer()
    except latency.NotMergeable as reason:
        pytest.skip(str(reason))
    assert float((merged - plain).abs().max() / plain.abs().max()) < 1e-4


def _moved(backbone: Backbone, name: str, by: float) -> Edit:
    """The method attached, all that it trains moved away from its start, and finished as after training."""
    edit, made = Edit(backbone), make(METHODS[name], {})
    torch.manual_seed(1)
    try:
        made.attach(edit)
    except UserError as refusal:
        pytest.skip(str(refusal))
    edit.load({k: t + by * torch.randn_like(t) if t.is_floating_point() else t for k, t in edit.state().items()})
    made.finish(edit)
    backbone.net.eval()
    return edit
