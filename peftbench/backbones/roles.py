"""Where each architecture has its roles: one table each, in the format of `roles:` in an experiment.

    q k v o gate up down   path of a linear layer, with * for the layer index; q, k and v may share one fused layer,
                           and so may gate (first half of the rows) and up. A module of experts, whose weights are
                           one tensor for all of them, is named by gate, up and down together
    fused                  row layout of a fused query-key-value layer: "thirds" (all of q, then k, then v, of one
                           size; GPT-2), "stacked" (the same with fewer key-value heads; Phi-3), "by_head" (q, k and v
                           of one head after another; GPT-NeoX) or "by_group" (a key-value head's queries, its key and
                           its value; Falcon 40B)
    attn, ffn              a sublayer: `output` names the module whose output is the sublayer's result before the
                           residual is added, `input` and `residual` name module inputs as "path:argument",
                           `norm` the layer norm after the addition (post-norm networks only)
    prefix                 the attention module that calls transformers' attention interface
    prompt                 the token embedding; if not given, the network's own input embedding
    embed, norm            modules that can be thawed

A role with several paths in a layer, or in several stacks, has a list of these. The tables (encoder_roles.py,
decoder_roles.py) follow the model definitions of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from peftbench.backbones import decoder_roles, encoder_roles
from peftbench.backbones.sites import BLOCKS, LINEAR, ROLES
from peftbench.errors import UserError, unknown

FUSED = ("thirds", "stacked", "by_head", "by_group")
BLOCK = ("output", "input", "residual", "norm")
KEYS = (*ROLES, "fused")
QKV = ("q", "k", "v")
SHARING = (QKV, ("gate", "up"))  # roles that may share a layer, in the order of its rows
EXPERTS = (("gate", "up", "down"), ("up", "down"))  # roles that may name a module of experts

TABLES: Mapping[str, Callable[[Any], dict[str, Any]]] = {**encoder_roles.TABLES, **decoder_roles.TABLES}
ABSENT = encoder_roles.ABSENT


def table(kind: str, config: Any, roles: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the role table of an architecture, or `roles` from the experiment in its place.

    Args:
        kind: Architecture: the configuration's `model_type`.
        config: The network's configuration.
        roles: Role table from the experiment; None for the architecture's own.

    Raises:
        UserError: No table is known and no `roles` are given, or `roles` are malformed.
    """
    if roles is not None:
        check(roles)
        return dict(roles)
    if kind not in TABLES:
        raise UserError(
            f"no roles are known for the architecture {kind!r} (known: {', '.join(sorted(TABLES))}); say where they "
            "are: backbone: {model: ..., roles: {q: 'model.layers.*.attention.q_proj', ...}}"
        )
    return TABLES[kind](config)


def check(roles: Any) -> None:
    """Raise `UserError` for the first mistake in a role table that can be detected without the network."""
    if not isinstance(roles, Mapping):
        raise UserError(f"backbone.roles = {roles!r} must be a mapping of roles to paths")
    for key, value in roles.items():
        if key not in KEYS:
            raise unknown("role", key, KEYS, where="backbone.roles")
        if key in BLOCKS:
            for block in listed(value) or [value]:
                _check_block(key, block)
        elif key == "fused":
            if value not in FUSED:
                raise unknown("layout", value, FUSED, where="backbone.roles.fused")
        else:
            if not value or not all(isinstance(path, str) for path in listed(value)):
                raise UserError(
                    f"roles: {key} = {value!r} must be a path or a list of them, like 'model.layers.*.attn'"
                )
    _check_sharing({r: listed(roles[r]) for r in LINEAR if r in roles}, "fused" in roles)


def sharing(table: Mapping[str, Any], role: str) -> tuple[str, ...]:
    """Return the roles of a table that share a layer with `role`, itself included; none if it has its own layer."""
    for roles in SHARING:
        if role in roles and all(table.get(r) == table[role] for r in roles):
            return roles
    return ()


def listed(value: Any) -> list[Any]:
    """Return a role's entry as a list."""
    return value if isinstance(value, list) else [value]


def _check_block(role: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"roles: {role} = {value!r} must be a mapping with {', '.join(BLOCK)} (norm only if post-norm)")
    for key in value:
        if key not in BLOCK:
            raise unknown("key", key, BLOCK, where=f"backbone.roles.{role}")
    for key in BLOCK[:3]:
        if key not in value:
            raise UserError(f"roles: {role} lacks {key}; it needs {', '.join(BLOCK[:3])}")
    for key, path in value.items():
        pattern = r"[^:]+(:\d+)?" if key in ("input", "residual") else r"[^:]+"
        if not isinstance(path, str) or not re.fullmatch(pattern, path):
            raise UserError(
                f"roles: {role}.{key} = {path!r} must be a path"
                + (", a colon and the number of the argument" if key in ("input", "residual") else "")
            )


def _check_sharing(linear: Mapping[str, list[str]], laid_out: bool) -> None:
    if not linear:
        raise UserError("backbone.roles names no linear layer; it needs some of q k v o gate up down")
    for path in (path for paths in linear.values() for path in paths):
        same = tuple(role for role, others in linear.items() for other in others if other == path)
        if same == QKV and not laid_out:
            raise UserError(
                f"roles: q, k and v share one layer, {path!r}; say how its rows lie: fused: "
                f"{', '.join(FUSED[:-1])} or {FUSED[-1]}"
            )
        if len(same) > 1 and same not in (*SHARING, *EXPERTS):
            raise UserError(
                f"roles: {' and '.join(same)} name the same layer, {path!r}; only q, k and v together, or gate and up, "
                "may share one, and gate, up and down a module of experts"
            )
