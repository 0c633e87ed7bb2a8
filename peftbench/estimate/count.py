"""Count the parameters and stored bytes of any model with any method, without reading a weight.

`count` attaches the method to a network on the meta device, so that the result is what a run would train and store. The
method's own formula must agree. A method that needs values to attach is counted by its formula alone, and the result
says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbench.errors import UserError, nearest, shown, unknown
from peftbench.records import user_file

if TYPE_CHECKING:
    from peftbench.backbones.load import Backbone
    from peftbench.backbones.source import Origin
    from peftbench.method.base import Method
    from peftbench.method.edit import Edit

KINDS = ("classification", "generation")


@dataclass(frozen=True)
class ModelQuery:
    """Which model, for which kind of task.

    Attributes:
        model: A name in architectures.json, a preset, a directory or a hub id.
        task: One of `KINDS`; None for the architecture's own.
        labels: Number of outputs of a classifier's head.
        roles: Role table for an architecture that is not known.
    """

    model: str
    task: str | None = None
    labels: int = 2
    roles: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class ParameterCount:
    """Parameter counts of a method on a model.

    Attributes:
        model: The model.
        task: Kind of task.
        architecture: Architecture of the model.
        method: Name of the method.
        hyper: Its hyperparameters.
        trainable: Parameters that the method trains, without the head.
        head: Parameters of the task head.
        base: Parameters of the model without the head.
        total: Base, head and what the method adds. Thawed parameters belong to the base.
        percent_of_base: 100 * trainable / base.
        stored_bytes: Bytes of the safetensors file with the adapter alone, header included; None if only the formula
            could count.
        attached: Whether the count is from the network itself, not from the formula alone.
    """

    model: str
    task: str
    architecture: str
    method: str
    hyper: Mapping[str, Any]
    trainable: int
    head: int
    base: int
    total: int
    percent_of_base: float
    stored_bytes: int | None
    attached: bool


def count(
    query: ModelQuery, name: str, hyper: Mapping[str, Any] | None = None, plugins: Iterable[Path | str] = ()
) -> ParameterCount:
    """Count everything that is known of a method on a model without weights.

    Args:
        query: The model.
        name: Name of the method.
        hyper: Its hyperparameters; the others have their defaults.
        plugins: Python files that register further methods.

    Raises:
        UserError: The model, method or a hyperparameter is unknown, or the method's formula is wrong.
    """
    from peftbench.method import adapter_file
    from peftbench.method.catalogue import Catalogue
    from peftbench.method.registry import find, make

    files = tuple(user_file.resolved(Path(p)) for p in plugins)
    method = make(find(name, files), Catalogue(files).hyper(name, hyper or {}))
    backbone = network(query)
    sites, trainable = backbone.sites, method.parameters(backbone.sites)
    edit = _attached(method, backbone) or _attached(method, network(query), everywhere=False)
    stored, total = None, sites.base + sites.head + trainable
    if edit is not None:
        counted = edit.counts()
        if counted["trainable"] != trainable:
            raise UserError(
                f"{name}: parameters() says {trainable:,} and {counted['trainable']:,} train; "
                "fix the formula or attach()"
            )
        method.finish(edit)
        header = {"method": name, "hyper": asdict(method), "backbone": _fingerprint(query.model)}
        stored, total = adapter_file.size(edit.state(), header), counted["total"]
    return ParameterCount(
        query.model,
        backbone.kind,
        sites.kind,
        name,
        asdict(method),
        trainable,
        sites.head,
        sites.base,
        total,
        100 * trainable / sites.base,
        stored,
        edit is not None,
    )


def network(query: ModelQuery) -> Backbone:
    """Return the backbone of `query` on the meta device.

    Raises:
        UserError: The model does not exist, or `query.task` is unknown.
    """
    from peftbench.backbones.configuration import natural_kind
    from peftbench.backbones.load import load_on_meta

    if query.task is not None and query.task not in KINDS:
        raise unknown("task", query.task, KINDS, where="--task")
    place = origin(query.model)
    return load_on_meta(place, query.task or natural_kind(place), query.labels, query.roles)


def origin(model: str) -> Origin:
    """Return where the configuration of `model` comes from; names in architectures.json come before the hub.

    Raises:
        UserError: The model does not exist.
    """
    from peftbench.backbones import architectures, source

    if model in architectures.known():
        return source.Origin(model, "")
    try:
        return source.origin(model)
    except UserError as error:
        if model.startswith((".", "/", "~")) or user_file.is_folder(user_file.expanded(model)):
            raise
        near = nearest(model.rpartition("/")[2].lower(), architectures.known())
        names = ", ".join(architectures.known())
        raise UserError(
            f"unknown model {shown(model)}{f'; did you mean {near!r}?' if near else '.'} Known without weights: "
            f"{names}; or give a directory or a hub id (the hub: {error.__cause__ or error})"
        ) from error


def parsed(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` pairs; values are read as in an experiment file.

    Raises:
        UserError: A pair is malformed, or a key is given twice.
    """
    from peftbench.plan.strict_yaml import scalar

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{shown(pair)} is no hyperparameter; write key=value, e.g. rank=16 or roles='q v'")
        if key in values:
            raise UserError(f"{key} is given twice; keep one of them")
        values[key] = scalar(text)
    return values


def parsed_roles(text: str) -> Mapping[str, Any]:
    """Parse `--roles` to a role table, as in an experiment's `backbone.roles`.

    Raises:
        UserError: The roles are malformed.
    """
    from peftbench.backbones import roles
    from peftbench.plan.strict_yaml import scalar

    value = scalar(text)
    roles.check(value)
    return value


def as_text(c: ParameterCount) -> str:
    """Format a count for people."""
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
    """Attach the method to a network on the meta device; return None if it needs values.

    Its new tensors are created on the meta device too. Unless `everywhere`, they are created where the method asks: a
    seeded generator can only draw on its own device.
    """
    from contextlib import nullcontext

    import torch

    from peftbench.method.edit import Edit

    edit = Edit(backbone)
    try:
        with torch.device("meta") if everywhere else nullcontext():
            method.attach(edit)
    except RuntimeError:  # torch raises it for operations without meaning on the meta device
        return None
    return edit


def _fingerprint(model: str) -> str:
    """Return a placeholder as long as the fingerprint in the file's header, for the file's size."""
    from peftbench.backbones import architectures, source

    if model in source.PRESETS or user_file.is_folder(user_file.expanded(model)):
        return "0" * 64
    weights = architectures.known()[model]["weights"] if model in architectures.known() else model
    return f"hub:{weights}@{'0' * 40}" if weights else "0" * 64
