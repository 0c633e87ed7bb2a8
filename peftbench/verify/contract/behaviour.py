"""Promises about a method's declarations, its first outputs, and evaluation."""

from __future__ import annotations

from dataclasses import fields

import torch

from peftbench.errors import UserError
from peftbench.method.registry import make, schema
from peftbench.verify.contract.case import AdaptedModel, Case, batch, evaluated_logits, network
from peftbench.verify.contract.compare import ROUNDING, distance, same, tensors


def describes_itself(case: Case) -> None:
    """The class is a frozen dataclass with a card, facts in range, and a default and description for every field."""
    cls = case.method
    frozen = "__dataclass_params__" in vars(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert frozen, f"{cls.__name__} is no frozen dataclass; write @dataclass(frozen=True) between @register and class"
    card = vars(cls).get("__doc__") or f"{cls.__name__}("
    assert not card.startswith(f"{cls.__name__}("), f"{cls.__name__} has no docstring; it is the method's card"
    assert cls.lr > 0, f"lr is {cls.lr}; it must be a positive learning rate"
    names = [f.name for f in fields(cls)]
    for name, info in schema(cls).model_fields.items():
        assert not info.is_required(), f"the hyperparameter {name!r} has no default"
        assert info.description, f"the hyperparameter {name!r} has no description: Field(description=...)"
    make(cls, case.hyper)
    assert cls.size_knob is None or cls.size_knob in names, (
        f"size_knob is {cls.size_knob!r}, which is no field; the fields are: {', '.join(names)}"
    )
    for name, values in cls.search_space.items():
        assert name in (*names, "lr"), f"search_space names {name!r}, which is neither a field nor 'lr'"
        assert len(values) > 0, f"search_space offers no value of {name!r}"
        assert name != "lr" or min(values) > 0, f"search_space offers rates {values}; a learning rate is above 0"
        assert name != "lr" or max(values) > min(values), (
            f"search_space offers the rates {values}, which do not differ; give the least and the greatest rate to tune"
        )
        for value in values if name != "lr" else ():
            try:
                make(cls, {name: value})
            except UserError as error:
                raise AssertionError(f"search_space offers {name} = {value!r}, which is refused: {error}") from error


def starts_as_it_claims(case: Case) -> None:
    """With `starts_as_identity` the network computes the same before the first step; else it still computes numbers."""
    before = evaluated_logits(network(case).net, batch(case))
    model = AdaptedModel(case)
    after = model.logits()
    model.edit.check_used()
    assert after.shape == before.shape, f"the logits' shape went from {tuple(before.shape)} to {tuple(after.shape)}"
    assert bool(torch.isfinite(after).all()), "before the first step the logits hold infinities or not-a-numbers"
    if model.method.starts_as_identity:
        off = distance(after, before)
        assert off <= ROUNDING, (
            f"the method says that it starts as the identity, but attaching it changes the logits by {off:.1e} of "
            "their size; start its last factor at zero, or set starts_as_identity = False"
        )


def evaluation_is_deterministic(case: Case) -> None:
    """In evaluation nothing is dropped, drawn or updated: the same input gives the same output."""
    model = AdaptedModel(case)
    model.train()
    model.net.eval()
    kept = {name: t.detach().clone() for name, t in tensors(model.net).items()}
    torch.manual_seed(1)
    first = model.logits()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = model.logits()
    assert torch.equal(before, torch.get_rng_state()), (
        "evaluation draws random numbers; let dropout follow self.training, and draw at attachment only"
    )
    assert same(first, second), "two evaluations of the same batch differ; is dropout on, or a count kept in forward?"
    for name, t in tensors(model.net).items():
        assert same(t, kept[name]), f"evaluation changed the tensor {name}"
    order = [3, 1, 0, 2]
    mixed = model.logits({k: v[order] for k, v in batch(case).items()})
    off = distance(mixed, first[order])
    assert off <= ROUNDING, f"an example's logits depend on the other examples of its batch, by {off:.1e} of their size"
