"""Which part of a network a tensor belongs to: the role of its module, in the forward and in the graph's backward
nodes.

q k v o gate up down norm embed    the sites' own; an adapter at a site or in a slot (prefix, prompt) has the site's
role attn, ffn                          between the layers of a sublayer: softmax, activation, the sum before a
post-norm layer                              outside the sublayers of a transformer layer: the sum before a pre-norm
head                               the task head, or the layer that computes a causal model's logits
other                              the rest: the batch, masks, rotary tables, the loss, an optimizer's temporaries
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from peftbench.backbones.sites import LINEAR

if TYPE_CHECKING:
    from peftbench.backbones.load import Backbone

OTHER = "other"
_KEY = "peftbench role"  # in the metadata of a graph's node
_ATTENTION = ("q", "k", "v", "o")


def of(backbone: Backbone) -> dict[nn.Module, str]:
    """Return the role of every module that has one of its own, outer modules first. Call it after attaching a method.

    A module without a role belongs to the innermost enclosing module with one. A module at several sites has the role
    of the first.
    """
    net = backbone.net
    places = dict.fromkeys(backbone.head, "head") | _containers(backbone)
    places |= {site.path: site.role for site in backbone.sites}
    output = net.get_output_embeddings()
    roles: dict[nn.Module, str] = {}
    for path, module in net.named_modules(remove_duplicate=False):
        role = places.get(path, "head" if module is output else None)
        if role is not None:
            roles.setdefault(module, role)
    return roles


def _containers(backbone: Backbone) -> dict[str, str]:
    """Return roles of modules that enclose linear sites.

    A module that encloses sites of only one sublayer has that sublayer's role; the innermost that runs both is a layer.
    """
    below: dict[str, set[str]] = {}
    linear = [site for site in backbone.sites if site.role in LINEAR]
    for site in linear:
        path = site.path
        while path := path.rpartition(".")[0]:
            below.setdefault(path, set()).add("attn" if site.role in _ATTENTION else "ffn")
    runs = {p: kinds for p, kinds in below.items() if not isinstance(backbone.net.get_submodule(p), nn.ModuleList)}
    if len(set().union(*below.values())) == 1:  # if there is only one sublayer kind: only the sites' parent modules
        runs = {p: kinds for p, kinds in runs.items() if p in {site.path.rpartition(".")[0] for site in linear}}
    both = {p for p, kinds in runs.items() if len(kinds) == 2}
    layers = {p for p in both if not any(other.startswith(f"{p}.") for other in both)}
    return {p: next(iter(kinds)) for p, kinds in runs.items() if p not in both} | dict.fromkeys(layers, "layer")


class RoleTracker:
    """Tracks, during a step, which module's work is running, through forward hooks and graph nodes.

    The hooks write a role into the metadata of the nodes that a forward creates. They keep neither node nor tensor, so
    that tracking extends no lifetime.
    """

    def __init__(self, roles: Mapping[nn.Module, str]) -> None:
        self._roles = dict(roles)
        self._owners: dict[int, str] = {}  # parameters and buffers, by id
        for module, role in self._roles.items():
            for inner in self._within(module):
                for tensor in (*inner._parameters.values(), *inner._buffers.values()):
                    self._owners.setdefault(id(tensor), role)
        self._running: list[str] = []
        self._hooks: list[Any] = []

    def start(self) -> None:
        """Install the hooks."""
        for module in self._roles:
            self._hooks += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def place(self, owner: Any) -> str:
        """Return the role of a parameter or buffer, or of a module for which an optimizer keeps state."""
        if isinstance(owner, nn.Module):
            return self._roles.get(owner, next((self._owners[id(p)] for p in owner.parameters()), OTHER))
        return self._owners.get(id(owner), OTHER)

    def now(self) -> str:
        """Return the role whose forward runs, also in a recomputation; else that of the running graph node."""
        if self._running:
            return self._running[-1]
        node: Any = torch._C._current_autograd_node()
        return OTHER if node is None else node.metadata.get(_KEY, OTHER)

    def _within(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the module and its submodules without a role of their own."""
        yield module
        for child in module.children():
            if child not in self._roles:
                yield from self._within(child)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._claim((args, kwargs))  # the enclosing module, which still runs, created the inputs
        self._running.append(self._roles[module])

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self._claim(out)
        self._running.pop()

    def _claim(self, tensors: Any) -> None:
        """Give the running role to the nodes behind `tensors` that have none."""
        role = self._running[-1] if self._running else OTHER
        nodes: list[Any] = [t.grad_fn for t in tree_leaves(tensors) if isinstance(t, Tensor)]
        while nodes:
            node = nodes.pop()
            if node is not None and _KEY not in node.metadata:
                node.metadata[_KEY] = role
                nodes += [following for following, _ in node.next_functions]
