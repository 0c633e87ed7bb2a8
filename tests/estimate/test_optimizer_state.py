"""Optimisers for predictions hold what bitsandbytes' own hold, tensor for tensor."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.estimate.program import program_step
from peftbench.estimate.program.optimizer_state import PAGED, AllocatedAdamW

bnb = pytest.importorskip("bitsandbytes")
SHAPES = [(64, 64), (400, 250), (317, 316), (100, 50), (4095,), (7, 3)]  # 100,000 numbers and more are paged


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    for p in made:
        p.grad = torch.ones_like(p)
    return made


def held(optimizer: torch.optim.Optimizer, elsewhere: set[int]) -> dict[tuple[str, int], int]:
    """How many tensors of each dtype and size the states of all parameters have, each storage once."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    found: dict[tuple[str, int], int] = {}
    for t in {t.data_ptr(): t for t in tensors if t.data_ptr() not in elsewhere}.values():
        found[str(t.dtype), t.numel()] = found.get((str(t.dtype), t.numel()), 0) + 1
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "bits", "paged"),
    [("AdamW8bit", 8, False), ("AdamW32bit", 32, False), ("PagedAdamW8bit", 8, True), ("PagedAdamW32bit", 32, True)],
)
def test_the_state_is_what_bitsandbytes_holds(name: str, bits: int, paged: bool, dtype: torch.dtype) -> None:
    theirs: Any = getattr(bnb.optim, name)(parameters(dtype), lr=1e-3)
    elsewhere: set[int] = set()
    usual = theirs.get_state_buffer

    def buffer(p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        made: Tensor = usual(p, dtype=dtype)
        if theirs.is_paged and p.numel() >= PAGED:  # on a CPU nothing is paged; a GPU's rule is checked below
            elsewhere.add(made.data_ptr())
        return made

    theirs.get_state_buffer = buffer
    theirs.initialized = True
    for number, group in enumerate(theirs.param_groups):
        for i, p in enumerate(group["params"]):
            theirs.init_state(group, p, number, i)
    ours = AllocatedAdamW(parameters(dtype), 1e-3, bits, paged)
    ours.step()
    assert theirs.is_paged == paged
    assert held(ours, set()) == held(theirs, elsewhere)


def test_bitsandbytes_pages_what_is_taken_as_paged() -> None:
    """Its rule needs a GPU to run; the size in it is compared."""
    source = inspect.getsource(bnb.optim.optimizer.Optimizer8bit.get_state_buffer)
    assert f"p.numel() < {PAGED:.0e}".replace("e+0", "e") in source


@pytest.mark.parametrize(("bits", "paged", "names"), [(32, True, set()), (32, False, {"state1", "state2"})])
def test_an_update_in_backward_keeps_the_state_of_its_optimizer(bits: int, paged: bool, names: set[str]) -> None:
    p = torch.nn.Parameter(torch.zeros(PAGED))
    optimizer = AllocatedAdamW([p], 1e-3, bits, paged)
    program_step._update_in_backward(optimizer)
    p.sum().backward()
    assert p.grad is None
    assert set(optimizer.state[p]) == names
