"""The plugin contract: what a fine-tuning method is, and how methods are found.

A method is a frozen dataclass in one file of ``methods/``: its fields are its hyperparameters, and nothing else is. It
does two things to a network, both through `Edit`: it swaps modules at named roles, or it thaws base parameters.

    @register
    @dataclass(frozen=True)
    class LoRA(Method):
        '''What it does, in the paper's words and symbols.'''
        name, paper, lr, size_knob = "lora", "arXiv:2106.09685", 5e-4, "rank"
        rank: Annotated[int, Field(ge=1, description="r, the rank of the update")] = 8

        def attach(self, edit: Edit) -> None:
            edit.swap("q v", lambda base: LoRALinear(base, self.rank))

Importing this module imports neither torch nor any method; `discover` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peftbench.backbones.sites import Sites

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftbench.method.edit import Edit


@dataclass(frozen=True)
class Method:
    """Base of every method. Only `attach`, `parameters` and the class facts are required.

    The class's docstring is the method's card. Class facts (set as plain class attributes, without annotation):
    """

    name: ClassVar[str]  # what experiment files call it
    paper: ClassVar[str]  # "arXiv:2106.09685"
    lr: ClassVar[float]  # learning rate where an experiment names none
    lr_source: ClassVar[str] = ""  # where that rate comes from
    formula: ClassVar[str] = ""  # one line for the card, e.g. "h = W x + (alpha/r) B A x"
    size_formula: ClassVar[str] = ""  # what trains, as the card tells it, e.g. "r (in + out) at each site"
    caveats: ClassVar[str] = ""  # what is known about when it fails, with its source: a paper, or a record
    needs: ClassVar[str] = ""  # what a network must have for it, if some lack it: "a task head"; those are refused
    size_knob: ClassVar[str | None] = None  # the field that a parameter budget solves
    # What tuning may draw: for "lr" any rate from the least to the greatest one, for a field one of the values. Beside
    # the rate, the first field counts that neither the experiment's file gives nor a budget solves.
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    version: ClassVar[int] = 1  # raise it when a change alters results: older records then no longer count as done
    starts_as_identity: ClassVar[bool] = True  # the paper's own claim; the contract tests hold it to it

    def attach(self, edit: Edit) -> None:
        """Change the network, through `edit` only."""
        raise NotImplementedError(f"{type(self).__name__} must define attach(self, edit)")

    def parameters(self, sites: Sites) -> int:
        """The paper's closed formula for its trainable parameters; the contract tests count them as well."""
        raise NotImplementedError(f"{type(self).__name__} must define parameters(self, sites)")

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """The optimiser over everything in `net` that requires a gradient (the head comes later, from the runner).

        AdamW; weight decay on matrices only, not on biases and scales, as is usual for transformers.
        """
        trained = [p for p in net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw(net, groups, lr)

    def extra_loss(self, net: nn.Module) -> Tensor | None:
        """A term added to the task's loss at each step; None for none."""
        return None

    def after_step(self, net: nn.Module, done: float) -> None:
        """Called after each optimiser step; `done` is the share of training behind us, in (0, 1].

        The step's gradients are still there, in ``p.grad``, as the optimiser saw them (clipped); they go afterwards.
        """

    def finish(self, edit: Edit) -> None:
        """Called once after training: drop a reparametrisation, prune."""


def adamw(net: nn.Module, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """AdamW over parameter groups of `net`, in one kernel where its device has that; groups may be empty."""
    import torch

    return torch.optim.AdamW(groups, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in net.parameters()))
