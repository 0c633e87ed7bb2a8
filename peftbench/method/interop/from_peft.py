"""Convert what Hugging Face peft 0.21 saved to an adapter file, or explain why that cannot be exact.

`METHODS` has one function for each of peft's adapter types. It converts configuration and tensors to our method,
hyperparameters and state.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from peftbench.backbones.load import Backbone, load
from peftbench.backbones.modules import FusedLinear
from peftbench.errors import UserError, unknown
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.method.interop import expert_updates, prefix_and_prompt, vera
from peftbench.method.interop.lowrank_updates import Fused, LowRank, alpha_of, roles_of, split
from peftbench.method.interop.peft_names import IN, Read, whole_roles
from peftbench.method.registry import discover, find, make

KINDS = {"CAUSAL_LM": "generation", "SEQ_2_SEQ_LM": "generation", "SEQ_CLS": "classification"}
# Settings of LoraConfig that change the computation and that no method here supports.
REFUSED = (
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "use_bdlora",
    "arrow_config",
    "eva_config",
    "corda_config",
    "velora_config",
    "monteclora_config",
)


def read(folder: Path, model: str, out: Path, labels: int | None = None, revision: str | None = None) -> str:
    """Convert the adapter in `folder` and write it to `out`.

    Args:
        folder: Directory that peft's save_pretrained wrote.
        model: The base model that the adapter was made for.
        out: Adapter file to write.
        labels: Number of outputs of a task head that was not saved.
        revision: Commit, branch or tag of a hub model.

    Returns:
        One line with the method and its hyperparameters.

    Raises:
        UserError: The adapter cannot be read, or cannot be represented exactly; the message names the cause.
    """
    config, tensors = _files(folder)
    kind = KINDS.get(config.get("task_type") or "")
    if kind is None:
        raise unknown("task type", config.get("task_type"), KINDS, where=str(folder / "adapter_config.json"))
    method_of = METHODS.get(config.get("peft_type", ""))
    if method_of is None:
        raise unknown("type of adapter", config.get("peft_type"), METHODS, where=str(folder / "adapter_config.json"))
    if kind == "classification":
        labels = labels or _labels(tensors)
        kind = "regression" if labels == 1 else kind
    backbone = load(model, kind, labels or 1, revision=revision)
    heads = _take_head(tensors, config, backbone)
    method, hyper, state = method_of(config, tensors, backbone)
    edit = Edit(backbone)
    made = make(find(method), hyper)
    made.attach(edit)
    made.finish(edit)
    edit.load(state)  # what does not fit is refused here, by name
    base = {"model": model, "revision": revision, "roles": None, "dtype": "float32", "kind": kind}
    names = [str(i) for i in range(labels or 0)] if kind == "classification" else []
    header = {"method": method, "hyper": hyper, "backbone": backbone.fingerprint, "base": {**base, "labels": names}}
    adapter_file.save(out, edit.state(), header)
    if heads:
        adapter_file.save(adapter_file.head_path(out), heads, header)
    return f"{method} {hyper}"


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not a directory that peft's save_pretrained wrote (adapter_config.json, "
            f"adapter_model.safetensors): {getattr(error, 'strerror', None) or error}; give the one with both"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'adapter_config.json'} is no mapping")
    return config, tensors


def _labels(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of outputs of the head that was saved with the adapter."""
    ends = ("classifier.weight", "classifier.out_proj.weight", "score.weight")
    outputs = [t.shape[0] for name, t in tensors.items() if name.endswith(ends) and "pre_classifier" not in name]
    if not outputs:
        raise UserError("the adapter was saved without its classifier; say how many outputs it has: --labels N")
    return int(outputs[0])


def _take_head(tensors: dict[str, Tensor], config: Mapping[str, Any], backbone: Backbone) -> dict[str, Tensor]:
    """Remove the head's tensors from `tensors` and return them. Tensors that peft did not save come from the base."""
    inside = "base_model." if config["peft_type"] == "PREFIX_TUNING" else IN
    head: dict[str, Tensor] = {}
    own = {id(p) for p in backbone.head_parameters()}
    for name, p in backbone.parameters.items():
        if id(p) in own:
            given = tensors.pop(f"{inside}{name}", None)
            if given is None and name.rpartition(".")[0] in backbone.newly_initialized:
                raise UserError(f"the adapter has no {name}, and neither has the base model; save the head with it")
            head[name] = p.detach() if given is None else given
            if head[name].shape != p.shape:
                raise UserError(f"{name} has the shape {tuple(head[name].shape)} where {tuple(p.shape)} is needed")
    return head


def _lora(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    _refuse_settings(config)
    layers = _layers(config, tensors, backbone.net)
    parts = _by_site(layers, backbone)
    roles = whole_roles(parts, backbone)
    first = next(iter(parts.values()))
    for path, u in parts.items():
        if len(u.A) != len(first.A) or not math.isclose(u.scale, first.scale, rel_tol=1e-12):
            raise UserError(
                f"{path} has rank {len(u.A)} and scale {u.scale:g} where other layers have {len(first.A)} and "
                f"{first.scale:g} (rank_pattern, alpha_pattern); a method here has one of each"
            )
    rank = len(first.A)
    stabilised = bool(config.get("use_rslora")) and not config.get("use_dora") and "rslora" in discover()
    method = "dora" if config.get("use_dora") else "rslora" if stabilised else "lora"
    alpha = float(alpha_of(first, stabilised))
    hyper = {"rank": rank, "alpha": alpha, "dropout": float(config.get("lora_dropout") or 0.0), "roles": roles}
    state: dict[str, Tensor] = {}
    for path, u in parts.items():
        state |= {f"{path}.A": u.A, f"{path}.B": u.B} | ({} if u.m is None else {f"{path}.m": u.m})
    return method, hyper, state


def _refuse_settings(config: Mapping[str, Any]) -> None:
    for key in REFUSED:
        if config.get(key):
            raise UserError(f"the adapter uses {key} = {config[key]!r}, which no method of peftbench has")
    if config.get("bias", "none") != "none":
        raise UserError(f"the adapter trains biases (bias = {config['bias']!r}) beside LoRA; no method here does both")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise UserError(
            f"the adapter started as {start!r}, which changes the base's weights; save it as plain LoRA "
            "(save_pretrained(..., path_initial_model_for_weight_conversion=...)) and import that"
        )


def _layers(config: Mapping[str, Any], tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, LowRank]:
    """Return the updates by layer, scaled as in peft; those of experts by expert."""
    experts = expert_updates.wrappers(net, config.get("target_parameters") or [])
    ends = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_magnitude_vector": "m"}
    by_layer: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        end = next((e for e in ends if name.endswith(e)), None)
        if end is None or not name.startswith(IN):
            raise UserError(f"the adapter has a tensor {name} that is no part of LoRA, DoRA or the task head")
        by_layer.setdefault(name.removeprefix(IN).removesuffix(end), {})[ends[end]] = t.float()
    if not by_layer:
        raise UserError("the adapter has no lora_A and lora_B")
    layers: dict[str, LowRank] = {}
    for path, parts in by_layer.items():
        if not {"A", "B"} <= parts.keys() or bool(config.get("use_dora")) != ("m" in parts):
            raise UserError(f"{path} has only {', '.join(sorted(parts))} of what its adapter consists of")
        name = experts.get(path, path)
        places = expert_updates.site_paths(net, name) if path in experts else [path]
        rank = _pattern(config.get("rank_pattern"), name, config["r"])
        alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        if len(parts["A"]) != rank * len(places):
            raise UserError(f"{name} has rank {len(parts['A'])} where adapter_config.json says {rank * len(places)}")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        both = expert_updates.separate(parts["A"], parts["B"], len(places))
        layers |= {place: LowRank(A, B, scale, parts.get("m")) for place, (A, B) in zip(places, both, strict=True)}
    return layers


def _pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the path, else the default: peft's rule."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _by_site(layers: Mapping[str, LowRank], backbone: Backbone) -> dict[str, LowRank]:
    """Return the updates by our sites, with fused layers split."""
    fused: dict[str, Any] = {path: m for path, m in backbone.net.named_modules() if isinstance(m, Fused)}
    changed = set().union(*(roles_of(fused[path], u) for path, u in layers.items() if path in fused))
    if any(changed.isdisjoint(fused[path].roles) for path in layers if path in fused):
        raise UserError("the adapter changes nothing in a fused layer (B = 0): which of its roles it is for is lost")
    parts: dict[str, LowRank] = {}
    for path, u in layers.items():
        if path in fused:
            roles = [role for role in fused[path].roles if role in changed]
            parts |= {f"{path}.{role}": part for role, part in split(fused[path], u, roles, path).items()}
        else:
            parts[path] = u
    return parts


def _ia3(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    net = backbone.net
    state: dict[str, Tensor] = {}
    inner = {site.path for site in backbone.sites.of("down")}
    for name, t in tensors.items():
        if not name.startswith(IN) or not name.endswith(".ia3_l"):
            raise UserError(f"the adapter has a tensor {name} that is no part of (IA)^3 or the task head")
        path = name.removeprefix(IN).removesuffix(".ia3_l")
        if (t.shape[0] == 1) != (path in inner):
            raise UserError(f"{path}: (IA)^3 scales keys, values and the input of the FFN's second layer, not this")
        layer = dict(net.named_modules()).get(path)
        if isinstance(layer, FusedLinear):
            rows = dict(zip(layer.roles, layer.split(t.flatten().float()), strict=True))
            if any(not bool((rows[role] == 1).all()) for role in rows if role not in "kv"):
                raise UserError(f"{path} scales more than its keys and values; (IA)^3 here scales only these")
            state |= {f"{path}.{role}.l": rows[role] for role in "kv" if role in rows}
        else:
            state[f"{path}.l"] = t.flatten().float()
    return "ia3", {}, state


def _norms(config: Mapping[str, Any], tensors: Mapping[str, Tensor], backbone: Backbone) -> Read:
    """Read the norms; those that peft did not tune are the base's own."""
    inside = tuple(f"{site.path}." for site in backbone.sites.of("norm"))
    state = {n: p.detach().float().clone() for n, p in backbone.parameters.items() if n.startswith(inside)}
    for name, t in tensors.items():
        path, _, end = name.removeprefix(IN).partition(".ln_tuning_layers.")
        if not name.startswith(IN) or f"{path}.{end}" not in state:
            raise UserError(
                f"the adapter has a tensor {name} that is no norm of this backbone or part of the task head"
            )
        state[f"{path}.{end}"] = t.float()
    return "layernorm", {}, state


METHODS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], Backbone], Read]] = {
    "LORA": _lora,
    "IA3": _ia3,
    "VERA": vera.read,
    "LN_TUNING": _norms,
    "PREFIX_TUNING": prefix_and_prompt.read_prefix,
    "PROMPT_TUNING": prefix_and_prompt.read_prompt,
}
