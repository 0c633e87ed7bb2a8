"""Sizes of any model with any method, without reading a weight: networks are built on the meta device.

`count` attaches the method itself to such a network, so that what it reports is what a run would train and store; the
method's own formula has to agree. A method that needs numbers to attach is counted by its formula alone, and the answer
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError, unknown

if TYPE_CHECKING:
    from peftbench.backbones.load import Backbone
    from peftbench.backbones.source import Origin
    from peftbench.method.base import Method
    from peftbench.method.edit import Edit

KINDS = ("classification", "generation")


@dataclass(frozen=True)
class Question:
    """A model as what: `task` is one of KINDS, or None for what the architecture is by nature."""

    model: str  # a name in architectures.json, a preset, a directory or a hub id
    task: str | None = None
    labels: int = 2
    roles: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Count:
    """Parameters by what they are, and the adapter's bytes on disk (None where only the formula could count)."""

    model: str
    task: str
    architecture: str
    method: str
    hyper: Mapping[str, Any]
    trainable: int  # the method's own, without the head
    head: int
    base: int  # the model without the head
    total: int  # base, head and what the method adds; what it thaws is in the base
    percent_of_base: float
    stored_bytes: int | None  # of the safetensors file with the adapter alone, header included
    attached: bool  # counted on the network itself, not by the formula alone


def count(
    asked: Question, name: str, hyper: Mapping[str, Any] | None = None, plugins: Iterable[Path | str] = ()
) -> Count:
    """Everything that can be known of method `name` on a model before there are weights.

    Raises `UserError` for a model, method or hyperparameter that does not exist, and where the formula is wrong.
    """
    from peftbench.method import adapter_file
    from peftbench.method.catalogue import Catalogue
    from peftbench.method.registry import find, make

    files = tuple(Path(p).expanduser().resolve() for p in plugins)
    method = make(find(name, files), Catalogue(files).hyper(name, hyper or {}))
    backbone = network(asked)
    there, told = backbone.sites, method.parameters(backbone.sites)
    edit = _attached(method, backbone) or _attached(method, network(asked), everywhere=False)
    stored, total = None, there.base + there.head + told
    if edit is not None:
        counted = edit.counts()
        if counted["trainable"] != told:
            raise UserError(
                f"{name}: parameters() says {told:,} and {counted['trainable']:,} train; mend the formula or attach()"
            )
        method.finish(edit)
        header = {"method": name, "hyper": asdict(method), "backbone": _fingerprint(asked.model)}
        stored, total = adapter_file.size(edit.state(), header), counted["total"]
    return Count(
        asked.model,
        backbone.kind,
        there.kind,
        name,
        asdict(method),
        told,
        there.head,
        there.base,
        total,
        100 * told / there.base,
        stored,
        edit is not None,
    )


def network(asked: Question) -> Backbone:
    """The network in question on the meta device."""
    from peftbench.backbones.configuration import natural_kind
    from peftbench.backbones.load import load_on_meta

    if asked.task is not None and asked.task not in KINDS:
        raise unknown("task", asked.task, KINDS, where="--task")
    place = origin(asked.model)
    return load_on_meta(place, asked.task or natural_kind(place), asked.labels, asked.roles)


def origin(model: str) -> Origin:
    """Where the configuration of `model` comes from: an architecture's name comes before the hub and its weights."""
    from peftbench.backbones import architectures, source

    if model in architectures.known():
        return source.Origin(model, "")
    try:
        return source.origin(model)
    except UserError as error:
        near = get_close_matches(model, architectures.known(), n=1)
        if not near or "/" in model:
            raise
        names = ", ".join(architectures.known())
        raise UserError(
            f"unknown model {model!r}; did you mean {near[0]!r}? Known without weights: {names}; or give a directory "
            f"or a hub id (the hub: {error.__cause__ or error})"
        ) from error


def parsed(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs as a mapping, values as in an experiment's file."""
    from peftbench.plan.strict_yaml import scalar

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{pair!r} is no hyperparameter; write key=value, e.g. rank=16 or roles='q v'")
        if key in values:
            raise UserError(f"{key} is given twice; keep one of them")
        values[key] = scalar(text)
    return values


def parsed_roles(text: str) -> Mapping[str, Any]:
    """`--roles` as the mapping that an experiment's `backbone.roles` takes."""
    from peftbench.backbones import roles
    from peftbench.plan.strict_yaml import scalar

    value = scalar(text)
    roles.check(value)
    return value


def as_text(c: Count) -> str:
    """The answer for people."""
    from tabulate import tabulate

    added = c.total - c.base - c.head
    rows = [
        ("base", f"{c.base:,}", f"{c.model}, {c.architecture}, for {c.task}"),
        ("trainable", f"{c.trainable:,}", f"{c.percent_of_base:.4g} % of the base" + ("" if added else ", all in it")),
        ("head", f"{c.head:,}", "trains with every method" if c.head else "none"),
        ("total", f"{c.total:,}", "base, head and what is added"),
    ]
    if c.stored_bytes is not None:
        rows.append(
            ("stored", f"{c.stored_bytes:,}", f"bytes of the adapter's file, {c.stored_bytes / 2**20:,.1f} MiB")
        )
    settings = ", ".join(f"{k}={v}" for k, v in c.hyper.items())
    how = (
        "counted on the network itself, and the method's formula agrees"
        if c.attached
        else "counted by the method's formula: it cannot attach without weights, so its file's size is not known"
    )
    table = tabulate(rows, tablefmt="plain", colalign=("left", "right", "left"), disable_numparse=True)
    return f"{c.method}{f' ({settings})' if settings else ''}\n{table}\n{how}"


def _attached(method: Method, backbone: Backbone, everywhere: bool = True) -> Edit | None:
    """The method on a network of the meta device, or None where it needs numbers.

    Its new tensors are made on the meta device too, or, unless `everywhere`, where it asks for: a draw from a seeded
    generator has to be on the generator's device.
    """
    from contextlib import nullcontext

    import torch

    from peftbench.method.edit import Edit

    edit = Edit(backbone)
    try:
        with torch.device("meta") if everywhere else nullcontext():
            method.attach(edit)
    except RuntimeError:  # torch's word for what has no meaning on the meta device
        return None
    return edit


def _fingerprint(model: str) -> str:
    """A text as long as the fingerprint in the file's header, of which the size depends: no weights are hashed."""
    from peftbench.backbones import architectures, source

    if model in source.PRESETS or Path(model).expanduser().is_dir():
        return "0" * 64
    weights = architectures.known()[model]["weights"] if model in architectures.known() else model
    return f"hub:{weights}@{'0' * 40}" if weights else "0" * 64
