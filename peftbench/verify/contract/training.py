"""Promises about training: which tensors change, and that results agree between runs and precisions."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from peftbench.method.base import Method
from peftbench.run import checkpoint
from peftbench.verify.contract.case import RATE, STEPS, AdaptedModel, Case
from peftbench.verify.contract.compare import ROUNDING, distance, same, storage_address, tensors

BFLOAT16 = 0.1  # largest error of the whole gradient / its norm; bfloat16 keeps about 3 digits


def only_declared_tensors_move(case: Case) -> None:
    """Training changes the method's own and thawed tensors and the head; every other tensor stays bit for bit."""
    model = AdaptedModel(case)
    model.start()
    head = {id(p) for p in model.backbone.head_parameters()}
    declared = {storage_address(t) for t in model.edit.state().values()}
    frozen = {n: t for n, t in tensors(model.net).items() if storage_address(t) not in declared and id(t) not in head}
    for name, t in frozen.items():
        assert not t.requires_grad, (
            f"{name} would train, but it is neither outside `.base` of an adapter nor thawed: give it to "
            "edit.thaw(...), or make it a parameter of the adapter, or leave its requires_grad alone"
        )
    before = {n: t.detach().clone() for n, t in frozen.items()}
    start = model.head()
    losses = model.train()
    assert all(loss == loss and abs(loss) < 1e6 for loss in losses), f"training gives the losses {losses}"
    after = tensors(model.net)
    for name, t in before.items():
        assert name in after, f"{name} was there before training and is gone"
        assert same(t, after[name]), f"{name} is frozen, but three training steps changed it"
        assert after[name].grad is None, f"{name} is frozen, but a gradient reached it"
    for old, new in zip(start, model.backbone.head_parameters(), strict=True):
        assert not same(old, new.detach()), "the task head did not move; it must train with every method"


def every_trained_tensor_learns(case: Case) -> None:
    """Within three steps every trained tensor gets a gradient that is not all zero, and moves; each is stepped once."""
    model = AdaptedModel(case)
    trainer = model.start()
    trained = {id(p): p for p in model.edit.trained()}
    names = {id(p): n for n, p in model.net.named_parameters()}
    stepped = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    for key in trained:
        times = stepped.count(key)
        assert times == 1, f"{names[key]} trains, but stands {times} times in the optimiser's parameter groups"
    reached: set[int] = set()
    prunes = type(model.method).after_step is not Method.after_step

    def note(p: Tensor) -> None:
        if p.grad is not None and bool(p.grad.count_nonzero()):
            reached.add(id(p))

    hooks = [p.register_post_accumulate_grad_hook(note) for p in trained.values()]
    before = {key: p.detach().clone() for key, p in trained.items()}
    model.train()
    for hook in hooks:
        hook.remove()
    for key, p in trained.items():
        assert key in reached, (
            f"{names[key]} is trainable, but three steps gave it no gradient; is it used in forward, and is not every "
            "factor multiplied with it zero at the start?"
        )
        pruned = prunes and not bool(p.count_nonzero())  # pruned back to its initial zeros
        assert pruned or not same(before[key], p.detach()), f"{names[key]} got a gradient, but no step moved it"


def two_runs_are_identical(case: Case) -> None:
    """The same seed gives the same losses and tensors, on a new network and on one that was used and undone."""
    first = AdaptedModel(case)
    losses = first.train()
    state, head = first.state(), first.head()
    again = AdaptedModel(case)
    untouched = again.head()
    for turn in ("a second run on a new network", "a second run on a network used before and undone"):
        found = again.train()
        assert found == losses, f"{turn} with the same seed gives the losses {found} where the first gave {losses}"
        _agree(again, state, head, turn)
        again.edit.undo()
        again.set_head(untouched)
        again = AdaptedModel(case, backbone=again.backbone)


def resuming_changes_nothing(case: Case) -> None:
    """Training that goes on from a checkpoint on a new network gives the losses and tensors of training at once."""
    whole = AdaptedModel(case)
    losses = whole.train()
    first, second, file = AdaptedModel(case), AdaptedModel(case), io.BytesIO()
    trainer = first.start()
    found = first.train(1, of=STEPS)
    torch.save(checkpoint.state(trainer), file)
    file.seek(0)
    torch.manual_seed(99)  # the checkpoint brings the random stream
    checkpoint.load_state(second.start(), torch.load(file, weights_only=True))
    found += second.train(STEPS - 1, first=1, of=STEPS, seeded=False)
    assert found == losses, (
        f"training that goes on from a checkpoint after the first step gives the losses {found} where training at once "
        f"gives {losses}; keep what steps depend on in parameters, buffers, the optimiser's state, or in attributes of "
        "the adapter that are numbers, tensors, lists or dicts"
    )
    _agree(second, whole.state(), whole.head(), "training that goes on from a checkpoint")


def checkpointing_keeps_the_gradients(case: Case) -> None:
    """Gradient checkpointing, which runs forward twice, gives the same gradients, dropout included."""
    plain, saving = AdaptedModel(case), AdaptedModel(case, gradient_checkpointing=True)
    for model in (plain, saving):
        model.train(2)
    expected, found = (_drawn_gradients(model) for model in (plain, saving))
    assert expected.keys() == found.keys(), (
        f"gradients reach other tensors with checkpointing: {sorted(expected.keys() ^ found.keys())[:3]}"
    )
    for name, gradient in expected.items():
        close = torch.allclose(found[name], gradient, rtol=ROUNDING, atol=ROUNDING * _size(expected))
        assert close, (
            f"with gradient checkpointing the gradient of {name} differs by {distance(found[name], gradient):.1e} "
            "of its size; forward runs twice then, and must not depend on how often it ran"
        )


def bfloat16_stays_close(case: Case) -> None:
    """Under bfloat16 the method's tensors stay float32 and the gradients are finite and near those of float32."""
    exact = AdaptedModel(case)
    exact.start(RATE / 10)  # leave the initial values, but do not saturate activations, which magnifies rounding
    exact.train(2)
    rough = AdaptedModel(case, dtype="bfloat16")
    for p in rough.edit.trained():
        assert p.dtype == torch.float32, (
            f"a trained tensor of shape {tuple(p.shape)} is {str(p.dtype).removeprefix('torch.')} on a bfloat16 "
            "network; what trains is float32 whatever the base is"
        )
    rough.edit.load(exact.edit.state())
    rough.set_head(exact.head())
    for model in (exact, rough):
        model.net.eval()  # without dropout, whose draws depend on the precision
    expected, found = exact.gradients(), rough.gradients("bfloat16")
    for name, gradient in found.items():
        assert bool(torch.isfinite(gradient).all()), f"under bfloat16 the gradient of {name} is not finite"
    assert expected.keys() == found.keys(), (
        f"gradients reach other tensors under bfloat16: {sorted(expected.keys() ^ found.keys())[:3]}"
    )
    error = _norm([found[n].float() - g for n, g in expected.items()]) / _norm(list(expected.values()))
    assert error <= BFLOAT16, f"under bfloat16 the gradient is off by {error:.2f} of its norm (allowed: {BFLOAT16})"
    with torch.autocast("cpu", torch.bfloat16):
        off = distance(rough.logits(), exact.logits())
    assert off <= BFLOAT16, f"under bfloat16 the logits are off by {off:.2f} of their size (allowed: {BFLOAT16})"


def _agree(model: AdaptedModel, state: dict[str, Tensor], head: list[Tensor], turn: str) -> None:
    own = model.edit.state()
    assert own.keys() == state.keys(), f"{turn} has other tensors: {sorted(own.keys() ^ state.keys())[:3]}"
    for name, t in own.items():
        assert same(t, state[name]), f"{turn} with the same seed ends with another {name}"
    for old, new in zip(head, model.backbone.head_parameters(), strict=True):
        assert same(old, new.detach()), f"{turn} with the same seed ends with another task head"


def _drawn_gradients(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the gradients in training mode, with the same dropout in each call."""
    model.net.train()
    torch.manual_seed(3)
    return model.gradients()


def _norm(parts: list[Tensor]) -> float:
    return float(nn.utils.get_total_norm(parts))


def _size(gradients: dict[str, Tensor]) -> float:
    """Return the largest absolute entry of any gradient, the scale of rounding errors."""
    return max((float(g.abs().max()) for g in gradients.values()), default=0.0)
