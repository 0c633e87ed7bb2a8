"""Published measurements of GPU memory, read strictly from `published/*.yaml`: what was measured, of what, and how.

A file is a source: its protocol, and the parts of a training step that hold for all its points. A point is one number.
Nothing here predicts; `published_check` compares.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, unknown
from peftbench.plan import strict_yaml
from peftbench.plan.strict_yaml import Document, Place

FOLDER = Path(__file__).parent
MEASURES = ("allocated", "active", "reserved", "after_step", "unspecified", "longest_context")
UNITS = {"GB": 10**9, "GiB": 2**30, "MiB": 2**20, "tokens": 1}
SIMULATED_AS = {  # program of a source -> the simulated program whose parts come nearest
    "plain": "plain",
    "hf-trainer": "hf-trainer",
    "litgpt": "litgpt",
    "torchtune": "torchtune",
    "peft-comparison": "peft-comparison",
    "fsdp-qlora": "plain",
    "ms-swift": "hf-trainer",
    "qwen": "hf-trainer",
    "unsloth-column": "hf-trainer",
}
DTYPES = ("float32", "bfloat16")
BOOL, COUNT = (True, False), None  # a count is a whole number from 1
PARTS: dict[str, tuple[Any, ...] | None] = {  # parts of a simulated program, with their values
    "weights": DTYPES,
    "trained": DTYPES,
    "autocast": BOOL,
    "optimizer": ("adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit", "sgd"),
    "update": ("fused", "foreach", "loop"),
    "gradients": ("kept", "freed", "until_forward", "in_backward"),
    "loss": ("whole", "chunked", "fused"),
    "chunk": COUNT,  # tokens of each text
    "attention": ("flash", "efficient", "math", "eager"),
    "checkpointing": BOOL,
    "offload_activations": BOOL,
    "clip": BOOL,
    "mask": ("padding", "always", "never"),
    "quantised_inputs": ("kept", "freed", "until_replaced"),
}
SETTINGS: dict[str, tuple[Any, ...] | None] = {  # what `estimate` takes by another option, or not at all
    "packed": BOOL,  # --no-padding
    "shards": COUNT,  # --shards
    "compile": BOOL,
    "head": ("trained", "frozen"),
}
ABOUT_FILE = ("group", "title", "source", "commit", "version", "date", "licence", "about")
FOR_ALL = ("measure", "unit", "gpu", "program")  # a point may replace these
FILE_KEYS = (*ABOUT_FILE, *FOR_ALL, "parts", "points")
POINT_KEYS = ("id", "model", "method", "hyper", "batch", "seq", "value", "note", "left_out", "parts", *FOR_ALL)


@dataclass(frozen=True)
class PublishedPoint:
    """One published number, with all that is known of the step that it measures.

    Attributes:
        id: The group's letter and a number.
        group: Letter of the protocol; several files may share one.
        title: What the source is, for people.
        source: Repository or package, and the path in it.
        version: Commit or version that was read.
        date: Of that version.
        licence: Of the source.
        about: The protocol.
        measure: One of `MEASURES`.
        unit: One of `UNITS`.
        gpu: What it was measured on; with "longest_context", the memory of it, such as 24GB.
        program: Whose training step was measured.
        model: Name, as `count` and `estimate` take it.
        method: Name of a method here, or, of a point left out, its name there.
        hyper: Hyperparameters of the method.
        batch: Texts in a step.
        seq: Tokens of each text; None where the value is this number.
        parts: Parts of the step that the source states: keys of `PARTS` and `SETTINGS`.
        value: The number, in `unit`.
        note: What else tells it apart.
        left_out: Why it cannot be predicted; empty if it can.
    """

    id: str
    group: str
    title: str
    source: str
    version: str
    date: str
    licence: str
    about: str
    measure: str
    unit: str
    gpu: str
    program: str
    model: str
    method: str
    batch: int
    seq: int | None
    value: float
    hyper: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    left_out: str = ""

    @property
    def value_bytes(self) -> int:
        """The number in bytes.

        Raises:
            ValueError: It counts tokens.
        """
        if self.unit == "tokens":
            raise ValueError(f"{self.id} counts tokens, not bytes")
        return round(self.value * UNITS[self.unit])


def points(folder: Path = FOLDER) -> tuple[PublishedPoint, ...]:
    """Return the points of all files, in the order of files and points.

    Raises:
        UserError: A file is malformed, or two points share an id.
    """
    found: dict[str, PublishedPoint] = {}
    for path in sorted(folder.glob("*.yaml")):
        for point in read(path):
            if point.id in found:
                raise UserError(f"{path}: the id {point.id} is given twice; each point needs one of its own")
            found[point.id] = point
    return tuple(found.values())


def read(path: Path) -> list[PublishedPoint]:
    """Return the points of one file.

    Raises:
        UserError: A key or value is unknown, missing or of a wrong kind; the message names its line.
    """
    document = strict_yaml.load(path)
    content = _mapping(document, (), FILE_KEYS)
    version = "commit" if "commit" in content else "version"
    texts = {
        key: _text(document, (key,), content) for key in (*ABOUT_FILE, *FOR_ALL) if key not in ("commit", "version")
    }
    texts["version"] = _text(document, (version,), content)
    parts = _parts(document, ("parts",), content)
    listed = content.get("points")
    if not isinstance(listed, list) or not listed:
        raise document.error(("points",), "give a list of points")
    return [_point(document, ("points", i), texts, parts) for i in range(len(listed))]


def command(point: PublishedPoint) -> str:
    """Return the shell line that predicts a point.

    Raises:
        ValueError: The point is left out.
    """
    if point.left_out:
        raise ValueError(f"{point.id} cannot be predicted: {point.left_out}")
    words = ["peftbench", "estimate", point.model, point.method]
    words += [f"{key}={_plain(value)}" for key, value in point.hyper.items()]
    words += ["--batch", str(point.batch)]
    words += ["--seq", str(point.seq)] if point.seq else ["--fit", point.gpu, "--fit-axis", "seq"]
    words += ["--program", SIMULATED_AS[point.program]]
    for key, value in point.parts.items():
        if key in PARTS:
            words += ["--part", f"{key}={_plain(value)}"]
    if "packed" in point.parts:
        words.append("--no-padding" if point.parts["packed"] else "--padding")
    if point.parts.get("shards", 1) > 1:
        words += ["--shards", str(point.parts["shards"])]
    return shlex.join(words)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _point(document: Document, place: Place, file: Mapping[str, str], shared: Mapping[str, Any]) -> PublishedPoint:
    content = _mapping(document, place, POINT_KEYS)
    own = {key: _text(document, (*place, key), content) for key in FOR_ALL if key in content}
    texts = {**file, **own}
    for key, valid in (("measure", MEASURES), ("unit", tuple(UNITS)), ("program", tuple(SIMULATED_AS))):
        if texts[key] not in valid:
            raise unknown(key, texts[key], valid, where=document.where((*place, key) if key in own else (key,)))
    longest = texts["measure"] == "longest_context"
    if longest != (texts["unit"] == "tokens"):
        raise document.error(place, "a longest_context counts tokens, and nothing else does")
    if longest and "seq" in content:
        raise document.error((*place, "seq"), "a longest_context has its tokens as value; remove seq")
    value = content.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise document.error((*place, "value"), f"give a number above 0, not {value!r}")
    return PublishedPoint(
        **texts,
        **{key: _text(document, (*place, key), content) for key in ("id", "model", "method")},
        **{key: _text(document, (*place, key), content) for key in ("note", "left_out") if key in content},
        batch=_count(document, (*place, "batch"), content),
        seq=None if longest else _count(document, (*place, "seq"), content),
        value=float(value),
        hyper=_hyper(document, (*place, "hyper"), content),
        parts={**shared, **_parts(document, (*place, "parts"), content)},
    )


def _mapping(document: Document, place: Place, valid: tuple[str, ...]) -> Mapping[str, Any]:
    content = document.value
    for step in place:
        content = content[step]
    if not isinstance(content, dict):
        raise document.error(place, f"give a mapping with the keys {', '.join(valid)}")
    for key in content:
        if key not in valid:
            raise unknown("key", key, valid, where=document.where((*place, key)))
    return content


def _text(document: Document, place: Place, content: Mapping[str, Any]) -> str:
    text = content.get(str(place[-1]))
    if not isinstance(text, str) or not text:
        raise document.error(place, f"give a text; got {text!r}")
    return text


def _count(document: Document, place: Place, content: Mapping[str, Any]) -> int:
    count = content.get(str(place[-1]))
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise document.error(place, f"give a whole number from 1; got {count!r}")
    return count


def _hyper(document: Document, place: Place, content: Mapping[str, Any]) -> Mapping[str, Any]:
    hyper = content.get("hyper", {})
    if not isinstance(hyper, dict):
        raise document.error(place, "give a mapping of hyperparameters")
    return hyper


def _parts(document: Document, place: Place, content: Mapping[str, Any]) -> Mapping[str, Any]:
    if "parts" not in content:
        return {}
    parts = _mapping(document, place, (*PARTS, *SETTINGS))
    for key, value in parts.items():
        valid = {**PARTS, **SETTINGS}[key]
        if valid is COUNT:
            _count(document, (*place, key), parts)
        elif not any(value is known or (isinstance(known, str) and value == known) for known in valid):
            names = [_plain(known) for known in valid]
            raise unknown(key, _plain(value), names, where=document.where((*place, key)))
    return parts
