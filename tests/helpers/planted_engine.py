"""Patches that break the engine in one place while a sound method runs; `planted_bugs` says what must notice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.backbones import attention
from peftbench.method import edit as edit_module
from peftbench.method.edit import Adapter, Edit
from peftbench.methods.adapter import Bottleneck
from peftbench.methods.lora import LoRALinear


def undo_forgets_one_module(patch: pytest.MonkeyPatch) -> None:
    real = Edit.undo

    def undo(self: Edit) -> None:
        self._swaps = self._swaps[1:]
        real(self)

    patch.setattr(Edit, "undo", undo)


def undo_forgets_the_thawed(patch: pytest.MonkeyPatch) -> None:
    real = Edit.undo

    def undo(self: Edit) -> None:
        self._thawed.popitem()
        real(self)

    patch.setattr(Edit, "undo", undo)


def undo_leaves_a_hook(patch: pytest.MonkeyPatch) -> None:
    real = Edit.undo

    def undo(self: Edit) -> None:
        self._hooks = self._hooks[1:]
        real(self)

    patch.setattr(Edit, "undo", undo)


def undo_keeps_the_attention(patch: pytest.MonkeyPatch) -> None:
    real = Edit.undo

    def undo(self: Edit) -> None:
        self._attention = attention.NAME
        real(self)

    patch.setattr(Edit, "undo", undo)


def state_without_biases(patch: pytest.MonkeyPatch) -> None:
    real = edit_module._own
    patch.setattr(
        edit_module, "_own", lambda m, p: {n: t for n, t in real(m, p).items() if not n.endswith(("bias", ".B"))}
    )


def load_takes_what_fits(patch: pytest.MonkeyPatch) -> None:
    @torch.no_grad()
    def load(self: Edit, state: Mapping[str, Tensor]) -> None:
        for name, t in self._state().items():
            if name in state and state[name].shape == t.shape:
                t.copy_(state[name])

    patch.setattr(Edit, "load", load)


def load_refuses_too_late(patch: pytest.MonkeyPatch) -> None:
    real = Edit.load

    @torch.no_grad()
    def load(self: Edit, state: Mapping[str, Tensor]) -> None:
        for name, t in self._state().items():
            if name in state and state[name].shape == t.shape:
                t.copy_(state[name] + 0.1)
        real(self, state)

    patch.setattr(Edit, "load", load)


def unmerging_by_arithmetic(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    @torch.no_grad()
    def merged(self: Edit) -> Iterator[nn.Module]:
        layers = [(site.path, new) for site, _, new in self._swaps if isinstance(new, LoRALinear)]
        for path, m in layers:
            m.base.weight += m.scale * (m.B @ m.A)
            self.net.set_submodule(path, m.base)
        yield self.net
        for path, m in layers:
            m.base.weight -= m.scale * (m.B @ m.A)
            self.net.set_submodule(path, m)

    patch.setattr(Edit, "merged", merged)


def a_merge_refused_half_way(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def merged(self: Edit) -> Iterator[nn.Module]:
        for site, _, new in self._swaps:
            if isinstance(new, Adapter):
                self.net.set_submodule(site.path, new.base)
                new.folded()
        yield self.net

    patch.setattr(Edit, "merged", merged)


def prefix_with(patch: pytest.MonkeyPatch, pad: Callable[..., Tensor]) -> None:
    """Run the attention function with another way to pad masks."""

    class Functional:
        scaled_dot_product_attention = staticmethod(F.scaled_dot_product_attention)

    Functional.pad = staticmethod(pad)  # type: ignore[attr-defined]
    patch.setattr(attention, "F", Functional)


def prefix_mask_off_by_one(patch: pytest.MonkeyPatch) -> None:
    def pad(mask: Tensor, sides: tuple[int, int], value: Any = 0) -> Tensor:
        return F.pad(mask, (sides[0] - 1, 1), value=value)

    prefix_with(patch, pad)


def prefix_mask_on_the_wrong_side(patch: pytest.MonkeyPatch) -> None:
    prefix_with(patch, lambda mask, sides, value=0: F.pad(mask, sides[::-1], value=value))


def prefix_hidden_from_every_query(patch: pytest.MonkeyPatch) -> None:
    prefix_with(patch, lambda mask, sides, value=0: F.pad(mask, sides, value=False))


def prefix_without_a_mask(patch: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    def unmasked(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *a: Any, **k: Any) -> Any:
        return attention.prefix_attention(module, query, key, value, None, *a, **k)

    patch.setitem(AttentionInterface._global_mapping, attention.NAME, unmasked)


def prefix_only_for_whole_prompts(patch: pytest.MonkeyPatch) -> None:
    """A query of one token, as in generation with a cache, is answered without the prefix."""
    from transformers import AttentionInterface

    real = attention.prefix_attention

    def function(module: nn.Module, query: Tensor, *a: Any, **k: Any) -> Any:
        if query.shape[2] > 1:
            return real(module, query, *a, **k)
        slot = module.prefix_slot
        module.prefix_slot = slot.base
        try:
            return real(module, query, *a, **k)
        finally:
            module.prefix_slot = slot

    patch.setitem(AttentionInterface._global_mapping, attention.NAME, function)


def blocks_mix_the_examples(patch: pytest.MonkeyPatch) -> None:
    real = Bottleneck.forward
    patch.setattr(Bottleneck, "forward", lambda self, x, f, r: real(self, x, f + 0.1 * f[:1, :1], r))
