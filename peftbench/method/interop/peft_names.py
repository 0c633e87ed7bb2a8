"""Names and layouts of Hugging Face peft, shared by import and export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from peftbench.backbones.denormalise import plain_on_meta
from peftbench.backbones.load import Backbone
from peftbench.backbones.sites import LINEAR, Site
from peftbench.errors import UserError

IN = "base_model.model."
Exported = tuple[dict[str, Any], dict[str, Tensor]]  # configuration, tensors by peft's names
Read = tuple[str, dict[str, Any], dict[str, Tensor]]  # method, hyperparameters, state


def layout(net: Any, paths: Iterable[str]) -> dict[str, Any]:
    """Return peft's setting for the layers at these paths: whether their weights are (in, out), as in GPT-2."""
    plain = plain_on_meta(net)
    return {"fan_in_fan_out": any(isinstance(plain.get_submodule(path), Conv1D) for path in paths)}


def whole_roles(paths: Iterable[str], backbone: Backbone) -> str:
    """Return the roles whose sites are exactly these paths, separated by spaces.

    Raises:
        UserError: A path has no role, or a role is covered only in part.
    """
    given = set(paths)
    sites: dict[str, Site] = {site.path: site for site in backbone.sites if site.role in LINEAR}
    for path in given:
        if path not in sites:
            raise UserError(f"the adapter is for {path}, which has no role here ({', '.join(backbone.sites.roles)})")
    roles = [role for role in LINEAR if any(sites[path].role == role for path in given)]
    missing = [site.path for site in sites.values() if site.role in roles and site.path not in given]
    if missing:
        raise UserError(
            f"the adapter leaves out {len(missing)} layers, e.g. {missing[0]} (layers_to_transform or target_modules); "
            "a method here adapts a role in every layer"
        )
    return " ".join(roles)
