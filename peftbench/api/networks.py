"""Attach a method to a network that the caller holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.api.paths import PathLike

if TYPE_CHECKING:
    from peftbench.run.attached import Attached


def attach(
    method: str,
    model: Any,
    tokenizer: Any = None,
    *,
    roles: Mapping[str, Any] | str | None = None,
    plugins: Sequence[PathLike] = (),
    seed: int = 0,
    **hyper: Any,
) -> Attached:
    """Attach a method to a transformers network in memory, in place.

    >>> adapter = peftbench.attach("lora", model, tokenizer, rank=8)    # the network has its adapters now
    >>> adapter.train(texts, labels, steps=60)
    >>> adapter.merge()                                                 # folded into plain layers; unmerge() is exact
    >>> adapter.undo()                                                  # the network as it was, bit for bit

    Args:
        method: the name of a method, as `peftbench methods` lists it.
        model: a sequence classifier, causal or encoder-decoder model of transformers.
        tokenizer: the tokenizer of `model`; needed to train on texts.
        roles: module paths by role, for an unknown architecture, as `backbone.roles` in a file; or, as a text such as
            "q k v", the method's hyperparameter of that name.
        plugins: files with methods of your own.
        seed: the seed of the adapter's initial values.
        hyper: the method's hyperparameters: `rank=8`, `alpha=16.0`.

    Raises:
        UserError: an unknown method or hyperparameter, or a network that the method does not fit.
    """
    from peftbench.run.attached import Attached

    if isinstance(roles, str):  # "q k v": the linear layers that the method changes
        roles, hyper = None, {**hyper, "roles": roles}
    return Attached.to(method, model, tokenizer, hyper, roles=roles, plugins=[Path(p) for p in plugins], seed=seed)
