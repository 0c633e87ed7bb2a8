"""Memory by module role: nothing changes for being watched, the parts add up, and each role gets what is its own."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from peftbench.measure import module_roles
from peftbench.measure.memory import LiveTensors, track_step
from peftbench.method.registry import discover
from peftbench.verify.contract.case import AdaptedModel, Case, batch

NETWORKS = ("tiny-encoder", "tiny-decoder")
METHODS = discover()


def _groups(net: nn.Module) -> dict[str, list[Tensor]]:
    return {"weights": [*net.parameters(), *net.buffers()]}


def _record(network: str, method: str, by_role: bool, **options: Any) -> dict[str, Any]:
    model = AdaptedModel(Case(METHODS[method], {}, network), **options)
    trainer = model.start()
    model.net.train()
    torch.manual_seed(0)
    _, record = trainer.tracked_step(batch(model.case), 0.5, by_role)
    return {k: v for k, v in record.items() if k != "resident_bytes"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "network"), [*product(METHODS, NETWORKS), ("lora", "tiny-t5")])
def test_the_roles_add_up_to_every_part_and_asking_changes_none(method: str, network: str) -> None:
    if Case(METHODS[method], {}, network).refusal() is not None:
        pytest.skip("the method does not take this network")
    plain, split = (_record(network, method, asked) for asked in (False, True))
    by_role = split.pop("by_role")
    assert split == plain
    sums = {part: sum(parts[part] for parts in by_role.values()) for part in plain["at_peak"]}
    assert sums == plain["at_peak"]


def test_a_second_step_from_the_same_start_is_split_alike() -> None:
    assert _record("tiny-encoder", "lora", True) == _record("tiny-encoder", "lora", True)


def test_weights_gradients_and_moments_are_where_their_parameter_is() -> None:
    model = AdaptedModel(Case(METHODS["full"]))
    trainer = model.start()
    trainer.step(batch(model.case), 0.5)
    _, record = trainer.tracked_step(batch(model.case), 1.0, by_role=True)
    net, of = model.net, record["by_role"]
    for role in ("q", "k", "v", "o", "up", "down"):
        sites = model.backbone.sites.of(role)
        own = sum(p.nbytes for site in sites for p in net.get_submodule(site.path).parameters())
        tensors = sum(len(list(net.get_submodule(site.path).parameters())) for site in sites)
        assert of[role]["weights"] == own
        assert of[role]["optimizer"] == 2 * own + 4 * tensors  # two moments, and a step count for each tensor
    assert of["head"]["head"] == sum(p.nbytes for p in model.backbone.head_parameters())
    assert not any(of["other"][part] for part in ("weights", "adapter", "head", "gradients", "optimizer"))


def test_an_adapter_belongs_to_its_sites_role() -> None:
    by_role = _record("tiny-encoder", "lora", True)["by_role"]
    model = AdaptedModel(Case(METHODS["lora"]))
    for role in "qv":
        layers = [model.net.get_submodule(site.path) for site in model.backbone.sites.of(role)]
        assert by_role[role]["adapter"] == sum(layer.A.nbytes + layer.B.nbytes for layer in layers)
    assert all(parts["adapter"] == 0 for role, parts in by_role.items() if role not in ("q", "v"))


# By hand: x (8, 16) -> a linear layer `up` -> exp -> a linear layer `down`, and the sum of its outputs

BATCH, WIDE, INNER = 8, 16, 64
W = WIDE * INNER * 4  # bytes of either weight
X, H, Y = BATCH * WIDE * 4, BATCH * INNER * 4, BATCH * WIDE * 4  # bytes


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDE, INNER, bias=False), nn.Linear(INNER, WIDE, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).exp())


def _pair() -> tuple[Pair, dict[nn.Module, str], torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    net = Pair()
    named: dict[nn.Module, str] = {net: "ffn", net.up: "up", net.down: "down"}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)
    return net, named, optimizer, torch.randn(BATCH, WIDE)


def test_what_a_forward_makes_belongs_to_the_innermost_module() -> None:
    net, named, optimizer, x = _pair()
    with LiveTensors(_groups(net), optimizer, roles=named) as live:
        y = net(x)
        live.phase("backward")
        mark = torch.zeros(100_000)  # the peak is surely here
        del y, mark
    by_role = live.record()["by_role"]
    nothing = {"weights": 0, "gradients": 0, "optimizer": 0, "activations": 0, "temporaries": 0}
    assert by_role == {
        "up": {**nothing, "weights": W},  # its output went when exp, which keeps its own, had run
        "ffn": {**nothing, "activations": H},
        "down": {**nothing, "weights": W, "activations": Y},
        "other": {**nothing, "activations": X, "temporaries": 400_000},
    }


def _made_in_backward(forward: Callable[[], Tensor], net: Pair, named: dict[nn.Module, str]) -> Counter[Any]:
    """How often backward makes a storage, by its role and its bytes."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)
    with LiveTensors(_groups(net), optimizer, roles=named) as live:
        loss = forward()
        live.phase("backward")
        start = len(live._changes)
        loss.backward()
        return Counter((e.role, e.bytes) for e in [*live._dead, *live._lives.values()] if e.born >= start)


def test_what_backward_makes_belongs_to_the_module_whose_forward_made_the_node() -> None:
    net, named, _, x = _pair()
    made = _made_in_backward(lambda: net(x).sum(), net, named)
    assert made == {
        ("other", 4): 1,  # the gradient of the sum
        ("down", W): 1,  # of down's weight, and of its input
        ("down", H): 1,
        ("ffn", H): 1,  # through exp
        ("up", W): 1,
    }


def test_what_is_computed_again_belongs_to_the_module_that_computes_it_again() -> None:
    net, named, _, x = _pair()
    x.requires_grad_(True)
    plain = _made_in_backward(lambda: net(x).sum(), net, named)
    net.zero_grad()
    x.grad = None
    again = _made_in_backward(lambda: checkpoint(net, x, use_reentrant=False).sum(), net, named)
    assert again - plain == {("up", H): 1, ("ffn", H): 1}  # and not down's result, which backward has no use for
    assert plain - again == {}


def test_a_fake_step_is_split_as_the_real_one() -> None:
    def step() -> dict[str, Any]:
        net, named, optimizer, x = _pair()
        return track_step(_groups(net), optimizer, lambda: net(x).sum(), roles=named)

    real = step()
    with FakeTensorMode():
        fake = step()
    assert fake["by_role"] == real["by_role"]


def test_a_forward_that_breaks_off_leaves_no_module_running() -> None:
    """Recomputation stops in the middle of a module, by an exception, once it has what backward needs."""
    net, named, optimizer, x = _pair()
    with LiveTensors(_groups(net), optimizer, roles=named) as live:
        with pytest.raises(RuntimeError):
            net(x[:, :3])
        assert live._watch is not None
        assert live._watch._running == []


def test_nothing_of_the_watch_stays_behind() -> None:
    net, named, optimizer, x = _pair()
    track_step(_groups(net), optimizer, lambda: net(x).sum(), roles=named)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# The map of a real network


@functools.cache
def _map(network: str, method: str = "linear_probe") -> tuple[Any, dict[str, str]]:
    model = AdaptedModel(Case(METHODS[method], {}, network))
    of = module_roles.of(model.backbone)
    return model, {path: of[module] for path, module in model.net.named_modules() if module in of}


def test_an_encoders_map() -> None:
    _, places = _map("tiny-encoder")
    layer = "bert.encoder.layer.0"
    expected = {
        f"{layer}": "layer",
        f"{layer}.attention": "attn",
        f"{layer}.attention.self": "attn",
        f"{layer}.attention.self.query": "q",
        f"{layer}.attention.output": "attn",
        f"{layer}.attention.output.LayerNorm": "norm",
        f"{layer}.intermediate": "ffn",
        f"{layer}.intermediate.dense": "up",
        f"{layer}.output": "ffn",
        f"{layer}.output.dense": "down",
        "bert.embeddings": "embed",
        "classifier": "head",
    }
    assert {path: places.get(path) for path in expected} == expected
    assert "bert.encoder" not in places


def test_a_decoders_map() -> None:
    _, places = _map("tiny-decoder", "lora")
    layer = "model.layers.1"
    expected = {
        f"{layer}": "layer",
        f"{layer}.self_attn": "attn",
        f"{layer}.self_attn.v_proj": "v",
        f"{layer}.mlp": "ffn",
        f"{layer}.mlp.gate_proj": "gate",
        f"{layer}.input_layernorm": "norm",
        "model.embed_tokens": "embed",
        "lm_head": "head",
    }
    assert {path: places.get(path) for path in expected} == expected
    assert f"{layer}.self_attn.v_proj.base" not in places  # the adapter's inside is the site's
