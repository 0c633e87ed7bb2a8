"""What the page knows of models and methods beside their recorded steps: counts, defaults, bytes of a file's header."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftbench.backbones import architectures
from peftbench.errors import UserError
from peftbench.estimate.calculator import families, settings
from peftbench.estimate.count import ModelQuery, count, network

FILE = Path(__file__).parent / "recorded" / "facts.json"
REFERENCE = "qwen2.5-0.5b"  # has every role and biases; the header of an adapter's file is measured on it
ORDER = (
    *("lora", "qlora", "full", "dora", "qdora", "rslora", "lora_plus", "pissa", "adalora", "vera"),
    *("adapter", "prefix", "prompt", "ia3", "layernorm", "bitfit", "galore"),
)


def model_facts(name: str) -> dict[str, Any]:
    """Return the dimensions and the counts of a model."""
    sites = network(ModelQuery(name)).sites
    return {
        **asdict(families.dimensions(name)),
        "base": sites.base,
        "biases": sites.biases,
        "norms": sum(site.parameters for site in sites.of("norm")),
        "weights": architectures.known()[name]["weights"],
    }


def method_facts(name: str) -> dict[str, Any]:
    """Return the defaults of a method, and for each choice of roles the bytes of a file's header for each layer."""
    knob = settings.knob_of(name)
    default = settings.made(name)
    chooses = settings.ALIKE.get(name, name) in settings.CHOOSE_ROLES
    header = {}
    for roles in settings.ROLES if chooses else ("",):
        try:
            counted = count(ModelQuery(REFERENCE), name, settings.hyper_of(name, roles))
        except UserError:
            continue
        if counted.stored_bytes is not None:
            layers = families.dimensions(REFERENCE).layers
            header[roles] = (counted.stored_bytes - 4 * counted.trainable) / layers
    return {
        "name": name,
        "like": settings.ALIKE.get(name, name),
        "knob": knob,
        "size": getattr(default, knob) if knob else 0,
        "roles": chooses,
        "header": header,
        "formula": default.formula,
        "paper": default.paper,
    }


def write() -> None:
    """Write the facts of all models and methods."""
    facts = {
        "models": [model_facts(name) for name in families.MODELS],
        "methods": [method_facts(name) for name in ORDER],
    }
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return the facts."""
    facts: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return facts
