"""Rewrite a transformers network so that methods meet uniform modules at its sites, and list the sites."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftbench.backbones import attention, heads, t5
from peftbench.backbones import roles as role_tables
from peftbench.backbones.experts import CHILD, is_experts, open_sites
from peftbench.backbones.modules import Block, FusedLinear, PrefixSlot, SiteLinear
from peftbench.backbones.prompt import PromptSlot
from peftbench.backbones.roles import listed
from peftbench.backbones.sites import BLOCKS, LINEAR, Site, Sites
from peftbench.errors import UserError

_NO_PROMPT = (
    "its classifier feeds each text to the decoder too, and reads the decoder's state at the end token, where a prompt "
    "has no place; use another method, or a generation task"
)


def normalise(net: Any, head: list[str], roles: Mapping[str, Any] | None = None) -> Sites:
    """Rewrite the network's linear layers in place, add block sites and slots, and return the sites.

    Works on the meta device too.

    Args:
        net: A transformers network.
        head: Paths of the modules of the task head.
        roles: Role table in place of the architecture's own.

    Raises:
        UserError: A path matches no module, or not a linear layer.
    """
    kind = net.config.model_type
    table = role_tables.table(kind, net.config, roles)
    if kind == "t5":
        t5.accept_adapted_ffn(net)
    if kind == "falcon":
        from peftbench.backbones import falcon  # with transformers' own module of it

        falcon.accept_adapted_ffn(net)
    sites = _linear_sites(net, table, head)
    sites += _block_sites(net, table)
    slots, absent = _prefix_sites(net, table, sites)
    sites += slots
    if not (head and net.config.is_encoder_decoder):
        sites += _prompt_sites(net, table)
    for role in ("embed", "norm"):
        sites += [
            Site(role, path, (), _numel(net.get_submodule(path)), _numel(net.get_submodule(path), "bias"))
            for path in _expand(net, table.get(role, []), role)
        ]
    in_head = {p for name in head for p in net.get_submodule(name).parameters()}
    total = sum(p.numel() for p in net.parameters())
    size = sum(p.numel() for p in in_head)
    biases = sum(p.numel() for name, p in net.named_parameters() if name.endswith("bias") and p not in in_head)
    absent |= role_tables.ABSENT.get(kind, {}) if roles is None else {}
    if head and net.config.is_encoder_decoder:
        absent["prompt"] = _NO_PROMPT
    ordered = tuple(sorted(sites, key=_place(net)))
    return Sites(kind, ordered, total - size, size, net.config.hidden_size, absent, biases)


def _linear_sites(net: nn.Module, table: Mapping[str, Any], head: list[str]) -> list[Site]:
    sites = []
    for role in LINEAR:
        if role not in table:
            continue
        shared = role_tables.sharing(table, role)
        for path in _expand(net, table[role], role):
            if any(f"{path}.".startswith(f"{h}.") for h in head):
                raise UserError(f"roles: {role} = {path!r} belongs to the task head, which trains with every method")
            layer: Any = net.get_submodule(path)
            if is_experts(layer):
                sites += _expert_sites(layer, path, role)
                continue
            if shared and not isinstance(layer, FusedLinear):
                layer = _split(net, layer, path, shared, table)
                net.set_submodule(path, layer)
            if shared:
                path = f"{path}.{role}"
                layer = net.get_submodule(path)
            elif not isinstance(layer, SiteLinear):
                layer = SiteLinear.of(*_dense(layer, path, role))
                net.set_submodule(path, layer)
            sites.append(_linear_site(role, path, layer))
    return sites


def _expert_sites(experts: nn.Module, path: str, role: str) -> list[Site]:
    """Return the sites of one role of each expert."""
    each: Any = open_sites(experts)
    if not hasattr(each[0], role):
        raise UserError(f"roles: {role} = {path!r} is a {type(experts).__name__}, whose experts have no {role}")
    return [_linear_site(role, f"{path}.{CHILD}.{i}.{role}", getattr(expert, role)) for i, expert in enumerate(each)]


def _linear_site(role: str, path: str, layer: Any) -> Site:
    biases = 0 if layer.bias is None else layer.bias.numel()
    size = (layer.in_features, layer.out_features)
    return Site(role, path, size, layer.in_features * layer.out_features + biases, biases)


def _split(net: Any, layer: nn.Module, path: str, roles: Sequence[str], table: Mapping[str, Any]) -> FusedLinear:
    """Return one layer for each of the roles of a fused layer."""
    weight, bias = _dense(layer, path, roles[0])
    rows = len(weight)
    if roles != role_tables.QKV:
        if rows % len(roles):
            raise UserError(f"roles: {' and '.join(roles)} = {path!r} is a layer of {rows} rows, which has no halves")
        return FusedLinear(weight, bias, roles, [rows // len(roles)] * len(roles))
    number, width, layout = net.config.num_attention_heads, heads.width_of(net.config), table["fused"]
    of_keys, left = divmod(rows - number * width, 2 * width)  # number of key-value heads
    if layout in ("thirds", "by_head") and rows != 3 * number * width:
        raise UserError(
            f"roles: q, k and v = {path!r} is a layer of {rows} rows, not three times {number} heads of {width}; with "
            "fewer key-value heads give fused: stacked (all of q, then k, then v) or by_group (q, k and v of each "
            "key-value head)"
        )
    if left or of_keys < 1 or number % of_keys:
        raise UserError(
            f"roles: q, k and v = {path!r} is a layer of {rows} rows, which are not {number} heads of {width} and as "
            "many keys as values"
        )
    sizes = [number * width, of_keys * width, of_keys * width]
    groups = of_keys if layout in ("by_head", "by_group") else 1
    return FusedLinear(weight, bias, roles, [size // groups for size in sizes], groups)


def _block_sites(net: Any, table: Mapping[str, Any]) -> list[Site]:
    sites = []
    for role in BLOCKS:
        for spec in listed(table.get(role, [])):
            sites += _sublayers(net, role, {"norm": None, **spec})
    return sites


def _sublayers(net: Any, role: str, spec: Mapping[str, Any]) -> list[Site]:
    sites = []
    outputs = _expand(net, spec["output"], f"{role}.output")
    taps = {name: _tapped(net, spec[name], f"{role}.{name}", len(outputs)) for name in ("input", "residual")}
    norms = _tapped(net, spec["norm"], f"{role}.norm", len(outputs)) if spec["norm"] else [(None, 0)] * len(outputs)
    for i, output in enumerate(outputs):
        layer = re.match(r".*\.\d+(?=\.)", output)
        if layer is None:
            raise UserError(f"roles: {role}.output = {spec['output']!r} names no layer; write its index as *")
        here = {"output": (net.get_submodule(output), 0), **{name: places[i] for name, places in taps.items()}}
        width, owner = net.config.hidden_size, net.get_submodule(layer[0])
        others = sum(name.startswith(f"{role}_site") for name, _ in owner.named_children())
        name = f"{role}_site{others + 1 if others else ''}"
        owner.add_module(name, Block(width, norms[i][0], here))
        sites.append(Site(role, f"{layer[0]}.{name}", (width,)))
    return sites


def _tapped(net: nn.Module, place: str, what: str, count: int) -> list[tuple[Any, int]]:
    """Return a (module, argument index) pair for each of the `count` sublayers that ``path:argument`` matches."""
    pattern, _, argument = place.partition(":")
    paths = _expand(net, pattern, what)
    if len(paths) != count:
        raise UserError(f"roles: {what} = {pattern!r} matches {len(paths)} modules where {count} sublayers are")
    return [(net.get_submodule(path), int(argument or 0)) for path in paths]


def _prefix_sites(net: Any, table: Mapping[str, Any], linear: list[Site]) -> tuple[list[Site], dict[str, str]]:
    """Add a slot to each attention layer; return the sites, or the reason why this network has none."""
    if "prefix" not in table:
        return [], {}
    found = {path: heads.of(net, path, linear) for path in _expand(net, table["prefix"], "prefix")}
    for path, size in found.items():
        layer = net.get_submodule(path)
        if not attention.calls_interface(layer):
            return [], {
                "prefix": f"{path} is a {type(layer).__name__}, which does not call the attention interface of "
                "transformers that a prefix needs; use another method or another backbone"
            }
        if size.values != size.width:
            return [], {
                "prefix": f"the keys of {path} have heads of width {size.width} and its values of {size.values}, and "
                "a prefix has one width for both; use another method or another backbone"
            }
    for path, size in found.items():
        net.get_submodule(path).add_module("prefix_slot", PrefixSlot(size.heads, size.width))
    return [Site("prefix", f"{path}.prefix_slot", (size.heads, size.width)) for path, size in found.items()], {}


def _prompt_sites(net: Any, table: Mapping[str, Any]) -> list[Site]:
    if "prompt" in table:
        paths = _expand(net, table["prompt"], "prompt")
    else:
        reader = net.get_encoder() if net.config.is_encoder_decoder else net  # whose embedding reads the prompt
        own = reader.get_input_embeddings()
        if not isinstance(own, nn.Embedding):
            return []
        paths = [name for name, module in net.named_modules() if module is own]
    if len(paths) != 1:
        raise UserError(f"roles: prompt = {table['prompt']!r} matches {len(paths)} modules; it is one token embedding")
    embedding = net.get_submodule(paths[0])
    if not isinstance(embedding, nn.Embedding):
        raise UserError(f"roles: prompt = {paths[0]!r} is a {type(embedding).__name__}, not a token embedding")
    embedding.add_module("prompt_slot", PromptSlot(embedding))
    return [Site("prompt", f"{paths[0]}.prompt_slot", (embedding.embedding_dim,))]


def _expand(net: Any, patterns: str | list[str], role: str) -> list[str]:
    """Return the paths of the modules that match a pattern or a list of patterns, each in the network's order."""
    paths = []
    for pattern in listed(patterns):
        if not hasattr(net, net.base_model_prefix):  # T5 with a language head is its own base model
            pattern = pattern.removeprefix(f"{net.base_model_prefix}.")
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        matches = [name for name, _ in net.named_modules(remove_duplicate=False) if regex.fullmatch(name)]
        if not matches:
            raise UserError(f"roles: {role} = {pattern!r} matches no module of {type(net).__name__}; see print(model)")
        paths += matches
    return paths


def _dense(layer: nn.Module, path: str, role: str) -> tuple[Any, Any]:
    if isinstance(layer, Conv1D):  # y = x W + b with W (in, out)
        return layer.weight.data.t().contiguous(), layer.bias
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    raise UserError(f"roles: {role} = {path!r} is a {type(layer).__name__}, not a linear layer")


def _numel(module: nn.Module, ending: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith(ending))


def _place(net: nn.Module) -> Any:
    """Return a sort key: the order in which the network defines its modules."""
    order = {name: i for i, (name, _) in enumerate(net.named_modules(remove_duplicate=False))}
    return lambda site: order[site.path]
