"""Count the kernels of peft's own training steps, as Hugging Face's method comparison runs them, on fake tensors.

The program is that of method_comparison/MetaMathQA/run.py: a bfloat16 base without autocast, adapters in float32
(peft's default), the model's own loss, clipping, AdamW with PyTorch's default on a GPU (foreach). Full fine-tuning is
bfloat16 throughout. Attention is the CPU's fused kernel, with a mask. What AdaLoRA does after a step is left out: it
reads numbers, which fake tensors do not have.
"""

from __future__ import annotations

import gc
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.configuration import load_config
from peftbench.estimate.card import traffic
from peftbench.estimate.card.traffic import KernelCounter, Traffic
from peftbench.estimate.count import origin
from peftbench.estimate.simulate import fake_tensors

DEPTHS = (3, 4, 5)  # layers, from which the whole network's kernels are told


def peft_traffic(model: str, peft: dict[str, Any] | None, batch: int, seq: int) -> Traffic | None:
    """Return the kernels of a step.

    Args:
        model: Name of the model.
        peft: Values of a peft configuration, with "peft_type"; None for full fine-tuning.
        batch: Number of texts.
        seq: Tokens of each.
    """
    layers = load_config(origin(model), 2, "generation").num_hidden_layers
    traffics = [_of_depth(model, peft, batch, seq, depth, layers) for depth in DEPTHS]
    return traffic.at_full_depth(traffics, layers - DEPTHS[0])


def _of_depth(model: str, peft: dict[str, Any] | None, batch: int, seq: int, depth: int, layers: int) -> Traffic:
    try:
        net = _network(model, peft, depth, layers, "meta")
    except (NotImplementedError, RuntimeError):  # the adapter starts from numbers of the base
        net = _network(model, peft, depth, layers, "cpu")
    with fake_tensors.fake_mode(padded=True):
        _make_fake(net)
        net.train()
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, foreach=True)
        ids = torch.zeros(batch, seq, dtype=torch.long)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        texts = {"input_ids": ids, "attention_mask": mask, "labels": ids}
        _step(net, optimizer, texts, KernelCounter())
        gc.collect()
        kernels = KernelCounter()
        with kernels:
            _step(net, optimizer, texts, kernels)
    return kernels.traffic


def _network(model: str, peft: dict[str, Any] | None, depth: int, layers: int, device: str) -> nn.Module:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from transformers import AutoModelForCausalLM

    config = load_config(origin(model), 2, "generation")
    config.num_hidden_layers = depth
    with torch.device(device):
        net: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if peft is None:
        return net
    deep = ("num_layers", "adapter_layers")
    values = {key: depth if key in deep and value == layers else value for key, value in peft.items()}
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[values.pop("peft_type")]
    wrong = sorted(set(values) - set(inspect.signature(kind).parameters))
    if wrong:
        raise ValueError(f"{kind.__name__} of this peft has no {', '.join(wrong)}")
    return get_peft_model(net, kind(task_type="CAUSAL_LM", **values))


def _make_fake(net: nn.Module) -> None:
    """Replace every tensor of a network by a fake one; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    old: list[Tensor] = []  # kept until the end, so that no id is used again

    def fake(t: Tensor) -> Tensor:
        if id(t) not in made:
            old.append(t)
            empty = fake_tensors.fake_like(t)
            is_trained = isinstance(t, nn.Parameter) and t.requires_grad
            made[id(t)] = nn.Parameter(empty, requires_grad=is_trained) if isinstance(t, nn.Parameter) else empty
        return made[id(t)]

    for module in net.modules():
        for table in (module._parameters, module._buffers):
            for name, t in table.items():
                if t is not None:
                    table[name] = fake(t)
        for name, value in list(vars(module).items()):
            if name in ("_parameters", "_buffers"):
                continue
            if isinstance(value, Tensor):
                setattr(module, name, fake(value))
            elif isinstance(value, dict) and any(isinstance(t, Tensor) for t in value.values()):
                setattr(module, name, {k: fake(t) if isinstance(t, Tensor) else t for k, t in value.items()})


def _step(net: nn.Module, optimizer: Any, batch: dict[str, Tensor], kernels: KernelCounter) -> None:
    kernels.phase("forward")
    optimizer.zero_grad()
    loss = net(**batch).loss
    kernels.phase("backward")
    loss.backward()
    kernels.phase("optimizer")
    trained = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(trained)))
    torch._foreach_mul_(trained, torch.clamp(1.0 / (norm + 1e-6), max=1.0))
    optimizer.step()
