"""A trained adapter on its backbone, from the file or from the run's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.records import record
from peftbench.records.spec import RunSpec


@dataclass(frozen=True)
class Trained:
    """An adapter in place, with what its file says of it."""

    path: Path
    edit: Edit
    method: str
    hyper: Mapping[str, Any]
    model: str  # the backbone, as the experiment names it
    revision: str | None
    labels: tuple[str, ...]  # names of the classes, where the file has them

    @property
    def backbone(self) -> Backbone:
        return self.edit.backbone


def open_trained(
    given: Path, model: str | None = None, labels: int | None = None, plugins: Iterable[Path | str] = ()
) -> Trained:
    """The adapter at `given`, a file or a run's record, on its backbone in evaluation mode.

    `model` and `labels` stand in for what the file does not say: older files know their backbone's fingerprint only.
    Without `labels` such a file is taken for a causal model's. Raises `UserError` where no adapter is kept.
    """
    path = _file(given)
    _, header = adapter_file.load(path)
    base = header.get("base") or _asked(path, model, labels)
    count = len(base["labels"]) or 1
    backbone = load(
        model or base["model"],
        base["kind"],
        count if labels is None else labels,
        revision=None if model else base["revision"],
        roles=base["roles"],
        dtype=base["dtype"],
    )
    backbone.net.eval()
    edit = adapter_file.apply(path, backbone, plugins)
    names = tuple(base["labels"]) if header.get("base") else ()
    return Trained(path, edit, header["method"], header["hyper"], model or base["model"], base["revision"], names)


def _asked(path: Path, model: str | None, labels: int | None) -> dict[str, Any]:
    if model is None:
        raise UserError(
            f"{path} does not say which backbone it was trained on (an older file); "
            "name it: --backbone MODEL, and --labels N for a classifier (1 for regression)"
        )
    kind = "generation" if labels is None else "regression" if labels == 1 else "classification"
    names = [] if labels is None else [str(i) for i in range(labels)]
    return {"model": model, "revision": None, "roles": None, "dtype": "float32", "kind": kind, "labels": names}


def _file(given: Path) -> Path:
    """The adapter file that `given` is, or that the run of the record `given` kept."""
    if not given.is_file():
        raise UserError(f"no file {given}; give an adapter (RESULTS/adapters/*.safetensors) or a run's record (*.json)")
    if given.suffix != ".json":
        return given
    found = record.read(given)
    if found.kind != "run":
        raise UserError(f"{given} is the record of a {found.kind}, not of a run")
    spec = RunSpec.from_dict(found.spec)
    path = given.parent.parent / "adapters" / f"{spec.slug}--{spec.id}.safetensors"
    if not path.is_file():
        raise UserError(
            f"the run of {given.name} kept no adapter (no {path}); set save_adapters: true and run it again"
        )
    return path
