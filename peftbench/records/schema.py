"""The JSON Schema of a record file, for those who read records with other tools: made from the types of its body.

A field's description is its comment in the source: the one at the end of its line, and any on the lines before it.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.records import bodies, costs, data_summary, design, spec, upgrades
from peftbench.records.bodies import Attempt, Predictions, ProfileBody, RunBody, TrialBody

FILE: dict[str, Any] = {  # what a file has besides its body
    "schema": {"description": "the format of the file", "type": "integer"},
    "checksum": {
        "description": "SHA-256 of the file without this field, its keys sorted",
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
    },
}
WITH_TRIAL = {RunBody: {"type": "null"}, TrialBody: {"type": "integer"}}  # what tells the two apart


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of record files of today's format."""
    types = (RunBody, TrialBody, ProfileBody, Predictions)
    references, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    classes = {cls.__name__: cls for cls in _classes()}
    for name, definition in definitions.items():
        described = descriptions(classes[name])
        for field, schema in definition["properties"].items():
            schema |= {"description": described[field]}
        if is_dataclass(classes[name]):  # a field that this version does not know makes another spec
            definition["additionalProperties"] = False
    for cls in (RunBody, TrialBody, ProfileBody):
        definitions[cls.__name__] |= _file_of(cls, definitions[cls.__name__])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "peftbench record",
        "description": f"One attempt at a run, a tuning trial or a profile pass, in format {upgrades.FORMAT}.",
        "oneOf": list(references[:3]),
        "$defs": definitions,
    }


def _file_of(cls: type[Attempt], body: dict[str, Any]) -> dict[str, Any]:
    """The definition of a body as that of its file: with what only the file has, and what a finished attempt needs."""
    properties = {**FILE, "schema": {**FILE["schema"], "const": upgrades.FORMAT}, **body["properties"]}
    needed = list(cls.FINISHED)
    if cls is RunBody:
        properties["predictions"] = {
            "description": "of the test split",
            "anyOf": [{"$ref": "#/$defs/Predictions"}, {"type": "null"}],
        }
        needed.append("predictions")
    if cls in WITH_TRIAL:
        properties["spec"] |= {"properties": {"trial": WITH_TRIAL[cls]}}
        if cls is TrialBody:
            properties["spec"] |= {"required": ["trial"]}
    present = {"properties": {name: {"not": {"type": "null"}} for name in needed}, "required": needed}
    return {
        "properties": properties,
        "required": [*body["required"], *FILE],
        "if": {"properties": {"status": {"const": "finished"}}},
        "then": present,
    }


def _classes() -> Iterator[type]:
    for module in (bodies, costs, data_summary, design, spec):
        for value in vars(module).values():
            if isinstance(value, type) and (issubclass(value, Struct) or is_dataclass(value)):
                yield value


@cache
def descriptions(cls: type) -> dict[str, str]:
    """The comments of a class's fields, by name; of a field that is declared again, the last one's."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__annotations__" in vars(base) and base.__module__ == cls.__module__:
            found |= dict(_comments(base))
    return found


def _comments(cls: type) -> Iterator[tuple[str, str]]:
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while (above := comments.get(first - 1)) and not above.line[: above.start[1]].strip():
                first -= 1
            lines = [*range(first, node.lineno), node.end_lineno or node.lineno]
            yield node.target.id, " ".join(comments[n].string.lstrip("# ") for n in lines if n in comments)
