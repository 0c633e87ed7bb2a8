"""Methods that train vectors, (IA)^3 and layer norms, against `peft`."""

from __future__ import annotations

import peft

from oracle.compare import Counterpart, Theirs
from oracle.lowrank import sites, target, wrapped
from oracle.networks import Ours
from oracle.pairs import Pair, positions, whole


def ia3(ours: Ours) -> Theirs:
    """The published placement; the factors of rows that ours does not scale stay at one."""
    layers = sites(ours, "l")
    inner = [site.path for site in ours.backbone.sites.of("down")]
    config = peft.IA3Config(target_modules=list({item.path for item in layers.values()}), feedforward_modules=inner)
    twin = wrapped(ours, config)
    pairs = {}
    for path, item in layers.items():
        factors = target(twin, item.path).ia3_l["default"]  # (1, in) at the inner activations, elsewhere (out, 1)
        where = positions(factors).reshape(-1)
        pairs[f"{path}.l"] = Pair(factors, where if path in inner else where[item.rows])
    return Theirs(twin, pairs)


def layernorm(ours: Ours) -> Theirs:
    """Every norm, by name: what `peft` would choose by itself leaves some out, or knows the architecture not at all."""
    paths = [site.path for site in ours.backbone.sites.of("norm")]
    twin = wrapped(ours, peft.LNTuningConfig(target_modules=paths))
    pairs = {}
    for name in ours.trained:
        path, _, kind = name.rpartition(".")
        pairs[name] = whole(getattr(target(twin, path).ln_tuning_layers["default"], kind))
    return Theirs(twin, pairs)


COUNTERPARTS = {"ia3": Counterpart("ia3", ia3), "layernorm": Counterpart("layernorm", layernorm)}
