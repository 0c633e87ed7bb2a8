"""Golden values from the library `adapters` (AdapterHub): bottleneck adapters and prefixes on a tiny BERT and GPT-2.

`adapters` pins an older transformers than this project, so it runs in an environment of its own, and what it computes
is committed as `tests/methods/golden/adapters.safetensors`: weights, adapters, inputs, logits, gradients, in float64.
`tests/methods/test_golden_adapters.py` gives the same weights to our methods. To make the file again:

    python -m venv golden-env
    golden-env/bin/pip install adapters==1.3.0 torch==2.13.0 numpy safetensors
    golden-env/bin/python scripts/golden_adapters.py tests/methods/golden/adapters.safetensors

The settings are the library's own presets for each paper, but for Houlsby's nonlinearity, which is swish there and GELU
in the authors' code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import adapters
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

WIDTH = 16
SIZES = {"bottleneck": 4, "length": 3, "hidden": 6}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 24,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "num_labels": 3,
    },
    "gpt2": {"vocab_size": 24, "n_embd": WIDTH, "n_inner": 24, "n_layer": 2, "n_head": 2, "n_positions": 12},
}
NETWORKS: dict[str, Callable[..., Any]] = {
    "bert": lambda **facts: BertForSequenceClassification(BertConfig(attn_implementation="eager", **facts)),
    "gpt2": lambda **facts: GPT2LMHeadModel(GPT2Config(attn_implementation="eager", **facts)),
}
reduction = WIDTH / SIZES["bottleneck"]
CONFIGS: dict[str, Any] = {
    "houlsby": adapters.DoubleSeqBnConfig(reduction_factor=reduction, non_linearity="gelu"),
    "pfeiffer": adapters.SeqBnConfig(reduction_factor=reduction),
    "parallel": adapters.ParBnConfig(reduction_factor=reduction),
    "prefix": adapters.PrefixTuningConfig(flat=True, prefix_length=SIZES["length"]),
    "prefix-mlp": adapters.PrefixTuningConfig(prefix_length=SIZES["length"], bottleneck_size=SIZES["hidden"]),
}


def draw(net: torch.nn.Module, seed: int, scale: float = 0.4) -> None:
    """Every parameter random and exact in float32, norms around one, so that a mistake anywhere shows."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            value = scale * torch.randn(p.shape, generator=draws)
            p.copy_(
                value + (1.0 if "LayerNorm.weight" in name or (".ln_" in name and name.endswith("weight")) else 0.0)
            )


def inputs() -> tuple[Tensor, Tensor]:
    """Three rows of 7, 5 and 4 tokens, padded on the right: ids and mask, (3, 7)."""
    lengths = torch.tensor([7, 5, 4])
    mask = (torch.arange(7) < lengths[:, None]).long()
    ids = torch.randint(1, 24, (3, 7), generator=torch.Generator().manual_seed(5)) * mask
    return ids, mask


def golden(architecture: str, kind: str) -> dict[str, Tensor]:
    """Tensors of one case: ``adapter/NAME``, ``gradient/NAME``, ``logits``."""
    net = NETWORKS[architecture](**CONFIGURATIONS[architecture])
    draw(net, 1)
    base = {id(p) for p in net.parameters()}
    adapters.init(net)
    net.add_adapter("golden", config=CONFIGS[kind])
    net.train_adapter("golden")
    net.set_active_adapters("golden")
    net.double().eval()
    frozen = [n for n, p in net.named_parameters() if id(p) in base and not n.startswith("classifier")]
    assert not any(net.get_parameter(n).requires_grad for n in frozen), "adapters trains the base, norms included"
    trained = {n: p for n, p in net.named_parameters() if id(p) not in base and p.requires_grad}
    assert trained
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trained.values():
            p.copy_(0.4 * torch.randn(p.shape, generator=draws))
    ids, mask = inputs()
    logits = net(input_ids=ids, attention_mask=mask).logits
    kept = logits[mask.bool()] if logits.ndim == 3 else logits
    probe = torch.linspace(-1, 1, kept.numel(), dtype=kept.dtype).reshape(kept.shape)
    grads = torch.autograd.grad((kept * probe).sum(), list(trained.values()))
    found = {"logits": kept.detach()}
    found |= {f"adapter/{n}": p.detach().clone() for n, p in trained.items()}
    found |= {f"gradient/{n}": g for n, g in zip(trained, grads, strict=True)}
    return found


def main(path: str) -> None:
    ids, mask = inputs()
    tensors = {"ids": ids, "mask": mask}
    for architecture, facts in CONFIGURATIONS.items():
        net = NETWORKS[architecture](**facts)
        draw(net, 1)
        tensors |= {f"{architecture}/base/{n}": p.detach().clone() for n, p in net.named_parameters()}
        for kind in CONFIGS:
            found = golden(architecture, kind)
            tensors |= {f"{architecture}/{kind}/{n}": t for n, t in found.items()}
    about = {"adapters": "1.3.0", "torch": torch.__version__, "sizes": json.dumps(SIZES)}
    about["configurations"] = json.dumps(CONFIGURATIONS)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, about)


if __name__ == "__main__":
    main(sys.argv[1])
