"""A network that reads a tensor of a layer that an adapter has replaced is told so; what merely asks is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from peftbench.backbones.in_memory import wrap
from peftbench.backbones.modules import SiteLinear
from peftbench.errors import UserError
from peftbench.method.edit import Edit
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.method.registry import discover, make
from peftbench.methods.lora import LoRALinear

ROLES = {
    "up": "backbone.layers.*.mixer.in_proj",
    "down": "backbone.layers.*.mixer.out_proj",
    "o": "backbone.layers.*.mixer.dt_proj",
}


@pytest.fixture
def mamba() -> Any:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    return wrap(MambaForCausalLM(config), None, ROLES)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "adalora", "qlora"])
def test_a_network_that_reads_a_replaced_layers_weight_is_refused_with_the_site_and_the_fix(
    mamba: Any, method: str
) -> None:
    edit = Edit(mamba)
    make(discover()[method], {"roles": "o"}).attach(edit)
    with pytest.raises(UserError, match=r"o site backbone.layers.0.mixer.dt_proj holds a \w+, .* reads its 'weight'"):
        mamba.net(torch.ones(1, 4, dtype=torch.long))
    edit.undo()
    mamba.net(torch.ones(1, 4, dtype=torch.long))


def test_layers_of_the_same_network_that_are_called_learn(mamba: Any) -> None:
    edit = Edit(mamba)
    make(discover()["lora"], {"roles": "up", "rank": 2}).attach(edit)
    mamba.net(torch.ones(1, 4, dtype=torch.long)).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in edit.trained())


def test_a_quantised_layer_that_no_adapter_replaces_gives_its_weight_to_a_network_that_reads_it(mamba: Any) -> None:
    ids = torch.arange(6)[None]
    with torch.no_grad():  # the small network's time steps hardly reach its logits
        for site in mamba.sites.of("o"):
            mamba.net.get_submodule(site.path).weight.mul_(100)
    edit = Edit(mamba)
    edit.swap("o", NF4Linear.from_dense)
    found = mamba.net(ids).logits
    rounded = iter([mamba.net.get_submodule(s.path).dense_weight() for s in mamba.sites.of("o")])
    edit.undo()
    plain = mamba.net(ids).logits
    edit.swap("o", lambda base: SiteLinear.of(next(rounded), base.bias))
    torch.testing.assert_close(found, mamba.net(ids).logits, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 1e-3
    edit.undo()


def test_asking_whether_an_adapter_has_something_is_answered_as_python_answers_it() -> None:
    layer = _adapter(SiteLinear.of(torch.randn(3, 4), None))
    assert not hasattr(layer, "weight")
    assert getattr(layer, "weight", "none") == "none"
    assert not hasattr(layer, "no_such_thing")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = layer.no_such_thing
    with pytest.raises(UserError, match="something reads its 'weight'"):
        _ = layer.weight
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(torch.ones(4)), layer(torch.ones(4)))


def _adapter(base: SiteLinear) -> nn.Module:
    return LoRALinear(base, 2, 2.0)
