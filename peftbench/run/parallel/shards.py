"""A network in shards: torch's `fully_shard` over the base, block by block, and the checks that it is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftbench.backbones.load import Backbone
from peftbench.backbones.sharded import is_sharded, local
from peftbench.errors import UserError
from peftbench.method.adapter import Adapter
from peftbench.method.edit import Edit
from peftbench.method.layers.nf4 import NF4Linear
from peftbench.run.parallel.ranks import Ranks


class NotSharded(RuntimeError):
    """A network that should be in shards is not, so that it takes the memory of a whole one."""


def shard(edit: Edit, ranks: Ranks) -> None:
    """Keep 1/N of every base weight on each rank, on its device, and move the rest there.

    Call it between attaching the method and making the optimiser, which must have the shards.

    Args:
        edit: the network with the method attached, on the CPU or the device.
        ranks: this process among the others.

    Raises:
        NotSharded: weights are whole on each rank after all.
    """
    from torch.distributed.fsdp import fully_shard

    backbone, net = edit.backbone, edit.net
    _store_weights_as_parameters(net)
    own = {*edit.own(), *backbone.head_parameters(), *(p for p in net.parameters() if p.ndim == 0)}
    names = {id(p): name for name, p in net.named_parameters()}
    for module in [*blocks(backbone), net]:
        fully_shard(module, mesh=ranks.mesh, ignored_params=own)
        module.set_gradient_divide_factor(1.0)  # sums, not means: losses are divided by the whole batch already
        module.set_force_sum_reduction_for_comms(True)
        module.set_custom_reduce_scatter(_reduce_scatter())
    with torch.no_grad():
        for p in own:
            p.data = p.data.to(ranks.device)
    for module in net.modules():
        for table in (module._buffers, vars(module)):  # what is computed once and kept, such as norms of weights, too
            table.update({name: t.to(ranks.device) for name, t in table.items() if type(t) is torch.Tensor})
    _rename(edit, names)
    check_sharded(net, own, ranks)


def gathered_bytes(backbone: Backbone) -> tuple[int, int]:
    """Return the bytes of the largest block, whole, and of what is in no block (embeddings, the last norm).

    A step gathers one block at a time, and usually the next one beside it; what is in no block stays gathered.
    """
    in_blocks: set[int] = set()
    sizes = [0]
    for block in blocks(backbone):
        parameters = {id(p): p for p in block.parameters() if is_sharded(p)}
        in_blocks |= parameters.keys()
        sizes.append(sum(p.nbytes for p in parameters.values()))
    rest = [p for p in backbone.net.parameters() if is_sharded(p) and id(p) not in in_blocks]
    return max(sizes), sum(p.nbytes for p in rest)


def check_sharded(net: nn.Module, own: set[nn.Parameter], ranks: Ranks) -> None:
    """Check that each rank holds its part of the base, and not all of it.

    Args:
        net: the network.
        own: what is whole on each rank on purpose.
        ranks: this process among the others.

    Raises:
        NotSharded: it holds more.
    """
    base = dict(_base(net, own))
    held = sum(local(t).nbytes for t in base.values())
    most = sum(_part_bytes(t, ranks.shards) for t in base.values())
    if held > most:
        left = sorted(((t.nbytes, name) for name, t in base.items() if not is_sharded(t)), reverse=True)
        names = ", ".join(f"{name} ({size:,} bytes)" for size, name in left[:2])
        raise NotSharded(
            f"rank {ranks.rank} holds {held:,} bytes of the base, where the part of one of {ranks.shards} is {most:,}; "
            f"whole on each rank: {names}. Sharding would save nothing, so the run stops"
        )


def _part_bytes(t: Tensor, shards: int) -> int:
    """The bytes of the largest shard of a tensor: of its rows, which shards may not divide evenly."""
    return -(-len(t) // shards) * (t.nbytes // len(t)) if t.ndim and len(t) else t.nbytes


def _base(net: nn.Module, own: set[nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
    """The weights of the base by name, with those that layers hold as saved buffers."""
    yield from ((name, p) for name, p in net.named_parameters() if p not in own)
    for path, m in net.named_modules():
        if not isinstance(m, Adapter):
            kept = m._non_persistent_buffers_set
            yield from ((f"{path}.{n}", b) for n, b in m.named_buffers(recurse=False) if n not in kept)


def blocks(backbone: Backbone) -> list[nn.Module]:
    """The network's layers: what stands at a number in the paths of its sites, the outermost."""
    found: dict[str, None] = {}
    for site in backbone.sites:
        if match := re.match(r".*?\.\d+(?=\.)", site.path):
            found.setdefault(match.group())
    return [backbone.net.get_submodule(path) for path in found]


def _store_weights_as_parameters(net: nn.Module) -> None:
    """Let layers of the base hold as frozen parameters what they hold as buffers: codes, constants, residuals.

    These are what `fully_shard` divides. Buffers that are not saved, such as lookup tables, are small and stay.
    """
    for module in net.modules():
        if isinstance(module, Adapter):
            continue
        if isinstance(module, NF4Linear) and module.backend != "torch":
            raise UserError(
                f"NF4 backend {module.backend!r} keeps tensors of its own that cannot be sharded; use backend: torch"
            )
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.ndim and name not in module._non_persistent_buffers_set:
                del module._buffers[name]
                module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))


def _rename(edit: Edit, names: dict[int, str]) -> None:
    """Let the backbone and the edit know the parameters that sharding has put in place of theirs."""
    now = dict(edit.net.named_parameters())
    old = {name: p for name, p in edit.backbone.parameters.items() if id(p) in names}
    edit.rename({name: now[names[id(p)]] for name, p in old.items()})


def _reduce_scatter() -> Any:
    """The usual one, without what gloo allocates inside, which no other backend does: trackers do not see it."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives
    from torch.utils._python_dispatch import _disable_current_modes

    class ReduceScatter(_fsdp_collectives.DefaultReduceScatter):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return super().__call__(*args, **kwargs)

    return ReduceScatter()
