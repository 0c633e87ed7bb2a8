"""The experts of a network as linear sites: gate, up and down of each expert.

transformers 5 keeps the weights of all experts of a layer in one tensor: gate and up in `gate_up_proj` (experts,
2 inner, hidden), down in `down_proj` (experts, hidden, inner); gpt-oss transposes both and interleaves gate and up. One
kernel computes all experts. `open_sites` adds a module for each expert's gate, up and down, which holds no tensors of
its own but shows its part of these tensors as W (out, in).

Without adapters the network computes as before and never calls these modules. While an adapter stands at one of them,
`called_each` computes the experts one after another, each with the tokens that the router sends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from peftbench.backbones.devices import has_no_data
from peftbench.backbones.modules import SiteLinear

NAME = "peftbench_each"  # of the implementation, in transformers' table of these
CHILD = "each"  # the child of the experts' module that holds the sites


class ExpertLinear(nn.Module):
    """The linear map y = W x + b of one role of one expert: a view of the experts' tensors.

    Attributes:
        role: "gate", "up" or "down".
        expert: Index of the expert.
        in_features: Width of the input.
        out_features: Width of the output.
    """

    _experts: Any

    def __init__(self, experts: nn.Module, expert: int, role: str) -> None:
        super().__init__()
        self.__dict__["_experts"] = experts  # a reference, not a submodule: it encloses this module
        self.expert, self.role = expert, role
        self.out_features, self.in_features = self.dense_weight().shape

    @property
    def config(self) -> Any:
        """The configuration that chooses how the experts are computed."""
        return self._experts.config

    @property
    def source(self) -> nn.Parameter:
        """The experts' tensor that W is a part of."""
        tensor: nn.Parameter = getattr(self._experts, weight_name(self._experts, self.role))
        return tensor

    @property
    def views(self) -> int:
        """How many sites show a part of that tensor."""
        return len(self.source) * (2 if self.role != "down" and self._experts.has_gate else 1)

    def dense_weight(self, dtype: torch.dtype | None = None) -> Tensor:  # (out, in)
        """Return W (out, in), cast to `dtype` if given; without a cast it is a view of the experts' tensor."""
        W = part_of(self._experts, self.expert, self.role, self.source)
        return W if dtype is None else W.to(dtype)

    @property
    def weight(self) -> Tensor:  # (out, in)
        """W (out, in)."""
        return self.dense_weight()

    @property
    def bias(self) -> Tensor | None:  # (out,)
        """b (out,), a view of the experts' tensor; None if they have no biases."""
        if not self._experts.has_bias:
            return None
        b = getattr(self._experts, f"{weight_name(self._experts, self.role)}_bias")[self.expert]
        return rows_of(self._experts, self.role, b)

    @property
    def is_dense(self) -> bool:
        """Whether a fused computation may use `dense_weight` and `bias`: only while the experts' tensors are frozen."""
        return not any(p.requires_grad for p in self._experts.parameters(recurse=False))

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return F.linear(x, self.dense_weight(), self.bias)

    def extra_repr(self) -> str:
        """Return the sizes for its repr."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def as_linear(self) -> SiteLinear:
        """Return a layer with copies of W and b."""
        return SiteLinear.of(self.dense_weight().clone(), None if self.bias is None else self.bias.clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpertLinear:
        """Show the tensors of the copied experts if they are copied too, else those of the same experts."""
        new = object.__new__(type(self))
        nn.Module.__init__(new)
        held = {name: value for name, value in self.__dict__.items() if name not in new.__dict__}
        new.__dict__.update(held, training=self.training, _experts=memo.get(id(self._experts), self._experts))
        return new


class Expert(nn.Module):
    """The feed-forward part of one expert, computed by the modules at its sites.

    Attributes:
        roles: The roles that share a tensor, in the order of its rows; as those of a `FusedLinear`.
    """

    _experts: Any
    gate: nn.Module
    up: nn.Module
    down: nn.Module

    def __init__(self, experts: nn.Module, expert: int) -> None:
        super().__init__()
        self.__dict__["_experts"] = experts
        self.roles = ("gate", "up") if experts.has_gate else ("up",)
        for role in (*self.roles, "down"):
            self.add_module(role, ExpertLinear(experts, expert, role))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the rows of gate and up, each (inner, ...), as in their tensor: (2 inner, ...); one part stays."""
        return joined(self._experts, parts[0], parts[1], dim=0) if len(parts) > 1 else parts[0]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Split rows in the layout of their tensor into those of gate and up: the inverse of `join`."""
        return [rows_of(self._experts, role, rows) for role in self.roles]

    def forward(self, x: Tensor) -> Tensor:  # (tokens, hidden) -> (tokens, hidden)
        """Return the expert's output for its tokens, not yet weighted by the router."""
        experts, inner = self._experts, self.up(x)
        if experts.has_gate:
            inner = experts._apply_gate(joined(experts, self.gate(x), inner, dim=-1))
        else:
            inner = experts.act_fn(inner)
        out: Tensor = self.down(inner)
        return out


class ExpertSites(nn.ModuleList):
    """The experts of one layer with their sites."""

    def changed(self) -> bool:
        """Whether another module stands at one of the sites."""
        return not all(isinstance(layer, ExpertLinear) for expert in self for layer in expert.children())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the experts' module would hold, made of the layers at the sites, by its names."""
        first: Any = self[0]
        experts, found = first._experts, {}
        for name, roles in (("gate_up_proj" if experts.has_gate else "up_proj", first.roles), ("down_proj", ("down",))):
            layers: list[list[Any]] = [[getattr(expert, role) for role in roles] for expert in self]
            join: list[Any] = [expert.join for expert in self]
            W = torch.stack([join[i]([layer.dense_weight() for layer in own]) for i, own in enumerate(layers)])
            found[name] = W.mT.contiguous() if experts.is_transposed else W
            if experts.has_bias:
                found[f"{name}_bias"] = torch.stack([join[i]([x.bias for x in own]) for i, own in enumerate(layers)])
        return found


def weight_name(experts: Any, role: str) -> str:
    """Return the name of the experts' tensor that holds the weights of a role."""
    inner = "gate_up_proj" if experts.has_gate else "up_proj"
    return "down_proj" if role == "down" else inner


def part_of(experts: Any, expert: int, role: str, weights: Tensor) -> Tensor:
    """Return W (out, in) of an expert, as a view of the weights of all experts."""
    W = weights[expert]
    return rows_of(experts, role, W.t() if experts.is_transposed else W)


def weight_at(net: nn.Module, path: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the name of the parameter that holds the weight of an expert's site, and what the weight is of it."""
    owner, (expert, role) = owner_of(path), path.split(".")[-2:]
    experts = net.get_submodule(owner)
    return f"{owner}.{weight_name(experts, role)}", partial(part_of, experts, int(expert), role)


def rows_of(experts: Any, role: str, rows: Tensor) -> Tensor:
    """Return the rows of a role, where gate and up share a tensor; else all."""
    if role == "down" or not experts.has_gate:
        return rows
    first = role == "gate"
    if not experts.is_concatenated:  # gate, up, gate, up, ...
        return rows[0::2] if first else rows[1::2]
    half = len(rows) // 2
    return rows[:half] if first else rows[half:]


def joined(experts: Any, gate: Tensor, up: Tensor, dim: int) -> Tensor:
    """Join what belongs to gate and to up along dimension 0 or -1, in the layout of the experts' module."""
    if experts.is_concatenated:
        return torch.cat([gate, up], dim)
    return torch.stack([gate, up], 1).flatten(0, 1) if dim == 0 else torch.stack([gate, up], -1).flatten(-2)


def is_experts(module: nn.Module) -> bool:
    """Whether a module keeps the weights of several experts as transformers 5 does."""
    return all(hasattr(module, name) for name in ("is_transposed", "is_concatenated", "has_gate", "down_proj"))


def open_sites(experts: nn.Module) -> ExpertSites:
    """Return the sites of an experts' module; the first call adds them."""
    if CHILD not in dict(experts.named_children()):
        number = len(experts.down_proj)  # type: ignore[arg-type]
        experts.add_module(CHILD, ExpertSites(Expert(experts, i) for i in range(number)))
    sites: ExpertSites = getattr(experts, CHILD)
    return sites


def owner_of(path: str) -> str:
    """Return the path of the experts' module from that of one of its sites; empty if it is no such site."""
    owner, found, _ = path.rpartition(f".{CHILD}.")
    return owner if found else ""


def called_each(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute the chosen experts one after another, through the modules at their sites.

    Tensors without values cannot say which experts are chosen; each then gets the same number of tokens.

    Args:
        self: The experts' module.
        hidden_states: (tokens, hidden).
        top_k_index: The chosen experts of each token, (tokens, k).
        top_k_weights: The router's weights of these, (tokens, k).

    Returns:
        The weighted sum of the chosen experts' outputs (tokens, hidden).
    """
    tokens, k = top_k_index.shape
    sites = open_sites(self)
    chosen, order = top_k_index.flatten().sort(stable=True)
    parts = hidden_states[order // k].split(tokens_of_each(chosen, len(sites)))
    out = torch.cat([expert(part) for expert, part in zip(sites, parts, strict=True) if len(part)])
    if self.has_post_expert_norm:
        out = self.post_expert_norm(out)
    out = out * top_k_weights.flatten()[order].unsqueeze(-1)
    return out[order.argsort()].view(tokens, k, -1).sum(1).to(hidden_states.dtype)


def tokens_of_each(chosen: Tensor, experts: int) -> list[int]:
    """Return how many of the chosen experts are each one: sizes, which are read from the device."""
    if has_no_data(chosen):
        few, left = divmod(len(chosen), experts)
        return [few + (i < left) for i in range(experts)]
    counts: list[int] = torch.bincount(chosen, minlength=experts).tolist()
    return counts


ALL_EXPERTS_FUNCTIONS.register(NAME, called_each)
