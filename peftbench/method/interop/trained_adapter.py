"""Load a trained adapter on its backbone, from its file or from the run's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.backbones.load import Backbone, load
from peftbench.errors import UserError
from peftbench.method import adapter_file
from peftbench.method.edit import Edit
from peftbench.records import files, merging, packs, record
from peftbench.records.spec import RunSpec


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter in place, with the metadata of its file.

    Attributes:
        path: The adapter file.
        edit: The edit that holds the adapter.
        method: Name of the method.
        hyper: Its hyperparameters.
        model: The backbone's name in the experiment.
        revision: Commit, branch or tag of a hub model.
        labels: Names of the classes; empty if the file has none.
    """

    path: Path
    edit: Edit
    method: str
    hyper: Mapping[str, Any]
    model: str
    revision: str | None
    labels: tuple[str, ...]

    @property
    def backbone(self) -> Backbone:
        """The backbone that the adapter is on."""
        return self.edit.backbone


def open_trained(
    given: Path, model: str | None = None, labels: int | None = None, plugins: Iterable[Path | str] = ()
) -> TrainedAdapter:
    """Load a trained adapter on its backbone, in evaluation mode.

    `model` and `labels` replace what older files lack: these have only the backbone's fingerprint. Without `labels`
    such a file belongs to a causal model.

    Args:
        given: An adapter file, or a run's record (*.json).
        model: The backbone; None for the one in the file.
        labels: Number of outputs of the task head; None for the number in the file.
        plugins: Python files that register further methods.

    Raises:
        UserError: There is no adapter, or the file does not name its backbone and `model` is not given.
    """
    path = _file(given)
    _, header = adapter_file.load(path)
    base = header.get("base") or _base_from_options(path, model, labels)
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
    return TrainedAdapter(
        path, edit, header["method"], header["hyper"], model or base["model"], base["revision"], names
    )


def _base_from_options(path: Path, model: str | None, labels: int | None) -> dict[str, Any]:
    if model is None:
        raise UserError(
            f"{path} does not say which backbone it was trained on (an older file); "
            "name it: --backbone MODEL, and --labels N for a classifier (1 for regression)"
        )
    kind = "generation" if labels is None else "regression" if labels == 1 else "classification"
    names = [] if labels is None else [str(i) for i in range(labels)]
    return {"model": model, "revision": None, "roles": None, "dtype": "float32", "kind": kind, "labels": names}


def _file(given: Path) -> Path:
    """Return the adapter file for `given`: itself, or the one that the run of the record `given` saved."""
    if not given.is_file() and not (given.suffix == ".json" and packs.has(given)):
        raise UserError(f"no file {given}; give an adapter (RESULTS/adapters/*.safetensors) or a run's record (*.json)")
    if given.suffix != ".json":
        return given
    run = record.read(given)
    if not isinstance(run.spec, RunSpec):
        raise UserError(f"{given} is the record of a {run.kind}, not of a run")
    path = given.parent.parent / merging.ADAPTERS / adapter_file.name(run.spec)
    own = path.with_name(merging.second_name(path.name, files.checksum(packs.read_bytes(given))))
    if own.is_file():  # the name without it is that of another machine's attempt
        return own
    if not path.is_file():
        raise UserError(
            f"the run of {given.name} kept no adapter (no {path}); set save_adapters: true and run it again"
        )
    return path
