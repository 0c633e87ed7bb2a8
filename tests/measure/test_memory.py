"""The live-tensor tracker: hand-counted networks to the byte, the allocator's own events, and nothing changed by it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from peftbench.measure import system_memory
from peftbench.measure.memory import LiveTensors, track_step

BATCH, WIDE, OUT = 8, 16, 4
W, B = WIDE * OUT * 4, OUT * 4  # bytes of weight and bias of the linear layer below


def _linear() -> tuple[nn.Linear, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(WIDE, OUT)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, foreach=False), torch.randn(BATCH, WIDE)


def _groups(net: nn.Module) -> dict[str, list[Tensor]]:
    return {"weights": [*net.parameters(), *net.buffers()], "adapter": [], "head": []}


def test_a_linear_layers_step_equals_the_count_by_hand() -> None:
    net, optimizer, x = _linear()
    record = track_step(_groups(net), optimizer, lambda: net(x).sum())
    # Backward's last moment: the weights, their gradients, the input, the loss (the autograd engine holds its root's
    # input) and the gradient of ones, whose expanded view over the outputs takes no storage of its own.
    assert record["at_peak"] == {
        "weights": W + B,
        "adapter": 0,
        "head": 0,
        "gradients": W + B,
        "optimizer": 0,
        "activations": x.nbytes + 4,
        "temporaries": 4,
    }
    assert record["peak_bytes"] == sum(record["at_peak"].values())
    assert record["peak_phase"] == "backward"


def test_the_moment_of_the_peak_in_forward_is_split_into_kept_and_passing() -> None:
    """exp keeps its result for backward; the product before it is freed only after exp has run: the peak."""
    net, optimizer, x = _linear()
    out = BATCH * OUT * 4
    with LiveTensors(_groups(net), optimizer) as live:
        kept = net(x).exp()
        live.phase("backward")
        del kept
    record = live.record()
    assert record["peak_phase"] == "forward"
    assert record["at_peak"]["activations"] == x.nbytes + out
    assert record["at_peak"]["temporaries"] == out
    assert record["peak_bytes"] == W + B + x.nbytes + 2 * out


def test_optimizer_state_counts_as_such_in_the_step_that_makes_it_and_later() -> None:
    net, _, x = _linear()
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
    state = 2 * (W + B) + 2 * 4  # two moments and a step count for both parameters
    for _ in range(2):
        with LiveTensors(_groups(net), optimizer) as live:
            net(x).sum().backward()
            live.phase("optimizer")
            optimizer.step()
            mark = torch.zeros(100_000)  # the peak is surely here, after the step
            del mark
        at_peak = live.record()["at_peak"]
        assert at_peak["optimizer"] == state
        assert at_peak["gradients"] == W + B
        assert at_peak["temporaries"] >= 400_000
        assert live.record()["peak_phase"] == "optimizer"
        optimizer.zero_grad()


def test_views_aliases_and_ties_count_once() -> None:
    net, optimizer, x = _linear()
    with LiveTensors({"weights": [*net.parameters()], "head": [net.weight.view(-1)]}, optimizer) as live:
        views = [x.view(-1), x[1:], x.t(), x.detach()]
        y = x.clone()
        y.add_(1).mul_(2)
        y.t().relu_()
        del views
    assert live.record()["peak_bytes"] == W + B + 2 * x.nbytes
    assert live.record()["at_peak"]["head"] == 0


def test_a_storage_that_grows_in_place_is_followed() -> None:
    net, optimizer, _ = _linear()
    with LiveTensors(_groups(net), optimizer) as live:
        out = torch.empty(0)
        torch.add(torch.ones(1000), 1, out=out)
        del out
    assert live.record()["peak_bytes"] == W + B + 8000


def test_what_is_freed_no_longer_counts() -> None:
    net, optimizer, _ = _linear()
    with LiveTensors(_groups(net), optimizer) as live:
        for _ in range(5):
            torch.ones(1000)
    assert live.record()["peak_bytes"] == W + B + 4000


def test_a_tensor_made_of_numbers_counts_from_when_it_is_made() -> None:
    net, optimizer, _ = _linear()
    with LiveTensors(_groups(net), optimizer) as live:
        torch.ones(2000)
        torch.tensor([1.0] * 1000)
    assert live.record()["peak_bytes"] == W + B + 8000


def test_gradients_from_an_earlier_micro_batch_are_gradients_from_the_start() -> None:
    net, optimizer, x = _linear()
    net(x).sum().backward()
    with LiveTensors(_groups(net), optimizer) as live:
        for _ in range(2):
            live.phase("forward")
            loss = net(x).sum()
            live.phase("backward")
            loss.backward()
    assert live.record()["at_peak"]["gradients"] == W + B
    # The new gradient stands beside the accumulated one until it is added.
    assert live.record()["at_peak"]["temporaries"] >= W


def test_checkpointing_keeps_fewer_activations() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(256, 32, requires_grad=True)
    plain = track_step(_groups(net), optimizer, lambda: net(x).sum())
    less = track_step(_groups(net), optimizer, lambda: checkpoint(net, x, use_reentrant=False).sum())
    assert less["at_peak"]["activations"] < plain["at_peak"]["activations"]
    assert less["at_peak"]["temporaries"] > plain["at_peak"]["temporaries"]


# Real architectures


def _bert(dtype: torch.dtype) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    net = BertForSequenceClassification(BertConfig(vocab_size=300, **sizes)).to(dtype)
    ids = torch.randint(0, 300, (4, 24))
    mask = torch.ones_like(ids)
    mask[0, 16:] = 0
    labels = torch.zeros(4, dtype=torch.long)
    return net, lambda n: n(input_ids=ids, attention_mask=mask, labels=labels).loss


def _llama(dtype: torch.dtype) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=300, intermediate_size=128, **sizes)).to(dtype)
    ids = torch.randint(0, 300, (4, 24))
    return net, lambda n: n(input_ids=ids, labels=ids).loss


def _allocator_peak(step: Callable[[], None]) -> int:
    """Bytes above the start, from the profiler's record of every allocation on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("make", [_bert, _llama])
def test_the_peak_is_the_allocators(make: Any, foreach: bool, dtype: torch.dtype) -> None:
    """In bfloat16 without oneDNN, whose packed copies of the weights live and die inside its kernels."""
    with torch.backends.mkldnn.flags(enabled=dtype == torch.float32):
        assert abs(_allocators_excess(make, foreach, dtype)) <= 128


def test_onednns_packed_weights_are_the_allocators_alone() -> None:
    """What the tracker cannot see is inside a kernel, so the allocator is never below it."""
    assert _allocators_excess(_bert, False, torch.bfloat16) >= -128


def _allocators_excess(make: Any, foreach: bool, dtype: torch.dtype) -> int:
    """Bytes by which the allocator's peak is above the tracker's, on the same step; two tracked steps must be equal."""
    torch.manual_seed(0)
    net, loss = make(dtype)
    for parameter in net.model.embed_tokens.parameters() if make is _llama else net.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], foreach=foreach)
    track_step(_groups(net), optimizer, lambda: loss(net))  # the optimizer's state is made here
    with LiveTensors(_groups(net), optimizer) as entry:
        loss(net)
    before = entry._changes[0]  # weights, optimizer state and batch: what was there at entry
    first, second = (track_step(_groups(net), optimizer, lambda: loss(net)) for _ in range(2))
    assert {**first, "resident_bytes": 0} == {**second, "resident_bytes": 0}
    assert sum(first["at_peak"].values()) == first["peak_bytes"]

    def step() -> None:
        loss(net).backward()
        optimizer.step()
        optimizer.zero_grad()

    return _allocator_peak(step) - (first["peak_bytes"] - before)


@pytest.mark.parametrize("make", [_bert, _llama])
def test_tracking_changes_no_bit_of_the_step(make: Any) -> None:
    results = []
    for tracked in (False, True):
        torch.manual_seed(0)
        net, loss = make(torch.float32)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        if tracked:
            track_step(_groups(net), optimizer, lambda net=net, loss=loss: loss(net))
        else:
            loss(net).backward()
            optimizer.step()
        results.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_fake_step_predicts_the_real_one_to_the_byte() -> None:
    def step() -> dict[str, Any]:
        net = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 50))
        optimizer = torch.optim.AdamW(net.parameters())
        ids = torch.zeros(4, 10, dtype=torch.long)
        return track_step(_groups(net), optimizer, lambda: F.cross_entropy(net(ids).flatten(0, 1), ids.flatten()))

    real = step()
    with FakeTensorMode():
        fake = step()
    assert fake["peak_bytes"] == real["peak_bytes"]
    assert fake["at_peak"] == real["at_peak"]


# Misuse, and the figures beside


def test_a_parameter_outside_all_groups_is_an_error() -> None:
    net, optimizer, _ = _linear()
    with pytest.raises(ValueError, match=r"1 parameters of the optimizer are in no group \(shapes \(4,\)\)"):
        LiveTensors({"weights": [net.weight]}, optimizer).__enter__()


def test_groups_without_a_tensor_are_an_error() -> None:
    _, optimizer, _ = _linear()
    with pytest.raises(ValueError, match="hold no tensor"):
        LiveTensors({"weights": []}, optimizer)


def test_an_unknown_phase_is_an_error() -> None:
    net, optimizer, _ = _linear()
    with LiveTensors(_groups(net), optimizer) as live, pytest.raises(ValueError, match="unknown phase 'back'"):
        live.phase("back")


def test_the_record_is_there_only_after_the_end() -> None:
    net, optimizer, _ = _linear()
    with LiveTensors(_groups(net), optimizer) as live, pytest.raises(RuntimeError, match="has ended"):
        live.record()
    assert live.record()["peak_bytes"] == W + B


def test_no_hook_and_no_watch_stays_behind() -> None:
    net, optimizer, x = _linear()
    kept: list[Tensor] = []
    with LiveTensors(_groups(net), optimizer) as live:
        kept.append(net(x))
    assert not net.weight._post_accumulate_grad_hooks
    record = dict(live.record())
    kept.clear()  # made inside, freed outside
    assert live.record() == record
    assert not any(watch.alive for watch in live._watches)


def test_the_resident_mark_covers_what_was_touched() -> None:
    if not system_memory.reset_resident():
        pytest.skip("the high-water mark cannot be reset here")
    before = system_memory.resident_peak_bytes()
    size = 32 << 20
    block = mmap.mmap(-1, size)  # new pages, where torch may take over memory that an earlier test has freed
    block.write(b"\1" * size)
    after = system_memory.resident_peak_bytes()
    assert before is not None
    assert after is not None
    assert after - before > size // 2
    block.close()
    system_memory.reset_resident()
    again = system_memory.resident_peak_bytes()
    assert again is not None
    assert again < after


def test_what_cannot_be_measured_is_none_and_not_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(system_memory, "_CLEAR", tmp_path / "absent" / "clear_refs")
    net, optimizer, x = _linear()
    record = track_step(_groups(net), optimizer, lambda: net(x).sum())
    assert record["resident_bytes"] is None
    assert record["allocated_bytes"] is None
    assert record["reserved_bytes"] is None
    monkeypatch.setattr(system_memory, "_STATUS", tmp_path / "absent")
    assert system_memory.resident_peak_bytes() is None


def test_a_storage_that_is_emptied_and_filled_again_counts_as_it_is() -> None:
    """As sharded training does with the weights that it gathers; no operation shows it."""
    weight, gathered = nn.Parameter(torch.zeros(4)), torch.zeros(1_000)
    gathered.untyped_storage().resize_(0)
    with LiveTensors({"weights": [weight]}, torch.optim.SGD([weight], 0.1)) as live:
        for _ in range(2):
            gathered.untyped_storage().resize_(4_000)
            (weight * gathered[:4]).sum().backward()
            gathered.untyped_storage().resize_(0)
        live.phase("optimizer")
    record = live.record()
    assert record["at_peak"]["temporaries"] >= 4_000
    assert record["peak_bytes"] < 2 * 4_000
