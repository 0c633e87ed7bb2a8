"""What peft also has: each method beside peft's configuration for the same layers, and where its numbers go there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
from torch import Tensor

from peftbench.backbones.load import Backbone
from peftbench.method.edit import Edit

Config = Callable[[Backbone, Any], Any]  # (our network with the method on it, the method) -> peft's configuration
Copy = Callable[[Edit, Any], None]  # our adapter's numbers into peft's network
TASKS = {"classification": "SEQ_CLS", "generation": "CAUSAL_LM"}
PLACES: dict[str, Callable[[Any], Tensor]] = {  # our tensor's name -> peft's tensor, at a layer
    "A": lambda m: m.lora_A["default"].weight,
    "B": lambda m: m.lora_B["default"].weight,
    "m": lambda m: m.lora_magnitude_vector["default"].weight,
    "Q": lambda m: m.lora_A["default"],
    "Lambda": lambda m: m.lora_E["default"],
    "P": lambda m: m.lora_B["default"],
    "d": lambda m: m.vera_lambda_d["default"],
    "b": lambda m: m.vera_lambda_b["default"],
    "l": lambda m: m.ia3_l["default"],
    "weight": lambda m: m.ln_tuning_layers["default"].weight,
    "bias": lambda m: m.ln_tuning_layers["default"].bias,
}


@torch.no_grad()
def by_layer(edit: Edit, twin: Any) -> None:
    """Tensors that stand at layers, all of them."""
    plain = twin.base_model.model
    taken = {id(p) for path in edit.backbone.head for p in plain.get_submodule(path).parameters()}
    for name, ours in edit.state().items():
        path, _, letter = name.rpartition(".")
        theirs = PLACES[letter](plain.get_submodule(path))
        theirs.copy_(ours.reshape(theirs.shape))
        taken.add(id(theirs))
    left = [name for name, p in twin.named_parameters() if p.requires_grad and id(p) not in taken]
    if left:
        raise RuntimeError(f"peft trains what ours does not have: {', '.join(left[:3])}")


@torch.no_grad()
def prefix_rows(edit: Edit, twin: Any) -> None:
    """peft keeps one row for each position: keys and values of the layers in turn, head by head."""
    state = edit.state()
    slots = [site.path for site in edit.backbone.sites.of("prefix")]
    parts = [state[f"{slot}.{kind}"].transpose(0, 1) for slot in slots for kind in "KV"]  # (length, heads, width)
    twin.prompt_encoder["default"].embedding.weight.copy_(torch.stack(parts, 1).flatten(1))


@torch.no_grad()
def prompt_rows(edit: Edit, twin: Any) -> None:
    (P,) = edit.state().values()
    twin.prompt_encoder["default"].embedding.weight.copy_(P)


@dataclass(frozen=True)
class Case:
    method: str
    config: Config
    hyper: Mapping[str, Any] = field(default_factory=dict)
    copy: Copy = by_layer
    quantised: bool = False
    floor: bool = False  # its step is to be compared with the frozen network's as well
    lora: str | None = None  # the case of LoRA that its step is to be compared with as well

    def settings(self, backbone: Backbone) -> dict[str, Any]:
        """The hyperparameters; ``roles="*"`` stands for every linear role of the network."""
        every = " ".join(dict.fromkeys(site.role for site in backbone.sites.linear()))
        return {key: every if (key, value) == ("roles", "*") else value for key, value in self.hyper.items()}


def paths(backbone: Backbone, roles: str | None) -> list[str]:
    return [site.path for site in backbone.sites.linear(roles)]


def lora(**more: Any) -> Config:
    def config(backbone: Backbone, made: Any) -> Any:
        alpha = made.rank if made.alpha is None else made.alpha
        return peft.LoraConfig(r=made.rank, lora_alpha=alpha, target_modules=paths(backbone, made.roles), **more)

    return config


def ia3(backbone: Backbone, made: Any) -> Any:
    inner = [site.path for site in backbone.sites.of("down")]
    outer = [site.path for site in backbone.sites.of("k v")]
    return peft.IA3Config(target_modules=outer + inner, feedforward_modules=inner)


def prefix(backbone: Backbone, made: Any) -> Any:
    return peft.PrefixTuningConfig(task_type=TASKS[backbone.kind], num_virtual_tokens=made.length)


def prompt(backbone: Backbone, made: Any) -> Any:
    return peft.PromptTuningConfig(task_type=TASKS[backbone.kind], num_virtual_tokens=made.length)


def vera(backbone: Backbone, made: Any) -> Any:
    targets = paths(backbone, made.roles)
    return peft.VeraConfig(r=made.rank, target_modules=targets, projection_prng_key=made.projection_seed)


def adalora(backbone: Backbone, made: Any) -> Any:
    """Both are in the stage in which ranks fall from the first step on; peft adds 1e-5 to the rank in its scale."""
    horizon = 10_000
    return peft.AdaLoraConfig(
        init_r=made.first_rank,
        target_r=made.rank,
        lora_alpha=made.alpha / made.first_rank * (made.first_rank + 1e-5),
        tinit=int(made.warmup * horizon),
        tfinal=int(made.final * horizon),
        deltaT=made.interval,
        total_step=horizon,
        orth_reg_weight=made.gamma,
        target_modules=paths(backbone, made.roles),
    )


def layernorm(backbone: Backbone, made: Any) -> Any:
    return peft.LNTuningConfig(target_modules=[site.path for site in backbone.sites.of("norm")])


ALL = {"roles": "*"}
CASES: dict[str, Case] = {
    "lora, q v": Case("lora", lora(), floor=True),
    "lora, all linear": Case("lora", lora(), ALL, floor=True),
    "dora, q v": Case("dora", lora(use_dora=True)),
    "dora, all linear": Case("dora", lora(use_dora=True), ALL, lora="lora, all linear"),
    "ia3": Case("ia3", ia3),
    "prefix": Case("prefix", prefix, copy=prefix_rows),
    "prompt": Case("prompt", prompt, copy=prompt_rows),
    "vera": Case("vera", vera),
    "adalora": Case("adalora", adalora, {"warmup": 0.0}),
    "pissa": Case("pissa", lora(init_lora_weights="pissa")),
    "rslora": Case("rslora", lora(use_rslora=True)),
    "lora_plus": Case("lora_plus", lora()),
    "layernorm": Case("layernorm", layernorm),
    "qlora": Case("qlora", lora(), quantised=True),
    "qdora": Case("qdora", lora(use_dora=True), quantised=True),
}
