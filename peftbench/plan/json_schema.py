"""The JSON Schema of experiment files, for editors that complete and check YAML.

It covers the shorthands of the file and the hyperparameters of the methods. `read.load` does not use it, because it
checks more than a schema can express.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbench import tasks
from peftbench.method.catalogue import MethodFacts
from peftbench.plan.experiment import EXEMPTIBLE, BackboneSection, Experiment, TaskSection
from peftbench.tasks import local
from peftbench.tasks.dataset import KINDS, LIMITS
from peftbench.tasks.local_rows import POLICIES
from peftbench.tasks.separated import QUOTES

RATE = {"type": "number", "exclusiveMinimum": 0}
EXEMPTIONS = {
    "type": "object",
    "description": "budgets that do not hold for this method, each with the reason, which every table prints",
    "properties": {axis: {"type": "string", "minLength": 1} for axis in EXEMPTIBLE},
    "additionalProperties": False,
}


def json_schema(methods: Mapping[str, MethodFacts]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of experiment files.

    Args:
        methods: the facts of each method by its name.
    """
    schema = Experiment.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    names = tasks.names()
    definitions["BackboneSection"] = BackboneSection.model_json_schema()
    definitions["TaskSection"] = _task(names)
    properties["backbone"] = {"anyOf": [{"type": "string", "minLength": 1}, {"$ref": "#/$defs/BackboneSection"}]}
    properties["tasks"] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"enum": names}, {"$ref": "#/$defs/TaskSection"}]},
    }
    properties["profile"] = {"anyOf": [{"const": False}, {"$ref": "#/$defs/ProfileSection"}]}
    properties["timeout"] = {"anyOf": [{**RATE, "description": "seconds"}, {"$ref": "#/$defs/TimeoutSection"}]}
    properties["methods"] = {
        "type": "array",
        "minItems": 1,
        "description": "method names, or {name: {hyperparameter: value}}; a list of values is a grid",
        "items": {"anyOf": [{"enum": sorted(methods)}, *({"$ref": f"#/$defs/method_{n}"} for n in sorted(methods))]},
    }
    for name, facts in methods.items():
        definitions[f"method_{name}"] = _method(facts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peftbench experiment",
        **_plain(schema),
    }


def _task(names: list[str]) -> dict[str, Any]:
    schema = TaskSection.model_json_schema()
    properties = schema["properties"]
    properties["task"] |= {"enum": names}
    properties["stand_in"] |= {"anyOf": [{"enum": names}, {"type": "null"}]}
    whole = {"type": "integer", "minimum": 1}
    for limit in LIMITS:
        properties[limit] = {**whole, "description": f"examples kept of the {limit.removeprefix('limit_')} split"}
    properties["rows"] = {**whole, "description": "examples of a synthetic task"}
    for option in local.OWN:
        properties[option.name] = {"description": f"of your own files (task: local): {option.what}"}
    for name, values in (("kind", KINDS), ("missing", POLICIES), ("quotes", QUOTES)):
        properties[name] |= {"enum": list(values)}
    return schema | {"additionalProperties": False}


def _method(facts: MethodFacts) -> dict[str, Any]:
    """Return the schema of `{lora: {rank: 4, lr: [1e-3, 5e-3]}}`. Each value may be a list, which is a grid."""
    label = {"type": "string", "minLength": 1, "description": "names the rows of the tables"}
    knobs = {"label": _grid(label), "lr": _grid({**RATE, "description": f"learning rate; default {facts.lr:g}"})}
    knobs |= {key: _grid(dict(value)) for key, value in facts.schema.items()}
    first = "seed of the first repetition; gives two entries of one method different seeds"
    knobs["first_seed"] = {"type": "integer", "minimum": 0, "default": 0, "description": first}
    knobs |= {"search_space": _space(facts), "exempt": EXEMPTIONS}
    inner = {"type": ["object", "null"], "properties": knobs, "additionalProperties": False}
    return {
        "type": "object",
        "description": facts.doc.partition("\n")[0],
        "properties": {facts.name: inner},
        "required": [facts.name],
        "additionalProperties": False,
    }


def _space(facts: MethodFacts) -> dict[str, Any]:
    """Return the schema of a search space: `{lr: [1e-4, 1e-2], alpha: [8, 16]}`."""
    values = {"lr": RATE, **facts.schema}
    return {
        "type": "object",
        "description": "what trials draw from, in place of the method's own space: for lr its range, else the values",
        "properties": {k: {"type": "array", "minItems": 2, "items": _untitled(v)} for k, v in values.items()},
        "maxProperties": 2,
        "additionalProperties": False,
    }


def _untitled(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in ("title", "description", "default")}


def _grid(value: dict[str, Any]) -> dict[str, Any]:
    outer: dict[str, Any] = {key: value.pop(key) for key in ("description", "default") if key in value}
    value.pop("title", None)
    return {**outer, "anyOf": [value, {"type": "array", "minItems": 1, "items": value}]}


def _plain(schema: Any) -> Any:
    """Remove the titles that pydantic makes of field names, so that editors show the descriptions."""
    if isinstance(schema, dict):
        untitled = {k: v for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
        return {key: _plain(value) for key, value in untitled.items()}
    return [_plain(v) for v in schema] if isinstance(schema, list) else schema
