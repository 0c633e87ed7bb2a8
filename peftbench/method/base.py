"""The plugin contract: the base class of every fine-tuning method.

A method is a frozen dataclass in one file of ``methods/``. Its fields are its hyperparameters, and it has no other
fields. It changes a network in two ways, both through `Edit`: it swaps modules at roles, or it thaws base parameters.

    @register
    @dataclass(frozen=True)
    class LoRA(Method):
        '''What it does, in the paper's words and symbols.'''
        name, paper, lr, size_knob = "lora", "arXiv:2106.09685", 5e-4, "rank"
        rank: Annotated[int, Field(ge=1, description="r, the rank of the update")] = 8

        def attach(self, edit: Edit) -> None:
            edit.swap("q v", lambda base: LoRALinear(base, self.rank))

Importing this module imports neither torch nor any method.
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
    """Base class of every method. `attach`, `parameters`, `name`, `paper` and `lr` are required.

    The docstring of a subclass is the method's card (`peftbench methods NAME`). The attributes below are facts about
    the class. A subclass sets them as plain class attributes, without annotation, so that they are not hyperparameters.

    Attributes:
        name: Name in experiment files.
        paper: arXiv number, e.g. "arXiv:2106.09685".
        lr: Learning rate if the experiment names none.
        lr_source: Where in the paper that rate comes from.
        formula: One line for the card, e.g. "h = W x + (alpha/r) B A x".
        size_formula: What trains, in one line for the card, e.g. "r (in + out) at each site".
        caveats: Known weaknesses, each with its source: a paper, or a record of this project.
        needs: What a network must have, if some lack it, e.g. "a task head". `attach` and `parameters` refuse others.
        size_knob: The integer field that a parameter budget solves; None if the method has one size.
        search_space: What tuning may draw. "lr" draws any rate between its least and greatest value, about two decades
            for small and large networks; a field draws one of its values. Tuning draws the rate and one field: the
            first that neither the experiment nor a budget sets. A field that only scales the update needs no tuning
            beside the rate.
        version: Raise it when a change alters results; older records then no longer count as done.
        starts_as_identity: Whether the network computes the same before the first step. The contract tests check it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    lr: ClassVar[float]
    lr_source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    size_formula: ClassVar[str] = ""
    caveats: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    size_knob: ClassVar[str | None] = None
    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    version: ClassVar[int] = 1
    starts_as_identity: ClassVar[bool] = True

    def attach(self, edit: Edit) -> None:
        """Change the network, only through `edit`.

        Args:
            edit: The edit of one backbone; see `Edit.swap` and `Edit.thaw`.

        Raises:
            UserError: The network does not suit the method, or the hyperparameters do not suit the network.
        """
        raise NotImplementedError(f"{type(self).__name__} must define attach(self, edit)")

    def parameters(self, sites: Sites) -> int:
        """Return the number of trainable parameters from the paper's closed formula.

        The contract tests and every run compare it with the count on the network.

        Args:
            sites: The sites of the network, with their sizes.

        Returns:
            The number of trainable parameters outside the task head.

        Raises:
            UserError: The network does not suit the method.
        """
        raise NotImplementedError(f"{type(self).__name__} must define parameters(self, sites)")

    def optimizer(self, net: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Make the optimiser of all parameters of `net` that require a gradient.

        The default is AdamW, with weight decay on matrices only, as is usual for transformers. The runner adds the task
        head afterwards.

        Args:
            net: The network with the method attached.
            lr: Peak learning rate.
            weight_decay: Weight decay of matrices.
        """
        trained = [p for p in net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return adamw(net, groups, lr)

    def extra_loss(self, net: nn.Module) -> Tensor | None:
        """Return a scalar to add to the task's loss at each step; None for none."""
        return None

    def after_step(self, net: nn.Module, done: float) -> None:
        """Do what the method does after each optimiser step.

        The step's gradients are still in ``p.grad``, clipped as the optimiser saw them; they are freed afterwards.

        Args:
            net: The network with the method attached.
            done: Share of the training that is done, in (0, 1].
        """

    def finish(self, edit: Edit) -> None:
        """Do what the method does once after training, e.g. drop a reparametrisation or prune.

        The network's outputs must not change, neither then nor with a second call.
        """


def adamw(net: nn.Module, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """Make AdamW over parameter groups, fused where the device supports it.

    Args:
        net: The network whose device decides.
        groups: Parameter groups of torch.optim; groups may be empty.
        lr: Learning rate of groups that have none of their own.
    """
    import torch

    return torch.optim.AdamW(groups, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in net.parameters()))
