"""Optimisers that only allocate what bitsandbytes' AdamW holds, for predictions. They update nothing.

Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization" (arXiv:2110.02861). From bitsandbytes 0.50,
`Optimizer2State.init_state`: two moments of one byte per number, a float32 absmax of each for every block of 256, and
two lookup tables of 256 float32 that all tensors share. Tensors of fewer than 4096 numbers keep float32 moments. Its
kernels work in place, so a step has no temporaries of its own. `get_state_buffer`: paged moments of 100,000 numbers or
more lie in managed memory, which torch's allocator does not count; smaller ones lie on the device.
Of a parameter in shards, each process holds the state of its own shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from peftbench.backbones.sharded import local

BLOCK, SMALLEST, TABLE, PAGED = 256, 4096, 256, 100_000


class AllocatedAdamW(torch.optim.Optimizer):
    """Allocates what bitsandbytes' AdamW holds after its first step. Only for fake tensors: nothing trains."""

    def __init__(self, params: Iterable[Any], lr: float, bits: int = 8, paged: bool = False) -> None:
        """Make an optimiser without state.

        Args:
            params: Parameters or groups.
            lr: The rate.
            bits: Of each number of a moment, 8 or 32.
            paged: Whether large moments lie outside the device.
        """
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self._tables: dict[str, Tensor] = {}
        self.bits, self.paged = bits, paged

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Allocate the state of every parameter with a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    self.state[p].update(self._made(local(p)))
        return None if closure is None else closure()

    def work(self) -> tuple[int, int]:
        """Return the kernels of a step and the bytes that they move: one a tensor, which reads its gradient once."""
        trained = [p for group in self.param_groups for p in group["params"] if self.state.get(p)]
        moments = [t for p in trained for name, t in self.state[p].items() if not name.startswith("qmap")]
        return len(trained), sum(3 * local(p).nbytes for p in trained) + sum(2 * t.nbytes for t in moments)

    def _made(self, p: Tensor) -> dict[str, Any]:
        paged = self.paged and p.numel() >= PAGED
        if self.bits == 32 or p.numel() < SMALLEST:
            return {} if paged else {name: torch.zeros_like(p, dtype=torch.float32) for name in ("state1", "state2")}
        state: dict[str, Any] = {}
        for i in (1, 2):
            table = self._tables.setdefault(f"qmap{i}", torch.zeros(TABLE, device=p.device))
            if not paged:
                state[f"state{i}"] = torch.zeros_like(p, dtype=torch.uint8)
            state[f"absmax{i}"] = torch.zeros(ceil(p.numel() / BLOCK), device=p.device)
            state[f"qmap{i}"] = table
        return state
