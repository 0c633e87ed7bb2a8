"""Change a network and undo, save, load, merge and count the change. Written once, without knowledge of any method."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones import attention, experts
from peftbench.backbones.experts import ExpertLinear
from peftbench.backbones.load import Backbone
from peftbench.backbones.modules import Block, PrefixSlot
from peftbench.backbones.prompt import PromptSlot
from peftbench.backbones.sharded import fill, whole
from peftbench.backbones.sites import BLOCKS, LINEAR, Site
from peftbench.errors import UserError
from peftbench.method.adapter import Adapter, NotMergeable

__all__ = ["Adapter", "Edit", "NotMergeable"]


class Edit:
    """All changes of one method to one backbone, and their undo.

    >>> edit = Edit(backbone)
    >>> method.attach(edit)        # swaps and thaws
    >>> ...                        # train
    >>> edit.undo()                # restores every bit

    Making an edit freezes every parameter of the network.

    Attributes:
        backbone: The backbone.
        net: Its network.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.net = backbone, backbone.net
        self.net.requires_grad_(False)
        for p in self.net.parameters():  # a run that failed in a step leaves its gradients
            p.grad = None
        self._swaps: list[tuple[Site, nn.Module, nn.Module]] = []  # (site, old module, new module)
        self._thawed: dict[str, nn.Parameter] = {}
        self._widened: dict[str, nn.Parameter] = {}  # frozen parameters cast to float32; see `_widen`
        self._dropped: dict[str, nn.Parameter] = {}  # base weights that no module uses during this edit
        self._hooks: list[Any] = []
        self._reached = False  # whether `check_reached` has passed
        self._attention: list[tuple[Any, str]] = []  # configurations and their original attention implementation
        self._experts: list[tuple[Any, str]] = []  # configurations and their original implementation of experts
        self._views: dict[int, int] = {}  # number of sites that show a part of an experts' tensor, by its id

    @property
    def linear_roles(self) -> str:
        """All linear roles of this network, as `swap` takes them."""
        return " ".join(r for r in self.backbone.sites.roles if r in LINEAR)

    def swap(self, roles: str, make: Callable[[Any], nn.Module]) -> None:
        """Replace the module at every site with one of the roles by ``make(old)``.

        A new module that is not an `Adapter` and keeps nothing of the old one (a quantised layer) frees the old weights
        until `undo`.

        Args:
            roles: Role names, separated by spaces.
            make: Returns the new module for the module at a site.

        Raises:
            UserError: The network lacks a role, or a sublayer or slot already has an adapter.
        """
        for site in self.backbone.sites.of(roles):
            old = self.net.get_submodule(site.path)
            if isinstance(old, Adapter) and site.role not in LINEAR:
                raise UserError(f"{site.path} is taken by a {type(old).__name__}; a sublayer or slot holds one")
            new = make(old).train(old.training)
            new.__dict__["_site"] = f"the {site.role} site {site.path}"
            self._drop_unused(old, new, site.path)
            self.net.set_submodule(site.path, new)
            self._swaps.append((site, old, new))
            self._connect(old, new)

    def replace(self, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
        """Replace every swapped-in module of class `kind` by ``make(module)``, e.g. to drop a reparametrisation."""
        for i, (site, old, now) in enumerate(self._swaps):
            if isinstance(now, kind):
                new = make(now).train(now.training)
                self.net.set_submodule(site.path, new)
                self._swaps[i] = (site, old, new)

    def thaw(self, roles: str, part: str = "all") -> None:
        """Train the base's own parameters at sites. The task head is never included.

        The parameters become float32 while they train.

        Args:
            roles: Role names, separated by spaces, or "*" for the whole base.
            part: "all" or "bias".

        Raises:
            UserError: The network lacks a role, or its weights at a site are a part of a tensor.
            ValueError: `part` is neither.
        """
        if part not in ("all", "bias"):
            raise ValueError(f"part is 'all' or 'bias', not {part!r}")
        inside = [""] if roles == "*" else [f"{path}." for path in self._whole(roles)]
        head = {id(p) for p in self.backbone.head_parameters()}
        self.backbone.save_snapshot()
        for name, p in self.backbone.parameters.items():
            if id(p) in head or not name.startswith(tuple(inside)) or (part == "bias" and not name.endswith("bias")):
                continue
            p.data = p.data.to(torch.float32, copy=self.backbone.shares_weights)
            p.requires_grad_(True)
            self._thawed[name] = p
        self._widen()

    def rename(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take note of the parameters of the base that have replaced those of the same names."""
        self.backbone.parameters.update(parameters)
        for held in (self._thawed, self._widened, self._dropped):
            held.update({name: p for name, p in parameters.items() if name in held})

    def undo(self) -> None:
        """Restore the network as it was loaded, bit for bit.

        Thawed and dropped weights are read back from the backbone's snapshot.
        """
        for hook in self._hooks:
            hook.remove()
        for config, original in self._attention:
            config._attn_implementation = original
        for config, original in self._experts:
            config._experts_implementation = original
        for site, old, new in reversed(self._swaps):
            if isinstance(old, PromptSlot):
                self.backbone.virtual_tokens = 0
            self.net.set_submodule(site.path, old.train(new.training))
        for name, p in {**self._thawed, **self._widened, **self._dropped}.items():
            p.grad = None
            p.requires_grad_(False)
            p.data = self.backbone.pristine(name).to(self.backbone.device)
        self._hooks, self._attention, self._experts, self._swaps, self._views = [], [], [], [], {}
        self._reached = False
        self._thawed, self._widened, self._dropped = {}, {}, {}

    def state(self) -> dict[str, Tensor]:
        """Return the adapter tensors and thawed tensors by the paths of their sites. A shared tensor appears once.

        What is in shards is gathered: every process must call it.
        """
        return {name: whole(t.detach()) for name, t in self._state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy the tensors of another edit of the same method into this one.

        Args:
            state: Tensors from `state`.

        Raises:
            UserError: Names or shapes differ; the message lists the first differences.
        """
        own = self._state()
        wrong = [f"{n}: missing" for n in own if n not in state] + [f"{n}: unexpected" for n in state if n not in own]
        wrong += [
            f"{n}: shape {tuple(state[n].shape)} where {tuple(t.shape)} is needed"
            for n, t in own.items()
            if n in state and state[n].shape != t.shape
        ]
        if wrong:
            shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            raise UserError(f"this adapter does not fit ({shown}); it was saved with another method, size or backbone")
        for name, t in own.items():
            fill(t, state[name])

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        """Yield the network with folded copies in place of the adapters.

        Unmerging puts the adapters back, so it is exact.

        Raises:
            NotMergeable: An adapter has no plain layer. Nothing has changed then.
        """
        top = {site.path: new for site, _, new in self._swaps}
        with torch.no_grad():
            plain = {path: module.folded() for path, module in top.items() if isinstance(module, Adapter)}
        for path, module in plain.items():
            self.net.set_submodule(path, module)
        try:
            yield self.net
        finally:
            for path in plain:
                self.net.set_submodule(path, top[path])

    def adapters(self) -> list[Adapter]:
        """Return the adapters in place, in the order of their sites."""
        return [module for _, module in self.placed()]

    def placed(self) -> list[tuple[Site, Any]]:
        """Return each adapter with its site; the uppermost one if several are stacked."""
        top = {site.path: (site, new) for site, _, new in self._swaps}
        return [(site, module) for site, module in top.values() if isinstance(module, Adapter)]

    def own(self) -> list[nn.Parameter]:
        """Return the parameters of the adapters themselves, without those of the layers below them."""
        top = {site.path: new for site, _, new in self._swaps}
        tensors = [t for path, module in top.items() for t in _own(module, path).values()]
        return list(dict.fromkeys(t for t in tensors if isinstance(t, nn.Parameter)))

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that the method trains, without the head; found by identity, not by name."""
        head = {id(p) for p in self.backbone.head_parameters()}
        return [p for p in self.net.parameters() if p.requires_grad and id(p) not in head]

    def counts(self) -> dict[str, int]:
        """Return parameter counts: `trainable` (by the method), `head`, `added` (to the base) and `total`."""
        own = {id(p) for p in self.backbone.parameters.values()}
        added = sum(p.numel() for p in self.net.parameters() if id(p) not in own and p.dtype.is_floating_point)
        sites = self.backbone.sites
        return {
            "trainable": sum(p.numel() for p in self.trained()),
            "head": sites.head,
            "added": added,
            "total": sites.base + sites.head + added,
        }

    def check_used(self) -> None:
        """Check, after a forward pass, that the network called every slot in use.

        Raises:
            UserError: A prefix or prompt was never called.
        """
        for site, old, _ in self._swaps:
            if isinstance(old, PrefixSlot):
                module = self.net.get_submodule(site.path.removesuffix(".prefix_slot"))
                if not module.prefix_slot.__dict__.get("was_called"):
                    raise UserError(
                        f"the prefix at {site.path} was never used: {type(module).__name__} does not call the "
                        "attention interface of transformers; this backbone cannot take a prefix"
                    )
            elif isinstance(old, PromptSlot) and not self.net.get_submodule(site.path).__dict__.get("was_called"):
                raise UserError(
                    f"the prompt at {site.path} was never used: {type(self.net).__name__} does not call this "
                    "embedding; name its token embedding in backbone.roles: prompt"
                )

    def check_reached(self) -> None:
        """Check, once, after a first backward pass, that it reached what stands at each kind of linear layer and block.

        Layers of one kind differ in their numbers only. Not each of them need be reached: an expert that gets no token
        of a batch learns from another.

        Raises:
            UserError: A kind of site was not reached at all.
        """
        if self._reached:
            return
        kinds: dict[tuple[str, str], list[bool]] = {}
        for site, module in self.placed():
            own = [p for p in module.parameters() if p.requires_grad]
            if own and site.role in (*LINEAR, *BLOCKS):
                kind = (site.role, re.sub(r"\d+", "*", site.path))
                kinds.setdefault(kind, []).append(any(p.grad is not None for p in own))
        for (role, path), reached in kinds.items():
            if not any(reached):
                raise UserError(
                    f"no gradient reaches the {role} sites {path}: {type(self.net).__name__} does not compute with "
                    "these layers here, so that what a method puts there would not learn; take them out of "
                    "backbone.roles, or name other roles"
                )
        self._reached = True

    def _state(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path, module in {site.path: new for site, _, new in self._swaps}.items():
            tensors.update(_own(module, path))
        tensors.update(self._thawed)
        seen: dict[int, str] = {}
        for name, t in tensors.items():
            seen.setdefault(id(t), name)
        return {name: tensors[name] for name in seen.values()}

    def _whole(self, roles: str) -> list[str]:
        """Return the paths of the sites with these roles, if each has parameters of its own."""
        paths = [site.path for site in self.backbone.sites.of(roles)]
        shared = next((path for path in paths if experts.owner_of(path)), "")
        if shared:
            raise UserError(
                f"the weights at {shared} are a part of one tensor of all experts, which trains as a whole or not at "
                "all; thaw other roles, or '*', or swap adapters in"
            )
        return paths

    def _widen(self) -> None:
        """Cast the frozen vectors next to thawed ones to float32: a norm's kernel needs gain and bias of one dtype."""
        homes = {name.rpartition(".")[0] for name in self._thawed}
        for name, p in self.backbone.parameters.items():
            adjacent = name.rpartition(".")[0] in homes and name not in self._thawed
            if adjacent and p.ndim == 1 and p.dtype != torch.float32:
                p.data = p.data.float()
                self._widened[name] = p

    def _drop_unused(self, old: nn.Module, new: nn.Module, path: str) -> None:
        if isinstance(old, ExpertLinear):
            self._drop_unused_experts(old, new)
            return
        kept = {id(p) for p in new.parameters()}
        names = {id(p): name for name, p in self.backbone.parameters.items()}
        for p in old.parameters():
            if id(p) not in kept and id(p) in names and id(old) not in {id(m) for m in new.modules()}:
                self.backbone.save_snapshot()
                self._dropped[names[id(p)]] = p
                p.data = torch.empty(0, dtype=p.dtype, device=p.device)

    def _drop_unused_experts(self, old: ExpertLinear, new: nn.Module) -> None:
        """Free a tensor of the experts once no site shows a part of it any more."""
        if any(module is old for module in new.modules()):
            return
        tensor = old.source
        self._views.setdefault(id(tensor), old.views)
        self._views[id(tensor)] -= 1
        if not self._views[id(tensor)]:
            self.backbone.save_snapshot()
            self._dropped[next(name for name, p in self.backbone.parameters.items() if p is tensor)] = tensor
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def _connect(self, old: nn.Module, new: nn.Module) -> None:
        if isinstance(old, Block):
            self._hooks += old.connect(new)
        elif isinstance(old, ExpertLinear) and old.config._experts_implementation != experts.NAME:
            self._experts.append((old.config, old.config._experts_implementation))
            old.config._experts_implementation = experts.NAME
        elif isinstance(old, PrefixSlot) and not self._attention:
            self._attention = [(c, c._attn_implementation) for c in attention.configurations(self.net)]
            for config, _ in self._attention:
                config._attn_implementation = attention.with_prefix(config._attn_implementation)
        elif isinstance(old, PromptSlot):
            self._hooks += old.connect()
            with torch.no_grad():
                self.backbone.virtual_tokens = len(new())


def _own(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter outside its base; an adapter below it has its own."""
    if not isinstance(module, Adapter):
        return {}
    mine = {f"{prefix}.{n}": t for n, t in module.state_dict(keep_vars=True).items() if not n.startswith("base.")}
    return {**mine, **_own(module.base, f"{prefix}.base")}
